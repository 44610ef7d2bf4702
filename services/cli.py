"""The `cmt` command: every part of the system from a terminal. It imports nothing, so that Ctrl-C is heard at once."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point."""
    import _signal  # type: ignore[import-not-found] # is there without being loaded

    # Until the command takes the signals over, Ctrl-C ends the process without a trace of what it was importing.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from services.commands.entry import run_command

    run_command()


if __name__ == "__main__":
    main()

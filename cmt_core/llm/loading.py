"""One model at a time is loaded in a process: transformers changes the number type of the whole process while it builds one.

Two that load beside each other put it back in the wrong order, and every tensor made afterwards has the wrong type (seen:
three threads, bfloat16 for good). Threads that compute meanwhile name the type of every number they make.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading_alone"]

_LOADING = threading.RLock()


@contextmanager
def loading_alone() -> Iterator[None]:
    """Waits until no other thread loads; whatever makes a model or its trained parts does it in here."""
    with _LOADING:
        yield

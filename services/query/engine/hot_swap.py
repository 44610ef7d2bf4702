"""Exchanges the checkpoint or the bank while questions are being answered: the old one answers until the new one is loaded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from cmt_core.errors import CoreError
from services.errors import ServiceError
from services.metrics import Metrics
from services.query.engine.bank_looks import Retired
from services.query.engine.messages import Ask, Event
from services.query.engine.ports import Answerer
from services.query.engine.ticket import Ticket
from services.settings import Settings
from services.supervision import ServiceThread

__all__ = ["HotSwap", "Target", "revision_of", "target_of", "with_target"]

Target = Mapping[str, str]
"""What is served: llm, checkpoint, bits_per_token (empty for the checkpoint's own), retriever, bank."""


def target_of(settings: Settings) -> dict[str, str]:
    """What the settings say to serve."""
    model = settings.model
    return {
        "llm": model.llm,
        "checkpoint": model.checkpoint,
        "bits_per_token": str(model.bits_per_token or ""),
        "retriever": model.retriever,
        "bank": settings.bank.uri,
    }


def with_target(settings: Settings, target: Target) -> Settings:
    """The settings that serve `target`."""
    model: dict[str, Any] = {name: target[name] for name in ("llm", "checkpoint", "retriever")}
    bits = target.get("bits_per_token")  # a service that was started before there was such a setting names none
    model["bits_per_token"] = int(bits) if bits else None
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update=model),
            "bank": settings.bank.model_copy(update={"uri": target["bank"]}),
        }
    )


def revision_of(target: Target) -> str:
    """A short name of a target."""
    return hashlib.sha256(json.dumps(dict(target), sort_keys=True).encode()).hexdigest()[:12]


class HotSwap:
    """Holds what answers; `load(target)` makes another one, and blocks while it does."""

    def __init__(self, load: Callable[[Target], Answerer], target: Target, metrics: Metrics | None = None) -> None:
        self._load = load
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()  # one exchange at a time
        self.current = load(target)
        self.target = dict(target)
        self._wanted = self.revision
        self.error: str | None = None

    @property
    def revision(self) -> str:
        """A short name of what answers now."""
        return revision_of(self.target)

    def submit(self, ask: Ask, deliver: Callable[[Event], None]) -> tuple[Answerer, Ticket]:
        """Hands a question to whichever engine takes it."""
        while True:
            answerer = self.current
            try:
                return answerer, answerer.submit(ask, deliver)
            except Retired:  # exchanged between the two lines above
                continue

    def switch(self, target: Target) -> ServiceThread | None:
        """Loads `target` in the background, unless it is what is wanted already; questions go on meanwhile.

        Both are in memory until the old one has finished its answers. When it can't be loaded the old one stays, and
        `error` says why.
        """
        revision = revision_of(target)
        if revision == self._wanted and self.error is None:
            return None
        self._wanted, self.error = revision, None
        if revision == self.revision:
            return None  # back to what is loaded
        thread = ServiceThread(
            "reload", lambda: self._exchange(target, revision), self._metrics, failed=self._failed, most_failures=1
        )
        return thread.start()

    def _exchange(self, target: Target, revision: str) -> None:
        with self._lock:
            if revision != self._wanted:
                return  # another one was asked for meanwhile
            try:
                fresh = self._load(target)
            except (ServiceError, CoreError) as error:
                self.error = str(error)
            else:
                old, self.current, self.target = self.current, fresh, dict(target)
                old.stop()

    def _failed(self, error: BaseException) -> None:
        """Whatever the new one does, the old one goes on answering."""
        self.error = f"{type(error).__name__}: {error}"

"""What every engine of a replica has: its options, and looks at the bank that wait behind no answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.metrics import Metrics
from services.query.engine.grouping import attempted
from services.query.engine.messages import Ask, Failure, HitList, Overview, Versions
from services.query.engine.ports import BankModel, MemoryReader
from services.query.engine.retrieval import Retrieval
from services.supervision import STALLED_AFTER_S

__all__ = ["BankLooks", "Retired", "SchedulerOptions"]


class Retired(Exception):
    """The engine takes nothing new: it is being stopped."""


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Rows of the running batch, memories a question, the least score of a relevant one, and the longest prompt;
    whether every window of a document counts, and whether a question that is too long is shortened or refused.

    `join_at_once` prompts are read together at most: reading all that wait would keep the first ones waiting for the last. A
    thread that is at one piece of work for `stalled_after_s` hangs. `time_weight` is that of the time a question names.
    `spell_answers`: answers of a few words are spelled from their sources' texts. `answer_candidates`: the likeliest of so many
    is taken.
    """

    max_batch: int = 8
    top_k: int | None = None
    min_score: float | None = 0.0
    every_chunk: bool = False
    max_prompt_tokens: int = 4096
    shorten: bool = True
    join_at_once: int = 4
    stalled_after_s: float = STALLED_AFTER_S
    min_evidence: float = 0.0
    time_weight: float = 0.0
    spell_answers: bool = True
    answer_candidates: int = 1
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


class BankLooks:
    """The looks of one model's keys at one bank; any thread may call them."""

    def __init__(self, model: BankModel, bank: MemoryReader, options: SchedulerOptions, metrics: Metrics) -> None:
        self._looking_model, self._bank, self._options, self._metrics = model, bank, options, metrics
        self._retrieval = Retrieval(
            model,
            bank,
            top_k=options.top_k,
            min_score=options.min_score,
            every_chunk=options.every_chunk,
            metrics=metrics,
            min_evidence=options.min_evidence,
            time_weight=options.time_weight,
            clock=options.clock,
        )

    @property
    def model_id(self) -> str:
        """The checkpoint that answers."""
        return self._looking_model.model_id

    def search(self, ask: Ask) -> HitList | Failure:
        """What the bank holds for `ask.question`, relevant or not."""
        return attempted(lambda: self._retrieval.find([ask], relevant_only=False)[0])

    def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its `n` latest documents."""

        def look() -> Overview:
            latest = tuple(self._bank.latest(n, namespace)) if n else ()
            return Overview(self._bank.stats(), latest, self.model_id)

        return attempted(look)

    def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        return attempted(lambda: Versions(tuple(self._bank.history(doc_id, namespace))))

"""Claims about compressing in stages: batches of like length, out of memory, bad texts, and many callers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_core.windows import Window
from services.bank.schema import Chunk
from services.errors import RecordError, ServiceError
from services.ingest.stages import StagedCompressor, is_out_of_memory
from services.ingest.token_batches import TokenQueue, Waiting
from services.lexical import LexicalMemory, LexicalModel
from services.metrics import Metrics


class Device(LexicalModel):
    """A model on a device with room for so many words; batches are noted."""

    def __init__(self, room_words: int = 10**9, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.room_words = room_words
        self.error = error
        self.batches: list[list[str]] = []
        self.in_use = threading.Lock()

    def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
        assert self.in_use.acquire(blocking=False), "the model is not thread-safe"
        try:
            if any("BROKEN" in window.text for window in windows):
                raise ZeroDivisionError("the model is broken")
            if any("POISON" in window.text for window in windows):
                raise ValueError("this text can't be compressed")
            if sum(len(window.text.split()) for window in windows) > self.room_words:
                raise self.error("CUDA out of memory. Tried to allocate 2 GiB")
            self.batches.append([window.text for window in windows])
            return super().compress(windows)
        finally:
            self.in_use.release()


@pytest.fixture
def opened() -> Iterator[list[StagedCompressor]]:
    made: list[StagedCompressor] = []
    yield made
    for one in made:
        one.close()


def staged(opened: list[StagedCompressor], model: Device, budget: int = 4096, wait_s: float = 0.02) -> StagedCompressor:
    opened.append(StagedCompressor(model, Metrics(), budget, wait_s))
    return opened[-1]


def texts(result: Any) -> list[str]:
    assert not isinstance(result, RecordError), result
    assert all(isinstance(chunk, Chunk) for chunk in result)
    return [chunk.text for chunk in result]


def test_many_callers_share_batches_and_get_their_own_chunks(opened: list[StagedCompressor]) -> None:
    model = Device()
    stages = staged(opened, model, wait_s=0.2)
    documents = [[("", f"Ferry {caller} {number}.") for number in range(5)] for caller in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(stages.compress, documents))
    for own, result in zip(documents, results, strict=True):
        assert [texts(one) for one in result] == [[text] for _, text in own]
    assert len(model.batches) < 8


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_out_of_memory_halves_the_batch_down_to_the_document_that_is_too_much(
    opened: list[StagedCompressor], error: type[Exception]
) -> None:
    model = Device(room_words=30, error=error)
    stages = staged(opened, model)
    small = [("", f"Ferry number {number} sails again today.") for number in range(20)]
    large = ("", " ".join(f"word{number}" for number in range(100)))
    *good, bad = stages.compress([*small, large])
    assert [texts(one) for one in good] == [[text] for _, text in small]
    assert isinstance(bad, RecordError)
    assert bad.reason == "out_of_memory"
    assert max(len(batch) for batch in model.batches) <= 5


def test_after_out_of_memory_batches_are_smaller(opened: list[StagedCompressor]) -> None:
    queue = TokenQueue(1000, 0.0)
    for _ in range(20):
        queue.halve_budget()
    assert queue.budget_tokens == 64


def test_a_bad_text_fails_alone_and_a_broken_model_fails_its_callers(opened: list[StagedCompressor]) -> None:
    stages = staged(opened, Device())
    first, bad, last = stages.compress([("", "Ferry one."), ("", "POISON here."), ("", "Ferry two.")])
    assert (texts(first), texts(last)) == (["Ferry one."], ["Ferry two."])
    assert isinstance(bad, RecordError)
    assert bad.reason == "unstorable"
    with pytest.raises(ZeroDivisionError):
        stages.compress([("", "BROKEN.")])
    assert texts(stages.compress([("", "Ferry three.")])[0]) == ["Ferry three."], "the next batch may be fine"


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA out of memory."))
    assert not is_out_of_memory(ServiceError("no"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(64, 600))
def test_batches_hold_every_window_once_within_the_budget(lengths: list[int], budget: int) -> None:
    queue = TokenQueue(budget, 0.0)
    waiting = [Waiting(Window(number, "", "x" * (4 * length)), None) for number, length in enumerate(lengths)]
    for one in waiting:
        if sum(other.tokens for other in waiting[: waiting.index(one)]) < 4 * budget:
            queue.put([one])
    put = queue._waiting.copy()
    taken: list[Waiting] = []
    while len(taken) < len(put):
        batch = queue.take()
        assert len(batch) * max(one.tokens for one in batch) <= budget or len(batch) == 1
        taken += batch
    assert sorted(one.window.number for one in taken) == sorted(one.window.number for one in put)


def test_the_oldest_window_is_in_the_next_batch_once_it_is_due() -> None:
    queue = TokenQueue(100, 0.05)
    old = Waiting(Window(0, "", "x" * 20), None)
    queue.put([old])
    time.sleep(0.06)
    queue.put([Waiting(Window(number, "", "x" * 300), None) for number in range(1, 4)])
    assert old in queue.take()


def test_a_full_queue_holds_its_callers_back() -> None:
    queue = TokenQueue(100, 0.0)
    queue.put([Waiting(Window(0, "", "x" * 2000), None)])
    passed = threading.Event()
    late = threading.Thread(target=lambda: (queue.put([Waiting(Window(1, "", "y"), None)]), passed.set()), daemon=True)
    late.start()
    assert not passed.wait(0.1)
    queue.take()
    assert passed.wait(5.0)

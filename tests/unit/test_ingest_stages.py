"""Claims about compressing in stages: batches of like length, out of memory, bad texts, and many callers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_core.text.windows import Window
from services.bank.records import Chunk
from services.errors import RecordError, ServiceError, WorkerLost
from services.ingest.stages import StagedCompressor, is_out_of_memory
from services.ingest.token_batches import QueuedDocument, QueuedWindow, TokenQueue
from services.metrics import Metrics
from services.testing.lexical import LexicalMemory, LexicalModel


class Device(LexicalModel):
    """A model on a device with room for so many words; batches are noted."""

    def __init__(self, room_words: int = 10**9, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.room_words = room_words
        self.error = error
        self.batches: list[list[str]] = []
        self.in_use = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def compress(self, windows: Sequence[Window]) -> list[LexicalMemory]:
        assert self.in_use.acquire(blocking=False), "the model is not thread-safe"
        self.begun.set()
        self.gate.wait(20.0)
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


def staged(opened: list[StagedCompressor], model: Device, budget: int = 4096) -> StagedCompressor:
    opened.append(StagedCompressor(model, Metrics(), budget))
    return opened[-1]


def texts(result: Any) -> list[str]:
    assert not isinstance(result, RecordError), result
    assert all(isinstance(chunk, Chunk) for chunk in result)
    return [chunk.text for chunk in result]


def test_many_callers_share_batches_and_get_their_own_chunks(opened: list[StagedCompressor]) -> None:
    model = Device()
    stages = staged(opened, model)
    documents = [[("", f"Ferry {caller} {number}.") for number in range(5)] for caller in range(8)]
    model.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(stages.compress, [("", "The model is busy.")])
        assert model.begun.wait(10.0)
        others = [pool.submit(stages.compress, own) for own in documents]
        wait_until(lambda: waiting(stages) == 40)
        model.gate.set()
        results = [one.result() for one in others]
        assert texts(first.result()[0]) == ["The model is busy."]
    for own, result in zip(documents, results, strict=True):
        assert [texts(one) for one in result] == [[text] for _, text in own]
    assert len(model.batches) < 8, "what came while the model was busy is read together"


@pytest.mark.parametrize("callers", [1, 5])
def test_close_tells_the_callers_that_wait_and_finishes_the_batch_that_is_read(callers: int) -> None:
    model = Device()
    stages = StagedCompressor(model, Metrics(), 4096)
    model.gate.clear()
    with ThreadPoolExecutor(callers + 2) as pool:
        read = pool.submit(stages.compress, [("", "The model is busy.")])
        assert model.begun.wait(10.0)
        wait = [pool.submit(stages.compress, [("", "Ferry."), ("", "Bridge.")]) for _ in range(callers)]
        wait_until(lambda: waiting(stages) == 2 * callers)
        closed = pool.submit(stages.close)
        for one in wait:
            with pytest.raises(WorkerLost, match="closed"):
                one.result(timeout=10.0)
        assert not read.done()
        model.gate.set()
        assert texts(read.result(timeout=10.0)[0]) == ["The model is busy."]
        closed.result(timeout=10.0)


def test_caller_with_a_window_in_the_model_and_others_waiting_is_told() -> None:
    model = Device()
    stages = StagedCompressor(model, Metrics(), 64)
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        caller = pool.submit(stages.compress, [("", f"Ferry number {number} sails.") for number in range(9)])
        assert model.begun.wait(10.0)
        wait_until(lambda: waiting(stages) > 0)
        closed = pool.submit(stages.close)
        with pytest.raises(WorkerLost):
            caller.result(timeout=10.0)
        model.gate.set()
        closed.result(timeout=10.0)


def test_closed_compressor_refuses_at_once() -> None:
    stages = StagedCompressor(Device(), Metrics(), 4096)
    stages.close()
    stages.close()
    with pytest.raises(WorkerLost):
        stages.compress([("", "Too late.")])
    assert stages.compress([("", " ")]) == [[]]


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


def test_after_out_of_memory_batches_are_smaller() -> None:
    queue = TokenQueue(1000)
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


def waiting(stages: StagedCompressor) -> int:
    return len(stages._queue._waiting)


def wait_until(claim: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def document(name: str, tokens: Sequence[int], arrived_s: float = 0.0) -> list[QueuedWindow]:
    """The windows of a document, each of so many tokens."""
    pending = QueuedDocument(len(tokens), arrived_s)
    return [QueuedWindow(Window(i, "", "text", n), pending, (name, i)) for i, n in enumerate(tokens)]


def names(batch: Sequence[QueuedWindow]) -> set[str]:
    return {one.slot[0] for one in batch}


def drained(queue: TokenQueue, windows: int) -> list[list[QueuedWindow]]:
    batches: list[list[QueuedWindow]] = []
    while sum(map(len, batches)) < windows:
        batches.append(queue.take())
    return batches


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(64, 600))
def test_batches_hold_every_window_once_within_the_budget(documents: list[list[int]], budget: int) -> None:
    queue = TokenQueue(budget)
    put = [one for i, tokens in enumerate(documents) for one in document(str(i), tokens, float(i))]
    queue.put(put)
    batches = drained(queue, len(put))
    for batch in batches:
        longest, shortest = max(one.tokens for one in batch), min(one.tokens for one in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
        assert shortest >= 0.75 * longest, "what is padded is computed for nothing"
    assert sorted(one.slot for batch in batches for one in batch) == sorted(one.slot for one in put)


@pytest.mark.parametrize("small", [[20], [200], [250, 250, 60]])
def test_a_small_document_is_in_the_next_batches_behind_a_large_one(small: list[int]) -> None:
    queue = TokenQueue(1024)
    queue.put(document("large", [250] * 1000))
    for _ in range(7):
        assert names(queue.take()) == {"large"}
    queue.put(document("small", small, 1.0))
    after = [queue.take() for _ in range(1 + len(set(small)))]
    assert sum(one.slot[0] == "small" for batch in after for one in batch) == len(small)


def test_small_documents_pass_several_large_ones_of_several_callers() -> None:
    queue = TokenQueue(1024)
    for number in range(5):
        queue.put(document(f"large{number}", [250] * 400, float(number)))
    queue.take()
    queue.put(one for i in range(4) for one in document(f"small{i}", [240], 10.0 + i))
    assert names([*queue.take(), *queue.take()]) >= {"small0", "small1", "small2", "small3"}


def test_a_large_document_goes_on_beside_an_endless_stream_of_small_ones() -> None:
    queue = TokenQueue(1024)
    queue.put(document("large", [250] * 40))
    batches = 0
    while any(one.slot[0] == "large" for one in queue._waiting):
        queue.put(one for i in range(8) for one in document(f"small{batches}-{i}", [250], 1.0 + batches))
        queue.take()
        batches += 1
    assert batches <= 4 * 10, "every fourth batch is of the oldest"


def test_of_two_large_documents_the_one_that_is_nearer_its_end_goes_on() -> None:
    queue = TokenQueue(512)
    queue.put(document("first", [250] * 8))
    queue.take()
    queue.put(document("second", [250] * 8, 1.0))
    order = [one.slot[0] for batch in drained(queue, 14) for one in batch]
    assert order == ["first"] * 6 + ["second"] * 8


def test_on_a_slow_device_batches_are_small_enough_for_others_to_come_between() -> None:
    queue = TokenQueue(2048)
    queue.put(document("large", [250] * 100))
    batch = queue.take()
    assert len(batch) == 8
    queue.learn(batch, seconds=4.0)  # 500 tokens a second
    assert len(queue.take()) == 1
    for _ in range(30):
        queue.learn(batch, seconds=0.1)
    assert len(queue.take()) == 8


def test_windows_behind_a_large_document_are_taken_in_without_waiting(opened: list[StagedCompressor]) -> None:
    model = Device()
    stages = staged(opened, model, budget=64)
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(stages.compress, [("", "The ferry sails again at noon today. " * 200)])
        assert model.begun.wait(10.0)
        behind = waiting(stages)
        small = pool.submit(stages.compress, [("", "Ferry.")])
        wait_until(lambda: waiting(stages) == behind + 1)
        model.gate.set()
        assert texts(small.result()[0]) == ["Ferry."]
        texts(large.result()[0])
    assert [batch == ["Ferry."] for batch in model.batches].index(True) <= 1

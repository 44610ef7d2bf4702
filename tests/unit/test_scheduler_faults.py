"""Faults at every call that the engine makes of the model and of the bank: whoever asked is told, and the next is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from cmt_core.generation.query import Query, Sampling
from services.errors import BankUnavailable
from services.metrics import Metrics
from services.query.engine.hot_swap import HotSwap
from services.query.engine.live import LiveEngine
from services.query.engine.messages import Ask, Delta, Event, Failure, Reply
from services.query.engine.scheduler import Scheduler, SchedulerOptions
from services.testing.lexical import LexicalModel
from services.testing.memory_bank import InMemoryBank
from tests.serving import publish
from tests.waiting import until

if TYPE_CHECKING:
    from cmt_core.model import CMT

BRIDGE = "Mayor Lund opened the bridge in Aarhus."
ASKS = (
    Ask("Who opened the bridge?"),
    Ask("Who opened the bridge?", "closed"),
    Ask("Who opened the bridge?", "rag", max_new_tokens=2),
    Ask("Who opened the bridge?", "hybrid", sampling=Sampling(temperature=1.0, seed=3)),
    Ask("Which comet?", min_score=0.9),
    Ask("Who opened the bridge?", namespace="nothing"),
)


class PanicException(BaseException):
    """As pyo3 raises it where Rust code panics."""


class AcceleratorError(RuntimeError):
    """As torch raises it when the GPU is lost."""


FAULTS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("the device is gone"),
    lambda: ValueError("a question that can't be read"),
    lambda: KeyError(3),
    lambda: MemoryError(),
    lambda: BankUnavailable("the disk is gone"),
    lambda: AcceleratorError("CUDA error: an illegal memory access"),
    lambda: PanicException("index out of bounds"),
    lambda: SystemExit(1),
    lambda: KeyboardInterrupt(),
    lambda: GeneratorExit(),
)


class Faults:
    """Counts calls, and raises at one of them (-1 is none), or at the first of a name."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: int | str = -1
        self.fault: Callable[[], BaseException] = RuntimeError
        self.names: list[str] = []
        self._lock = threading.Lock()

    def plan(self, at: int | str, fault: Callable[[], BaseException]) -> None:
        self.calls, self.at, self.fault, self.names = 0, at, fault, []

    def pass_by(self, name: str) -> None:
        with self._lock:
            hit = self.at == self.calls or (self.at == name and name not in self.names)
            self.calls += 1
            self.names.append(name)
        if hit:
            raise self.fault()


class Faulty:
    """Anything, whose every method call passes by the faults first; what a call named in `wrapped` gives is faulty, too."""

    def __init__(self, inner: Any, faults: Faults, *wrapped: str) -> None:
        self._inner, self._faults, self._wrapped = inner, faults, wrapped

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._faults.pass_by(f"{type(self._inner).__name__}.{name}")
            given = found(*arguments, **options)
            return Faulty(given, self._faults) if name in self._wrapped else given

        return call


class FaultyMetrics(Metrics):
    """Metrics whose every call passes by the faults, but the count of failures: that one shows what happened."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        if name != "cmt_thread_failures_total":
            self._faults.pass_by(f"count {name}")
        super().count(name, amount, **labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._faults.pass_by(f"gauge {name}")
        super().gauge(name, value, **labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._faults.pass_by(f"observe {name}")
        super().observe(name, value, **labels)


class Box:
    """The events of one question."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def ended(self) -> bool:
        return bool(self.events) and not isinstance(self.events[-1], Delta)


class Rig:
    """An engine on the lexical model and a small bank, both of which fail when they are told to."""

    def __init__(self) -> None:
        self.faults = Faults()
        model, bank = LexicalModel(), InMemoryBank()
        publish(bank, model, "bridge", BRIDGE)
        publish(bank, model, "ferry", "The ferry to Samso was cancelled by a storm.")
        self.metrics = FaultyMetrics(self.faults)
        self.scheduler = Scheduler(
            Faulty(model, self.faults, "answer_batch"),
            Faulty(bank, self.faults),
            SchedulerOptions(max_batch=4, join_at_once=3),
            self.metrics,
        )

    def ask(self, asks: Sequence[Ask] = ASKS) -> list[Event]:
        boxes = [Box() for _ in asks]
        for ask, box in zip(asks, boxes, strict=True):
            self.scheduler.submit(ask, box)
        until(lambda: all(box.ended() for box in boxes), 60.0, every_s=0.001, seen=lambda: self.faults.names)
        return [box.events[-1] for box in boxes]

    def answers(self) -> bool:
        (event,) = self.ask([Ask("Who opened the bridge?")])
        return isinstance(event, Reply) and event.answer == BRIDGE


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.scheduler.stop()


def everywhere(rig: Rig) -> Iterator[tuple[int, int]]:
    """Each place among the calls of one round, with a fault that changes from place to place."""
    rig.faults.plan(-1, RuntimeError)
    assert all(isinstance(event, Reply) for event in rig.ask())
    for at in range(rig.faults.calls):
        yield at, at % len(FAULTS)


@pytest.mark.parametrize("shift", range(len(FAULTS)))
def test_a_fault_at_any_call_is_told_to_whoever_asked_and_the_next_question_is_answered(rig: Rig, shift: int) -> None:
    hit: set[str] = set()
    for at, number in everywhere(rig):
        rig.faults.plan(at, FAULTS[(number + shift) % len(FAULTS)])
        ended = rig.ask()
        assert all(isinstance(event, Reply | Failure) for event in ended)
        if len(rig.faults.names) > at:
            hit.add(rig.faults.names[at])
        rig.faults.plan(-1, RuntimeError)
        assert rig.answers(), rig.faults.names
        assert rig.scheduler.trouble is None
    assert {"LexicalModel.query_keys", "InMemoryBank.search", "InMemoryBank.stats", "LexicalBatch.join"} <= hit
    assert {"LexicalBatch.prompt_tokens", "LexicalBatch.step", "LexicalBatch.text", "LexicalBatch.leave"} <= hit
    assert any(name.startswith("observe") for name in hit)


def test_a_question_without_fault_is_answered_beside_one_that_can_not_join(rig: Rig) -> None:
    for name in ("LexicalBatch.join", "LexicalBatch.prompt_tokens"):
        rig.faults.plan(name, lambda: RuntimeError("once"))
        assert all(isinstance(event, Reply) for event in rig.ask())  # once together, then one by one


@pytest.mark.parametrize("name", ["answer_batch", "step"])
def test_an_engine_that_fails_again_and_again_says_so_and_refuses_at_once(name: str) -> None:
    class Gone(LexicalModel):
        def answer_batch(self) -> Any:
            if name == "answer_batch":
                raise AcceleratorError("CUDA error: unspecified launch failure")
            return Faulty(super().answer_batch(), faults)

    class Always(Faults):
        def pass_by(self, name: str) -> None:
            if name.endswith(".step"):
                raise RuntimeError("the device is gone")

    faults, model, bank = Always(), Gone(), InMemoryBank()
    publish(bank, model, "bridge", BRIDGE)
    scheduler = Scheduler(model, bank)
    rig = Rig.__new__(Rig)
    rig.scheduler, rig.faults = scheduler, faults
    for _ in range(4):
        assert rig.ask([Ask("Who opened the bridge?")]) == [Failure("internal", f"internal error: {ERRORS[name]}")]
    many = rig.ask([Ask("Who opened the bridge?")] * 12)
    assert {event.kind for event in many if isinstance(event, Failure)} <= {"internal", "engine"}
    until(lambda: scheduler.trouble is not None)
    assert scheduler.trouble == f"thread model has ended: {ERRORS[name]}"
    (refused,) = rig.ask([Ask("Who opened the bridge?")])
    assert refused == Failure("engine", f"the engine is being replaced: {scheduler.trouble}")
    engine = LiveEngine(HotSwap(lambda target: scheduler, {"llm": "gone"}))
    assert asyncio.run(engine.ready()) == scheduler.trouble
    scheduler.stop()


ERRORS: Mapping[str, str] = {"answer_batch": "AcceleratorError", "step": "RuntimeError"}


def test_a_client_whose_end_of_the_line_breaks_costs_nobody_else_an_answer(rig: Rig) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    rig.scheduler.submit(Ask("Who opened the bridge?"), broken)
    assert rig.answers()
    assert "cmt_thread_failures_total" not in rig.metrics.snapshot().numbers


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), MemoryError(), PanicException()])
def test_a_join_of_several_kinds_that_fails_half_way_leaves_no_row(exact_cmt: CMT, fault: BaseException) -> None:
    """On the real batch: at each forward pass of a join in turn, with one answer running that must not change."""
    asked = Query(question="Who opened the bridge?", mode="closed")
    kinds = [
        Query(question="Who opened the bridge?", mode="closed"),
        Query(question="Who opened the bridge?", mode="rag", passages=["The mayor opened the new bridge."]),
        Query(question="Who?", mode="rag", passages=["A storm cancelled the ferry."], memory_weight=0.5),
    ]
    backbone = exact_cmt.backbone
    undisturbed = exact_cmt.answer_batch()
    (row,) = undisturbed.join([asked])
    expected = [undisturbed.step()[row.row] for _ in range(6)]
    forward, calls, fail_at = backbone.forward, 0, -1

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 == fail_at:
            raise fault
        return forward(*arguments, **options)

    backbone.forward = failing  # type: ignore[method-assign]
    batch = exact_cmt.answer_batch()
    (running,) = batch.join([asked])
    calls = 0
    for one in batch.join(kinds):
        batch.leave(one.row)
    passes = calls
    assert passes >= 4
    got = []
    for at in range(passes):
        calls, fail_at = 0, at
        with pytest.raises(type(fault)):
            batch.join(kinds)
        fail_at = -1
        assert len(batch) == 1
        if len(got) < 6:
            got.append(batch.step()[running.row])
    assert got == expected[: len(got)]


class Hanging:
    """A model or a bank, one method of which does not come back before `go`."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner, self._method = inner, method
        self.go, self.hangs = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.hangs.set()
            self.go.wait(30.0)
            return found(*arguments, **options)

        return call


@pytest.mark.parametrize(("part", "method"), [("model", "answer_batch"), ("model", "query_keys"), ("bank", "search")])
def test_engine_with_a_hung_thread_is_not_ready_refuses_at_once_and_heals(part: str, method: str) -> None:
    model, bank = LexicalModel(), InMemoryBank()
    publish(bank, model, "bridge", BRIDGE)
    hanging = Hanging(model if part == "model" else bank, method)
    parts: tuple[Any, Any] = (hanging, bank) if part == "model" else (model, hanging)
    scheduler = Scheduler(*parts, SchedulerOptions(stalled_after_s=0.2))
    try:
        first, second, third = Box(), Box(), Box()
        scheduler.submit(Ask("Who opened the bridge?"), first)
        assert hanging.hangs.wait(10.0)
        assert scheduler.trouble is None  # slow is not hung
        trouble = until(lambda: scheduler.trouble, 10.0)
        assert f"thread {'model' if method == 'answer_batch' else 'bank'} has been at one piece of work" in trouble
        scheduler.submit(Ask("Who opened the bridge?"), second)
        assert isinstance(second.events[-1], Failure)
        assert second.events[-1].kind == "engine"
        hanging.go.set()
        until(first.ended, 10.0)
        assert isinstance(first.events[-1], Reply)
        until(lambda: scheduler.trouble is None, 10.0)
        scheduler.submit(Ask("Who opened the bridge?"), third)
        until(third.ended, 10.0)
        assert isinstance(third.events[-1], Reply)
    finally:
        hanging.go.set()
        scheduler.stop()

"""A bank that is not there, or not to be read: every question that needs it and readiness say so, until it is back."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.metrics import Metrics
from services.query.engine.hot_swap import HotSwap
from services.query.engine.live import LiveEngine
from services.query.engine.messages import Ask, Event, Failure, Reply
from services.query.ray_serve.app import load_answerer, open_bank
from services.settings import load_settings
from services.testing.lexical import LexicalModel
from tests.integration.serve_desk import Desk
from tests.waiting import until

QUESTION = Ask("Who opened the bridge in Aarhus?")


def served(bank: str) -> LiveEngine:
    """The engine on the bank at this address, as a replica loads it."""
    settings = load_settings(bank__uri=bank)
    return LiveEngine(
        HotSwap(lambda target: load_answerer(settings, lambda _: LexicalModel(), open_bank, Metrics()), {"llm": "x"})
    )


def asked(engine: LiveEngine, ask: Ask = QUESTION) -> Event:
    async def run() -> Event:
        return [event async for event in engine.ask(ask)][-1]

    return asyncio.run(run())


def ready(engine: LiveEngine) -> str | None:
    return asyncio.run(engine.ready())


def answered(engine: LiveEngine) -> bool:
    event = asked(engine)
    return isinstance(event, Reply) and "Lund" in event.answer


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    desk = Desk(str(tmp_path / "bank"))
    desk.publish("bridge", "Bridge opens", "Mayor Lund opened the bridge in Aarhus on Monday.")
    desk.close()
    return tmp_path / "bank"


@contextmanager
def moved_away(bank: Path) -> Iterator[None]:
    bank.rename(bank.parent / "elsewhere")
    yield
    (bank.parent / "elsewhere").rename(bank)


@contextmanager
def emptied(bank: Path) -> Iterator[None]:
    with moved_away(bank):
        bank.mkdir()
        yield
        shutil.rmtree(bank)


@contextmanager
def a_file_in_its_place(bank: Path) -> Iterator[None]:
    with moved_away(bank):
        bank.write_text("no bank")
        yield
        bank.unlink()


@contextmanager
def another_checkpoints(bank: Path) -> Iterator[None]:
    with moved_away(bank):
        model = LexicalModel()
        BankWriter(str(bank), BankLayout("another", model.d_key, model.memory_bytes)).close()
        yield
        shutil.rmtree(bank)


@contextmanager
def broken(bank: Path, pattern: str) -> Iterator[None]:
    """The bytes of these files are of another kind."""
    whole = {path: path.read_bytes() for path in bank.glob(pattern)}
    assert whole
    for path, content in whole.items():
        path.write_bytes(b"\x00" * len(content))
    yield
    for path, content in whole.items():
        path.write_bytes(content)


@contextmanager
def data_missing(bank: Path) -> Iterator[None]:
    """Half of a copy: the table is there, its rows are not."""
    (table,) = bank.glob("memories.lance")
    (table / "data").rename(bank / "data")
    yield
    (bank / "data").rename(table / "data")


@contextmanager
def forbidden(bank: Path) -> Iterator[None]:
    """To another user of the machine."""
    if os.geteuid() == 0:
        os.chmod(bank.parent, 0o700)  # noqa: PTH101 - pytest's own folder
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        bank.chmod(0)
        yield
        bank.chmod(0o755)


DAMAGES: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "moved away": moved_away,
    "emptied": emptied,
    "a file": a_file_in_its_place,
    "another checkpoint's": another_checkpoints,
    "manifests broken": lambda bank: broken(bank, "*.lance/_versions/*"),
    "data missing": data_missing,
    "forbidden": forbidden,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bank_that_goes_while_it_is_served_is_told_with_its_place_and_is_read_again_when_it_is_back(
    bank: Path, damage: str
) -> None:
    engine = served(str(bank))
    assert ready(engine) is None
    assert answered(engine)
    with DAMAGES[damage](bank):
        failure = asked(engine)
        assert isinstance(failure, Failure)
        assert (failure.kind, str(bank) in failure.message, "\n" in failure.message) == ("bank", True, False)
        reason = ready(engine)
        assert reason is not None
        assert str(bank) in reason
        assert isinstance(asked(engine, Ask("Who?", "closed")), Reply)  # needs no bank
    until(lambda: ready(engine) is None)
    until(lambda: answered(engine))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bank_that_is_not_there_at_the_start_is_served_when_it_comes(bank: Path, damage: str) -> None:
    with DAMAGES[damage](bank):
        engine = served(str(bank))
        reason = ready(engine)
        assert reason is not None
        assert str(bank) in reason
    until(lambda: answered(engine))
    assert ready(engine) is None


def test_a_relative_address_is_told_as_the_place_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reason = ready(served("data/bnak"))
    assert reason is not None
    assert reason.endswith(
        f"there is no bank at {tmp_path}/data/bnak: start `cmt ingest`, which makes it, or correct bank.uri"
    )

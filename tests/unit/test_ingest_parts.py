"""Claims about retries, topic epochs, and the small compressor that needs no LLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmt_core.generation.query import Query
from services.bank.epochs import TopicEpochs
from services.errors import BankFull, BankMismatch, BrokerUnreachable, ServiceError, SettingsError, TopicMissing
from services.ingest.compressor import CompressorWorker
from services.ingest.retry import Retry, may_heal
from services.metrics import Metrics
from services.settings import Settings
from services.testing.lexical import LexicalModel, load_lexical


def test_lexical_query_model_reads_what_the_lexical_compressor_wrote() -> None:
    compressor, reader = LexicalModel(), LexicalModel()
    assert (compressor.model_id, compressor.d_key, compressor.memory_bytes) == (
        reader.model_id,
        reader.d_key,
        reader.memory_bytes,
    )
    windows = compressor.windows("", "The bridge in Aarhus was opened by Mayor Lund. It cost nine million.")
    np.testing.assert_allclose(
        compressor.document_keys(windows).vectors, reader.query_keys([one.reading for one in windows]).vectors
    )
    memories = [memory.code for memory in compressor.compress(windows)]
    (text,) = reader.read(Query("Who opened the bridge in Aarhus?", memories=memories))
    assert "Mayor Lund" in text


def test_chunks_go_back_to_their_own_documents() -> None:
    metrics = Metrics()
    worker = CompressorWorker(Settings(), load_lexical, metrics)
    long = " ".join(f"Sentence number {number} is about ferries." for number in range(60))
    chunks = worker.compress([("A", "One bridge."), ("B", " \n "), ("C", long), ("", "One ferry.")])
    assert [len(own) for own in chunks] == [1, 0, len(chunks[2]), 1]
    assert len(chunks[2]) > 2
    assert chunks[0][0].text == "One bridge."
    assert chunks[3][0].text == "One ferry."
    assert "number 59" in chunks[2][-1].text
    total = sum(map(len, chunks))
    assert metrics.snapshot().numbers["cmt_ingest_windows_total"] == {(): float(total)}


def test_a_batch_of_blank_texts_is_no_error() -> None:
    assert CompressorWorker(Settings(), load_lexical, Metrics()).compress([("A", " ")]) == [[]]


@pytest.mark.parametrize(
    ("error", "heals"),
    [
        (BankFull("full"), True),
        (BrokerUnreachable("away"), True),
        (BankMismatch("other"), False),
        (TopicMissing("none"), False),
        (SettingsError("wrong"), False),
        (ServiceError("broken"), False),
    ],
)
def test_only_what_may_heal_is_tried_again(error: ServiceError, heals: bool) -> None:
    calls = 0

    def call() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return "done"

    retry = Retry(60.0, lambda seconds: False)
    assert may_heal(error) is heals
    if heals:
        assert retry(call) == "done"
    else:
        with pytest.raises(type(error)):
            retry(call)
        assert calls == 1


def test_pauses_grow_and_end_with_the_stop() -> None:
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 8

    def call() -> None:
        raise BankFull("full")

    with pytest.raises(BankFull):
        Retry(60.0, wait)(call)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.1, 5.0)


def test_a_known_topic_keeps_its_epoch_and_a_new_one_gets_a_larger(tmp_path: Path) -> None:
    clock = iter([5000, 4000])
    uri = str(tmp_path / "bank")
    first = TopicEpochs(uri, clock_ms=lambda: next(clock))
    assert first.epoch_of("a") == 5000
    assert first.epoch_of("a") == 5000
    again = TopicEpochs(uri, clock_ms=lambda: next(clock))
    assert again.epoch_of("a") == 5000
    assert again.epoch_of("b") == 5001, "also when the clock was set back"
    assert TopicEpochs(uri, clock_ms=lambda: 0).epoch_of("b") == 5001

"""Claims about erasing, forgetting and optimising a bank, on a real LanceDB table."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from services.bank.reader import BankReader
from services.bank.records import DocumentWrite
from services.bank.writer import BankWriter
from tests.integration.test_bank import LAYOUT, T0, all_hits, at, delete, seconds_clock, texts, write

SECRET = "Zanzibarquartz"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


def on_disk(uri: str, words: str) -> bool:
    """Whether any file of the bank holds these bytes, in the spelling of the text or of the full-text index."""
    wanted = (words.encode(), words.lower().encode())
    files = [path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()]
    return any(one in content for content in files for one in wanted)


def filled(uri: str) -> BankWriter:
    writer = BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock())
    writer.commit([write("gone", at(0), SECRET, title=SECRET), write("kept", at(1), "kept")])
    writer.commit([write("gone", at(2), f"{SECRET} again")])
    writer.optimize()
    writer.commit([write("more", at(3), "more"), write("gone", at(4), f"{SECRET} thrice")])
    return writer


def test_purged_document_leaves_nothing_in_any_file_and_no_replay_brings_it_back(uri: str) -> None:
    reader = BankReader(uri, LAYOUT, read_staleness_s=0)
    with filled(uri) as writer:
        assert on_disk(uri, SECRET)
        assert writer.purge("gone") == 3
        assert not on_disk(uri, SECRET)
        assert reader.history("gone") == []
        assert writer.commit([write("gone", at(4), "replayed")]).stale == 1
        assert texts(reader) == {"kept": ["kept"], "more": ["more"]}
        assert writer.purge("gone") == 0
        assert writer.purge("never there") == 0


def test_purge_of_a_deleted_document_erases_what_was_left_of_it(uri: str) -> None:
    with filled(uri) as writer:
        writer.commit([delete("gone", at(9))])
        assert writer.purge("gone") == 3
        assert not on_disk(uri, SECRET)
        assert writer.commit([write("gone", at(8), "late")]).stale == 1


def test_history_is_kept_as_far_back_as_asked_and_no_further(uri: str) -> None:
    reader = BankReader(uri, LAYOUT, read_staleness_s=0)
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        for number in range(6):
            writer.commit([write("a", at(number), f"v{number}"), write(f"d{number}", at(10 + number), "x")])
        writer.commit([delete("d0", at(20))])  # second 7
        moments = [T0 + timedelta(seconds=second) for second in (4, 5, 6, 7)]
        before = [texts(reader, moment) for moment in moments]
        assert writer.remove_history(T0 + timedelta(seconds=4)) == 2  # the versions that ended in seconds 2 and 3
        writer.optimize()
        assert [texts(reader, moment) for moment in moments] == before
        assert len(reader.history("a")) == 4


def test_optimised_bank_is_one_fragment_with_the_same_rows_and_history(uri: str) -> None:
    reader = BankReader(uri, LAYOUT, read_staleness_s=0)
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        for number in range(12):
            writer.commit([write(f"d{number % 5}", at(number), f"v{number}")])
        moments = [T0 + timedelta(seconds=second) for second in range(13)]
        before = [texts(reader, moment) for moment in moments]
        writer.optimize()
    assert reader.stats().fragments == 1
    assert [texts(reader, moment) for moment in moments] == before


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit keys around a few centres, as those of news about the same events lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, LAYOUT.d_key))
    keys = centres[rng.integers(0, len(centres), count)] + 0.5 * rng.standard_normal((count, LAYOUT.d_key))
    return np.asarray(keys / np.linalg.norm(keys, axis=1, keepdims=True), dtype=np.float32)


def keyed(number: int, key: np.ndarray) -> DocumentWrite:
    document = write(f"d{number}", at(number), f"text {number}")
    return replace(document, chunks=(replace(document.chunks[0], key=key),))


def test_search_by_index_finds_what_exact_search_finds_and_rows_that_the_index_does_not_have(uri: str) -> None:
    """Recall@4 against exact search is at least 0.98, with a third of the rows replaced or deleted and a tail outside."""
    keys = clustered(6000, seed=1)
    reader = BankReader(uri, LAYOUT, read_staleness_s=0)
    with BankWriter(uri, LAYOUT, maintain_every=0, ann_rows=0, clock=seconds_clock()) as writer:
        writer.commit([keyed(number, key) for number, key in enumerate(keys[:5000])])
        writer.commit([delete(f"d{number}", at(10_000 + number)) for number in range(0, 5000, 3)])
        questions = clustered(100, seed=2)
        writer._ann_rows = 1000
        writer.optimize()
        writer.commit([keyed(number, key) for number, key in enumerate(keys[5000:], 5000)])  # not in the index
        for moment in (None, T0 + timedelta(seconds=1)):
            live = [n for n in range(6000) if (n % 3 or n >= 5000)] if moment is None else list(range(5000))
            exact = np.argsort(-(questions @ keys[live].T), axis=1)[:, :4]
            found = reader.search(questions, 4, as_of=moment)
            rows = [{f"d{live[n]}" for n in row} for row in exact]
            right = sum(len(own & {hit.doc_id for hit in hits}) for own, hits in zip(rows, found, strict=True))
            assert reader._index_state(reader._snapshot()).has_keys
            assert all(hit.doc_id in {f"d{n}" for n in live} for hits in found for hit in hits)
            assert right >= 0.98 * 400
    assert len(all_hits(reader)) == 1000

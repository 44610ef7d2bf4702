"""Claims about the bank as a whole, on a real LanceDB table in a temporary folder."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bank import maintenance
from services.bank.fence import WriterFence
from services.bank.reader import BankReader
from services.bank.records import BankStats, Chunk, DocumentDelete, DocumentWrite, Hit, Position
from services.bank.schema import BankLayout
from services.bank.store import WriterLock
from services.bank.writer import BankWriter
from services.errors import BankFenced, BankFull, BankMismatch, BankUnavailable

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LAYOUT = BankLayout("checkpoint-a", d_key=16, memory_bytes=32)
ODD_IDS = [
    "it's",
    '"quoted"',
    "back\\slash\\",
    "line\nbreak\ttab",
    "über 漢字 \U0001f4f0",
    "nul\0byte",
    "'; --",
    "%_",
    "",
]


def at(offset: int, epoch: int = 0, partition: int = 0) -> Position:
    return Position(epoch, partition, offset, T0 + timedelta(seconds=offset))


def key_of(text: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(LAYOUT.d_key).astype(np.float32)


def write(doc_id: str, position: Position, *texts: str, namespace: str = "default", **about: object) -> DocumentWrite:
    fields = {"title": None, "url": None, "source": None, "published_at": None, "expires_at": None} | about
    chunks = tuple(Chunk(text, key_of(text), text.encode()[:32].ljust(32, b"."), len(text)) for text in texts)
    return DocumentWrite(namespace=namespace, doc_id=doc_id, position=position, chunks=chunks, **fields)


def delete(doc_id: str, position: Position) -> DocumentDelete:
    return DocumentDelete("default", doc_id, position)


def all_hits(reader: BankReader, as_of: datetime | None = None, namespace: str = "default") -> list[Hit]:
    return reader.search(np.ones((1, LAYOUT.d_key)), 1000, namespace, as_of, every_chunk=True)[0]


def texts(reader: BankReader, as_of: datetime | None = None) -> dict[str, list[str]]:
    """Every visible document with the texts of its chunks, as a search sees them."""
    found: dict[str, list[str]] = {}
    for hit in sorted(all_hits(reader, as_of), key=lambda hit: (hit.doc_id, hit.chunk_no)):
        assert hit.chunk_no == len(found.setdefault(hit.doc_id, []))
        found[hit.doc_id].append(hit.text)
    return found


def seconds_clock() -> Callable[[], datetime]:
    """A clock that moves one second at each look; commit number n (from 1) happens at T0 + n seconds."""
    ticks = itertools.count(1)
    return lambda: T0 + timedelta(seconds=next(ticks))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


@pytest.fixture
def writer(uri: str) -> Iterator[BankWriter]:
    with BankWriter(uri, LAYOUT, clock=seconds_clock()) as writer:
        yield writer


@pytest.fixture
def reader(uri: str) -> BankReader:
    return BankReader(uri, LAYOUT, read_staleness_s=0)


def test_written_document_is_found_with_everything_it_carries(writer: BankWriter, reader: BankReader) -> None:
    published = T0 - timedelta(days=1)
    document = write("a", at(0), "first", "second", title="T", url="http://x", source="s", published_at=published)
    report = writer.commit([document])

    assert (report.inserted_rows, report.closed_rows, report.stale) == (2, 0, 0)
    (hit,) = reader.search(key_of("second")[None], k=1)[0]
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    assert (hit.doc_id, hit.chunk_no, hit.text, hit.n_tokens) == ("a", 1, "second", 6)
    assert (hit.title, hit.url, hit.source, hit.published_at) == ("T", "http://x", "s", published)
    assert hit.memory == document.chunks[1].memory
    assert hit.ingested_at == T0 + timedelta(seconds=1)


def test_memory_comes_back_with_the_zeros_that_are_not_stored(writer: BankWriter, reader: BankReader) -> None:
    memories = [b"\0" * 32, b"\0" * 31 + b"x", b"code\0\0more".ljust(32, b"\0")]
    chunks = tuple(Chunk(f"text {n}", key_of(f"text {n}"), memory, 1) for n, memory in enumerate(memories))
    writer.commit([replace(write("a", at(0), "x"), chunks=chunks)])
    assert [hit.memory for hit in sorted(all_hits(reader), key=lambda hit: hit.chunk_no)] == memories


def test_replayed_record_leaves_one_row(writer: BankWriter, reader: BankReader) -> None:
    first = writer.commit([write("a", at(0), "one")])
    again = writer.commit([write("a", at(0), "one"), write("a", at(0), "one")])

    assert (again.stale, again.inserted_rows, again.version) == (2, 0, first.version)
    assert reader.stats().rows == 1


def test_replay_after_a_restart_leaves_one_row(uri: str, reader: BankReader) -> None:
    for _ in range(2):
        with BankWriter(uri, LAYOUT) as writer:
            writer.commit([write("a", at(0), "one"), write("b", at(1), "two", "three")])
    assert reader.stats().rows == 3


def test_update_closes_the_old_rows_and_adds_the_new(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "old 0", "old 1"), write("b", at(1), "other")])
    report = writer.commit([write("a", at(2), "new 0", "new 1", "new 2")])

    assert (report.inserted_rows, report.closed_rows) == (3, 2)
    assert texts(reader) == {"a": ["new 0", "new 1", "new 2"], "b": ["other"]}
    assert (reader.stats().rows, reader.stats().documents) == (6, 2)


def test_shorter_version_leaves_no_chunk_of_the_longer_one(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "old 0", "old 1", "old 2")])
    writer.commit([write("a", at(1), "new")])
    assert texts(reader) == {"a": ["new"]}


def test_older_record_never_overwrites_a_newer_one(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(5), "new")])
    report = writer.commit([write("a", at(3), "late"), delete("a", at(4))])

    assert report.stale == 2
    assert texts(reader) == {"a": ["new"]}


def test_recreated_topic_counts_as_newer(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(500), "old topic")])
    writer.commit([write("a", at(0, epoch=1), "new topic")])
    assert texts(reader) == {"a": ["new topic"]}


def test_deleted_document_is_gone(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "x", "y"), write("b", at(1), "z")])
    report = writer.commit([delete("a", at(2))])

    assert (report.inserted_rows, report.closed_rows) == (1, 2)
    assert texts(reader) == {"b": ["z"]}
    assert reader.get("a") is None
    assert [info.doc_id for info in reader.latest(10)] == ["b"]
    assert reader.stats().documents == 1


def test_late_older_write_does_not_resurrect_a_deleted_document(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "x")])
    writer.commit([delete("a", at(9))])
    assert writer.commit([write("a", at(5), "late")]).stale == 1
    assert texts(reader) == {}


def test_delete_of_an_unknown_document_guards_against_its_late_write(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([delete("a", at(9))])
    assert writer.commit([write("a", at(5), "late")]).stale == 1
    assert texts(reader) == {}
    assert reader.stats().documents == 0


def test_repeated_delete_moves_the_guard_on(uri: str, writer: BankWriter, reader: BankReader) -> None:
    writer.commit([delete("a", at(5))])
    writer.commit([delete("a", at(9))])
    assert lancedb.connect(uri).open_table("memories").count_rows("superseded_at IS NULL") == 1
    assert writer.commit([write("a", at(7), "late")]).stale == 1
    assert texts(reader) == {}


def test_newer_write_after_a_delete_is_a_new_document(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "x")])
    writer.commit([delete("a", at(1))])
    writer.commit([delete("a", at(2))])
    writer.commit([write("a", at(3), "again")])

    assert texts(reader) == {"a": ["again"]}
    info = reader.get("a")
    assert info is not None
    assert not info.updated
    assert writer.commit([delete("a", at(2))]).stale == 1


def test_batch_with_repeats_keeps_the_newest_only(writer: BankWriter, reader: BankReader) -> None:
    batch = [write("a", at(0), "v0"), write("a", at(2), "v2"), write("a", at(1), "v1"), write("b", at(3), "b")]
    report = writer.commit([*batch, delete("b", at(4))])

    assert (report.inserted_rows, report.stale) == (2, 1)
    assert texts(reader) == {"a": ["v2"]}


def test_empty_batch_commits_nothing(writer: BankWriter, reader: BankReader) -> None:
    before = reader.stats().version
    assert writer.commit([]).version == before


def test_same_id_in_two_namespaces_is_two_documents(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "here"), write("a", at(1), "there", namespace="other")])
    writer.commit([delete("a", at(2))])
    assert all_hits(reader) == []
    assert [hit.text for hit in all_hits(reader, namespace="other")] == ["there"]


def test_as_of_shows_the_bank_before_and_after_an_update_and_a_delete(writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write("a", at(0), "v1")])  # second 1
    writer.commit([write("a", at(1), "v2", "v2 more")])  # second 2
    writer.commit([delete("a", at(2))])  # second 3
    writer.commit([write("a", at(3), "v4")])  # second 4

    states = [texts(reader, T0 + timedelta(seconds=second)) for second in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)]
    v1, v2 = {"a": ["v1"]}, {"a": ["v2", "v2 more"]}
    assert states == [{}, v1, v1, v2, v2, {}, {}, {"a": ["v4"]}]


def test_history_keeps_its_order_when_the_clock_is_set_back(uri: str, reader: BankReader) -> None:
    later = T0 + timedelta(hours=1)
    for offset, now in enumerate((later, T0)):
        with BankWriter(uri, LAYOUT, clock=lambda now=now: now) as writer:
            writer.commit([write("a", at(offset), f"v{offset}")])

    assert texts(reader, later) == {"a": ["v0"]}
    assert texts(reader, later + timedelta(seconds=1)) == {"a": ["v1"]}


def test_expired_document_is_not_found(uri: str, writer: BankWriter) -> None:
    writer.commit([write("a", at(0), "x", expires_at=T0 + timedelta(hours=1)), write("b", at(1), "y")])
    early = BankReader(uri, LAYOUT, clock=lambda: T0 + timedelta(minutes=59))
    late = BankReader(uri, LAYOUT, clock=lambda: T0 + timedelta(minutes=61))

    assert set(texts(early)) == {"a", "b"}
    assert set(texts(late)) == {"b"}
    assert late.stats().documents == 1
    assert set(texts(late, T0 + timedelta(minutes=5))) == {"a", "b"}


@pytest.mark.parametrize("doc_id", ODD_IDS)
def test_ids_can_hold_any_characters(doc_id: str, writer: BankWriter, reader: BankReader) -> None:
    writer.commit([write(doc_id, at(0), "v1"), write("other", at(1), "other")])
    writer.commit([write(doc_id, at(2), "v2")])

    info = reader.get(doc_id)
    assert info is not None
    assert (info.doc_id, info.text, info.updated) == (doc_id, "v2", True)
    assert texts(reader) == {doc_id: ["v2"], "other": ["other"]}


def test_text_that_is_no_unicode_is_a_fault_of_the_record_not_of_the_bank(
    writer: BankWriter, reader: BankReader
) -> None:
    for record in (write("\ud800", at(0), "x"), write("a", at(0), "x", title="\ud800")):
        with pytest.raises(ValueError, match=r"Unicode|surrogates"):
            writer.commit([record])
    with pytest.raises(ValueError, match="Unicode"):
        reader.get("\ud800")
    assert texts(reader) == {}


def test_no_question_has_no_answer(writer: BankWriter, reader: BankReader) -> None:
    assert reader.search(np.empty((0, LAYOUT.d_key)), k=3) == []


def test_latest_documents_come_newest_first(writer: BankWriter, reader: BankReader) -> None:
    for number in range(4):
        writer.commit([write(f"d{number}", at(number), "x", "y")])
    writer.commit([write("d1", at(9), "z")])

    infos = reader.latest(3)
    assert [(info.doc_id, info.chunks, info.updated) for info in infos] == [
        ("d1", 1, True),
        ("d3", 2, False),
        ("d2", 2, False),
    ]
    assert infos[0].record_time == at(9).record_time


def test_get_joins_the_text_in_order(writer: BankWriter, reader: BankReader) -> None:
    parts = [f"part {number}" for number in range(12)]
    writer.commit([write("a", at(0), *parts)])
    info = reader.get("a")
    assert info is not None
    assert info.text == "\n".join(parts)


def brute_force(documents: Sequence[DocumentWrite], queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
    keys = np.stack([document.chunks[0].key for document in documents]).astype(np.float16).astype(np.float32)
    scores = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        keys / np.linalg.norm(keys, axis=1, keepdims=True)
    ).T
    order = np.argsort(-scores, axis=1)[:, :k]
    return [[documents[i].doc_id for i in row] for row in order], np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("n_queries", [1, 6])
def test_search_equals_brute_force(n_queries: int, writer: BankWriter, reader: BankReader) -> None:
    documents = [write(f"d{number}", at(number), f"text {number}") for number in range(400)]
    for start in range(0, 400, 50):
        writer.commit(documents[start : start + 50])
    gone = [delete(document.doc_id, at(1000 + i)) for i, document in enumerate(documents[::3])]
    writer.commit(gone)
    live = [document for i, document in enumerate(documents) if i % 3]

    queries = np.random.default_rng(5).standard_normal((n_queries, LAYOUT.d_key)).astype(np.float32)
    found = reader.search(queries, k=10)
    ids, scores = brute_force(live, queries, k=10)
    assert [[hit.doc_id for hit in hits] for hits in found] == ids
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], scores, atol=1e-5)


def test_missing_bank_reads_as_empty_and_is_picked_up_when_it_appears(uri: str, reader: BankReader) -> None:
    assert reader.search(np.ones((2, LAYOUT.d_key)), k=3) == [[], []]
    assert reader.stats() == BankStats()
    assert reader.latest(5) == []
    assert reader.get("a") is None
    assert not Path(uri).exists()

    with BankWriter(uri, LAYOUT) as writer:
        writer.commit([write("a", at(0), "x")])
    assert texts(reader) == {"a": ["x"]}


def test_statistics_know_the_first_and_the_latest_document(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        writer.commit([write("a", at(0), "x")])
        alone = reader.stats()
        writer.commit([write("b", at(1), "y")])
        writer.commit([write("a", at(2), "z")])  # the version that it replaces still counts
    stats = reader.stats()
    assert alone.first_ingested_at == alone.latest_ingested_at == stats.first_ingested_at
    assert stats.first_ingested_at is not None
    assert stats.latest_ingested_at is not None
    assert stats.first_ingested_at < stats.latest_ingested_at


def test_reader_sees_a_commit_within_its_staleness(uri: str, writer: BankWriter) -> None:
    reader = BankReader(uri, LAYOUT, read_staleness_s=0.2)
    assert texts(reader) == {}
    writer.commit([write("a", at(0), "x")])
    assert texts(reader) == {}  # the view is still fresh enough
    time.sleep(0.21)
    assert texts(reader) == {"a": ["x"]}


def test_reader_never_sees_a_half_replaced_document(uri: str) -> None:
    done, versions = threading.Event(), []

    reader = BankReader(uri, LAYOUT, read_staleness_s=0)

    def read() -> None:
        while not done.is_set():
            hits = all_hits(reader)
            labels = {tuple(hit.text.split(" ")[:2]) for hit in hits}
            versions.append((labels, len(hits)))

    with BankWriter(uri, LAYOUT, maintain_every=4) as writer:
        writer.commit([write("a", at(0), "0 1 chunk")])
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(1, 40):
            count = 1 + version * 3 % 5
            writer.commit([write("a", at(version), *(f"{version} {count} chunk {i}" for i in range(count)))])
        done.set()
        for thread in threads:
            thread.join()

    assert len({version for labels, _ in versions for version, _ in labels}) > 3
    for labels, n_hits in versions:
        ((_, count),) = labels
        assert n_hits == int(count)


def test_maintenance_keeps_every_row_and_its_history(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT, maintain_every=0, clock=seconds_clock()) as writer:
        for number in range(20):
            writer.commit([write(f"d{number % 5}", at(number), f"v{number}")])
        before = (texts(reader), texts(reader, T0 + timedelta(seconds=7)), reader.stats().rows)
        fragments = reader.stats().fragments
        report = writer.maintain()
        assert writer.commit([write("d0", at(3), "late")]).stale == 1
        writer.commit([write("new", at(30), "new")])

    assert report.fragments_removed == fragments > 8
    assert reader.stats().fragments == 2
    after = (texts(reader), texts(reader, T0 + timedelta(seconds=7)), reader.stats().rows)
    assert after == (before[0] | {"new": ["new"]}, before[1], before[2] + 1)


def test_reader_survives_removal_of_the_version_it_holds(
    uri: str, writer: BankWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_KEEP_VERSIONS_S", 0.0)
    reader = BankReader(uri, LAYOUT, read_staleness_s=3600)
    for number in range(10):
        writer.commit([write("a", at(number), f"v{number}")])
    assert reader.stats().documents == 1  # holds this version now, but has not yet read its data
    writer.commit([write("a", at(10), "last")])
    assert writer.maintain().versions_removed > 0
    assert texts(reader) == {"a": ["last"]}


def test_bank_of_another_checkpoint_is_refused(uri: str, writer: BankWriter) -> None:
    writer.close()
    other = BankLayout("checkpoint-b", LAYOUT.d_key, LAYOUT.memory_bytes)
    message = "holds memories of checkpoint checkpoint-a, this is checkpoint-b: run `cmt bank reindex`, or use another"
    with pytest.raises(BankMismatch, match=message):
        BankWriter(uri, other)
    with pytest.raises(BankMismatch, match=message):
        BankReader(uri, other).stats()
    with pytest.raises(BankMismatch, match="keys of 16 and 32 bytes, this checkpoint writes 16 and 64"):
        BankWriter(uri, BankLayout("checkpoint-a", 16, 64))


def test_query_keys_of_another_length_are_refused(uri: str, writer: BankWriter) -> None:
    with pytest.raises(ValueError, match="3 dimensions, the bank's have 16"):
        BankReader(uri).search(np.ones((1, 3)), k=1)


def test_second_writer_is_refused_until_the_first_closes(uri: str, writer: BankWriter) -> None:
    with pytest.raises(BankUnavailable, match="another writer has it open"):
        BankWriter(uri, LAYOUT, lock_wait_s=0)
    writer.close()
    BankWriter(uri, LAYOUT, lock_wait_s=0).close()


def test_a_bank_is_the_same_under_its_path_and_its_url(uri: str, writer: BankWriter) -> None:
    writer.commit([write("a", at(0), "x")])
    with pytest.raises(BankUnavailable, match="another writer has it open"):
        BankWriter(f"file://{uri}", LAYOUT, lock_wait_s=0)
    assert texts(BankReader(f"file://{uri}")) == {"a": ["x"]}


def test_commits_of_a_foreign_writer_are_noticed(uri: str, writer: BankWriter) -> None:
    writer.commit([write("a", at(0), "x")])
    lancedb.connect(uri).open_table("memories").delete("doc_id = 'nothing'")
    with pytest.raises(BankUnavailable, match="another writer commits to it"):
        writer.commit([write("a", at(1), "y")])


def test_writer_that_a_newer_one_has_replaced_can_not_commit(uri: str, reader: BankReader) -> None:
    """On an object store there is no lock: the fence alone must stop the old writer before it commits."""
    with BankWriter(uri, LAYOUT) as old:
        old.commit([write("a", at(0), "first")])
        WriterLock.release(old._lock)  # as if the lock were on another machine
        with BankWriter(uri, LAYOUT) as new:
            assert new.epoch == old.epoch + 1
            with pytest.raises(BankFenced, match="has taken over"):
                old.commit([write("a", at(1), "of the old writer")])
            new.commit([write("a", at(2), "second")])
    assert texts(reader) == {"a": ["second"]}


def test_epochs_of_writers_stay_few(uri: str) -> None:
    for _ in range(70):
        fence = WriterFence(uri)
        fence.take()
    assert fence.epoch == 70
    assert lancedb.connect(uri).open_table("writer_epochs").count_rows() <= 65


def test_bank_from_before_numbers_of_versions_is_taken_over(uri: str, reader: BankReader) -> None:
    with BankWriter(uri, LAYOUT) as writer:
        writer.commit([write("a", at(5), "old")])
    table = lancedb.connect(uri).open_table("memories")
    table.drop_columns(["seq"])
    table.to_lance().update_schema_metadata({"cmt.schema": None})
    with BankWriter(uri, LAYOUT) as writer:
        assert writer.commit([write("a", at(5), "old")]).stale == 1
        writer.commit([write("a", at(6), "new")])
    assert texts(reader) == {"a": ["new"]}


def test_producers_own_number_beats_the_order_of_arrival(writer: BankWriter, reader: BankReader) -> None:
    def numbered(offset: int, seq: int) -> Position:
        return replace(at(offset), seq=seq)

    writer.commit([write("a", numbered(1, 7), "seventh")])
    assert writer.commit([write("a", numbered(2, 6), "sixth, late"), delete("a", numbered(3, 5))]).stale == 2
    assert texts(reader) == {"a": ["seventh"]}
    writer.commit([delete("a", numbered(4, 8))])
    assert texts(reader) == {}


@pytest.mark.parametrize("below", ["", "/below"])
def test_file_in_the_place_of_the_bank_is_one_clear_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    uri = f"{tmp_path / 'file'}{below}"
    for act in (lambda: BankWriter(uri, LAYOUT), lambda: BankReader(uri).stats()):
        with pytest.raises(BankUnavailable) as caught:
            act()
        assert str(caught.value).startswith(f"bank {uri} can't be used: ")
        assert "\n" not in str(caught.value)


def test_folder_that_can_not_be_created_is_one_clear_line() -> None:
    with pytest.raises(BankUnavailable, match="bank /proc/bank can't be used: No such file or directory"):
        BankWriter("/proc/bank", LAYOUT)


def test_corrupt_table_is_one_clear_line(uri: str, writer: BankWriter) -> None:
    writer.commit([write("a", at(0), "x")])
    writer.close()
    for manifest in Path(uri).glob("*.lance/_versions/*.manifest"):
        manifest.write_bytes(b"garbage")
    for act in (lambda: BankWriter(uri, LAYOUT), lambda: BankReader(uri).stats()):
        with pytest.raises(BankUnavailable) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert ".rs" not in str(caught.value)


def test_writer_refuses_when_too_little_disk_is_free(uri: str) -> None:
    with pytest.raises(BankFull, match=r"bank\.min_free_bytes asks for"):
        BankWriter(uri, LAYOUT, min_free_bytes=2**60)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mount_point = tmp_path / "tiny"
    mount_point.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount_point)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a tiny disk needs privileges")
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


def test_full_disk_leaves_nothing_of_the_commit_visible(tiny_disk: Path) -> None:
    uri = str(tiny_disk / "bank")
    layout = BankLayout("checkpoint-a", d_key=16, memory_bytes=1 << 18)

    def document(name: str, offset: int, n_chunks: int) -> DocumentWrite:
        # random, or Lance would compress it
        chunks = tuple(Chunk("x", key_of("x"), os.urandom(1 << 18), 1) for _ in range(n_chunks))
        return DocumentWrite("default", name, None, None, None, None, None, at(offset), chunks)

    reader = BankReader(uri, layout, read_staleness_s=0)
    with BankWriter(uri, layout) as writer:
        writer.commit([document("a", 0, 2)])
        with pytest.raises(BankFull, match="no space is left"):
            writer.commit([document("a", 1, 8), document("b", 2, 8)])
        assert [(info.doc_id, info.chunks) for info in reader.latest(9)] == [("a", 2)]
        subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
        writer.commit([document("a", 1, 8), document("b", 2, 8)])
    assert sorted((info.doc_id, info.chunks) for info in reader.latest(9)) == [("a", 8), ("b", 8)]


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[DocumentWrite | DocumentDelete]]:
    """Batches of records of one log, in any order and with repeats, as a consumer that crashes may deliver them.

    Some carry the producer's own number, which decides before the place in the log.
    """
    size = draw(st.integers(1, 8))
    recreated = draw(st.integers(0, size))  # the topic was recreated before this record
    log: list[DocumentWrite | DocumentDelete] = []
    for number in range(size):
        epoch = int(number >= recreated)
        place = (epoch, draw(st.integers(0, 1)), number - epoch * recreated, T0 + timedelta(seconds=number))
        position = Position(*place, seq=draw(st.sampled_from([0, 0, 1, 2])))
        doc_id = draw(st.sampled_from(["a", "b'"]))
        n_chunks = draw(st.integers(0, 3))
        chunks = (f"{number} {i}" for i in range(n_chunks))
        log.append(write(doc_id, position, *chunks) if n_chunks else delete(doc_id, position))
    batch = st.lists(st.sampled_from(log), min_size=1, max_size=5)
    return draw(st.lists(batch, min_size=1, max_size=5))


def model_state(delivered: Sequence[DocumentWrite | DocumentDelete]) -> dict[str, list[str]]:
    """What must be live: of each document the record with the largest number, of these the last in the log (by time)."""
    in_order = sorted(delivered, key=lambda record: (record.position.seq, record.position.record_time))
    last = {record.doc_id: record for record in in_order}
    return {
        doc_id: [chunk.text for chunk in record.chunks]
        for doc_id, record in last.items()
        if isinstance(record, DocumentWrite)
    }


@settings(max_examples=40, deadline=None)
@given(batches=deliveries())
def test_any_interleaving_gives_the_state_of_the_model_now_and_as_of_each_commit(
    batches: list[list[DocumentWrite | DocumentDelete]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        delivered: list[DocumentWrite | DocumentDelete] = []
        states: list[tuple[datetime, dict[str, list[str]]]] = []
        now = T0
        with BankWriter(f"{folder}/bank", LAYOUT, maintain_every=3, clock=lambda: now) as writer:
            for batch in batches:
                now += timedelta(seconds=1)
                writer.commit(batch)
                delivered += batch
                states.append((now, model_state(delivered)))
        reader = BankReader(f"{folder}/bank", LAYOUT)
        assert texts(reader) == states[-1][1]
        for moment, state in states:
            assert texts(reader, moment) == state

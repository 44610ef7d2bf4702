"""Ingest as it runs: real broker, real Ray actors, real LanceDB; only the LLM is the small lexical compressor."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lancedb
import pytest
import ray
from kafka.admin import KafkaAdminClient

from services.bank.reader import BankReader
from services.errors import BankFull, BankMismatch, BankUnavailable, BrokerUnreachable, TopicMissing
from services.ingest.pipeline import IngestHandle, start_ingest
from services.ingest.ports import ModelFactory
from services.metrics import TABLE
from services.settings import BankSettings, Settings, load_settings
from services.stream.broker import EmbeddedBroker
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document
from services.stream.rewind import rewind
from services.testing.lexical import LexicalModel, load_lexical
from tests.integration.conftest import find_free_port
from tests.waiting import until

WAIT_S = 60.0


def slow_compressor(settings: Settings) -> LexicalModel:
    """Takes 60 ms a batch, so that a kill finds it in the middle of the stream."""

    class Slow(LexicalModel):
        def compress(self, windows: Any) -> Any:
            time.sleep(0.06)
            return super().compress(windows)

    return Slow()


def other_checkpoint(settings: Settings) -> LexicalModel:
    return LexicalModel(model_id="another-checkpoint")


@dataclass
class World:
    """One topic, one bank, and the ingests that were started between them."""

    bootstrap: str
    settings: Settings
    handles: list[IngestHandle] = field(default_factory=list)

    def start(self, model_factory: ModelFactory = load_lexical, **kafka: Any) -> IngestHandle:
        settings = self.settings.model_copy(update={"kafka": self.settings.kafka.model_copy(update=kafka)})
        self.handles.append(start_ingest(settings, self.bootstrap, model_factory=model_factory))
        return self.handles[-1]

    def send(self, *documents: Document, delete: tuple[str, ...] = ()) -> None:
        with DocumentProducer(self.settings.kafka, self.bootstrap) as producer:
            for document in documents:
                producer.send(document)
            for doc_id in delete:
                producer.delete(doc_id)
            producer.flush(10.0)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the bank, closed ones and guards included."""
        if not (Path(self.settings.bank.uri) / "memories.lance").exists():
            return []
        columns = ["doc_id", "chunk_no", "text", "topic_epoch", "partition", "offset", "superseded_at", "deleted_at"]
        table = lancedb.connect(self.settings.bank.uri).open_table("memories")
        rows: list[dict[str, Any]] = table.search().select(columns).limit(100_000).to_arrow().to_pylist()
        return rows

    def live(self) -> list[str]:
        """Ids of the rows that answer now; one row per chunk, so a duplicate would show."""
        return sorted(row["doc_id"] for row in self.rows() if not row["superseded_at"] and not row["deleted_at"])

    def text(self, doc_id: str) -> str | None:
        found = BankReader(self.settings.bank.uri, None, 0.0).get(doc_id)
        return found.text if found else None

    def committed(self) -> int:
        """Sum of the group's committed offsets."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            groups = admin.list_group_offsets([self.settings.kafka.group_id])
            offsets = groups[self.settings.kafka.group_id]
            return sum(max(0, one.offset) for one in offsets.values())
        finally:
            admin.close()


def article(number: int, text: str = "") -> Document:
    text = text or f"Bridge {number} opened on Monday."
    return Document(id=f"d{number:03}", title=f"Bridge {number}", text=text, published_at=datetime.now(UTC))


def world_at(bootstrap: str, folder: Path, name: str, **ingest: Any) -> World:
    settings = load_settings(
        kafka__topic=f"news-{name}",
        kafka__group_id=f"group-{name}",
        kafka__partitions=2,
        kafka__connect_timeout_s=3,
        bank__uri=str(folder / "bank"),
        bank__min_free_bytes=0,
        ingest__batch_wait_s=0.05,
        **{f"ingest__{key}": value for key, value in ingest.items()},
    )
    return World(bootstrap, settings)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    # this module is not importable in Ray's workers, so its functions travel by value
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture
def world(broker: str, tmp_path: Path) -> Iterator[World]:
    made = world_at(broker, tmp_path, tmp_path.name)
    yield made
    for handle in made.handles:
        handle.kill()


@pytest.fixture(scope="module")
def running(local_ray: None, broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One ingest that several claims share; each uses documents of its own."""
    folder = tmp_path_factory.mktemp("running")
    made = world_at(broker, folder, folder.name)
    handle = made.start()
    yield made
    handle.stop(10.0)


def test_documents_arrive_in_the_bank(running: World) -> None:
    running.send(*(article(number) for number in range(20)))
    running.handles[0].wait_until_caught_up(WAIT_S)
    assert running.live() == [f"d{number:03}" for number in range(20)]
    assert running.committed() == 20
    status = running.handles[0].status()
    assert status.running
    assert status.records == {"written": 20}
    assert status.lag == {0: 0, 1: 0}
    assert str(status) == "20 written; lag 0, in flight 0"


def test_a_long_document_arrives_as_many_chunks(running: World) -> None:
    text = " ".join(f"Sentence number {number} is about one long article." for number in range(80))
    running.send(Document(id="long", text=text))
    running.handles[0].wait_until_caught_up(WAIT_S)
    chunks = [row["chunk_no"] for row in running.rows() if row["doc_id"] == "long"]
    assert sorted(chunks) == list(range(len(chunks)))
    assert len(chunks) > 3


def test_an_update_replaces_and_a_tombstone_deletes(running: World) -> None:
    running.send(Document(id="update", text="The ferry costs nine euros."), Document(id="delete", text="A rumour."))
    running.handles[0].wait_until_caught_up(WAIT_S)
    assert "rumour" in str(running.text("delete"))
    running.send(Document(id="update", text="The ferry costs twelve euros."), delete=("delete",))
    running.handles[0].wait_until_caught_up(WAIT_S)
    assert running.text("update") == "The ferry costs twelve euros."
    assert running.text("delete") is None
    assert running.live().count("update") == 1
    assert "delete" not in running.live()


def test_unreadable_records_are_dead_lettered_untouched_and_the_stream_goes_on(running: World) -> None:
    poison: dict[str, tuple[bytes, bytes]] = {
        "not_json": (b"p1", b"\xff{not json"[1:]),
        "not_utf8": (b"p2", b"\xff\xfe"),
        "schema": (b"p3", b'{"id": "p3"}'),
        "schema_registry": (b"p4", b"\0\0\0\0\7\x02a"),
        "too_large": (b"p5", b'{"id": "p5", "text": "' + b"x" * 1_000_000 + b'"}'),
        "unstorable": (b"p6", b'{"id": "p6", "text": "the of and."}'),  # no word to search by: a key of zeros
    }
    with DocumentProducer(running.settings.kafka, running.bootstrap) as producer:
        for key, value in poison.values():
            producer.send_raw(key, value)
            producer.send(Document(id=f"after-{key.decode()}", text="The stream goes on."))
        producer.flush(10.0)
    running.handles[0].wait_until_caught_up(WAIT_S)
    kafka = running.settings.kafka
    letters = list(read_topic(kafka, running.bootstrap, kafka.dlq_topic))
    found = {dict(one.headers)["cmt-reason"].decode(): (one.key, one.value) for one in letters}
    assert found == poison
    assert len(letters) == len(poison)
    assert {f"after-{key.decode()}" for key, _ in poison.values()} <= set(running.live())
    assert running.handles[0].status().records["dead_lettered"] == len(poison)


def test_all_ingest_and_bank_metrics_reach_the_hub(running: World) -> None:
    from services.metrics_hub import hub_handle

    def names() -> set[str]:
        return {name for one in ray.get(hub_handle().snapshots.remote()) for name in {*one.numbers, *one.histograms}}

    with DocumentProducer(running.settings.kafka, running.bootstrap) as producer:
        producer.send(Document(id="measured", text="A document to be measured."))
        producer.send_raw(b"measured-2", b'{"id": "measured-2", "text": "Its time is wrong.", "published_at": "soon"}')
        producer.send_raw(b"measured-3", b"{")
        producer.flush(10.0)
    wanted = {name for name in TABLE if name.startswith(("cmt_ingest_", "cmt_bank_"))}
    wanted -= {"cmt_bank_index_seconds", "cmt_bank_maintenance_seconds"}  # nothing is due for so few rows
    until(lambda: wanted <= names(), 10.0, seen=lambda: wanted - names())


def test_a_second_ingest_of_the_same_bank_is_refused(running: World) -> None:
    with pytest.raises(BankUnavailable, match="has only one"):
        start_ingest(running.settings, running.bootstrap, model_factory=load_lexical)


def test_nothing_is_committed_while_the_bank_fails_and_nothing_is_lost_after_its_repair(world: World) -> None:
    handle = world.start()
    obstacle = Path(world.settings.bank.uri) / "memories.lance" / "data"
    assert not obstacle.exists()
    obstacle.write_text("a file where the bank wants its folder")
    world.send(*(article(number) for number in range(10)))
    until(lambda: handle.status().in_flight_records == 10, WAIT_S)
    time.sleep(2.0)
    assert handle.status().running
    assert sum(handle.status().lag.values()) == 10
    assert world.committed() == 0
    assert world.rows() == []
    obstacle.unlink()
    handle.wait_until_caught_up(WAIT_S)
    assert world.live() == [f"d{number:03}" for number in range(10)]
    assert world.committed() == 10


def test_a_replay_leaves_one_row_and_another_checkpoint_is_refused(world: World) -> None:
    first = world.start()
    world.send(*(article(number) for number in range(12)))
    world.send(article(0, "Bridge 0 closed again."), delete=("d001",))
    first.wait_until_caught_up(WAIT_S)
    before = sorted(world.rows(), key=str)
    first.stop(10.0)

    replayed = world.start(group_id=f"{world.settings.kafka.group_id}-again")
    replayed.wait_until_caught_up(WAIT_S)
    assert replayed.status().stale == 14
    assert sorted(world.rows(), key=str) == before
    replayed.stop(10.0)

    with pytest.raises(BankMismatch, match="another-checkpoint"):
        world.start(other_checkpoint)


def test_a_backfill_reads_everything_again_and_duplicates_nothing(world: World) -> None:
    first = world.start()
    world.send(*(article(number) for number in range(12)))
    world.send(article(3, "Bridge 3 closed."), delete=("d001",))
    first.wait_until_caught_up(WAIT_S)
    before = sorted(world.rows(), key=str)
    first.stop(10.0)
    again = start_ingest(
        world.settings,
        world.bootstrap,
        model_factory=load_lexical,
        rewind=lambda: rewind(world.settings.kafka, world.bootstrap, None) and None,
    )
    world.handles.append(again)
    assert again.wait_until_caught_up(WAIT_S)
    assert again.status().stale == 14
    assert sorted(world.rows(), key=str) == before
    assert world.committed() == 14


def test_killed_consumers_lose_nothing_and_duplicate_nothing(broker: str, tmp_path: Path) -> None:
    """kill -9 of one of two consumers, and of the writer, in the middle of the stream."""
    world = world_at(broker, tmp_path, tmp_path.name, consumers=2, compressors=2, batch_windows=4)
    handle = world.start(slow_compressor)
    try:
        world.send(*(article(number) for number in range(100)))
        until(lambda: len(world.rows()) >= 8, WAIT_S)
        for actor in (handle.consumers[0], handle.writer):
            os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
        assert len(world.rows()) < 100, "the kill came too late to be in the middle"
        world.send(*(article(number) for number in range(100, 200)))
        handle.wait_until_caught_up(WAIT_S)
        rows = world.rows()
        assert sorted(row["doc_id"] for row in rows) == [f"d{number:03}" for number in range(200)]
        assert world.committed() == 200
    finally:
        handle.kill()


def test_a_topic_made_anew_replaces_what_the_old_one_wrote(tmp_path: Path) -> None:
    """The embedded broker keeps nothing: after a restart the offsets begin at 0, below those of the bank."""
    port = find_free_port()
    for text, padding in (("The mayor is Lund.", 6), ("The mayor is Berg.", 0)):
        with EmbeddedBroker(port) as fresh:
            world = world_at(fresh.bootstrap, tmp_path, "mayor")
            handle = world.start()
            world.send(*(Document(id="mayor", text=f"Draft {number} of it.") for number in range(padding)))
            world.send(Document(id="mayor", text=text))
            handle.wait_until_caught_up(WAIT_S)
            handle.stop(10.0)
        assert world.text("mayor") == text
    newest = [row for row in world.rows() if not row["superseded_at"]]
    assert [(row["offset"], row["text"]) for row in newest] == [(0, "The mayor is Berg.")]
    assert len({row["topic_epoch"] for row in world.rows()}) == 2


def test_what_can_not_start_says_so_as_itself(world: World, free_port: int) -> None:
    with pytest.raises(TopicMissing, match="does not exist"):
        world.start(create_topics=False)
    full = world.settings.model_copy(update={"bank": BankSettings(uri=world.settings.bank.uri, min_free_bytes=2**60)})
    with pytest.raises(BankFull, match="min_free_bytes"):
        start_ingest(full, world.bootstrap, model_factory=load_lexical)
    with pytest.raises(BrokerUnreachable):
        start_ingest(world.settings, f"127.0.0.1:{free_port}", model_factory=load_lexical)

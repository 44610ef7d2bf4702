"""A whole ingest under fault injection: real broker, real Ray actors, real LanceDB, and a stream that knows its result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lancedb
import ray
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from services.errors import BrokerError
from services.ingest.pipeline import IngestHandle, start_ingest
from services.ingest.ports import ModelFactory
from services.settings import Settings, load_settings
from services.stream.broker import EmbeddedBroker
from services.stream.dead_letter_reader import read_letters
from services.stream.producer import DocumentProducer
from services.stream.progress import partition_progress
from services.testing.lexical import LexicalModel, load_lexical
from tests.faults.stream_model import MAX_RECORD_BYTES, StreamModel
from tests.kafka.server import KafkaCluster
from tests.waiting import until

CATCH_UP_S = 100.0
_ROW = ["namespace", "doc_id", "chunk_no", "n_chunks", "topic_epoch", "partition", "offset", "text"]


def fault_settings(folder: Path, name: str, **flags: Any) -> Settings:
    defaults: dict[str, Any] = {
        "kafka__topic": f"faults-{name}",
        "kafka__group_id": f"faults-{name}",
        "kafka__partitions": 4,
        "kafka__connect_timeout_s": 4,
        "kafka__max_record_bytes": MAX_RECORD_BYTES,
        "bank__uri": str(folder / "bank"),
        "bank__min_free_bytes": 0,
        "ingest__consumers": 2,
        "ingest__compressors": 2,
        "ingest__batch_windows": 64,
        "ingest__batch_wait_s": 0.05,
    }
    return load_settings(**defaults | flags)


@dataclass
class World:
    """One topic and one bank; `during` sends a part of the stream and lets a fault happen in its middle."""

    broker: EmbeddedBroker | KafkaCluster
    settings: Settings
    model: StreamModel
    rate_per_s: float = 1500.0
    compressor: Any = field(default_factory=LexicalModel)  # the same that the actors load, to know the windows
    model_factory: ModelFactory = load_lexical
    handle: IngestHandle = field(init=False)

    def start(self) -> IngestHandle:
        self.handle = start_ingest(self.settings, self.broker.bootstrap, model_factory=self.model_factory)
        return self.handle

    def during(self, records: int, fault: Callable[[], None]) -> None:
        """Sends `records` at the chosen rate while `fault` runs, which begins after a third of them."""
        third_sent = threading.Event()
        failures: list[Exception] = []

        def send() -> None:
            try:
                self._send(records, third_sent)
            except (BrokerError, AssertionError) as error:
                failures.append(error)
                third_sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        third_sent.wait()
        fault()
        sender.join()
        assert not failures, failures

    def _send(self, records: int, third_sent: threading.Event) -> None:
        patient = self.settings.kafka.model_copy(update={"connect_timeout_s": 30.0})
        with DocumentProducer(patient, self.broker.bootstrap) as producer:
            started = time.monotonic()
            for number, one in enumerate(self.model.records(records)):
                producer.send_raw(one.key, one.value, one.headers)
                if number == records // 3:
                    third_sent.set()
                time.sleep(max(0.0, started + number / self.rate_per_s - time.monotonic()))
            producer.flush(90.0)

    def check(self) -> None:
        """Waits until everything is committed, then compares bank, dead letters and offsets with the model."""
        self.wait_until_committed()
        assert self.live_texts() == self.expected_texts()
        self.check_rows_are_unique()
        kafka = self.settings.kafka
        letters = [(one.key, one.value) for one in read_letters(kafka, self.broker.bootstrap)]
        assert set(letters) == self.model.poison
        assert len(self.model.poison) <= len(letters) <= len(self.model.poison) + self.repeated()

    def repeated(self) -> int:
        """Records that stand in Kafka twice: a producer whose broker dies before it acknowledges a batch sends it again
        (decision 0112). None with the embedded broker, which does not die here."""
        repeated = self.committed() - self.model.sent
        assert repeated == 0 or (repeated > 0 and isinstance(self.broker, KafkaCluster)), repeated
        return repeated

    def wait_until_committed(self) -> None:
        """As long as it goes on: a busy machine is no fault, but standing still for CATCH_UP_S is one."""
        before = -1

        def all_or_more() -> bool:
            self.handle.raise_if_failed()
            return self.all_committed() or self.committed() > before

        while not self.all_committed():
            before = self.committed()
            until(all_or_more, CATCH_UP_S, every_s=0.2, seen=lambda: (self.committed(), self.handle.status()))

    def all_committed(self) -> bool:
        """Whether nothing of the stream is left to read."""
        return self.committed() >= self.model.sent and self.lag() == 0

    def expected_texts(self) -> dict[tuple[str, str], list[str]]:
        return {
            document: [window.text for window in self.compressor.windows(title, text)]
            for document, (title, text) in self.model.live.items()
        }

    def live_texts(self) -> dict[tuple[str, str], list[str]]:
        """The texts that answer now, chunk by chunk; a document with a missing or double chunk has a wrong list."""
        rows = self.rows("superseded_at IS NULL AND deleted_at IS NULL")
        found: dict[tuple[str, str], list[str]] = {}
        for row in sorted(rows, key=lambda row: (row["doc_id"], row["chunk_no"])):
            found.setdefault((row["namespace"], row["doc_id"]), []).append(row["text"])
        for row in rows:
            assert row["n_chunks"] == len(found[row["namespace"], row["doc_id"]]), row
        return found

    def check_rows_are_unique(self) -> None:
        """No record has left two rows for one chunk, closed ones included."""
        keys = [tuple(row[name] for name in _ROW[:3] + _ROW[4:7]) for row in self.rows("true")]
        assert len(keys) == len(set(keys))

    def rows(self, where: str) -> list[dict[str, Any]]:
        table = lancedb.connect(self.settings.bank.uri).open_table("memories")
        rows: list[dict[str, Any]] = table.search().where(where).select(_ROW).limit(10**7).to_arrow().to_pylist()
        return rows

    def committed(self) -> int:
        """Sum of the group's committed offsets, 0 while the broker does not answer."""
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.broker.bootstrap, bootstrap_timeout_ms=3000)
        except KafkaError:
            return 0
        try:
            group = self.settings.kafka.group_id
            return sum(max(0, one.offset) for one in admin.list_group_offsets([group]).get(group, {}).values())
        except KafkaError:
            return 0
        finally:
            admin.close()

    def lag(self) -> int:
        """Records that are not committed, by Kafka's own end offsets; -1 while the broker does not answer."""
        try:
            return sum(one.lag for one in partition_progress(self.settings.kafka, self.broker.bootstrap))
        except BrokerError:
            return -1

    @contextmanager
    def silent_broker(self) -> Iterator[None]:
        """The broker's processes are stopped: connections stay open and nothing answers."""
        if isinstance(self.broker, KafkaCluster):
            with self.broker.silent():
                yield
            return
        assert self.broker._process is not None
        os.killpg(self.broker._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.broker._process.pid, signal.SIGCONT)

    @contextmanager
    def failing_bank(self) -> Iterator[None]:
        """The folder with the bank's data is away, as when a mount is lost; a file in its place fails every commit."""
        data = Path(self.settings.bank.uri) / "memories.lance" / "data"
        away = data.with_name("data.away")
        data.rename(away)
        data.write_text("a file where the bank wants its folder")
        try:
            yield
        finally:
            data.unlink()
            away.rename(data)


def kill_9(actor: Any) -> int:
    """Ends an actor's process without any warning; its pid."""
    pid: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    return pid

"""The stream with the small lexical model: records a second end to end, and freshness at half that load."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import ray

from benchmarks.bars import Figure, Report
from benchmarks.cpu_time import cpu_seconds
from services.ingest.pipeline import IngestHandle, start_ingest
from services.runtime import ray_session
from services.settings import RaySettings, Settings, load_settings
from services.stream.broker import EmbeddedBroker
from services.stream.producer import DocumentProducer
from services.stream.record import Document
from services.testing.lexical import load_lexical
from tests.integration.conftest import find_free_port
from tests.kafka.server import KafkaCluster, missing

__all__ = ["measure_stream", "measure_stream_on_kafka"]

_BAR_RECORDS_PER_S = 5000.0
_BAR_P50_S, _BAR_P99_S = 1.0, 3.0
_WARM_UP = 4000
_WAIT_S = 600.0
_WORDS = (
    *("harbour", "ferry", "bridge", "council", "budget", "minister", "storm", "island", "railway", "market"),
    *("factory", "school", "hospital", "museum", "police", "election", "energy", "wind", "port", "airline"),
    *("housing", "research", "whale", "bread", "football", "festival", "court", "treaty"),
)


def measure_stream(report: Report, folder: Path, records: int, half_load_s: float) -> None:
    """Adds records/s and freshness on the embedded broker. Ray, Kafka client and bank are the real ones, too."""
    with EmbeddedBroker(find_free_port()) as broker, ray_session(RaySettings(num_cpus=4)):
        _measure(report, "", broker.bootstrap, folder, records, half_load_s)


def measure_stream_on_kafka(report: Report, folder: Path, records: int, half_load_s: float) -> None:
    """The same on one broker of Apache Kafka, by both ways of assigning partitions; says so where there is none."""
    if reason := missing():
        print(f"not measured on Apache Kafka: {reason}", flush=True)
        return
    broker = KafkaCluster(folder / "kafka")
    try:
        broker.start()
        with ray_session(RaySettings(num_cpus=4)):
            for way in ("coordinator", "group"):
                flags = {"kafka__bootstrap_servers": broker.bootstrap, "ingest__assignment": way}
                _measure(report, f"Apache Kafka, {way}: ", broker.bootstrap, folder, records, half_load_s, **flags)
    finally:
        broker.stop()


def _measure(
    report: Report, where: str, bootstrap: str, folder: Path, records: int, half_load_s: float, **flags: Any
) -> None:
    settings = [_settings(folder, f"{flags.get('ingest__assignment', '')}{name}", **flags) for name in ("all", "half")]
    rate, cpu_us = _records_per_s(bootstrap, settings[0], records)
    report.add(Figure(f"{where}records end to end, small model", rate, "records/s", _BAR_RECORDS_PER_S))
    note = "broker included; says what an idle machine could do"
    report.add(Figure(f"{where}CPU time per record, all processes", cpu_us, "us", note=note))
    half = min(rate, _BAR_RECORDS_PER_S) / 2
    p50, p99, commit_s = _freshness(bootstrap, settings[1], half, half_load_s)
    note = f"at {half:,.0f} records/s"
    report.add(Figure(f"{where}freshness p50", p50, "s", _BAR_P50_S, "at most", note))
    report.add(Figure(f"{where}freshness p99", p99, "s", _BAR_P99_S, "at most", note))
    report.add(Figure(f"{where}bank commit, mean", commit_s, "s", note="since Ray was started"))


def _records_per_s(bootstrap: str, settings: Settings, records: int) -> tuple[float, float]:
    """(records a second, CPU microseconds a record).

    All records are in Kafka before ingest starts; the clock runs from the first that is committed after the warm-up.
    """
    with DocumentProducer(settings.kafka, bootstrap) as producer:
        for number, document in enumerate(_documents(_WARM_UP + records)):
            producer.send(document)
            if number % 5000 == 0:
                producer.flush(60.0)
        producer.flush(60.0)
    with _ingest(settings, bootstrap) as handle:
        first, first_cpu_s = _wait_for(handle, _WARM_UP), cpu_seconds()
        last, last_cpu_s = _wait_for(handle, _WARM_UP + records), cpu_seconds()
        done = last[1] - first[1]
        return done / (last[0] - first[0]), (last_cpu_s - first_cpu_s) / done * 1e6


def _freshness(bootstrap: str, settings: Settings, rate_per_s: float, seconds: float) -> tuple[float, float, float]:
    """(p50, p99, mean commit): from Kafka's timestamp to `ingested_at`, plus the mean time of the commit itself."""
    with _ingest(settings, bootstrap) as handle, DocumentProducer(settings.kafka, bootstrap) as producer:
        started = time.monotonic()
        for number, document in enumerate(_documents(int(rate_per_s * seconds))):
            producer.send(document)
            time.sleep(max(0.0, started + number / rate_per_s - time.monotonic()))
        producer.flush(60.0)
        handle.wait_until_caught_up(_WAIT_S)
        time.sleep(1.5)  # the metrics' way to the hub
        commit_s = _mean_commit_s()
    table = lancedb.connect(settings.bank.uri).open_table("memories").search()
    rows = table.select(["record_time", "ingested_at"]).limit(10**7).to_arrow()
    sent, there = rows["record_time"].to_numpy(), rows["ingested_at"].to_numpy()
    ages = (there - sent) / np.timedelta64(1, "s") + commit_s
    steady = ages[sent > sent.min() + np.timedelta64(2, "s")]
    return float(np.quantile(steady, 0.5)), float(np.quantile(steady, 0.99)), commit_s


@contextmanager
def _ingest(settings: Settings, bootstrap: str) -> Iterator[IngestHandle]:
    handle = start_ingest(settings, bootstrap, model_factory=load_lexical)
    try:
        yield handle
    finally:
        handle.stop(20.0)


def _wait_for(handle: IngestHandle, records: int) -> tuple[float, int]:
    """(moment, records) as soon as at least so many are in the bank."""
    deadline = time.monotonic() + _WAIT_S
    while (done := sum(handle.status().records.values())) < records:
        handle.raise_if_failed()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{done} of {records} records after {_WAIT_S:g} s")
        time.sleep(0.05)
    return time.monotonic(), done


def _mean_commit_s() -> float:
    from services.metrics_hub import hub_handle

    parts = [
        histogram
        for one in ray.get(hub_handle().snapshots.remote())
        for histogram in one.histograms.get("cmt_bank_commit_seconds", {}).values()
    ]
    return float(sum(total for _, total in parts) / max(1, sum(sum(counts) for counts, _ in parts)))


def _documents(count: int) -> Iterator[Document]:
    """Short news of about 300 characters; one in five updates an earlier one."""
    chance = random.Random(3)
    for number in range(count):
        name = number if number % 5 else chance.randrange(max(1, number))
        text = " ".join(chance.choice(_WORDS) for _ in range(40))
        yield Document(
            id=f"news-{name}",
            text=f"{text.capitalize()}.",
            title=f"News {number}",
            url=f"https://news.example/{name}",
            source="bench",
            published_at=datetime.now(UTC),
        )


def _settings(folder: Path, name: str, **flags: Any) -> Settings:
    """What a busy desk would set: larger batches than the defaults, which suit a large model."""
    return load_settings(
        kafka__topic=f"bench-{name}",
        kafka__group_id=f"bench-{name}",
        bank__uri=str(folder / name),
        bank__min_free_bytes=0,
        ingest__batch_windows=512,
        ingest__batch_wait_s=0.1,
        ingest__batches_at_once=6,
        ingest__batch_tokens=65_536,
        ingest__commit_rows=4096,
        ingest__commit_wait_s=0.02,
        **flags,
    )

"""How the bank's speed holds as it grows: every figure beside its bar; writes results/bank.json and docs/bank-benchmark.svg.

    make bench-bank             # or: python -m benchmarks.bank [ROWS:PAYLOAD_BYTES ...]

Sizes of one payload are compared with the smallest of it. 1,000,000 rows of the real 37 kB would be 37 GB, so that size
has 1 kB, and the real payload goes up to 100,000. With CMT_DATA_DIR the ranking is measured on squad_dev as well. Ends with
1 when a bar is missed; BENCH_FOLDER is where the banks are made (the temporary folder by default; 8 GB are needed). Wants
an idle machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.bank_encodings import measure_encodings
from benchmarks.bank_ranking import measure_ranking
from benchmarks.bank_rows import D_KEY, SyntheticNews
from benchmarks.bars import Figure, Report
from benchmarks.plots import plot_bank
from cmt_core.retrieval.ranking import Ranking
from services.bank.maintenance import MaintenanceReport
from services.bank.reader import BankReader
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter

HERE = Path(__file__).parent
RESULT = HERE / "results" / "bank.json"
PICTURE = HERE.parent / "docs" / "bank-benchmark.svg"
SIZES = "10000:37632 100000:37632 10000:1024 100000:1024 1000000:1024"
COMMIT_ROWS = 1024
UPSERT_ROWS = 512
SMALL_ROWS = 20
QUESTIONS = 200
K = 4


@dataclass(slots=True)
class Measured:
    """What one size gave, as far as others are compared with it."""

    rows: int
    payload_bytes: int
    upsert_rows_s: float
    search_p50_ms: float
    search_p99_ms: float


def main() -> int:
    """Measures the sizes of the command line, of BENCH_ROWS, or all."""
    sizes = sys.argv[1:] or os.environ.get("BENCH_ROWS", SIZES).split()
    report = Report()
    if "CMT_DATA_DIR" in os.environ:
        measure_ranking(report)
    row_bytes = measure_encodings(report)
    smallest: dict[int, Measured] = {}
    measured: list[Measured] = []
    started = time.monotonic()
    for rows, payload_bytes in (map(int, size.split(":")) for size in sizes):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
            got = measure_size(report, f"{folder}/bank", rows, payload_bytes, smallest.get(payload_bytes))
        smallest.setdefault(payload_bytes, got)
        measured.append(got)
        report.facts |= {"sizes": [asdict(one) for one in measured], "minutes": (time.monotonic() - started) / 60}
        report.write(RESULT)
        plot_bank(PICTURE, report.facts["sizes"], row_bytes)
    print(f"{len(report.missed)} bars missed; {RESULT.name} written", flush=True)
    return 1 if report.missed else 0


def measure_size(report: Report, uri: str, rows: int, payload_bytes: int, base: Measured | None) -> Measured:
    """Builds one bank and measures it; bars against the smallest bank of the same payload."""
    name = f"{rows:,} rows of {payload_bytes:,} bytes"
    news = SyntheticNews(rows, payload_bytes)
    layout = BankLayout("bench", D_KEY, payload_bytes)

    def add(what: str, value: float, unit: str, bar: float | None = None, at_most: bool = True) -> None:
        load = f"load {os.getloadavg()[0]:.1f}"
        sense = "at most" if at_most else "at least"
        report.add(Figure(f"{name}: {what}", float(value), unit, bar, sense, load))

    pauses: list[MaintenanceReport] = []
    with BankWriter(uri, layout, maintained=pauses.append) as writer:
        rates, middle = append_all(writer, news, rows)
        add("append, last tenth", float(np.median(rates[-max(1, len(rates) // 10) :])), "rows/s")
        with peak_memory() as peak_bytes:
            upkeep = writer.optimize()
        add("optimize: all fragments, all indexes", upkeep.seconds, "s")
        add("optimize: peak memory of the process", peak_bytes() / 2**30, "GiB", 2.0)
        reader = BankReader(uri, layout, 60.0)
        hybrid = BankReader(uri, layout, 60.0, ranking=Ranking("hybrid"))
        plain = ask(reader, news, None)
        past = ask(reader, news, middle)
        both = ask(hybrid, news, None)
        upsert = upsert_rate(writer, news, rows, UPSERT_ROWS, 6)
        small = upsert_rate(writer, news, rows, SMALL_ROWS, 24)
        with_tail = ask(BankReader(uri, layout, 60.0, ranking=Ranking("hybrid")), news, None)
        add("upsert", upsert, "rows/s", base and 0.5 * base.upsert_rows_s, at_most=False)
        add(f"upserts in commits of {SMALL_ROWS}", small, "rows/s")
        add("longest wait of a commit for upkeep", max((one.seconds for one in pauses), default=0.0), "s")
        got = Measured(rows, payload_bytes, upsert, *np.quantile(plain, [0.5, 0.99]).tolist())
        add("search p50", got.search_p50_ms, "ms", base and 2 * base.search_p50_ms)
        add("search p99", got.search_p99_ms, "ms", base and 2 * base.search_p99_ms)
        add("as-of search p50 / plain", float(np.median(past)) / got.search_p50_ms, "x", 1.5)
        add("hybrid search p50", float(np.median(both)), "ms")
        add("hybrid search p99", float(np.quantile(both, 0.99)), "ms")
        add("hybrid p50, unindexed upserts", float(np.median(with_tail)), "ms")
        add("recall@4 against exact search", recall(uri, layout, reader, news), "", 0.98, at_most=False)
        writer.optimize()
        stats = BankReader(uri, layout, 0.0).stats()
        add("bytes per row", stats.bytes / stats.rows, "bytes")
        add("fragments", stats.fragments, "")
    return got


def append_all(writer: BankWriter, news: SyntheticNews, rows: int) -> tuple[list[float], datetime]:
    """Fills the bank; rows/s of every commit, upkeep included, and the moment when half of it was there."""
    rates = []
    middle = datetime.now(UTC)
    for start in range(0, rows, COMMIT_ROWS):
        batch = news.documents(list(range(start, min(rows, start + COMMIT_ROWS))))
        rates.append(rate(lambda batch=batch: writer.commit(batch), len(batch)))
        if start < rows // 2:
            middle = datetime.now(UTC)
    return rates, middle


def upsert_rate(writer: BankWriter, news: SyntheticNews, rows: int, size: int, commits: int) -> float:
    """New versions of random documents: rows/s, the median of commits of `size` documents."""
    dice = np.random.default_rng(1)
    rates = []
    for _ in range(commits):
        batch = news.documents([int(number) for number in dice.choice(rows, size, replace=False)])
        rates.append(rate(lambda batch=batch: writer.commit(batch), len(batch)))
    return float(np.median(rates))


def rate(act: Callable[[], object], rows: int) -> float:
    """Rows a second of one act."""
    started = time.perf_counter()
    act()
    return rows / (time.perf_counter() - started)


def ask(reader: BankReader, news: SyntheticNews, as_of: datetime | None) -> Sequence[float]:
    """Milliseconds of single questions, after a few to warm up."""
    taken = []
    for key, text in zip(news.keys(QUESTIONS + 10), news.texts(QUESTIONS + 10, words=10), strict=True):
        started = time.perf_counter()
        reader.search(key[None], K, as_of=as_of, texts=[text])
        taken.append((time.perf_counter() - started) * 1e3)
    return taken[10:]


def recall(uri: str, layout: BankLayout, reader: BankReader, news: SyntheticNews) -> float:
    """Share of the exact four nearest that a search finds; exact are all live keys compared here."""
    import lancedb

    keys = lancedb.connect(uri).open_table("memories").search().where("superseded_at IS NULL")
    table = keys.select(["doc_id", "key"]).to_arrow()
    known = table["key"].combine_chunks().flatten().to_numpy().reshape(-1, layout.d_key)
    ids = table["doc_id"].to_numpy()
    fresh = BankReader(uri, layout, 60.0)
    questions = news.keys(50)
    right = 0
    for start in range(0, 50, 10):
        asked = questions[start : start + 10]
        scores = np.concatenate([asked @ part.astype(np.float32).T for part in np.array_split(known, 20)], axis=1)
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        for row, hits in zip(best, fresh.search(asked, K), strict=True):
            right += len(set(ids[row]) & {hit.doc_id for hit in hits})
    return right / (50 * K)


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that tells the most resident bytes of this process since the block began."""
    Path("/proc/self/clear_refs").write_text("5")
    yield lambda: _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())

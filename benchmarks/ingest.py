"""How fast ingest is: every figure beside its bar; writes benchmarks/results/ingest.json.

    make bench-ingest           # or: python -m benchmarks.ingest [stream] [kafka] [model] [peers]

Ends with 1 when a bar is missed. Needs an idle machine to mean anything.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.bars import Report
from benchmarks.ingest_model import measure_model, measure_peers
from benchmarks.ingest_stream import measure_stream, measure_stream_on_kafka
from services.threads import use_all_cores

RESULT = Path(__file__).parent / "results" / "ingest.json"


def main() -> int:
    """Runs the parts that are named on the command line, all of them by default."""
    parts = set(sys.argv[1:]) or {"stream", "kafka", "model", "peers"}
    records = int(os.environ.get("BENCH_RECORDS", "40000"))
    report = Report()
    use_all_cores()  # as the compressor's process does, before torch is loaded
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "stream" in parts:
            measure_stream(report, folder, records, half_load_s=20.0)
        if "kafka" in parts:
            measure_stream_on_kafka(report, folder, records, half_load_s=20.0)
        if "model" in parts:
            measure_model(report)
        if "peers" in parts:
            measure_peers(report, folder)
    report.write(RESULT)
    print(f"{len(report.missed)} bars missed; {RESULT.name} written", flush=True)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())

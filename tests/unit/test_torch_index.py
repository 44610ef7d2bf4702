"""The set-up takes torch's CPU build where that is what the machine wants, and goes on without it where it can't be had."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "torch_index.py"


class _Index(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/cpu/torch/"
        body = b"<a href='torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl'>" if known else b"nothing"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Index) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def printed(index: str) -> str:
    environment = {"TORCH_INDEX": index, "PATH": "/usr/bin:/bin", "no_proxy": "*"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_index_that_has_torch_is_used(server: str) -> None:
    assert printed(f"{server}/cpu") == f"--extra-index-url {server}/cpu"


@pytest.mark.parametrize("path", ["", "/other"])
def test_an_index_without_torch_is_left_out(path: str, server: str) -> None:
    assert printed(server + path) == ""


@pytest.mark.parametrize("index", ["", "http://127.0.0.1:9", "no url"])
def test_no_index_and_one_that_cannot_be_reached_are_left_out(index: str) -> None:
    assert printed(index) == ""


def test_an_index_that_accepts_and_says_nothing_holds_the_set_up_for_seconds_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert printed(f"http://127.0.0.1:{silent.getsockname()[1]}") == ""
        assert time.monotonic() - started < 30  # it would be for ever


@pytest.mark.parametrize(("driver", "system"), [(True, "Linux"), (False, "Darwin")])
def test_a_machine_with_a_driver_or_another_system_takes_what_pypi_has(
    driver: bool, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import torch_index

    monkeypatch.setattr(torch_index, "answers", lambda index: True)
    assert torch_index.option(None, driver, system) == ""
    assert torch_index.option(None, False, "Linux") == f"--extra-index-url {torch_index.CPU_INDEX}"

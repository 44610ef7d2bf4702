"""What the commands say when another program answers at the query service's address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from services.commands.client import service_stats, stream_answer
from services.errors import ServiceError
from services.settings import Settings


@pytest.fixture
def foreign() -> Iterator[ThreadingHTTPServer]:
    """A server that answers every request with what its `reply` is set to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body: bytes = self.server.reply  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing: a test's server is quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    "reply", ["<html>", "{}", "[]", "null", '{"documents": "many", "latest": []}', '{"documents": 1, "latest": [7]}']
)
def test_stats_of_another_program_are_one_line(foreign: ThreadingHTTPServer, reply: str) -> None:
    foreign.reply = reply.encode()  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="does not answer like a query service: is it another program's address"):
        service_stats(address(foreign), Settings(), "default")


@pytest.mark.parametrize("chunk", ["7", "{}", '{"choices": 1}', '{"choices": [{"text": "a"}]}', "not JSON"])
def test_chunks_of_another_program_are_one_line(foreign: ThreadingHTTPServer, chunk: str) -> None:
    foreign.reply = f"data: {chunk}\n\ndata: [DONE]\n\n".encode()  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="does not answer like a query service"):
        list(stream_answer(address(foreign), Settings(), {}))


@pytest.mark.parametrize(
    ("error", "said"), [({"message": "out of memory"}, "out of memory"), ("broken", "broken"), (None, "None")]
)
def test_errors_within_a_stream_are_told_whatever_their_shape(
    foreign: ThreadingHTTPServer, error: Any, said: str
) -> None:
    foreign.reply = f"data: {json.dumps({'error': error})}\n\n".encode()  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match=f"stopped in the middle of the answer: {said}"):
        list(stream_answer(address(foreign), Settings(), {}))

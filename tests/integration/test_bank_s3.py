"""Claims about a bank in S3, against moto's S3 server over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from services.bank.reader import BankReader
from services.bank.writer import BankWriter
from services.errors import BankFenced, BankUnavailable
from tests.integration.test_bank import LAYOUT, at, delete, texts, write

URI = "s3://bucket/news/bank"


def options(port: int) -> dict[str, str]:
    return {
        "aws_access_key_id": "anyone",
        "aws_secret_access_key": "nothing",
        "aws_region": "us-east-1",
        "aws_endpoint": f"http://127.0.0.1:{port}",
        "allow_http": "true",
    }


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        own = options(server.get_host_and_port()[1])
        client = boto3.client(
            "s3",
            endpoint_url=own["aws_endpoint"],
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="y",
        )
        client.create_bucket(Bucket="bucket")
        yield own
    finally:
        server.stop()


def test_bank_in_s3_is_written_replaced_optimised_and_read_as_of_the_past(store: dict[str, str]) -> None:
    reader = BankReader(URI, LAYOUT, 0.0, store)
    assert texts(reader) == {}
    with BankWriter(URI, LAYOUT, 0, store) as writer:
        writer.commit([write("a", at(0), "first"), write("b", at(1), "gone")])
        moment = reader.stats().latest_ingested_at
        writer.commit([write("a", at(2), "second"), delete("b", at(3))])
        assert writer.commit([write("a", at(2), "second")]).stale == 1
        writer.optimize()
    assert texts(reader) == {"a": ["second"]}
    assert texts(reader, moment) == {"a": ["first"], "b": ["gone"]}


def test_second_writer_in_s3_fences_the_first_one_off(store: dict[str, str]) -> None:
    uri = f"{URI}-fenced"
    with BankWriter(uri, LAYOUT, 0, store) as old:
        old.commit([write("a", at(0), "x")])
        with BankWriter(uri, LAYOUT, 0, store) as new:
            with pytest.raises(BankFenced, match="has taken over"):
                old.commit([write("a", at(1), "of the old writer")])
            new.commit([write("a", at(2), "y")])
    assert texts(BankReader(uri, LAYOUT, 0.0, store)) == {"a": ["y"]}


class Careless(BaseHTTPRequestHandler):
    """An object store that takes every put, whatever its conditions."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200, {"ETag": '"0"'})

    def do_DELETE(self) -> None:
        self._answer(204, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200, {}, b"<DeleteResult><Deleted><Key>any</Key></Deleted></DeleteResult>")

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_store_that_ignores_conditions_is_refused_before_anything_is_written() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(BankUnavailable, match="replaces objects that it was told to create"):
            BankWriter(URI, LAYOUT, 0, options(server.server_port))
    finally:
        server.shutdown()
        server.server_close()

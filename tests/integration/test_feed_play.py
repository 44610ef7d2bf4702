"""Feeds from files and a real web server, played into a real broker."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.errors import BrokerError, FeedError
from services.feed.download import download
from services.feed.fetch import read_all, read_any
from services.feed.items import Item
from services.feed.play import PlayReport, play
from services.metrics import Metrics
from services.settings import FeedSettings, KafkaSettings
from services.stream.broker import EmbeddedBroker
from services.stream.decode import decode
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document, Tombstone

SETTINGS = FeedSettings(timeout_s=2, max_bytes=50_000, user_agent="test-agent/1")
RSS = b"""<?xml version="1.0"?><rss version="2.0"><channel><title>Gazette</title>
<item><guid>g-1</guid><title>Ferry</title><description>The ferry returns.</description></item>
<item><guid>g-2</guid><title>Mill</title><description>The mill is open.</description></item>
<item><guid>g-3</guid></item></channel></rss>"""


class Handler(BaseHTTPRequestHandler):
    """One path per kind of server."""

    agents: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Handler.agents.append(self.headers["User-Agent"])
        answer = getattr(self, f"answer_{self.path.strip('/').split('/')[0]}", self.answer_missing)
        try:
            answer()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_missing(self) -> None:
        self.reply(404)

    def answer_feed(self) -> None:
        self.reply(200, RSS)

    def answer_zipped(self) -> None:
        self.reply(200, gzip.compress(RSS), Content_Encoding="gzip")

    def answer_moved(self) -> None:
        self.reply(301, Location="/feed")

    def answer_loop(self) -> None:
        self.reply(302, Location="/loop")

    def answer_elsewhere(self) -> None:
        self.reply(302, Location="file:///etc/hostname")

    def answer_big(self) -> None:
        self.reply(200, b"x" * 60_000)

    def answer_bomb(self) -> None:
        self.reply(200, gzip.compress(b"x" * 5_000_000), Content_Encoding="gzip")

    def answer_garbled(self) -> None:
        self.reply(200, b"not gzip", Content_Encoding="gzip")

    def answer_page(self) -> None:
        self.reply(200, b"<html><body>Please sign in</body></html>")

    def answer_silence(self) -> None:
        time.sleep(4)

    def answer_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.answer_drip_body()

    def answer_drip_body(self) -> None:
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.25)

    def answer_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.answer_drip_body()

    def answer_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")
        self.close_connection = True


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["feed", "zipped", "moved"])
def test_feed_is_fetched(site: str, path: str) -> None:
    assert download(f"{site}/{path}", SETTINGS).body == RSS
    assert Handler.agents[-1] == "test-agent/1"


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("missing", "404"),
        ("loop", "more than 5 redirects"),
        ("elsewhere", "only http and https"),
        ("big", "more than 50000 bytes"),
        ("bomb", "more than 50000 bytes"),
        ("garbled", "can't be fetched"),
        ("silence", "no complete answer within 2 s"),
        ("drip", "no complete answer within 2 s"),
        ("headers", "no complete answer within 2 s"),
        ("cut", "can't be fetched"),
    ],
)
def test_every_failure_is_one_line_in_time(site: str, path: str, what: str) -> None:
    started = time.monotonic()
    with pytest.raises(FeedError) as caught:
        download(f"{site}/{path}", SETTINGS)
    assert time.monotonic() - started < 3.5
    assert str(caught.value).startswith(f"{site}/{path}: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://x/y", "http://", "http://[bad", "https://no-host.invalid/", "http://127.0.0.1:1/x"],
)
def test_address_that_is_no_web_server_is_one_line(url: str) -> None:
    with pytest.raises(FeedError, match=r"^[^\n]+$"):
        download(url, SETTINGS)


def test_password_in_an_address_is_never_shown(site: str) -> None:
    with pytest.raises(FeedError) as caught:
        download(site.replace("//", "//ada:secret@") + "/missing", SETTINGS)
    assert "secret" not in str(caught.value)


def test_items_arrive_in_order_and_broken_feeds_are_counted(
    site: str, broker: str, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    (tmp_path / "docs.jsonl").write_bytes(
        b'{"id": "a", "text": "First."}\nbroken\n{"id": "a", "text": "Second."}\n{"id": "a", "deleted": true}\n'
    )
    places = [f"{site}/missing", f"{site}/feed", f"{site}/page", str(tmp_path), str(tmp_path / "none.xml")]
    metrics = Metrics()
    told: list[int] = []
    settings = kafka_settings.model_copy(update={"partitions": 1})
    with DocumentProducer(settings, broker) as producer:
        report = play(read_all(places, SETTINGS), producer, None, told.append, metrics)
    assert report == PlayReport(sent=4, deleted=1, skipped=1, unreadable=4)
    assert told == sorted(told)
    assert told[-1] == 5
    numbers = metrics.snapshot().numbers
    assert numbers["cmt_feed_errors_total"] == {(): 4.0}
    assert numbers["cmt_feed_items_total"] == {("sent",): 4.0, ("deleted",): 1.0, ("skipped",): 1.0}
    arrived = [decode(record) for record in read_topic(settings, broker, settings.topic)]
    assert arrived == [
        Document("g-1", "The ferry returns.", title="Ferry", source="Gazette"),
        Document("g-2", "The mill is open.", title="Mill", source="Gazette"),
        Document("a", "First."),
        Document("a", "Second."),
        Tombstone("a"),
    ]


def test_pace_is_kept(broker: str, kafka_settings: KafkaSettings) -> None:
    items = [Document(str(number), "Rain.") for number in range(11)]
    with DocumentProducer(kafka_settings, broker) as producer:
        started = time.monotonic()
        play(iter(items), producer, 20.0)
        paced_s = time.monotonic() - started
        started = time.monotonic()
        play(iter(items), producer, None)
        free_s = time.monotonic() - started
    assert 0.5 <= paced_s < 2
    assert free_s < 0.4


def test_many_items_all_arrive(broker: str, kafka_settings: KafkaSettings) -> None:
    items = (Document(str(number), f"Text {number}.") for number in range(2300))
    with DocumentProducer(kafka_settings, broker) as producer:
        assert play(items, producer).sent == 2300
    assert len({record.key for record in read_topic(kafka_settings, broker, kafka_settings.topic)}) == 2300


def test_record_that_can_never_be_sent_costs_no_other(
    broker: str, kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    items = [Document("0", "Before."), Document("huge", "x" * (65 * 2**20)), Document("2", "Behind.")]
    with DocumentProducer(kafka_settings, broker) as producer:
        assert play(iter(items), producer) == PlayReport(sent=2, deleted=0, skipped=0, refused=1)
    assert {record.key for record in read_topic(kafka_settings, broker, kafka_settings.topic)} == {b"0", b"2"}
    (told,) = [record.getMessage() for record in caplog.records]
    assert "refused 'huge'" in told
    assert kafka_settings.topic in told


def test_only_what_the_broker_has_acknowledged_counts(kafka_settings: KafkaSettings, free_port: int) -> None:
    settings = kafka_settings.model_copy(update={"connect_timeout_s": 1.0})
    told: list[int] = []
    with EmbeddedBroker(free_port) as own, DocumentProducer(settings, own.bootstrap) as producer:

        def items() -> Iterator[Item]:
            yield from (Document(str(number), "Arrives.") for number in range(5))
            producer.flush(10)
            own.stop()
            yield from (Document(str(number), "Is lost.") for number in range(5, 12))

        with pytest.raises(BrokerError, match=r"7 records were not delivered .*; 5 were, send the others again"):
            play(items(), producer, None, told.append)
    assert max(told) == 5


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rate_must_be_positive(rate: float, broker: str, kafka_settings: KafkaSettings) -> None:
    with DocumentProducer(kafka_settings, broker) as producer, pytest.raises(ValueError, match="rate must be positive"):
        play(iter(()), producer, rate)


def test_plain_loop_stops_at_the_broken_feed(site: str) -> None:
    with pytest.raises(FeedError, match="/page: "):
        list(read_any(f"{site}/page", SETTINGS))

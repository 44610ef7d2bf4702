"""`cmt feed poll` against a web server that changes its feeds, and the fixtures of other feed readers."""

from __future__ import annotations

import gzip
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from services.commands.tree import app
from services.errors import BrokerError, FeedError
from services.feed.addresses import ConnectionGuard, PrivateAddress, is_public
from services.feed.download import FeedGone, download
from services.feed.parse import parse_feed, read_feed
from services.feed.poller import FeedLook, Poller
from services.feed.state import FeedState
from services.metrics import Metrics
from services.settings import FeedSettings, KafkaSettings, load_settings
from services.stream.broker import EmbeddedBroker
from services.stream.reading import read_topic
from services.stream.record import Document

ITEM = "<item><guid isPermaLink='false'>{guid}</guid><title>{title}</title><description>{text}</description></item>"


def rss(*items: str) -> bytes:
    return f"<rss version='2.0'><channel><title>News</title>{''.join(items)}</channel></rss>".encode()


def item(guid: str, text: str) -> str:
    return ITEM.format(guid=guid, title=f"Title of {guid}", text=text)


class Site:
    """Paths with bodies that a test may change; requests are noted with their conditional headers."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.before_answer: Callable[[], object] = lambda: None
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                etag = self.headers.get("If-None-Match")
                site.asked.append((self.path, etag, self.headers.get("If-Modified-Since")))
                site.before_answer()
                status, headers = site.answers.get(self.path, (200, {}))
                body = site.bodies.get(self.path, b"")
                tag = f'"{hash(body)}"'
                status = 304 if status == 200 and etag == tag else status
                self.send_response_only(status)  # without a Date of its own
                if status == 200:
                    headers = {"ETag": tag, "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"} | headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if status == 200:
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def poller(
    site: Site, folder: Path, *paths: str, clock: Clock | None = None, chance: float = 0.5, topic: str = "t-1"
) -> Poller:
    settings = FeedSettings(timeout_s=5, interval_s=100, state_file=folder / "feeds.json")
    urls = [site.url + path for path in paths or ("/a",)]
    state = FeedState(settings.state_file)
    return Poller(urls, settings, state, Metrics(), topic, clock=clock or Clock(), chance=lambda: chance)


def look(polling: Poller) -> list[FeedLook]:
    found = list(polling.due())
    for one in found:
        polling.sent(one)
    return found


def test_an_edited_item_is_an_update_of_the_same_document(site: Site, tmp_path: Path) -> None:
    clock = Clock()
    polling = poller(site, tmp_path, clock=clock)
    site.bodies["/a"] = rss(item("1", "Ferry sails."), item("2", "Bridge opens."))
    (first,) = look(polling)
    assert [one.text for one in first.documents] == ["Ferry sails.", "Bridge opens."]
    clock.now += 101
    site.bodies["/a"] = rss(item("1", "Ferry is cancelled."), item("2", "Bridge opens."))
    (second,) = look(polling)
    assert [one.text for one in second.documents] == ["Ferry is cancelled."]
    assert second.documents[0].id == first.documents[0].id


def test_what_has_not_changed_is_not_sent_over_the_network_again(site: Site, tmp_path: Path) -> None:
    clock = Clock()
    site.bodies["/a"] = rss(item("1", "Ferry sails."))
    assert len(look(poller(site, tmp_path, clock=clock))[0].documents) == 1
    clock.now += 101
    restarted = poller(site, tmp_path, clock=clock)
    (found,) = look(restarted)
    assert (list(found.documents), found.error) == ([], "")
    assert site.asked[1][1:] == (f'"{hash(site.bodies["/a"])}"', "Wed, 01 Jan 2025 00:00:00 GMT")


def test_what_was_found_and_never_noted_as_sent_is_found_again_at_once(site: Site, tmp_path: Path) -> None:
    site.bodies["/a"] = rss(item("1", "Ferry sails."))
    for _ in range(2):
        (found,) = poller(site, tmp_path).due()
        assert len(found.documents) == 1
    assert [asked[1:] for asked in site.asked] == [(None, None)] * 2


def test_two_feeds_may_use_the_same_short_id(site: Site, tmp_path: Path) -> None:
    site.bodies["/a"], site.bodies["/b"] = rss(item("1", "Of a.")), rss(item("1", "Of b."), item("urn:x:1", "Global."))
    found = look(poller(site, tmp_path, "/a", "/b"))
    ids = [one.id for feed in found for one in feed.documents]
    assert len(set(ids)) == 3
    assert ids[-1] == "urn:x:1"


def test_a_feed_that_fails_is_looked_at_less_and_less(site: Site, tmp_path: Path) -> None:
    clock = Clock()
    site.answers["/a"] = (500, {})
    polling = poller(site, tmp_path, clock=clock)
    waits = []
    for _ in range(12):
        assert "500" in look(polling)[0].error
        waits.append(polling.wait_s())
        clock.now += polling.wait_s() + 0.01
    assert waits[:4] == pytest.approx([200, 400, 800, 1600], abs=1)
    assert waits[-1] == pytest.approx(21_600, abs=1)
    site.answers["/a"] = (200, {})
    site.bodies["/a"] = rss(item("1", "Back."))
    assert len(look(polling)[0].documents) == 1
    assert polling.wait_s() == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 90.0), (1.0, 110.0)])
def test_looks_are_spread_by_a_tenth(site: Site, tmp_path: Path, chance: float, wait_s: float) -> None:
    site.bodies["/a"] = rss(item("1", "x"))
    polling = poller(site, tmp_path, chance=chance)
    look(polling)
    assert polling.wait_s() == pytest.approx(wait_s)


def test_a_server_that_asks_for_patience_gets_it_and_one_that_is_gone_is_left_alone(site: Site, tmp_path: Path) -> None:
    site.answers["/a"], site.answers["/gone"] = (503, {"Retry-After": "5000"}), (410, {})
    polling = poller(site, tmp_path, "/a", "/gone")
    look(polling)
    assert polling.wait_s() == pytest.approx(5000, abs=1)
    assert not polling.all_gone()
    with pytest.raises(FeedGone):
        download(f"{site.url}/gone", FeedSettings())
    gone = poller(site, tmp_path / "other", "/gone")
    look(gone)
    assert gone.all_gone()


@pytest.mark.parametrize("etag", ['"über-1"', '"ö"', "x" * 2000])
def test_a_validator_that_can_not_be_sent_back_does_not_end_the_feed(site: Site, tmp_path: Path, etag: str) -> None:
    clock = Clock()
    site.answers["/a"] = (200, {"ETag": etag, "Last-Modified": "gestern früh"})
    polling = poller(site, tmp_path, clock=clock)
    for number in range(3):
        site.bodies["/a"] = rss(item(str(number), f"Bulletin {number}."))
        (found,) = look(polling)
        assert (len(found.documents), found.error) == (1, "")
        clock.now += 111
    assert {asked[1:] for asked in site.asked} == {(None, None)}


@pytest.mark.parametrize(("status", "body"), [(500, b""), (412, b""), (200, b"<html>maintenance</html>"), (304, b"")])
def test_a_validator_is_forgotten_after_a_failure(site: Site, tmp_path: Path, status: int, body: bytes) -> None:
    """It may be what the server stumbles over: asked without, it has to give all."""
    clock = Clock()
    polling = poller(site, tmp_path, clock=clock)
    sound = rss(item("1", "Ferry sails."))
    for answer, content in ((200, sound), (status, body), (200, sound)):
        site.answers["/a"], site.bodies["/a"] = (answer, {}), content
        look(polling)
        clock.now += 50_000
    unconditional = (None, None)
    expected = [unconditional, (f'"{hash(sound)}"', "Wed, 01 Jan 2025 00:00:00 GMT"), unconditional]
    assert [asked[1:] for asked in site.asked] == (
        expected if status != 304 else [expected[0], expected[1], expected[1]]
    )


def test_not_modified_without_a_condition_is_an_error(site: Site, tmp_path: Path) -> None:
    site.answers["/a"] = (304, {})
    assert "304" in look(poller(site, tmp_path))[0].error


IN_TWO_HOURS = {"Date": "Wed, 25 Nov 2026 08:00:00 GMT", "Retry-After": "Wed, 25 Nov 2026 10:00:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": " 5000 "}, 5000),
        ({"Retry-After": "99999999999999"}, 86_400),
        (IN_TWO_HOURS, 7200),
        (IN_TWO_HOURS | {"Retry-After": "Wednesday, 25-Nov-26 10:00:00 GMT"}, 7200),
        (IN_TWO_HOURS | {"Retry-After": "Wed, 25 Nov 2099 10:00:00 GMT"}, 86_400),
        (IN_TWO_HOURS | {"Retry-After": "Tue, 24 Nov 2026 10:00:00 GMT"}, 200),
        *(({"Retry-After": text}, 200) for text in ("0", "-5", "soon", "", "1e9", "Wed, 99 Nov 2026", "٥")),
    ],
    ids=str,
)
def test_retry_after_is_read_in_both_forms_and_bounded(
    site: Site, tmp_path: Path, headers: dict[str, str], wait_s: float
) -> None:
    site.answers["/a"] = (429, {name: value.encode().decode("latin-1") for name, value in headers.items()})
    polling = poller(site, tmp_path)
    look(polling)
    assert polling.wait_s() == pytest.approx(wait_s, abs=1)


def test_no_look_comes_before_the_server_wants_it(site: Site, tmp_path: Path) -> None:
    site.answers["/a"] = (503, {"Retry-After": "5000"})
    polling = poller(site, tmp_path, chance=0.0)
    look(polling)
    assert polling.wait_s() >= 5000


def test_a_feed_is_read_as_its_server_serves_it(site: Site, tmp_path: Path) -> None:
    title = "Мост открыт"
    site.bodies["/x/feed"] = gzip.compress(
        f"<rss version='2.0'><channel><item><title>{title}</title><link>n/1</link></item></channel></rss>".encode(
            "cp1251"
        )
    )
    site.answers["/x/feed"] = (200, {"Content-Type": "text/xml; charset=windows-1251"})
    site.answers["/a"] = (302, {"Location": "/x/feed"})
    ((document,),) = (one.documents for one in look(poller(site, tmp_path)))
    assert (document.title, document.url) == (title, f"{site.url}/x/n/1")


def test_a_web_page_names_its_feed(site: Site, tmp_path: Path) -> None:
    site.bodies["/a"] = b"<html><head><link rel=alternate type=application/rss+xml href=/rss></head></html>"
    assert look(poller(site, tmp_path))[0].error == f"{site.url}/a: a web page, not a feed; it names {site.url}/rss"


def test_another_topic_gets_all_items_again(site: Site, tmp_path: Path) -> None:
    """The embedded broker's topic is another one each time: what went to the last may never have been read."""
    site.bodies["/a"] = rss(item("1", "Ferry sails."))
    sent = [len(look(poller(site, tmp_path, topic=topic))) for topic in ("t-1", "t-1", "t-2")]
    assert sent == [1, 0, 1]


def test_one_odd_feed_does_not_end_the_others(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.bodies["/a"] = site.bodies["/b"] = rss(item("1", "Ferry sails."))

    def odd(data: bytes, name: str, **context: Any) -> Any:
        if name.endswith("/a"):
            raise RecursionError("of a kind that nobody thought of")
        return read_feed(data, name, **context)

    monkeypatch.setattr("services.feed.poller.read_feed", odd)
    a, b = look(poller(site, tmp_path, "/a", "/b"))
    assert a.error == f"{site.url}/a: can't be read: RecursionError: of a kind that nobody thought of"
    assert len(b.documents) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((one, False) for one in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "0.0.0.0", "fe80::1%eth0")),
        *(
            (one, False)
            for one in ("::ffff:192.168.0.1", "100.64.0.1", "224.0.0.1", "64:ff9b::a01:203", "2002:a01:203::")
        ),
        *((one, True) for one in ("8.8.8.8", "2606:4700::1", "64:ff9b::808:808")),
    ],
)
def test_private_addresses_are_known(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_no_redirect_leads_into_the_network(site: Site) -> None:
    """The first address is the operator's choice; where a server sends us is not."""
    site.bodies["/target"] = rss(item("1", "secret"))
    other = site.url.replace("127.0.0.1", "localhost")
    site.answers["/out"] = (302, {"Location": f"{other}/target"})
    site.answers["/file"] = (302, {"Location": "file:///etc/passwd"})
    site.answers["/same"] = (301, {"Location": "/target"})
    with pytest.raises(FeedError, match="not on the public internet"):
        download(f"{site.url}/out", FeedSettings())
    with pytest.raises(FeedError, match="only http and https"):
        download(f"{site.url}/file", FeedSettings(allow_private_redirects=True))
    assert download(f"{site.url}/same", FeedSettings()).body == site.bodies["/target"]
    assert download(f"{site.url}/out", FeedSettings(allow_private_redirects=True)).body == site.bodies["/target"]


@pytest.mark.parametrize("target", ["http://127.0.0.1:{other}/x", "http://127.0.0.2:{port}/x", "http://[::1]:{port}/x"])
def test_another_private_place_is_refused_and_the_setting_named(site: Site, target: str) -> None:
    port = site.server.server_port
    with Site() as other:
        site.answers["/out"] = (301, {"Location": target.format(port=port, other=other.server.server_port)})
        with pytest.raises(
            FeedError, match=r"not on the public internet; set feed\.allow_private_redirects to follow it"
        ):
            download(f"{site.url}/out", FeedSettings())
        assert (len(site.asked), other.asked) == (1, [])


class Names:
    """What names mean, one address after the other, as a hostile DNS server would say it."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses, self.asked = addresses, 0
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        name = (host.decode() if isinstance(host, bytes) else str(host)).partition(".")[0]
        if name in self.addresses:
            self.asked += 1
            answers = self.addresses[name]
            host = answers.pop(0) if len(answers) > 1 else answers[0]
        return self._real(host, port, *rest, **named)


def test_a_name_that_changes_its_address_leads_nowhere_private(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when it is looked at, private when it is used. What counts is the connection itself."""
    port = site.server.server_port
    for host in ("evil.example", "EVIL.example", "xn--bse-sna.example"):
        names = Names(home=["127.0.0.1"], **{host.lower().partition(".")[0]: ["8.8.8.8", "127.0.0.1"]})
        monkeypatch.setattr(socket, "getaddrinfo", names)
        site.answers["/out"] = (302, {"Location": f"http://{host}:{port}/secret"})
        socket.getaddrinfo(host.lower(), port)  # what a check before the connection would have seen
        with pytest.raises(FeedError, match=f"redirects to {host.lower()}, which is not on the public internet"):
            download(f"http://home.example:{port}/out", FeedSettings())
    assert [asked[0] for asked in site.asked] == ["/out"] * 3


class Stream:
    def __init__(self, address: str) -> None:
        self.address, self.closed = address, False

    def get_extra_info(self, name: str) -> Any:
        return (self.address, 80) if name == "server_addr" else None

    def close(self) -> None:
        self.closed = True


def connect(guard: ConnectionGuard, url: str, address: str, *, asked: str = "", first: bool = False) -> Stream:
    """What httpx tells of a connection to `asked`, by default the host of the URL."""
    stream = Stream(address)
    if not first:
        guard.next(httpx.URL(url))
    guard.trace("connection.connect_tcp.started", {"host": asked or httpx.URL(url).host})
    guard.trace("connection.connect_tcp.complete", {"return_value": stream})
    return stream


@pytest.mark.parametrize(
    ("first", "then", "allowed"),
    [
        (("http://a.example/", "8.8.8.8"), ("http://a.example/x", "127.0.0.1"), False),
        (("http://a.example/", "8.8.8.8"), ("http://b.example/x", "10.0.0.1"), False),
        (("http://a.example/", "8.8.8.8"), ("https://b.example/x", "1.1.1.1"), True),
        (("http://intra/", "10.0.0.1"), ("https://intra/", "10.0.0.1"), True),
        (("http://intra/", "10.0.0.1"), ("http://intra:8080/", "10.0.0.1"), False),
        (("http://intra:8080/", "10.0.0.1"), ("http://intra:8080/x", "10.0.0.1"), True),
        (("http://intra/", "10.0.0.1"), ("http://intra/x", "10.0.0.2"), False),
        (("http://intra/", "10.0.0.1"), ("http://other/x", "10.0.0.1"), False),
    ],
)
def test_every_connection_is_checked(first: tuple[str, str], then: tuple[str, str], allowed: bool) -> None:
    guard = ConnectionGuard(httpx.URL(first[0]))
    assert not connect(guard, *first, first=True).closed
    if allowed:
        assert not connect(guard, *then).closed
    else:
        with pytest.raises(PrivateAddress):
            connect(guard, *then)


def test_a_proxy_may_be_private_but_an_address_behind_it_may_not() -> None:
    guard = ConnectionGuard(httpx.URL("http://a.example/"))
    assert not connect(guard, "http://a.example/", "10.9.9.9", asked="proxy.intra", first=True).closed
    assert not connect(guard, "http://b.example/", "10.9.9.9", asked="proxy.intra").closed
    with pytest.raises(PrivateAddress):
        connect(guard, "http://intra.example/", "10.1.1.1")  # past the proxy
    with pytest.raises(PrivateAddress):
        guard.next(httpx.URL("http://169.254.169.254/latest"))


def test_broken_state_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "feeds.json").write_text("[1, 2")
    with pytest.raises(FeedError, match="remove it to send all items again"):
        FeedState(tmp_path / "feeds.json")


def run(settings: KafkaSettings, broker: str, folder: Path, *arguments: str) -> Result:
    flags = ["--topic", settings.topic, "--bootstrap-servers", broker]
    return CliRunner().invoke(app, ["feed", *arguments, *flags], env={"CMT_FEED__STATE_FILE": str(folder / "f.json")})


def test_poll_command_sends_each_version_once(
    site: Site, kafka_settings: KafkaSettings, broker: str, tmp_path: Path
) -> None:
    site.bodies["/a"], site.bodies["/broken"] = rss(item("1", "Ferry sails.")), b"<html>not a feed</html>"
    urls = [f"{site.url}/a", f"{site.url}/broken"]
    first = run(kafka_settings, broker, tmp_path, "poll", "--once", *urls)
    assert first.exit_code == 5
    assert "1 new or changed" in first.stderr
    assert f"{urls[1]}: a web page, not a feed" in first.stderr
    again = run(kafka_settings, broker, tmp_path, "poll", "--once", *urls)
    assert again.exit_code == 0, "nothing is due"
    sent = list(read_topic(kafka_settings, broker, kafka_settings.topic))
    assert [b"Ferry sails." in (one.value or b"") for one in sent] == [True]


def test_what_kafka_has_not_acknowledged_is_not_remembered(
    site: Site, kafka_settings: KafkaSettings, free_port: int, tmp_path: Path
) -> None:
    """The broker dies between the look and the delivery: the next poll sends the same news, at once."""
    settings = kafka_settings.model_copy(update={"connect_timeout_s": 1.0})
    environment = {"CMT_FEED__STATE_FILE": str(tmp_path / "f.json"), "CMT_KAFKA__CONNECT_TIMEOUT_S": "1"}
    with EmbeddedBroker(free_port) as own:
        flags = ["--topic", settings.topic, "--bootstrap-servers", own.bootstrap]
        command = ["feed", "poll", "--once", f"{site.url}/a", *flags]
        site.before_answer = own.stop
        site.bodies["/a"] = rss(item("1", "Ferry sails."))
        failed = CliRunner().invoke(app, command, env=environment)
        assert isinstance(failed.exception, BrokerError)
    site.before_answer = lambda: None
    with EmbeddedBroker(free_port) as own:
        assert "1 new or changed" in CliRunner().invoke(app, command, env=environment).stderr
        assert len(list(read_topic(settings, own.bootstrap, settings.topic))) == 1


def test_play_by_own_times_sorts_and_keeps_the_pauses(
    kafka_settings: KafkaSettings, broker: str, tmp_path: Path
) -> None:
    lines = [
        '{"id": "c", "text": "third", "published_at": "2026-01-01T00:02:00Z"}',
        '{"id": "c2", "text": "with the third"}',
        "no json",
        '{"id": "a", "text": "first", "published_at": "2026-01-01T00:00:00Z"}',
        '{"id": "b", "text": "second", "published_at": "2026-01-01T00:01:00Z"}',
    ]
    (tmp_path / "news.jsonl").write_text("\n".join(lines))
    started = time.monotonic()
    played = run(
        kafka_settings, broker, tmp_path, "play", str(tmp_path / "news.jsonl"), "--own-times", "--speed", "120"
    )
    assert played.exit_code == 5
    assert time.monotonic() - started >= 1.0, "two minutes, 120 times as fast"
    sent = sorted(read_topic(kafka_settings, broker, kafka_settings.topic), key=lambda one: one.timestamp_ms)
    ids = [(one.key or b"").decode() for one in sent]
    assert ids[:2] == ["a", "b"]
    assert set(ids[2:]) == {"c", "c2"}
    assert sent[1].timestamp_ms - sent[0].timestamp_ms >= 450


def fixtures() -> Path:
    return load_settings().data_dir / "feeds.tar.gz"


@pytest.mark.skipif(not fixtures().exists(), reason="feeds.tar.gz is not in CMT_DATA_DIR")
def test_every_fixture_of_other_feed_readers_is_read_or_reported() -> None:
    """How many documents, with a time, with a link: a change that loses some shows here."""
    found: list[Document] = []
    reports: dict[str, str] = {}
    with tarfile.open(fixtures()) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            try:
                found += [one for one in parse_feed(file.read(), member.name) if isinstance(one, Document)]
            except FeedError as error:
                reports[member.name] = str(error)
    assert all(one.id and one.text.strip() for one in found)
    assert len(found) >= 724
    assert sum(one.published_at is not None for one in found) >= 133
    assert sum(one.url != "" for one in found) >= 130
    assert 0 < len(reports) <= 833
    for name, report in reports.items():
        assert report.startswith(name)
        assert "\n" not in report

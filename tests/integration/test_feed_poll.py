"""`cmt feed poll` against a web server that changes its feeds, and the fixtures of other feed readers."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

from services.commands.tree import app
from services.errors import FeedError
from services.feed.addresses import is_private
from services.feed.download import FeedGone, download
from services.feed.parse import parse_feed
from services.feed.poller import Found, Poller
from services.feed.state import FeedState
from services.metrics import Metrics
from services.settings import FeedSettings, KafkaSettings, load_settings
from services.stream.reading import read_topic

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
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                etag = self.headers.get("If-None-Match")
                site.asked.append((self.path, etag, self.headers.get("If-Modified-Since")))
                status, headers = site.answers.get(self.path, (200, {}))
                body = site.bodies.get(self.path, b"")
                tag = f'"{hash(body)}"'
                status = 304 if status == 200 and etag == tag else status
                self.send_response(status)
                if status == 200:
                    headers = headers | {"ETag": tag, "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
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


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def poller(site: Site, folder: Path, *paths: str, clock: Clock | None = None, chance: float = 0.5) -> Poller:
    settings = FeedSettings(timeout_s=5, interval_s=100, state_file=folder / "feeds.json")
    urls = [site.url + path for path in paths or ("/a",)]
    state = FeedState(settings.state_file)
    return Poller(urls, settings, state, Metrics(), clock=clock or Clock(), chance=lambda: chance)


def look(polling: Poller) -> list[Found]:
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
    assert (found.documents, found.error) == ([], "")
    assert site.asked[1][1:] == (f'"{hash(site.bodies["/a"])}"', "Wed, 01 Jan 2025 00:00:00 GMT")


def test_what_was_found_and_never_noted_as_sent_is_found_again(site: Site, tmp_path: Path) -> None:
    site.bodies["/a"] = rss(item("1", "Ferry sails."))
    assert len(next(poller(site, tmp_path).due()).documents) == 1
    assert len(next(poller(site, tmp_path).due()).documents) == 1


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


@pytest.mark.parametrize(
    ("host", "private"),
    [
        *((host, True) for host in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "localhost", "0.0.0.0")),
        *((host, True) for host in ("::ffff:192.168.0.1", "100.64.0.1", "224.0.0.1")),
        *((host, False) for host in ("8.8.8.8", "2606:4700::1", "no-such-host.invalid")),
    ],
)
def test_private_addresses_are_known(host: str, private: bool) -> None:
    assert is_private(host, 80) is private


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
    assert "neither RSS, Atom nor JSON Feed" in first.stderr
    again = run(kafka_settings, broker, tmp_path, "poll", "--once", *urls)
    assert again.exit_code == 0, "nothing is due"
    sent = list(read_topic(kafka_settings, broker, kafka_settings.topic))
    assert [b"Ferry sails." in (one.value or b"") for one in sent] == [True]


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
    read = 0
    reports: dict[str, str] = {}
    with tarfile.open(fixtures()) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            try:
                documents = list(parse_feed(file.read(), member.name))
            except FeedError as error:
                reports[member.name] = str(error)
            else:
                assert all(document.id and document.text.strip() for document in documents if document)
                read += 1
    assert read > 100
    assert reports
    for name, report in reports.items():
        assert report.startswith(name)
        assert "\n" not in report

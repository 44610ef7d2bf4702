"""Items of a feed are told apart, known again, and never sent twice for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.errors import FeedError
from services.feed.download import Validators
from services.feed.identity import Entry, told_apart
from services.feed.recognition import recognised
from services.feed.state import FeedMemory, FeedState, SentItem, one_poller
from services.stream.record import Document

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def entry(text: str, guid: str = "", link: str = "", title: str = "", at: int | None = None) -> Entry:
    """`at` is hours after noon."""
    time = None if at is None else NOON + timedelta(hours=at)
    url = link if link.startswith("http") else ""
    return Entry(guid, link, Document("", text, title=title, url=url, published_at=time), time)


def texts(entries: list[Entry], shared: set[str] | None = None) -> dict[str, str]:
    """Text by id."""
    return {one.document.id: one.document.text for one in told_apart(entries, set() if shared is None else shared)}


SAME = "https://trams.example/status"
APART = {
    "equal guids": [entry("a", "N/A", "/1"), entry("b", "N/A", "/2"), entry("c", "N/A", "/3")],
    "equal guids and links": [entry("a", SAME, SAME, "A"), entry("b", SAME, SAME, "B"), entry("c", SAME, SAME, "C")],
    "equal links": [entry("a", "", SAME, "A", 1), entry("b", "", SAME, "B", 2), entry("c", "", SAME, "B", 3)],
    "equal but the text": [entry("a", "1", "/1"), entry("b", "1", "/1"), entry("c", "1", "/1")],
    "equal but the time": [entry("a", "", SAME, "A", 1), entry("a", "", SAME, "A", 2), entry("a", "", SAME, "A", 3)],
    "nothing but a title": [
        entry("a", "", "", "Brief", 1),
        entry("b", "", "", "Brief", 2),
        entry("c", "", "", "Brief", 3),
    ],
    "nothing but text": [entry("a"), entry("b"), entry("c")],
}


@pytest.mark.parametrize("kind", APART)
def test_items_that_share_an_id_are_told_apart(kind: str) -> None:
    found = texts(APART[kind])
    assert list(found.values()) == [one.document.text for one in APART[kind]]
    assert found == texts(APART[kind]), "and so the same way each time"


@pytest.mark.parametrize("kind", APART)
def test_what_told_items_apart_goes_on_to_when_one_is_left(kind: str) -> None:
    shared: set[str] = set()
    every = texts(APART[kind], shared)
    for one, text in every.items():
        left = next(item for item in APART[kind] if texts([item], set(shared)) == {one: text})
        assert texts([left], shared) == {one: text}


def test_ids_of_sound_feeds_stay_as_they_are() -> None:
    found = texts([entry("a", "g-1", "/1"), entry("b", "", "/2"), entry("c", "g-3")])
    assert found == {"g-1": "a", "/2": "b", "g-3": "c"}


def test_equal_items_are_one_and_of_versions_the_newest_stays() -> None:
    twice = entry("a", "1", "/1", "A", 1)
    assert texts([twice, replace(twice), entry("b", "2")]) == {"1": "a", "2": "b"}
    versions = [entry("new", "1", "/1", "A", 2), entry("old", "1", "/1", "A", 1), entry("older", "1", "/1", "A", 0)]
    assert texts(versions) == texts(versions[::-1]) == {"1": "new"}


def test_a_long_guid_becomes_a_hash_and_no_two_the_same() -> None:
    found = texts([entry("a", "g" * 2000 + "1"), entry("b", "g" * 2000 + "2")])
    assert list(found.values()) == ["a", "b"]
    assert all(len(one) == 32 for one in found)


class Poll:
    """A feed that is looked at again and again, with all that is remembered in between."""

    def __init__(self) -> None:
        self.memory = FeedMemory(topic="t")

    def __call__(self, *entries: Entry) -> list[tuple[str, str]]:
        """(id, text) of what is sent."""
        shared = set(self.memory.shared)
        items = recognised(told_apart(list(entries), shared), self.memory.items, "scope")
        self.memory.note(items.noted, items.current, shared)
        return [(one.id, one.text) for one in items.documents]


@pytest.mark.parametrize("kind", APART)
def test_a_second_look_sends_nothing(kind: str) -> None:
    poll = Poll()
    assert len(poll(*APART[kind])) == 3
    assert poll(*APART[kind]) == poll(*APART[kind][1:]) == poll(*APART[kind][::-1]) == []


def test_news_under_a_shared_guid_never_replaces_other_news() -> None:
    a, b, c = APART["equal guids"]
    poll = Poll()
    sent = [*poll(a), *poll(a, b), *poll(b), *poll(c), *poll(b, c)]
    assert [text for _, text in sent] == ["a", "b", "c"]
    assert len({one for one, _ in sent}) == 3


def test_an_edit_is_an_update_of_the_same_document() -> None:
    poll = Poll()
    ((first, _),) = poll(entry("old text", "17", "/1", "A"))
    assert poll(entry("new text", "17", "/1", "A")) == [(first, "new text")]
    assert first == "scope:17"


def test_times_of_the_request_are_no_news() -> None:
    poll = Poll()
    assert len(poll(*(entry(f"story {one}", f"n{one}", at=0) for one in range(3)))) == 3
    assert poll(*(entry(f"story {one}", f"n{one}", at=1) for one in range(3))) == []
    poll = Poll()
    assert len(poll(*(entry(f"story {one}", title=f"T{one}", at=0) for one in range(3)))) == 3
    assert poll(*(entry(f"story {one}", title=f"T{one}", at=1) for one in range(3))) == []


@pytest.mark.parametrize(
    "link", ["https://h.example/{}?sid={}", "https://h.example/{};jsessionid={}", "https://h.example/{}#{}"]
)
def test_links_of_the_day_are_no_news(link: str) -> None:
    poll = Poll()
    days = [[entry(f"story {one}", "", link.format(one, day), "T", day) for one in range(3)] for day in range(3)]
    assert [len(poll(*day)) for day in days] == [3, 0, 0]
    guids = [[entry(f"story {one}", f"g{one}", link.format(one, day)) for one in range(3)] for day in range(3)]
    assert [len(poll(*day)) for day in guids] == [3, 0, 0]


def test_an_item_that_moved_is_edited_at_its_new_address() -> None:
    poll = Poll()
    ((first, _),) = poll(entry("text", "", "http://h.example/1", at=0))
    assert poll(entry("text", "", "https://h.example/1", at=0)) == []
    assert poll(entry("edited", "", "https://h.example/1", at=0)) == [(first, "edited")]


def test_guids_made_for_every_request_are_no_news() -> None:
    poll = Poll()
    assert [
        len(poll(*(entry(f"story {one}", f"uuid-{day}-{one}", at=one) for one in range(3)))) for day in range(3)
    ] == [3, 0, 0]


def test_the_same_words_on_another_day_are_news() -> None:
    poll = Poll()
    monday, thursday = entry("Line 2 is delayed.", "m", at=0), entry("Line 2 is delayed.", "t", at=72)
    assert [len(poll(monday)), len(poll(thursday)), len(poll(monday, thursday))] == [1, 1, 0]


def test_a_feed_of_any_length_is_remembered_and_old_items_are_forgotten() -> None:
    poll = Poll()
    long = [entry(f"story {one}", f"g{one}") for one in range(6000)]
    assert len(poll(*long)) == 6000
    assert poll(*long) == []
    short = [entry(f"new {one}", f"n{one}") for one in range(10)]
    assert len(poll(*short)) == 10
    assert len(poll.memory.items) == 5010
    assert poll(*short) == []


def test_another_topic_gets_everything() -> None:
    memory = FeedMemory(due_s=99.0, topic="t-1", items={"1": SentItem("1", "c", "d")}, shared=["N/A"])
    memory.validators = Validators("etag", "date")
    memory.turn_to("t-1")
    assert (len(memory.items), memory.due_s, memory.etag) == (1, 99.0, "etag")
    memory.turn_to("t-2")
    assert memory == FeedMemory(topic="t-2")


def test_state_survives_its_file_and_what_earlier_versions_wrote(tmp_path: Path) -> None:
    path = tmp_path / "feeds.json"
    state = FeedState(path)
    memory = state.feed("u")
    memory.note({"1": SentItem("1", "c", "d")}, {"1"}, {"N/A"})
    memory.validators = Validators('"über"', "")
    state.save()
    assert FeedState(path).feed("u") == memory
    path.write_text('{"u": {"etag": "x", "due_s": 5.0, "sent": {"1": "digest"}}}')
    assert FeedState(path).feed("u") == FeedMemory(due_s=5.0, etag="x")


@pytest.mark.parametrize(
    "text", ["[1, 2", "[]", '{"u": 1}', '{"u": {"due_s": "soon"}}', '{"u": {"items": {"1": []}}}', ""]
)
def test_broken_state_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "feeds.json").write_text(text)
    with pytest.raises(
        FeedError, match=rf"^{tmp_path}/feeds.json: is no state of feeds; remove it to send all items again$"
    ):
        FeedState(tmp_path / "feeds.json")


def test_two_pollers_never_share_a_state_file(tmp_path: Path) -> None:
    with one_poller(tmp_path / "feeds.json"):
        with (
            pytest.raises(FeedError, match=r"another `cmt feed poll` \(process \d+\) uses it"),
            one_poller(tmp_path / "feeds.json"),
        ):
            pass
        with one_poller(tmp_path / "others.json"):
            pass
    with one_poller(tmp_path / "feeds.json"):
        pass


@pytest.mark.parametrize(
    "validators",
    [
        Validators('"über-1"', "gestern früh"),
        Validators("a\r\nX-Evil: 1", "\0"),
        Validators("x" * 1001, ""),
        Validators("", ""),
    ],
)
def test_validators_that_can_not_be_sent_back_are_left_out(validators: Validators) -> None:
    assert validators.headers() == {}


def test_sound_validators_are_sent_back_as_they_came() -> None:
    assert Validators('W/"a b"', "Wed, 25 Nov 2026 08:00:00 GMT").headers() == {
        "If-None-Match": 'W/"a b"',
        "If-Modified-Since": "Wed, 25 Nov 2026 08:00:00 GMT",
    }

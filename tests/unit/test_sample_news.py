"""The sample news keep the promises of `services/sample_news/README.md`: formats, lengths, ids, updates and questions."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import struct_time
from typing import Any

import feedparser
import pytest

NEWS = Path(__file__).parents[2] / "services" / "sample_news"
SIZES = {"harbour-courier.rss.xml": 20, "meridian-wire.atom.xml": 18, "lantern-technology.feed.json": 14}
UPDATES = "updates.rss.xml"
FIRST_DAY, LAST_DAY = datetime(2026, 11, 2, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)


@dataclass(frozen=True)
class Article:
    id: str
    title: str
    url: str
    text: str
    published_at: datetime


def plain(markup: str) -> str:
    """The text of simple HTML, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def utc(moment: struct_time) -> datetime:
    return datetime(*moment[:6], tzinfo=UTC)


def read_xml(name: str) -> tuple[str, list[Article]]:
    feed = feedparser.parse((NEWS / name).read_bytes())
    assert not feed.bozo, feed.get("bozo_exception")
    return feed.version, [
        Article(e.id, e.title, e.link, plain(e.content[0].value), utc(e.published_parsed)) for e in feed.entries
    ]


def read_json(name: str) -> tuple[str, list[Article]]:
    feed = json.loads((NEWS / name).read_text(encoding="utf-8"))
    return feed["version"], [
        Article(
            item["id"],
            item["title"],
            item["url"],
            plain(item["content_html"]) if "content_html" in item else " ".join(item["content_text"].split()),
            datetime.fromisoformat(item["date_published"]),
        )
        for item in feed["items"]
    ]


def read(name: str) -> list[Article]:
    return (read_json if name.endswith(".json") else read_xml)(name)[1]


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (NEWS / name).read_text(encoding="utf-8").splitlines()]


def holds(text: str, words: str) -> bool:
    """Whether `words` stand in `text` as whole words or numbers, in any case; 19 does not stand in 1931 or 19,000."""
    return re.search(rf"(?<![\w.,]){re.escape(words)}(?!\w|[.,]\d)", text, re.IGNORECASE) is not None


ORIGINALS = {article.id: article for name in SIZES for article in read(name)}
CHANGED = {article.id: article for article in read(UPDATES)}
FINAL = ORIGINALS | CHANGED
QUESTIONS = read_lines("questions.jsonl")
of_update = pytest.mark.parametrize(
    "question", [q for q in QUESTIONS if q["expects"] == "update"], ids=lambda q: q["qid"]
)
of_all = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q["qid"])


def test_xml_feeds_are_well_formed_and_of_their_format() -> None:
    assert read_xml("harbour-courier.rss.xml")[0] == "rss20"
    assert read_xml("meridian-wire.atom.xml")[0] == "atom10"
    assert read_xml(UPDATES)[0] == "rss20"


def test_json_feed_says_version_1_1() -> None:
    assert read_json("lantern-technology.feed.json")[0] == "https://jsonfeed.org/version/1.1"


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_feed_holds_the_promised_number_of_articles(name: str, size: int) -> None:
    assert len(read(name)) == size


def test_no_two_articles_share_an_id_title_or_address() -> None:
    articles = [article for name in SIZES for article in read(name)]
    for field in ("id", "title", "url"):
        assert max(Counter(getattr(article, field) for article in articles).values()) == 1


def test_articles_are_80_to_400_words_and_mostly_short() -> None:
    lengths = {a.id: len(a.text.split()) for a in [*ORIGINALS.values(), *CHANGED.values()]}
    assert [key for key, words in lengths.items() if not 80 <= words <= 400] == []
    assert sum(90 <= len(a.text.split()) <= 170 for a in ORIGINALS.values()) > 0.6 * len(ORIGINALS)


def test_all_dates_lie_between_2_and_20_november_2026() -> None:
    articles = [*ORIGINALS.values(), *CHANGED.values()]
    assert [a.id for a in articles if not FIRST_DAY <= a.published_at < LAST_DAY] == []


def test_all_addresses_are_of_the_reserved_example_host() -> None:
    assert [a.id for a in FINAL.values() if not a.url.startswith("https://news.example/")] == []


def test_updates_are_later_versions_of_published_articles() -> None:
    assert len(read(UPDATES)) == len(CHANGED) >= 5
    for key, update in CHANGED.items():
        assert update.published_at > ORIGINALS[key].published_at
        assert update.url == ORIGINALS[key].url
        assert update.text != ORIGINALS[key].text


def test_one_published_article_is_withdrawn_that_nobody_updates_or_asks_about() -> None:
    (deletion,) = read_lines("deletions.jsonl")
    assert deletion == {"id": deletion["id"], "deleted": True}
    assert deletion["id"] in ORIGINALS
    assert deletion["id"] not in CHANGED
    assert deletion["id"] not in {q["article_id"] for q in QUESTIONS}


def test_questions_are_many_distinct_and_spread_over_the_articles() -> None:
    assert len(QUESTIONS) >= 48
    assert len({q["qid"] for q in QUESTIONS}) == len({q["question"] for q in QUESTIONS}) == len(QUESTIONS)
    assert len({q["article_id"] for q in QUESTIONS}) >= 40
    assert {q["article_id"] for q in QUESTIONS if q["expects"] == "update"} == set(CHANGED)


@of_all
def test_answers_stand_in_the_last_version_and_not_in_the_question(question: dict[str, Any]) -> None:
    assert question["expects"] in {"original", "update"}
    assert question["answers"]
    for answer in question["answers"]:
        assert len(answer.split()) <= 5
        assert holds(FINAL[question["article_id"]].text, answer)
        assert answer.lower() not in question["question"].lower()


@of_all
def test_full_name_that_answers_stands_in_no_other_article(question: dict[str, Any]) -> None:
    """Else a wrong article could give the right answer; counts, dates and single words are let through."""
    answer = question["answers"][0]
    if answer[0].isupper() and " " in answer:
        assert [key for key, a in FINAL.items() if holds(a.text, answer)] == [question["article_id"]]


@of_all
def test_original_answers_stood_in_the_first_version_already(question: dict[str, Any]) -> None:
    first = ORIGINALS[question["article_id"]].text
    assert holds(first, question["answers"][0]) == (question["expects"] == "original")


@of_update
def test_first_version_lacks_the_updated_answers(question: dict[str, Any]) -> None:
    first = ORIGINALS[question["article_id"]].text.lower()
    assert [answer for answer in question["answers"] if answer.lower() in first] == []


def test_sample_questions_stand_on_the_articles_latest_text() -> None:
    from services.sample_news import sample_questions

    examples = sample_questions()
    assert len(examples) >= 40
    assert all(any(answer.lower() in row.text.lower() for answer in row.answers) for row in examples)


def test_free_questions_ask_for_facts_that_their_articles_tell() -> None:
    from cmt_core.evaluation.metrics import contains_facts
    from services.sample_news import free_questions

    examples = free_questions()
    assert len(examples) == 100
    assert len({row.question for row in examples}) == 100
    for row in examples:
        assert row.facts
        assert contains_facts(f"{row.title} {row.text}", row.facts), (row.question, row.facts)

"""The sample news that ships with the package: invented articles, updates, a deletion, and questions about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt_core.data.qa import QAExample
from services.errors import ServiceError
from services.feed.fetch import read_all
from services.settings import FeedSettings
from services.stream.record import Document

__all__ = [
    "SAMPLE_NEWS",
    "AskedQuestion",
    "ask_questions",
    "bridge_questions",
    "free_questions",
    "read_questions",
    "sample_locations",
    "sample_questions",
]

SAMPLE_NEWS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question as a person asks it: its kind, the facts that an answer must tell, each in one of its wordings, the articles
    that tell them (none: nothing does), and what was said before it."""

    kind: str
    question: str
    facts: tuple[tuple[str, ...], ...]
    article_ids: tuple[str, ...]
    earlier: tuple[tuple[str, str], ...] = ()


def sample_locations(folder: Path = SAMPLE_NEWS) -> list[str]:
    """Feeds in the order of their names, then updates, then deletions: the order in which they happened."""
    feeds = sorted(
        [*folder.glob("*.xml"), *folder.glob("*.feed.json")], key=lambda path: ("updates" in path.name, path.name)
    )
    return [str(path) for path in [*feeds, *sorted(folder.glob("deletions*.jsonl"))]]


def read_questions(folder: Path = SAMPLE_NEWS) -> list[dict[str, Any]]:
    """The questions with `answers` and `article_id`. Raises ServiceError in one line."""
    path = folder / "questions.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not rows or not all(row["question"] and row["answers"] for row in rows):
            raise ValueError("no questions")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"sample questions {path} can't be read: {error}") from None
    return rows


def ask_questions(folder: Path = SAMPLE_NEWS) -> list[AskedQuestion]:
    """150 questions of people: facts, reasons, two articles, what changed, the latest, what nobody wrote, and follow-ups.

    "Latest" and days are those of 20 November 2026.
    """
    return _asked(folder / "ask_questions.jsonl")


def bridge_questions(folder: Path = SAMPLE_NEWS) -> list[AskedQuestion]:
    """30 questions that name what they ask about by what a second article tells; the first answers."""
    return _asked(folder / "bridge_questions.jsonl")


def _asked(path: Path) -> list[AskedQuestion]:
    return [
        AskedQuestion(
            row["kind"],
            row["question"],
            tuple(map(tuple, row["facts"])),
            tuple(row["article_ids"]),
            tuple((asked, answer) for asked, answer in row.get("earlier", ())),
        )
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def free_questions() -> list[QAExample]:
    """100 questions that ask for a sentence or a list, with the facts that an answer must contain."""
    articles = _articles(SAMPLE_NEWS)
    lines = (SAMPLE_NEWS / "free_questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(row := json.loads(line), articles[row["article_id"]]) for line in lines]
    return [
        QAExample(
            article.id,
            article.title or "",
            article.text,
            row["question"],
            ("; ".join(fact[0] for fact in row["facts"]),),
            facts=tuple(map(tuple, row["facts"])),
        )
        for row, article in rows
    ]


def _articles(folder: Path) -> dict[str, Document]:
    """The articles as they stand after all updates and deletions, by their ids."""
    articles: dict[str, Document] = {}
    for item in read_all(sample_locations(folder), FeedSettings()):
        if isinstance(item, Document):
            articles[item.id] = item
        else:
            articles.pop(item.id, None)
    return articles


def sample_questions(folder: Path = SAMPLE_NEWS) -> list[QAExample]:
    """The questions with the articles as they stand after all updates and deletions."""
    articles = _articles(folder)
    return [
        QAExample(article.id, article.title or "", article.text, row["question"], tuple(row["answers"]))
        for row in read_questions(folder)
        if (article := articles.get(row["article_id"])) is not None
    ]

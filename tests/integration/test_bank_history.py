"""Claims about asking as of the past: random histories against a model that is a plain list."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from services.bank.reader import BankReader
from services.bank.records import DocumentDelete, DocumentWrite
from services.bank.writer import BankWriter
from tests.integration.test_bank import LAYOUT, T0, all_hits, at, write

Record = DocumentWrite | DocumentDelete
State = dict[str, list[str]]


@dataclass(frozen=True)
class History:
    """Commits of a bank, one a second from second 1 on, and the moments to ask about."""

    commits: list[list[Record]]
    forgotten_before: int

    @property
    def moments(self) -> list[datetime]:
        """Just before, at and just after each commit and each half second between."""
        return [T0 + timedelta(seconds=half / 2) for half in range(2 * len(self.commits) + 3)]

    def state(self, moment: datetime) -> State:
        """What a question asked as of `moment` may be answered from: of each document, its last record by then."""
        last: dict[str, Record] = {}
        for second, commit in enumerate(self.commits, 1):
            if T0 + timedelta(seconds=second) <= moment:
                last |= {record.doc_id: record for record in commit}
        return {
            doc_id: [chunk.text for chunk in record.chunks]
            for doc_id, record in last.items()
            if isinstance(record, DocumentWrite) and (record.expires_at is None or record.expires_at > moment)
        }


@st.composite
def histories(draw: st.DrawFn) -> History:
    commits: list[list[Record]] = []
    offset = 0
    for _ in range(draw(st.integers(2, 7))):
        commit: list[Record] = []
        for doc_id in draw(st.lists(st.sampled_from(["a", "b", "it's"]), min_size=1, max_size=3, unique=True)):
            offset += 1
            n_chunks = draw(st.integers(0, 2))
            expires = draw(st.sampled_from([None, None, 2.5, 4.0, 5.5]))
            texts = [f"{offset} {number}" for number in range(n_chunks)]
            expires_at = None if expires is None else T0 + timedelta(seconds=expires)
            whole = write(doc_id, at(offset), *texts, expires_at=expires_at) if n_chunks else None
            commit.append(whole or DocumentDelete("default", doc_id, at(offset)))
        commits.append(commit)
    return History(commits, draw(st.integers(0, len(commits))))


def asked(reader: BankReader, moments: Iterable[datetime]) -> list[State]:
    """What the reader finds as of each moment, documents with their chunks in order."""
    states = []
    for moment in moments:
        found: State = {}
        for hit in sorted(all_hits(reader, moment), key=lambda hit: (hit.doc_id, hit.chunk_no)):
            found.setdefault(hit.doc_id, []).append(hit.text)
        states.append(found)
    return states


@settings(max_examples=15, deadline=None)
@given(history=histories())
def test_as_of_any_moment_is_what_a_list_says_before_and_after_upkeep_and_within_the_kept_history(
    history: History,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        now = T0
        uri = f"{folder}/bank"
        with BankWriter(uri, LAYOUT, maintain_every=2, ann_rows=0, clock=lambda: now) as writer:
            for commit in history.commits:
                now += timedelta(seconds=1)
                writer.commit(commit)
            reader = BankReader(uri, LAYOUT, read_staleness_s=0, clock=lambda: now)
            expected = [history.state(moment) for moment in history.moments]
            assert asked(reader, history.moments) == expected
            writer.optimize()
            assert asked(reader, history.moments) == expected
            oldest = T0 + timedelta(seconds=history.forgotten_before)
            writer.remove_history(oldest)
            writer.optimize()
            kept = [moment for moment in history.moments if moment >= oldest]
            assert asked(reader, kept) == [history.state(moment) for moment in kept]

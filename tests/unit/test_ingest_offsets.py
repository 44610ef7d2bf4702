"""Claims about which offsets may be committed, whatever the order in which records are finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.offsets import OffsetTracker, Ticket

gappy_offsets = st.lists(st.integers(0, 200), min_size=1, max_size=25, unique=True).map(sorted)


def prefix_end(offsets: list[int], finished: set[int]) -> int | None:
    """The next offset after the longest finished prefix, worked out from scratch."""
    end = None
    for offset in offsets:
        if offset not in finished:
            return end
        end = offset + 1
    return end


@given(data=st.data(), lanes=st.dictionaries(st.integers(0, 3), gappy_offsets, min_size=1, max_size=3))
def test_any_completion_order_commits_exactly_the_contiguous_prefix(
    data: st.DataObject, lanes: dict[int, list[int]]
) -> None:
    tracker = OffsetTracker()
    waiting = {partition: list(offsets) for partition, offsets in lanes.items()}
    started: dict[int, list[int]] = {partition: [] for partition in lanes}
    finished: dict[int, set[int]] = {partition: set() for partition in lanes}
    tickets: list[Ticket] = []
    seen: dict[int, int] = {}
    while tickets or any(waiting.values()):
        startable = [partition for partition, offsets in waiting.items() if offsets]
        if startable and (not tickets or data.draw(st.booleans(), label="start rather than finish")):
            partition = data.draw(st.sampled_from(startable))
            offset = waiting[partition].pop(0)
            started[partition].append(offset)
            tickets.append(tracker.start(partition, offset))
        else:
            ticket = tickets.pop(data.draw(st.integers(0, len(tickets) - 1)))
            finished[ticket.partition].add(ticket.offset)
            tracker.finish(ticket)
        offsets_now = tracker.committable()
        seen.update(offsets_now)
        tracker.committed(offsets_now)
        expected = {p: prefix_end(started[p], finished[p]) for p in lanes}
        assert seen == {p: end for p, end in expected.items() if end is not None}
        assert tracker.unfinished == len(tickets)
    assert seen == {partition: offsets[-1] + 1 for partition, offsets in lanes.items()}


@given(data=st.data(), offsets=gappy_offsets, gap=st.integers(0, 50))
def test_a_gap_at_the_end_counts_once_everything_before_it_is_finished(
    data: st.DataObject, offsets: list[int], gap: int
) -> None:
    tracker = OffsetTracker()
    end = offsets[-1] + 1 + gap
    tickets = [tracker.start(3, offset) for offset in offsets]
    tracker.reached({3: end})
    while tickets:
        assert tracker.committable().get(3, 0) < end or not gap
        tracker.finish(tickets.pop(data.draw(st.integers(0, len(tickets) - 1))))
    assert tracker.committable() == {3: end}
    tracker.committed({3: end})
    tracker.reached({3: end})
    assert tracker.committable() == {}


def test_a_partition_that_gave_no_record_commits_what_was_skipped_and_nothing_at_its_beginning() -> None:
    tracker = OffsetTracker()
    tracker.reached({0: 0, 1: 40})
    assert tracker.committable() == {1: 40}


def test_a_position_that_goes_back_is_not_committed() -> None:
    tracker = OffsetTracker()
    tracker.reached({0: 25})
    assert tracker.committable() == {0: 25}
    tracker.committed({0: 25})
    tracker.reached({0: 5})
    assert tracker.committable() == {}
    assert tracker.rewinds(0, 0), "also where none of the records before was seen here"
    tracker.finish(tracker.start(0, 0))
    tracker.reached({0: 1})
    assert tracker.committable() == {0: 1}


def test_an_end_that_lies_before_what_was_read_is_not_committed() -> None:
    tracker = OffsetTracker()
    tracker.finish(tracker.start(0, 8))
    tracker.reached({0: 3})
    assert tracker.committable() == {0: 9}


def test_an_unfinished_record_holds_back_everything_behind_it() -> None:
    tracker = OffsetTracker()
    first, second, third = (tracker.start(0, offset) for offset in (4, 5, 9))
    tracker.finish(second)
    tracker.finish(third)
    assert tracker.committable() == {}
    tracker.finish(first)
    assert tracker.committable() == {0: 10}


def test_what_was_committed_is_not_committed_again() -> None:
    tracker = OffsetTracker()
    tracker.finish(tracker.start(0, 0))
    tracker.committed(tracker.committable())
    assert tracker.committable() == {}


def test_a_refused_commit_is_offered_again() -> None:
    tracker = OffsetTracker()
    tracker.finish(tracker.start(0, 0))
    assert tracker.committable() == tracker.committable() == {0: 1}


def test_a_revoked_partition_is_never_committed() -> None:
    tracker = OffsetTracker()
    kept, gone = tracker.start(0, 0), tracker.start(1, 0)
    tracker.drop({1})
    tracker.finish(gone)
    tracker.finish(kept)
    assert gone.dropped
    assert tracker.committable() == {0: 1}
    assert tracker.unfinished == 0


def test_a_late_finish_from_before_a_revocation_does_not_finish_the_replayed_record() -> None:
    """The topic may have been made anew meanwhile: the same offset is then another record."""
    tracker = OffsetTracker()
    before = tracker.start(0, 0)
    tracker.drop({0})
    again = tracker.start(0, 0)
    tracker.finish(before)
    assert tracker.committable() == {}
    tracker.finish(again)
    assert tracker.committable() == {0: 1}


def test_offsets_that_begin_again_drop_what_was_under_way() -> None:
    tracker = OffsetTracker()
    old = tracker.start(0, 7)
    assert tracker.rewinds(0, 0)
    assert not tracker.rewinds(0, 8)
    assert not tracker.rewinds(1, 0)
    new = tracker.start(0, 0)
    tracker.finish(old)
    assert tracker.committable() == {}
    tracker.finish(new)
    assert tracker.committable() == {0: 1}

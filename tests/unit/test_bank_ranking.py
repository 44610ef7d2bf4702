"""Claims about the order of memories and the planning of index builds, without a table."""

from __future__ import annotations

import pytest

from cmt_core.retrieval.ranking import Ranking
from services.bank.index_plan import IndexPlan, segments_to_merge
from services.settings import ServeSettings

COSINES = {1: 0.9, 2: 0.8, 3: 0.1}
WORDS = {2: 10.0, 3: 20.0}


def order(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda row: -scores[row])


def test_words_count_as_a_share_of_the_questions_best() -> None:
    assert Ranking("hybrid", 0.4).combined(COSINES, WORDS) == pytest.approx({1: 0.9, 2: 1.0, 3: 0.5})
    assert Ranking("dense").combined(COSINES, WORDS) == COSINES


def test_question_without_known_words_is_ordered_by_cosine() -> None:
    assert Ranking("hybrid", 0.4).combined(COSINES, {}) == COSINES
    assert order(Ranking("rrf").combined(COSINES, {})) == [1, 2, 3]


def test_the_services_defaults_are_the_librarys() -> None:
    """Two places have them: settings are read where no package of the search is loaded."""
    serve = ServeSettings()
    assert Ranking(serve.ranking, serve.word_weight, serve.proximity_weight, serve.token_weight) == Ranking()


def test_texts_are_read_only_where_proximity_counts() -> None:
    assert Ranking("hybrid").reads_texts
    assert not any(
        one.reads_texts for one in (Ranking("dense"), Ranking("rrf"), Ranking("hybrid", 0.4, 0), Ranking("hybrid", 0))
    )


def test_rank_fusion_puts_what_is_high_in_both_orders_first() -> None:
    assert order(Ranking("rrf").combined({1: 0.9, 2: 0.8, 3: 0.1, 4: 0.0}, {2: 3.0, 4: 1.0}))[0] == 2


@pytest.mark.parametrize(
    ("segments", "tail", "merged"),
    [
        ([], 128, 0),
        ([100_000], 128, 0),
        ([100_000, 200], 128, 1),
        ([700, 300, 200], 128, 3),
        ([1400, 300, 200], 128, 2),
    ],
)
def test_segment_takes_in_the_newest_that_are_not_twice_its_size(segments: list[int], tail: int, merged: int) -> None:
    assert segments_to_merge(segments, tail) == merged


def test_segments_stay_few_and_rows_are_written_few_times() -> None:
    segments: list[int] = []
    written = 0
    for _ in range(1000):
        merged = segments_to_merge(segments, 128)
        new = 128 + sum(segments[len(segments) - merged :])
        segments[len(segments) - merged :] = [new]
        written += new
    assert len(segments) <= 10
    assert written <= 12 * 128_000


def test_index_is_built_in_a_pause_of_the_commits() -> None:
    plan = IndexPlan()
    plan.committed(100.0)
    assert not plan.due(1000, 100.5)
    assert plan.due(1000, 101.1)
    assert not plan.due(10, 200.0)


def test_index_waits_half_a_minute_for_a_pause_that_does_not_come() -> None:
    plan = IndexPlan()
    due = []
    for second in range(100, 140):
        plan.committed(float(second))
        due.append(plan.due(1000, second + 0.1))
    assert due.index(True) == 30


def test_building_takes_a_fifth_of_the_time_at_most() -> None:
    plan = IndexPlan()
    plan.built(100.0, 110.0)
    assert not plan.due(1000, 149.0)
    assert plan.due(1000, 150.5)

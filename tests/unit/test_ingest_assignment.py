"""Claims about who reads which partition, and about the coordinator that sees to it: consumers in memory, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from services.errors import BrokerUnreachable, WorkerLost
from services.ingest.assignment import next_step, plan
from services.ingest.consumer import ConsumerStatus
from services.ingest.coordinator import Coordinator, TopicState
from services.ingest.pool_policy import PoolPolicy
from services.metrics import Metrics

MEMBERS = st.dictionaries(st.sampled_from("abcde"), st.frozensets(st.integers(0, 12)), min_size=1)


@given(st.integers(0, 12), MEMBERS)
def test_every_partition_has_one_reader_and_shares_are_even(count: int, held: Mapping[str, frozenset[int]]) -> None:
    planned = plan(range(count), held)
    assert sorted(partition for own in planned.values() for partition in own) == list(range(count))
    sizes = [len(own) for own in planned.values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 12), MEMBERS)
def test_a_plan_that_is_followed_is_not_changed_again(count: int, held: Mapping[str, frozenset[int]]) -> None:
    planned = plan(range(count), held)
    assert plan(range(count), planned) == planned


@given(st.integers(1, 12), st.integers(1, 5))
def test_only_the_partitions_of_one_who_left_move(count: int, members: int) -> None:
    before = plan(range(count), {f"m{number}": set() for number in range(members + 1)})
    left = before.pop(f"m{members}")
    after = plan(range(count), before)
    assert all(before[name] <= after[name] for name in before)
    assert {partition for name in before for partition in after[name] - before[name]} == left


def test_nobody_is_told_to_read_what_another_has_not_given_up() -> None:
    held = {"a": {0, 1, 2, 3}, "b": set()}
    planned = plan(range(4), held)
    assert next_step(planned, held) == {"a": planned["a"], "b": set()}
    assert next_step(planned, {"a": planned["a"], "b": set()}) == planned


@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_no_partition_ever_has_two_readers_while_members_come_and_go(
    count: int, changes: list[tuple[str, bool]]
) -> None:
    held: dict[str, set[int]] = {}
    for name, joins in [*changes, ("a", True)]:
        if joins:
            held.setdefault(name, set())
        else:
            held.pop(name, None)
        for _ in range(2):
            held = next_step(plan(range(count), held), held)
            everything = [partition for own in held.values() for partition in own]
            assert len(everything) == len(set(everything))
    assert sorted(partition for own in held.values() for partition in own) == list(range(count))


@dataclass
class FakeConsumer:
    """Does at once what it is told; may be dead or silent."""

    assigned: frozenset[int] = frozenset()
    topic_id: str = ""
    state: str = "alive"
    kills: int = 0
    lag: dict[int, int] = field(default_factory=dict)

    def ask(self) -> Callable[[float], ConsumerStatus | None]:
        def answer(timeout_s: float) -> ConsumerStatus | None:
            if self.state == "dead":
                raise WorkerLost("dead")
            wanted = self.assigned or None
            status = ConsumerStatus(True, None, self.lag, 1, {}, 0, 0, 0, "x", self.assigned, wanted, self.topic_id)
            return None if self.state == "silent" else status

        return answer

    def assign(self, partitions: Iterable[int], topic_id: str) -> None:
        self.assigned, self.topic_id = frozenset(partitions), topic_id

    def kill(self) -> None:
        self.kills += 1
        self.state, self.assigned = "dead", frozenset()


class FakePool:
    def __init__(self) -> None:
        self.n = 1

    def size(self) -> int:
        return self.n

    def resize(self, size: int) -> None:
        self.n = size

    def refresh(self, members: Iterable[str]) -> int:
        return self.n


class Group:
    """Two consumers of four partitions, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.topic = TopicState("t1", 4)
        self.broker_is_away = False
        self.members = {"a": FakeConsumer(), "b": FakeConsumer()}
        self.pool = FakePool()
        clock = lambda: self.now  # noqa: E731
        policy = PoolPolicy(1, 3, 100, 5.0, 60.0, clock)
        self.coordinator = Coordinator(self.look, lambda: self.members, self.pool, policy, Metrics(), clock=clock)

    def look(self) -> TopicState:
        if self.broker_is_away:
            raise BrokerUnreachable("away")
        return self.topic

    def ticks(self, count: int = 3) -> dict[str, frozenset[int]]:
        for _ in range(count):
            self.now += 2.0
            self.coordinator.tick()
        return {name: member.assigned for name, member in self.members.items()}


def everything(assigned: Mapping[str, frozenset[int]]) -> list[int]:
    return sorted(partition for own in assigned.values() for partition in own)


def test_partitions_are_given_out_and_added_ones_are_found() -> None:
    group = Group()
    assert everything(group.ticks()) == [0, 1, 2, 3]
    before = group.ticks(1)
    group.topic = TopicState("t1", 6)
    after = group.ticks()
    assert everything(after) == [0, 1, 2, 3, 4, 5]
    assert all(before[name] <= after[name] for name in before), "what was read stays where it was"


def test_a_broker_that_is_away_changes_nothing() -> None:
    group = Group()
    before = group.ticks()
    group.broker_is_away = True
    assert group.ticks() == before


def test_partitions_of_a_dead_consumer_move_and_come_back_evenly() -> None:
    group = Group()
    group.ticks()
    group.members["a"].kill()
    assert group.ticks()["b"] == {0, 1, 2, 3}
    group.members["a"].state = "alive"
    assert sorted(map(len, group.ticks().values())) == [2, 2]
    assert everything(group.ticks()) == [0, 1, 2, 3]


def test_partitions_of_a_silent_consumer_stay_until_it_was_killed() -> None:
    group = Group()
    mine = group.ticks()["a"]
    group.members["a"].state = "silent"
    group.ticks(5)
    assert (group.members["a"].kills, group.members["b"].assigned & mine) == (0, frozenset())
    group.ticks(8)
    assert group.members["a"].kills == 1
    assert group.members["b"].assigned == {0, 1, 2, 3}


def test_a_topic_made_anew_is_told_to_all() -> None:
    group = Group()
    group.ticks()
    group.topic = TopicState("t2", 4)
    group.ticks()
    assert {member.topic_id for member in group.members.values()} == {"t2"}


def test_the_pool_grows_while_the_lag_is_high_and_shrinks_when_it_is_gone() -> None:
    group = Group()
    group.ticks()
    group.members["a"].lag = {0: 500}
    group.ticks(3)
    assert group.pool.n == 1, "a short peak is nothing"
    group.ticks(20)
    assert group.pool.n == 3, "and never more than the limit"
    group.members["a"].lag = {0: 50}
    group.ticks(60)
    assert group.pool.n == 3, "between the two bounds it stays"
    group.members["a"].lag = {}
    group.ticks(35)
    assert group.pool.n == 2
    group.ticks(60)
    assert group.pool.n == 1

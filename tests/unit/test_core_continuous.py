"""The running batch: the same tokens as alone, whoever joins or leaves; seeds, mixing, and the memories kept decoded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from cmt_core.generation.greedy import generate, prefill
from cmt_core.generation.query import Query, Sampling
from cmt_core.llm.context import Context
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.model import CMT
from cmt_core.reading.batch import Reading

TOKENS = 10


def queries_of(cmt: CMT, corpus: tuple[str, ...]) -> list[Query]:
    """Every mode, with contexts and prompts of different lengths."""
    codes = [memory.code for text in corpus for memory in cmt.compress(cmt.windows("", text))]
    return [
        Query("Who opened the bridge?", memories=codes[:1]),
        Query("What is the capital of Norland, and since when?", memories=codes[1:4]),
        Query("Whales?", "rag", passages=corpus[:2]),
        Query("By how much?", "closed"),
        Query("Who opened it?", "hybrid", memories=codes[:2], passages=corpus[:1]),
        Query("And then?", memories=codes[2:3], earlier=(("Who came?", "Nobody came"),)),
        Query("Who?", "closed", earlier=(("Hello", "Hello you"),), instructions="Be brief."),
    ]


def alone(cmt: CMT, query: Query) -> list[int]:
    """Unbatched, through `generate`, whose cache is transformers' own."""
    readings: dict[str, Callable[[], Reading]] = {
        "rag": lambda: cmt.context_of_text([query.passages]),
        "closed": lambda: cmt.context_of_nothing(1),
    }
    reading = readings.get(query.mode, lambda: cmt.context([query.question], [query.memories]))()
    if query.mode == "closed":
        prompt = cmt.tokens.closed_prompt(query.question, query.earlier, query.instructions)
    else:
        text = cmt.tokens.ids("\n\n".join(query.passages)) if query.mode == "hybrid" else []
        prompt = text + cmt.tokens.prompt(query.question, query.earlier)
    return generate(cmt.backbone, reading.context, [prompt], TOKENS, set())[0].ids


class Run:
    """Drives a running batch and keeps what every query wrote."""

    def __init__(self, cmt: CMT) -> None:
        self.batch = cmt.answer_batch()
        self.written: dict[int, list[int | None]] = {}
        self._query_of: dict[int, int] = {}

    def join(self, numbers: Sequence[int], queries: Sequence[Query]) -> None:
        for number, started in zip(numbers, self.batch.join([queries[n] for n in numbers]), strict=True):
            self._query_of[started.row] = number
            self.written[number] = list(started.tokens)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for row, tokens in self.batch.step().items():
                self.written[self._query_of[row]] += tokens

    def leave(self, number: int) -> None:
        (row,) = [row for row, other in self._query_of.items() if other == number]
        del self._query_of[row]
        self.batch.leave(row)


def up_to_stop(tokens: Sequence[int | None], reference: Sequence[int]) -> None:
    """Every token as alone, until the answer ends."""
    kept = list(tokens[: tokens.index(None)]) if None in tokens else list(tokens)
    assert kept
    assert kept == list(reference[: len(kept)])


def test_tokens_are_those_of_unbatched_generation_whoever_joins_and_leaves(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    queries = queries_of(exact_cmt, corpus)
    reference = [alone(exact_cmt, query) for query in queries]
    run = Run(exact_cmt)
    run.join([0, 3], queries)
    run.step(2)
    run.join([2], queries)
    run.step()
    run.join([1, 4, 6], queries)
    run.step()
    run.leave(0)  # the last slot moves into its place
    run.step(2)
    run.join([5], queries)
    run.leave(2)
    run.step(TOKENS - 3)
    for number, expected in enumerate(reference):
        up_to_stop(run.written[number][:TOKENS], expected)
    assert len(run.written[0]) == 5
    assert {len(run.written[number]) for number in (1, 4, 6)} == {TOKENS + 1}
    assert len(run.batch) == 5


def test_left_slots_are_used_again_and_leave_no_trace(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    queries = queries_of(exact_cmt, corpus)
    run = Run(exact_cmt)
    for number in (1, 2, 4, 0):  # long ones first: the short one comes into a slot with old columns behind its end
        run.join([number], queries)
        run.step(4)
        run.leave(number)
        up_to_stop(run.written[number], alone(exact_cmt, queries[number]))
    assert len(run.batch) == 0
    assert run.batch.step() == {}


def test_those_who_join_take_the_slots_of_those_who_left_and_the_others_close_up(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    queries = queries_of(exact_cmt, corpus)
    reference = [alone(exact_cmt, query) for query in queries]
    run = Run(exact_cmt)
    run.join([0, 1, 2, 3, 4], queries)
    run.step(2)
    for number in (3, 0, 1):
        run.leave(number)
    run.join([5], queries)
    run.step(TOKENS - 1)
    for number in (2, 4, 5):
        up_to_stop(run.written[number][:TOKENS], reference[number])
    assert len(run.batch) == 3


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_seed_gives_the_same_answer_beside_any_neighbours(
    exact_cmt: CMT, corpus: tuple[str, ...], temperature: float
) -> None:
    drawn = replace(queries_of(exact_cmt, corpus)[0], sampling=Sampling(temperature, 0.9, seed=7))
    single, crowd = Run(exact_cmt), Run(exact_cmt)
    single.join([0], [drawn])
    single.step(6)
    queries = [drawn, *queries_of(exact_cmt, corpus)[1:4]]
    crowd.join([3, 1], queries)
    crowd.step()
    crowd.join([0, 2], queries)
    crowd.step(6)
    assert crowd.written[0] == single.written[0]


def test_different_seeds_differ_and_a_tiny_nucleus_is_greedy(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    query = queries_of(exact_cmt, corpus)[0]
    run = Run(exact_cmt)
    seeds = [replace(query, sampling=Sampling(2.0, 1.0, seed=seed)) for seed in range(6)]
    narrow = [query, replace(query, sampling=Sampling(2.0, 0.0))]
    run.join(range(8), [*seeds, *narrow])
    run.step(5)
    assert len({tuple(run.written[seed]) for seed in range(6)}) > 1
    assert run.written[7] == run.written[6]


def test_memory_weight_goes_from_without_to_with_the_memory(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    query = queries_of(exact_cmt, corpus)[1]
    plain = exact_cmt.context_of_nothing(1, prefixed=True).context
    without = generate(exact_cmt.backbone, plain, [exact_cmt.tokens.prompt(query.question)], TOKENS, set())[0].ids
    run = Run(exact_cmt)
    run.join([0, 1, 2, 3], [replace(query, memory_weight=weight) for weight in (0.0, 1.0, 0.5, 2.0)])
    run.step(3)
    run.leave(0)  # two slots go at once
    run.step(TOKENS - 4)
    up_to_stop(run.written[0], without)
    up_to_stop(run.written[1], alone(exact_cmt, query))
    assert without[:4] != alone(exact_cmt, query)[:4]


def test_prompt_tokens_and_weights_are_those_of_the_whole_answer(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    queries = queries_of(exact_cmt, corpus)
    batch = exact_cmt.answer_batch()
    memory, rag = batch.join([queries[1], queries[2]])
    (whole,) = exact_cmt.answer([queries[1].question], [queries[1].memories], max_new_tokens=1)
    (text,) = exact_cmt.answer_rag([queries[2].question], [queries[2].passages], max_new_tokens=1)
    assert memory.weights == pytest.approx(whole.weights, abs=1e-5)
    assert memory.prompt_tokens == whole.prompt_tokens == batch.prompt_tokens(queries[1])
    assert rag.prompt_tokens == text.prompt_tokens == batch.prompt_tokens(queries[2])
    assert rag.weights == [0.5, 0.5]


def test_decoded_memories_are_kept_up_to_their_limit_oldest_out_first() -> None:
    kept = DecodedMemories(limit_bytes=3 * 10 * 8 + 7, window=10)  # three rooms of 10 rows of two numbers
    for number, name in enumerate((b"a", b"b", b"c")):
        kept.keep({name: torch.full((4 + number, 2), float(number))})
    kept.keep({b"a": kept[b"a"]})
    kept.keep({b"d": torch.full((10, 2), 9.0)})
    assert [name in kept for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(kept) == 3
    assert {name: kept[name].tolist() for name in (b"a", b"c", b"d")} == {
        b"a": [[0, 0]] * 4, b"c": [[2, 2]] * 6, b"d": [[9, 9]] * 10
    }  # fmt: skip


def test_a_limit_below_one_memory_keeps_none() -> None:
    kept = DecodedMemories(limit_bytes=0, window=10)
    kept.keep({b"a": torch.zeros(4, 2)})
    assert len(kept) == 0


def test_questions_with_more_memories_than_are_kept_are_answered_as_if_nothing_was_kept(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    small, query = copy.copy(exact_cmt), queries_of(exact_cmt, corpus)[1]
    row = exact_cmt.format.read([query.memories[0]])[0][0]
    small.decoded = DecodedMemories(row.nbytes * exact_cmt.config.window_tokens, exact_cmt.config.window_tokens)
    codes = [exact_cmt.compress(exact_cmt.windows("", text))[0].code for text in corpus[:3]]
    asked, memories = [query.question] * 3, [[codes[0], codes[1]], [codes[1], codes[2]], [codes[2], codes[0]]]
    reference = exact_cmt.answer(asked, memories, max_new_tokens=6)
    for _ in range(3):  # each time another one is there already
        assert [one.text for one in small.answer(asked, memories, max_new_tokens=6)] == [one.text for one in reference]
        assert len(small.decoded) == 1


def test_memory_read_again_is_not_decoded_again_and_answers_alike(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    query = queries_of(exact_cmt, corpus)[1]
    first = alone(exact_cmt, query)
    assert all(memory in exact_cmt.decoded for memory in query.memories)
    exact_cmt.format._reader._decoder.zero_()  # a second decoding would read zeros
    assert alone(exact_cmt, query) == first


@pytest.mark.parametrize("shift", [-20, 300])
def test_only_positions_relative_to_the_question_count(exact_cmt: CMT, corpus: tuple[str, ...], shift: int) -> None:
    """What lets another engine number its tokens as it likes: keys are rotated relative to the question's first position."""
    backbone = exact_cmt.backbone
    code = exact_cmt.compress(exact_cmt.windows("", corpus[0]))[0].code
    (rows,) = exact_cmt.format.read([code])
    positions = torch.arange(len(rows))[None]
    contexts = [
        Context(
            backbone.cache(rows[None], positions + moved),
            torch.ones(1, len(rows), dtype=torch.bool),
            torch.tensor([len(rows) + 16 + moved]),
        )
        for moved in (0, shift)
    ]
    here, moved = (prefill(backbone, context, [exact_cmt.tokens.prompt("Who opened it?")]) for context in contexts)
    torch.testing.assert_close(moved.logits, here.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moved.attention, here.attention, atol=1e-4, rtol=1e-3)

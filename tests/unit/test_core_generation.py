"""Answers: the same with any neighbours, stopped where they must, and with the share of every memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmt_core.errors import MemoryFormatError
from cmt_core.generation.greedy import GeneratedTokens, generate
from cmt_core.llm.backbone import Backbone
from cmt_core.model import CMT
from cmt_core.reading.alignment import place
from cmt_core.text.prompt import bare_prompt

QUESTIONS = ("Who opened the bridge?", "What is the capital of Norland?", "Whales?", "By how much did the prices rise?")


def memories_of(cmt: CMT, corpus: tuple[str, ...]) -> list[bytes]:
    windows = [window for text in corpus for window in cmt.windows("", text)]
    return [memory.code for memory in cmt.compress(windows)]


def continue_plainly(
    backbone: Backbone, prompts: list[list[int]], tokens: int, stop: set[int]
) -> list[GeneratedTokens]:
    """Generation with nothing before the prompts."""
    nothing = torch.zeros(len(prompts), 0, 0, backbone.shape.width)
    mask = torch.zeros(len(prompts), 0, 0, dtype=torch.long)
    context = place(backbone, torch.zeros(0, backbone.shape.width), nothing, mask, 0)
    return generate(backbone, context, prompts, tokens, stop)


def test_answer_does_not_depend_on_its_neighbours(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = memories_of(exact_cmt, corpus)
    chosen = [codes[:1], codes[1:4], codes[2:4], codes[3:8]]
    together = exact_cmt.answer(QUESTIONS, chosen, max_new_tokens=8)
    turned = exact_cmt.answer(QUESTIONS[::-1], chosen[::-1], max_new_tokens=8)[::-1]
    for row, (question, own) in enumerate(zip(QUESTIONS, chosen, strict=True)):
        (alone,) = exact_cmt.answer([question], [own], max_new_tokens=8)
        for other in (together[row], turned[row]):
            assert other.text == alone.text
            assert (other.prompt_tokens, other.completion_tokens) == (alone.prompt_tokens, alone.completion_tokens)
            assert other.weights == pytest.approx(alone.weights, abs=1e-4)


def test_rag_answer_does_not_depend_on_its_neighbours(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    passages = [corpus[:1], corpus, corpus[2:4]]
    together = exact_cmt.answer_rag(QUESTIONS[:3], passages, max_new_tokens=8)
    for question, own, other in zip(QUESTIONS[:3], passages, together, strict=True):
        assert exact_cmt.answer_rag([question], [own], max_new_tokens=8) == [other]


def test_answer_depends_on_its_memories(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = memories_of(exact_cmt, corpus)
    texts = {exact_cmt.answer(QUESTIONS[:1], [[code]], max_new_tokens=8)[0].text for code in codes}
    assert len(texts) > 1


def test_weights_are_one_a_memory_and_sum_to_one(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    codes = memories_of(tiny_cmt, corpus)
    chosen = [codes[:1], codes[:2], codes[:5]]
    for answer, own in zip(tiny_cmt.answer(QUESTIONS[:3], chosen, max_new_tokens=2), chosen, strict=True):
        assert len(answer.weights) == len(own)
        assert sum(answer.weights) == pytest.approx(1.0)
        assert all(weight > 0 for weight in answer.weights)


def test_equal_memories_at_one_place_get_the_attention_that_the_llm_computes(
    exact_cmt: CMT, corpus: tuple[str, ...]
) -> None:
    """The reported attention is the softmax of transformers' own eager attention."""
    backbone = exact_cmt.backbone
    prompts = [backbone.tokenizer(text)["input_ids"] for text in corpus[:1]]
    prefix = torch.randn(6, backbone.shape.width, generator=torch.Generator().manual_seed(0))
    document = torch.randn(1, 1, 9, backbone.shape.width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, 9, dtype=torch.long)
    context = place(backbone, prefix, document, mask, 9)
    (made,) = generate(backbone, context, prompts, 1, set())
    backbone.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = backbone.model(
            input_ids=torch.tensor(prompts),
            position_ids=15 + torch.arange(len(prompts[0]))[None],
            past_key_values=place(backbone, prefix, document, mask, 9).cache,
            output_attentions=True,
        )
    expected = torch.stack([layer[0, :, -1, :15] for layer in out.attentions]).mean(dim=(0, 1))
    torch.testing.assert_close(made.attention, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_greedy_equals_transformers_own_generate(exact_cmt: CMT) -> None:
    backbone = exact_cmt.backbone
    answers = exact_cmt.answer_closed(QUESTIONS, max_new_tokens=16)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        text = backbone.tokenizer.apply_chat_template(bare_prompt(question), tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([backbone.tokenizer(text, add_special_tokens=False)["input_ids"]])
        made = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        expected = exact_cmt.tokens.text(made[0, ids.shape[1] :].tolist()).strip()
        assert answer.text == expected
        assert answer.prompt_tokens == ids.shape[1]
        assert answer.weights == []


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_generation_respects_its_limit(tiny_backbone: Backbone, limit: int) -> None:
    made = continue_plainly(tiny_backbone, [[40, 41, 42], [50]], limit, set())
    assert [len(one.ids) for one in made] == [limit, limit]
    assert [one.finish_reason for one in made] == ["length", "length"]


def test_generation_ends_before_a_stop_token(tiny_backbone: Backbone) -> None:
    prompts = [[40, 41, 42], [50, 51]]
    free = continue_plainly(tiny_backbone, prompts, 12, set())
    stop = free[0].ids[4]
    stopped = continue_plainly(tiny_backbone, prompts, 12, {stop})
    for before, after in zip(free, stopped, strict=True):
        cut = before.ids.index(stop) if stop in before.ids else len(before.ids)
        assert after.ids == before.ids[:cut]
        assert after.finish_reason == ("stop" if cut < len(before.ids) else "length")
    assert stopped[0].finish_reason == "stop"


@pytest.mark.parametrize("end", ["\n", "\n\n", "<|end|>"])
def test_answer_ends_at_a_newline_and_at_the_end_of_text(exact_cmt: CMT, corpus: tuple[str, ...], end: str) -> None:
    """The LLM's output rows of two tokens are exchanged, so that it writes `end` where it wrote its third new token."""
    codes = memories_of(exact_cmt, corpus)[:2]
    (free,) = exact_cmt.answer(QUESTIONS[:1], [codes], max_new_tokens=8)
    assert free.finish_reason == "length"
    tokenizer, head = exact_cmt.backbone.tokenizer, exact_cmt.backbone.model.lm_head
    (end_id,) = tokenizer(end, add_special_tokens=False)["input_ids"]
    ids = greedy_ids(exact_cmt, codes)
    last = next(n for n in range(2, 8) if ids[n] not in ids[:n])
    head.weight.data[[end_id, ids[last]]] = head.weight.data[[ids[last], end_id]]
    (answer,) = exact_cmt.answer(QUESTIONS[:1], [codes], max_new_tokens=8)
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", last)
    assert answer.text == exact_cmt.tokens.text(ids[:last]).strip()


def greedy_ids(cmt: CMT, codes: list[bytes]) -> list[int]:
    """The ids behind `answer` to the first question: the decoded text need not lead back to them."""
    seen: list[list[int]] = []
    decode = cmt.backbone.tokenizer.decode

    def record(ids: list[int], **options: Any) -> str:
        seen.append(list(ids))
        return str(decode(ids, **options))

    cmt.backbone.tokenizer.decode = record
    cmt.answer(QUESTIONS[:1], [codes], max_new_tokens=8)
    cmt.backbone.tokenizer.decode = decode
    return seen[0]


def test_answering_leaves_the_llm_untouched(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    before = exact_cmt.backbone.fingerprint()
    codes = memories_of(exact_cmt, corpus)
    exact_cmt.answer(QUESTIONS[:2], [codes[:2], codes[3:5]], max_new_tokens=3)
    exact_cmt.answer_rag(QUESTIONS[:1], [corpus[:2]], max_new_tokens=3)
    exact_cmt.answer_closed(QUESTIONS[:1], max_new_tokens=3)
    assert exact_cmt.backbone.fingerprint() == before
    assert all(parameter.grad is None for parameter in exact_cmt.backbone.model.parameters())


def test_rag_counts_the_passages_as_prompt(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    (answer,) = tiny_cmt.answer_rag(QUESTIONS[:1], [corpus[:2]], max_new_tokens=2)
    (memory,) = tiny_cmt.answer(QUESTIONS[:1], [memories_of(tiny_cmt, corpus[:2])], max_new_tokens=2)
    passages = len(tiny_cmt.backbone.tokenizer("\n\n".join(corpus[:2]))["input_ids"])
    assert answer.prompt_tokens == memory.prompt_tokens + passages
    assert answer.weights == [0.5, 0.5]


def test_memory_of_a_wrong_size_is_refused(tiny_cmt: CMT, corpus: tuple[str, ...]) -> None:
    (code,) = memories_of(tiny_cmt, corpus[:1])
    none, many = b"\0\0" + code[2:], (65).to_bytes(2, "little") + code[2:]
    for bad in (code[:-1], code + b"\0", b"", none, many):
        with pytest.raises(MemoryFormatError, match=f"a memory of {len(bad)} bytes"):
            tiny_cmt.answer(QUESTIONS[:1], [[bad]], max_new_tokens=1)


@pytest.mark.parametrize("mode", ["answer", "answer_rag"])
def test_question_without_anything_to_read_is_refused(tiny_cmt: CMT, mode: str) -> None:
    with pytest.raises(MemoryFormatError, match="nothing to read"):
        getattr(tiny_cmt, mode)(QUESTIONS[:1], [[]], max_new_tokens=1)

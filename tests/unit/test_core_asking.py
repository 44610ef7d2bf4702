"""The log-loss of a given answer: what transformers says, and without a trace in what is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmt_core.generation.asking import QuestionBatch
from cmt_core.model import CMT
from cmt_core.text.prompt import bare_prompt

QUESTIONS = ("Who opened the bridge?", "What is the capital of Norland?", "Whales?")
GOLDS = ("the mayor of Arling", "Norhavn", "nobody")


def asked_of_memories(cmt: CMT, corpus: tuple[str, ...]) -> QuestionBatch:
    codes = [memory.code for text in corpus for memory in cmt.compress(cmt.windows("", text))]
    return cmt.ask(QUESTIONS, [codes[:1], codes[1:4], codes[2:4]])


@torch.no_grad()
def test_log_loss_of_a_chat_answer_is_transformers_own(exact_cmt: CMT) -> None:
    backbone = exact_cmt.backbone
    losses = exact_cmt.log_loss(exact_cmt.ask_closed(QUESTIONS), GOLDS)
    for question, gold, loss in zip(QUESTIONS, GOLDS, losses, strict=True):
        text = backbone.tokenizer.apply_chat_template(bare_prompt(question), tokenize=False, add_generation_prompt=True)
        prompt, answer = (backbone.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, gold))
        ids = torch.tensor([[*prompt, *answer, exact_cmt.tokens.eos_id]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        assert loss == pytest.approx(backbone.model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)


def test_log_loss_does_not_change_what_is_written_next(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    expected = exact_cmt.write(asked_of_memories(exact_cmt, corpus), 6)
    asked = asked_of_memories(exact_cmt, corpus)
    first, second = exact_cmt.log_loss(asked, GOLDS), exact_cmt.log_loss(asked, GOLDS)
    assert first == second
    written = exact_cmt.write(asked, 6)
    assert [one.text for one in written] == [one.text for one in expected]
    assert [one.weights for one in written] == [one.weights for one in expected]


def test_log_loss_does_not_depend_on_a_rows_neighbours(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    together = exact_cmt.log_loss(exact_cmt.ask_of_text(QUESTIONS, [corpus[:1], corpus, corpus[2:4]]), GOLDS)
    (alone,) = exact_cmt.log_loss(exact_cmt.ask_of_text(QUESTIONS[:1], [corpus[:1]]), GOLDS[:1])
    assert together[0] == pytest.approx(alone, rel=1e-4)


def test_the_llms_own_logits_are_mixed_in_by_their_weight(exact_cmt: CMT, corpus: tuple[str, ...]) -> None:
    asked = asked_of_memories(exact_cmt, corpus)
    with_memory = exact_cmt.log_loss(asked, GOLDS)
    nothing = exact_cmt.context_of_nothing(len(QUESTIONS), prefixed=True)
    without = exact_cmt.log_loss(QuestionBatch(nothing, asked.prompts), GOLDS)
    assert with_memory != pytest.approx(without)
    for weight, expected in ((1.0, with_memory), (0.0, without)):
        mixed = replace(asked, plain=nothing.context, weight=weight)
        assert exact_cmt.log_loss(mixed, GOLDS) == pytest.approx(expected, rel=1e-4)
    assert exact_cmt.log_loss(replace(asked, plain=nothing.context, weight=1.5), GOLDS) != pytest.approx(with_memory)

"""The question's likelihood behind a memory is the LLM's own, and decides where the retriever's scores leave a doubt."""

from __future__ import annotations

import pytest
import torch

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError
from cmt_core.model import CMT
from cmt_core.retrieval.query_likelihood import query_log_likelihood
from cmt_core.text.prompt import QUESTION_HEAD

QUESTION = "Who opened the bridge?"


def likelihoods(cmt: CMT, questions: list[str], codes: list[bytes] | None = None) -> list[float]:
    """Behind one memory each, or behind nothing."""
    reading = cmt.context(questions, [[code] for code in codes]) if codes else cmt.context_of_nothing(len(questions))
    return query_log_likelihood(
        cmt.backbone, reading.context, [cmt.prompting.for_likelihood(question) for question in questions]
    )


@pytest.fixture
def codes(exact_cmt: CMT, corpus: tuple[str, ...]) -> list[bytes]:
    return [memory.code for text in corpus[:4] for memory in exact_cmt.compress(exact_cmt.windows("", text))][:4]


@torch.no_grad()
def test_likelihood_is_the_sum_over_the_questions_tokens_alone(exact_cmt: CMT) -> None:
    tokens, backbone = exact_cmt.tokens, exact_cmt.backbone
    head, asked = tokens.ids(QUESTION_HEAD), tokens.ids(f" {QUESTION}")
    logits = backbone.model(input_ids=torch.tensor([head + asked])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logits[len(head) - 1 + n, token]) for n, token in enumerate(asked))
    one, padded = likelihoods(exact_cmt, [QUESTION, f"{QUESTION} And who paid for it, and who did not?"])
    assert one == pytest.approx(expected, rel=1e-4)
    assert padded < one


@torch.no_grad()
def test_a_question_right_behind_its_document_is_told_from_its_second_token(exact_cmt: CMT) -> None:
    tokens, backbone = exact_cmt.tokens, exact_cmt.backbone
    asked = tokens.ids(QUESTION)
    logits = backbone.model(input_ids=torch.tensor([asked])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logits[n, token]) for n, token in enumerate(asked[1:]))
    context = exact_cmt.context_of_nothing(1).context
    assert query_log_likelihood(backbone, context, [([], asked)]) == pytest.approx([expected], rel=1e-4)


def test_only_the_end_of_a_long_question_is_read(exact_cmt: CMT) -> None:
    long = "Once upon a time there was a town with a bridge. " * 20 + QUESTION
    assert likelihoods(exact_cmt, [long]) == pytest.approx(likelihoods(exact_cmt, [f"No. {long}"]), rel=1e-4)


def test_among_documents_of_one_score_the_one_that_makes_the_question_likely_is_read(
    selecting: CMT, codes: list[bytes]
) -> None:
    nats = likelihoods(selecting, [QUESTION] * 4, codes)
    best = max(range(4), key=lambda i: nats[i])
    for order in (codes, codes[::-1]):
        (answer,) = selecting.answer([QUESTION], [order], scores=[[0.5] * 4], max_new_tokens=3)
        assert [i for i, weight in enumerate(answer.weights) if weight] == [order.index(codes[best])]
        (alone,) = selecting.answer([QUESTION], [[codes[best]]], max_new_tokens=3)
        assert answer.text == alone.text
        (unscored,) = selecting.answer([QUESTION], [[order[0], codes[best]]], max_new_tokens=3)
        assert unscored.weights[1] == 1.0 or order[0] == codes[best]


def test_a_sure_retriever_is_not_asked_twice_and_an_unlikely_document_gets_no_second_look(
    selecting: CMT, codes: list[bytes]
) -> None:
    nats = likelihoods(selecting, [QUESTION] * 4, codes)
    order = sorted(range(4), key=lambda i: nats[i])  # the LLM would take the last
    found = [codes[i] for i in order]
    sure, torn = selecting.answer(
        [QUESTION] * 2, [found] * 2, scores=[[0.9, 0.2, 0.2, 0.2], [0.9, 0.88, 0.2, 0.2]], max_new_tokens=3
    )
    assert [i for i, weight in enumerate(sure.weights) if weight] == [0]
    assert [i for i, weight in enumerate(torn.weights) if weight] == [1]


def test_weight_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="likelihood_weight -1 is below 0"):
        MemoryConfig(likelihood_weight=-1)

"""Trains the learned look of a checkpoint (retrieval/looks.py) on questions whose document is known; `cmt train-looks` runs it.

Memories, prefixes and LLM stay as they are. A question is asked of a bank of its own set, as in service, and what learns is which
of the first documents found is its own: a softmax over their log-odds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmt_core.checkpoint import Checkpoint
from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.errors import ConfigError, DataError
from cmt_core.evaluation.bank import filled_bank
from cmt_core.evaluation.stream import sample
from cmt_core.memory_bank import MemoryBank
from cmt_core.model import CMT
from cmt_core.reading.aggregation import rectangle
from cmt_core.retrieval.looks import Look, LookHead

__all__ = ["SOURCES", "LookedAt", "fit_look_head", "gather", "look_layer", "train_looks"]

SOURCES = ("squad1.1-train-sample+squadshifts-new_wiki", "qamr-dev+qamr-test")
"""Training sources about facts, openly licensed, with several documents on a subject: others are too easy to tell apart. Those
joined by + are asked of one bank."""

_K = 4
_DEPTH = 2 / 3  # of the LLM's layers; the states at half and at 5/6 of them tell less (docs/log.md)
_SURE, _CONSIDERED = 0.98, 0.002  # wider than in service (reading/aggregation.py): more to learn from
_PENALTY = 0.03  # of a state's squared weight, in deviations of the state
_HELD_OUT = 10  # one question of so many measures what was learned
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class LookedAt:
    """One question's documents that were looked at: their retriever's scores, the looks, and which are its own."""

    ranks: list[float]
    looks: list[Look]
    own: list[bool]


def look_layer(layers: int) -> int:
    """The layer whose input tells most, of an LLM with so many."""
    return max(1, round(_DEPTH * layers))


def train_looks(
    model: CMT,
    start: Checkpoint,
    dataset: Path,
    *,
    sources: Sequence[str] = SOURCES,
    questions: int = 12000,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The checkpoint `start` of `model` with a look trained on at most so many questions of each bank.

    Raises ConfigError for a checkpoint without ψ `select`, DataError where no document is to be told from another.
    """
    if start.select is None:
        raise ConfigError("only ψ select looks at the documents found")
    layer = look_layer(start.shape.layers)
    rows = list(read_examples(dataset))
    examples: list[LookedAt] = []
    for source in sources:
        among = source.split("+")
        documents, asked = sample([row for row in rows if row.source in among], questions, None, seed)
        report(f"{source}: writing {len(documents)} memories, then {len(asked)} questions")
        bank = filled_bank(model, documents, compress=True)
        examples += gather(model, bank, asked, layer)
    examples = [one for one in examples if any(one.own) and not all(one.own)]
    held, kept = examples[::_HELD_OUT], [one for number, one in enumerate(examples) if number % _HELD_OUT]
    if not kept:
        raise DataError(f"{dataset} has no question of {', '.join(sources)} that leaves a doubt between two documents")
    head = fit_look_head(kept, layer)
    report(
        f"{len(kept)} questions; of {len(held)} others the own document is first for {_first(held, head):.1%}, "
        f"by the retriever alone for {_first(held, None):.1%}"
    )
    config = dataclasses.replace(start.config, look_layer=layer)
    training = {**start.training, "looks": {"sources": list(sources), "questions": len(kept), "seed": seed}}
    return dataclasses.replace(start, config=config, look_head=head, training=training)


def gather(model: CMT, bank: MemoryBank, asked: Sequence[QAExample], layer: int) -> list[LookedAt]:
    """Looks at the documents found for each question, where the retriever's scores leave a doubt between them."""
    made: list[LookedAt] = []
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        pairs: list[tuple[int, int]] = []  # question and row of the bank
        ranks: list[float] = []
        for number, hits in enumerate(bank.nearest([one.question for one in part], _K)):
            scores = [hit.score for hit in hits]
            shares = (torch.tensor(scores) / model.config.prior_temperature).softmax(dim=0)
            if float(shares.max()) < _SURE:
                kept = [place for place in range(len(hits)) if float(shares[place]) >= _CONSIDERED]
                pairs += [(number, hits[place].row) for place in kept]
                ranks += [scores[place] for place in kept]
        pairs_by_length = sorted(range(len(pairs)), key=lambda at: len(part[pairs[at][0]].question))
        looks = dict(
            zip(pairs_by_length, _looks(model, bank, part, [pairs[at] for at in pairs_by_length], layer), strict=True)
        )
        for number, example in enumerate(part):
            mine = [at for at, (asker, _) in enumerate(pairs) if asker == number]
            own = [bank.rows[pairs[at][1]].entry.doc_id == example.doc_id for at in mine]
            made.append(LookedAt([ranks[at] for at in mine], [looks[at] for at in mine], own))
    return made


def _looks(
    model: CMT, bank: MemoryBank, asked: Sequence[QAExample], pairs: Sequence[tuple[int, int]], layer: int
) -> list[Look]:
    codes = bank.codes([[row] for _, row in pairs])
    return model.looks([asked[number].question for number, _ in pairs], codes, layer)


def fit_look_head(examples: Sequence[LookedAt], layer: int, penalty: float = _PENALTY) -> LookHead:
    """The weights that give each question's own document the largest share of a softmax, by L-BFGS."""
    scores = [
        [[rank, look.nats, look.sureness, look.entropy] for rank, look in zip(one.ranks, one.looks, strict=True)]
        for one in examples
    ]
    numbers = torch.tensor([row for one in scores for row in one])  # (N, 4)
    states = torch.stack([look.state for one in examples for look in one.looks])  # (N, 2 * D)
    x = torch.cat([numbers, states], dim=1)
    deviation = x.std(dim=0).clamp_min(1e-6)
    x = (x - x.mean(dim=0)) / deviation
    places = rectangle([[1.0] * len(one.own) for one in examples], 0.0).bool()  # (B, k)
    own = rectangle([[float(right) for right in one.own] for one in examples], 0.0).bool()
    weights = torch.zeros(x.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        odds = torch.full(places.shape, -torch.inf).masked_scatter(places, x @ weights)
        shares = odds.log_softmax(dim=-1).masked_fill(~own, -torch.inf)
        loss: Tensor = -shares.logsumexp(dim=-1).mean() + penalty * weights[numbers.shape[1] :].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = weights.detach() / deviation
    return LookHead(layer, found[: numbers.shape[1]].clone(), found[numbers.shape[1] :].clone())


def _first(examples: Sequence[LookedAt], head: LookHead | None) -> float:
    """The share of questions whose own document comes first by `head`, or by the retriever."""
    right = 0
    for one in examples:
        odds = one.ranks if head is None else head.log_odds(one.ranks, one.looks)
        right += one.own[odds.index(max(odds))]
    return right / max(1, len(examples))

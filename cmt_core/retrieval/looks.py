"""A look at one of the documents found: what the frozen LLM makes of a question behind that document's memory.

It reads the question as it would to answer it. How likely it finds the question's words tells which of the documents the question
is about (query_likelihood.py); what it is about to say, and its states two thirds of the way up, tell whether the answer stands
there. `LookHead` weighs all of these and the retriever's score into one log-odds, linearly: more was not better (docs/log.md).

Source: that a language model's states tell whether a passage answers a question: Slobodkin et al. 2023 (arXiv 2310.11877).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_core.errors import ConfigError
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context, read_rows
from cmt_core.retrieval.query_likelihood import told_log_probabilities, told_tokens

__all__ = ["Look", "LookHead", "looked_at", "looks_behind", "most_read"]

_SCORES = 4  # the retriever's score, and the three numbers of a look


@dataclass(frozen=True, slots=True)
class Look:
    """A question's log-likelihood in nats; the log-probability of the likeliest first token of an answer and the entropy of that
    token, both in nats; `state` (2 * D,) what a layer gets at the last token, and the mean of what it gets at the question's."""

    nats: float
    sureness: float
    entropy: float
    state: Tensor


class LookHead:
    """Log-odds of a document among those looked at: `scores` (4,) weigh its retriever's score and its look's numbers, `states`
    (2 * D,) the states, which `layer` gets."""

    def __init__(self, layer: int, scores: Tensor, states: Tensor) -> None:
        """Raises ConfigError for tensors of other sizes."""
        if scores.shape != (_SCORES,) or states.ndim != 1:
            raise ConfigError(f"a look's weights have shapes {tuple(scores.shape)} and {tuple(states.shape)}")
        self.layer, self.scores, self.states = layer, scores.float().cpu(), states.float().cpu()

    def answer_odds(self, look: Look) -> float:
        """The part of the log-odds that says whether an answer stands in what was read, whatever else it is about."""
        numbers = torch.tensor([look.sureness, look.entropy])
        return float(numbers @ self.scores[2:] + look.state @ self.states)

    def log_odds(self, ranks: Sequence[float], looks: Sequence[Look]) -> list[float]:
        """Of documents with the retriever's scores `ranks`; only differences count."""
        numbers = torch.tensor(
            [[rank, look.nats, look.sureness, look.entropy] for rank, look in zip(ranks, looks, strict=True)]
        )
        states = torch.stack([look.state for look in looks])
        odds: list[float] = (numbers @ self.scores + states @ self.states).tolist()
        return odds


def looked_at(k: int) -> int:
    """How many documents are found, to be looked at where they may be right, so that k are read (docs/decisions/0177).

    What is likely enough to be read is never more than four (reading/aggregation.py), so twice as many change nothing there; of
    fewer than four each one found may be read.
    """
    return 2 * k if k >= 4 else k


def most_read(weights: Sequence[float], k: int, together: Sequence[int] = ()) -> list[int]:
    """The places of the k documents with most of the LLM's attention, in the order in which they were found.

    Those that a question takes `together` are among them; of those with none the first that were found come first.
    """
    return sorted(sorted(range(len(weights)), key=lambda place: (place not in together, -weights[place]))[:k])


@torch.inference_mode()
def looks_behind(
    backbone: Backbone,
    context: Context,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    cue: Sequence[int],
    layer: int,
) -> list[Look]:
    """A look for each row of `context`, whose cache is extended.

    `asked` are the tokens between context and question, and the question's own; `cue` those between it and an answer. Of a
    longer question its last tokens are read.
    """
    cut = [told_tokens(head, ids) for head, ids in asked]
    with backbone.capture_inputs([layer]) as captured:
        hidden, _, _ = read_rows(backbone, context, [[*head, *ids, *cue] for head, ids in cut])
    nats = told_log_probabilities(backbone, hidden, cut)
    ends = [len(head) + len(ids) for head, ids in cut]
    last = torch.stack([hidden[row, end + len(cue) - 1] for row, end in enumerate(ends)])
    following = backbone.logits(last).float().log_softmax(dim=-1)  # (N, V)
    sureness, entropy = following.amax(dim=-1).tolist(), (-(following.exp() * following).sum(dim=-1)).tolist()
    looks = []
    for row, (head, ids) in enumerate(cut):
        seen = captured[0][row].float()
        end = len(head) + len(ids)
        state = torch.cat([seen[end + len(cue) - 1], seen[len(head) : end].mean(dim=0)]).cpu()
        looks.append(Look(nats[row], sureness[row], entropy[row], state))
    return looks

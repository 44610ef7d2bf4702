"""How likely the frozen LLM finds a question behind one memory: it tells which of the documents found the question is about.

A question repeats its document's names and turns of phrase, and a language model that has just read them expects them. Source:
query likelihood (Ponte and Croft 1998), by a language model that reads the passage (Sachan et al. 2022, arXiv 2204.07496), which
here reads its memory. Decision 0065 has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context, read_rows

__all__ = ["query_log_likelihood", "told_log_probabilities", "told_tokens"]

_TOLD_AT_ONCE = 256  # of all rows: a vocabulary for each; row by row the matrix would be read for each row
_READ_TOKENS = 64  # of a longer question the last ones: what is asked stands at the end


@torch.inference_mode()
def query_log_likelihood(
    backbone: Backbone, context: Context, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Log-probability in nats of each question's words behind its row of `context`, whose cache is extended by them.

    `asked` are the tokens between context and question, and the question's own. Where nothing stands between them, the first
    of the question's tokens counts as such: what would say how likely it is was read with the context.
    """
    cut = [told_tokens(head, ids) for head, ids in asked]
    hidden, _, _ = read_rows(backbone, context, [[*head, *ids] for head, ids in cut])
    return told_log_probabilities(backbone, hidden, cut)


def told_log_probabilities(
    backbone: Backbone, hidden: Tensor, cut: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Log-probability in nats of each row's words, by last hidden states (B, Q, D) of `cut`: what `told_tokens` gives."""
    told = torch.cat([hidden[row, len(head) - 1 : len(head) - 1 + len(ids)] for row, (head, ids) in enumerate(cut)])
    words = torch.tensor([word for _, ids in cut for word in ids], dtype=torch.long, device=told.device)
    parts = zip(torch.split(told, _TOLD_AT_ONCE), torch.split(words, _TOLD_AT_ONCE), strict=True)
    nats = torch.cat([_log_probabilities(backbone.logits(states), own) for states, own in parts])
    return [float(own.sum()) for own in torch.split(nats, [len(ids) for _, ids in cut])]


def told_tokens(head: Sequence[int], ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is read without counting, at least one token, and the tokens whose log-probability counts."""
    read, words = (head, ids) if head else (ids[:1], ids[1:])
    return list(read), list(words[-_READ_TOKENS:])


def _log_probabilities(logits: Tensor, words: Tensor) -> Tensor:
    """Of words (N,) in nats, by logits (N, V)."""
    scores = logits.float()
    return scores.gather(1, words[:, None]).squeeze(1) - scores.logsumexp(dim=-1)

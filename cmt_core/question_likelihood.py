"""How likely the frozen LLM finds a question behind one memory: it tells which of the documents found the question is about.

A question repeats its document's names and turns of phrase, and a language model that has just read them expects them. Source:
query likelihood (Ponte and Croft 1998), by a language model that reads the passage (Sachan et al. 2022, arXiv 2204.07496), which
here reads its memory. Decision 0065 has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmt_core.alignment import Context
from cmt_core.backbone import Backbone
from cmt_core.generation import read_rows

__all__ = ["question_log_likelihood"]

_READ_TOKENS = 64  # of a longer question the last ones: what is asked stands at the end


@torch.inference_mode()
def question_log_likelihood(
    backbone: Backbone, context: Context, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Log-probability in nats of each question's words behind its row of `context`, whose cache is extended by them.

    `asked` are the tokens between context and question, and the question's own.
    """
    cut = [(list(head), list(ids[-_READ_TOKENS:])) for head, ids in asked]
    hidden, _, _ = read_rows(backbone, context, [[*head, *ids] for head, ids in cut])
    sums = []
    for row, (head, ids) in enumerate(cut):  # one by one: all vocabularies at once would be hundreds of megabytes
        told = hidden[row, len(head) - 1 : len(head) - 1 + len(ids)]
        words = torch.tensor(ids, dtype=torch.long, device=told.device)[:, None]
        sums.append(float(backbone.logits(told).float().log_softmax(dim=-1).gather(1, words).sum()))
    return sums

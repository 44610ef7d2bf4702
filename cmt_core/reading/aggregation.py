"""ψ: which memory vectors of the k documents found the frozen LLM is given, and where they stand.

`stack` gives it all of them, document i from position i * window. `select` asks first: the LLM's own query heads, reading the
question alone, cross-attend to each document's memory; with a prior over the documents this scores every vector, and the c
best are kept, in runs of whole blocks (a text with single words missing reads worse than one with a passage missing). Documents
that the prior gives little are left out: what distracts costs more than what it might answer. Where the retriever's scores leave
a doubt, the prior also counts how likely the LLM finds the question behind each memory (retrieval/query_likelihood.py). Where the
likeliest document lacks words of the question that another one has (retrieval/complement.py), and the LLM finds the question far
likelier behind both than behind that one, both are read: no score of either tells that it takes the two of them.

Source: the top-k aggregation of CMT (arXiv 2412.07393), with the LLM's frozen query heads as cross-attention and only the mix
of the heads learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmt_core.llm.backbone import Backbone, KVShape

__all__ = [
    "JOINED_NATS",
    "JOINED_ODDS",
    "Select",
    "Selection",
    "adjoining",
    "joined",
    "likely",
    "mean_to",
    "question_queries",
    "question_states",
    "rank_prior",
    "rectangle",
    "score_prior",
    "stack",
    "start_of_prior",
    "to_join",
    "to_rerank",
    "with_looks",
    "with_odds",
]

_RANK_DECAY = 1.5  # log-odds between a document and the next one found, when the retriever's scores are not given
_LEAST_SHARE = 0.25  # of the prior, below which a document is left out; the best one never is
_SURE_SHARE = 0.9  # of the best document, from which on the others are not reranked
_CONSIDERED_SHARE = 0.01  # below which a document is not reranked
JOINED_NATS = 12.0
"""By which a question has to be likelier behind two documents than behind one for both to be read (decision 0173)."""
JOINED_ODDS = 3.1
"""By which a learned look has to find an answer likelier there (decision 0175)."""
_NEXT = 1e-3  # log-odds that order two documents which count alike
_FIRST_LAYER, _END_LAYER = (
    0.65,
    0.87,
)  # where the heads that find an answer's place were seen (SmolLM2: layers 19 to 25)


@dataclass(frozen=True, slots=True)
class Selection:
    """The context's vectors: index (B, S) into the k * T of a row, seen (B, S), and positions (B, S) counted from 0.

    `length` (B,) is how many positions they take, the question standing behind them.
    """

    index: Tensor
    seen: Tensor
    positions: Tensor
    length: Tensor


def stack(mask: Tensor, window_tokens: int) -> Selection:
    """All vectors of documents with mask (B, k, T), each document in a slot of its own, a whole window long."""
    B, k, T = mask.shape
    slots = torch.arange(k, device=mask.device)[:, None] * window_tokens
    positions = (slots + torch.arange(T, device=mask.device)).reshape(-1).expand(B, -1)
    index = torch.arange(k * T, device=mask.device).expand(B, -1)
    documents = mask.bool().any(dim=-1).sum(dim=-1)  # (B,)
    return Selection(index, mask.reshape(B, -1).bool(), positions, documents * window_tokens)


def adjoining(mask: Tensor) -> Selection:
    """All vectors of documents with mask (B, k, T), every document right behind the one before it."""
    seen = mask.flatten(1).bool()
    places = seen.long().cumsum(dim=-1)
    index = torch.arange(seen.shape[1], device=mask.device).expand_as(places)
    return Selection(index, seen, (places - 1).clamp_min(0), seen.sum(dim=-1))


def rank_prior(mask: Tensor) -> Tensor:
    """Log-prior (B, k) of documents in the order in which the retriever found them; -inf where there is none."""
    ranks = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape[:2])
    return (-_RANK_DECAY * ranks).masked_fill(~mask.bool().any(dim=-1), -math.inf)


def score_prior(scores: Tensor, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Log-prior (B, k) of documents with the retriever's scores (B, k), any order; -inf where there is none.

    Decisions 0006 and 0065 have the temperature.
    """
    return (scores / temperature).masked_fill(~mask.bool().any(dim=-1), -math.inf)


def likely(prior: Tensor, least_share: float = _LEAST_SHARE) -> Tensor:
    """The log-prior (B, k) with -inf for documents that it gives less than `least_share`, the best one excepted."""
    keep = prior.softmax(dim=-1) >= least_share
    best = torch.zeros_like(keep).scatter(1, prior.argmax(dim=-1, keepdim=True), True)
    return prior.masked_fill(~(keep | best), -math.inf)


def to_rerank(prior: Tensor) -> Tensor:
    """Which documents (B, k) are reranked by query likelihood: those considered where the log-prior (B, k) is unsure."""
    shares = prior.softmax(dim=-1)
    return (shares >= _CONSIDERED_SHARE) & (shares.amax(dim=-1, keepdim=True) < _SURE_SHARE)


def start_of_prior(
    memories: Sequence[int], scores: Sequence[Sequence[float]] | None, temperature: float, looks: bool
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Log-prior (B, k) of questions with so many memories each, and the pairs (question, memory) that are to be looked at.

    With `looks`, questions of which the retriever's scores leave a doubt have -inf for what is not looked at.
    """
    present = rectangle([[1.0] * count for count in memories], 0.0)[..., None]
    prior = rank_prior(present) if scores is None else score_prior(rectangle(scores, 0.0), present, temperature)
    reranked = to_rerank(prior) if looks else torch.zeros_like(prior, dtype=torch.bool)
    prior[reranked.any(dim=-1, keepdim=True) & ~reranked] = -math.inf
    return prior, [(b, i) for b, i in reranked.nonzero().tolist()]


def with_looks(prior: Tensor, pairs: Sequence[tuple[int, int]], nats: Sequence[float], weight: float) -> Tensor:
    """The log-prior (B, k) of what is read: with each look's log-likelihood, and -inf for documents that are left out."""
    return with_odds(prior, pairs, [float(prior[at]) + weight * own for at, own in zip(pairs, nats, strict=True)])


def with_odds(prior: Tensor, pairs: Sequence[tuple[int, int]], odds: Sequence[float]) -> Tensor:
    """The same where a learned look (retrieval/looks.py) has weighed the retriever's score, too: `odds` replace the prior."""
    prior = prior.clone()
    for at, own in zip(pairs, odds, strict=True):
        prior[at] = own
    return likely(prior)


def to_join(prior: Tensor, completed_by: Sequence[Sequence[int | None]] | None) -> list[tuple[int, int, int]]:
    """Questions b whose likeliest document, by their log-prior (B, k), may want another one beside it: (b, other, likeliest).

    `completed_by` says of each document which other one has the words of the question that it lacks; None where none does.
    """
    best = prior.argmax(dim=-1).tolist()
    others = [(b, own[best[b]], best[b]) for b, own in enumerate(completed_by or ())]
    return [(b, other, first) for b, other, first in others if other is not None]


def joined(
    prior: Tensor, pairs: Sequence[tuple[int, int, int]], gains: Sequence[float], least: float | None = None
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The log-prior (B, k) with both of those `pairs` which gain `least` over the likeliest document alone (`gains`, in nats or
    log-odds; None are JOINED_NATS), and which two each question then reads, in their order; empty where it is as before.

    They count alike, and the likeliest stands last, next to the question, which describes it.
    """
    least = JOINED_NATS if least is None else least
    prior = prior.clone()
    together: list[tuple[int, ...]] = [() for _ in range(len(prior))]
    for (b, other, first), gain in zip(pairs, gains, strict=True):
        if gain >= least:
            prior[b] = -math.inf
            prior[b, other], prior[b, first] = 0.0, -_NEXT
            together[b] = (other, first)
    return prior, together


def rectangle(rows: Sequence[Sequence[float]], padding: float) -> Tensor:
    """Rows of unequal length as (B, k), padded at their ends."""
    k = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (k - len(row))] for row in rows])


def question_queries(backbone: Backbone, prefix: Tensor, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Every layer's queries (B, heads * d), before rotary, of each prompt's last token, read behind `prefix` alone."""
    with backbone.capture_queries() as queries:
        _, last = _read_prompts(backbone, prefix, prompts)
    return [layer[torch.arange(len(prompts), device=last.device), last] for layer in queries]


def question_states(backbone: Backbone, prefix: Tensor, prompts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """What `layer` gets (B, D), the mean over each prompt's tokens, read behind `prefix` alone."""
    with backbone.capture_inputs([layer]) as captured:
        _, last = _read_prompts(backbone, prefix, prompts)
    return mean_to(captured[0], last)


def mean_to(hidden: Tensor, last: Tensor) -> Tensor:
    """The mean (B, D) of hidden states (B, Q, D) up to each row's place `last` (B,)."""
    among = torch.arange(hidden.shape[1], device=hidden.device) <= last[:, None]
    return (hidden.float() * among[..., None]).sum(dim=1) / among.sum(dim=1, keepdim=True)


def _read_prompts(backbone: Backbone, prefix: Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Hidden states (B, Q, D) of padded prompts, and the place of each one's last token (B,)."""
    device = backbone.device
    B, Q, p = len(prompts), -(-max(map(len, prompts)) // 8) * 8, len(prefix)
    ids = torch.zeros(B, Q, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    steps = torch.arange(Q, device=device)
    attend = torch.ones(Q, p + Q, dtype=torch.bool, device=device).tril(diagonal=p).expand(B, 1, -1, -1)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    cache = backbone.cache(prefix.expand(B, -1, -1), torch.arange(p, device=device).expand(B, -1))
    return backbone.forward(ids, (p + steps).expand(B, -1), attend, cache), last


class Select(nn.Module):
    """Keeps the c most useful of k * T vectors; `mix` (layers, heads) weighs the query heads, and is all that is learned."""

    def __init__(
        self, shape: KVShape, query_heads: int, context_vectors: int, block: int = 32, floor: float = 0.5
    ) -> None:
        super().__init__()
        self.shape, self.query_heads = shape, query_heads
        self.context_vectors, self.block, self.floor = context_vectors, block, floor
        self.layers = range(int(_FIRST_LAYER * shape.layers), math.ceil(_END_LAYER * shape.layers))
        self.mix = nn.Parameter(torch.zeros(len(self.layers), query_heads))

    def keys(self, documents: Tensor) -> Tensor:
        """What the query heads read of rows (..., X): the keys (..., layers, H, d) of the layers in which they stand."""
        shape = self.shape
        rows = documents.view(*documents.shape[:-1], shape.layers, 2, shape.heads, shape.head_dim)
        keys: Tensor = rows[..., self.layers.start : self.layers.stop, 0, :, :]
        return keys

    def attention(self, queries: Sequence[Tensor], keys: Tensor, mask: Tensor) -> Tensor:
        """Cross-attention (B, k, T) of a question over each of its documents; sums to 1 within a document.

        queries: every layer's (B, heads * d) before rotary; keys (B, k, T, layers, H, d) from `keys`; mask (B, k, T).
        """
        B, k, T, _, H, d = keys.shape
        hidden = ~mask.bool().view(B, 1, k, T)
        shares = self.mix.flatten().softmax(dim=0).view_as(self.mix)
        total = torch.zeros(B, k, T, device=keys.device, dtype=torch.float32)
        for number, layer in enumerate(self.layers):
            turned = keys[:, :, :, number].float().reshape(B, k * T, H, d).permute(0, 2, 3, 1)  # (B, H, d, k * T)
            scores = queries[layer].view(B, H, -1, d).float() @ turned * d**-0.5  # (B, H, heads / H, k * T)
            seen = scores.reshape(B, -1, k, T).masked_fill(hidden, -1e9).softmax(dim=-1)
            total = total + torch.einsum("bhkt,h->bkt", seen, shares[number])
        return total

    def choose(self, attention: Tensor, prior: Tensor, mask: Tensor) -> Selection:
        """The c most useful vectors, document by document in falling prior, without gaps between them.

        attention (B, k, T) from `attention`; prior (B, k) log-probabilities of the documents, -inf where there is none.
        """
        B, k, T = mask.shape
        seen = mask.bool() & (prior > -math.inf)[..., None]
        c = min(self.context_vectors, k * T)
        sizes = seen.sum(dim=-1, keepdim=True).clamp_min(1)
        share = (1 - self.floor) * attention + self.floor / sizes
        useful = self._by_block(share, seen) * prior.softmax(dim=-1)[..., None]  # (B, k, T)
        earlier_first = (
            torch.arange(T, device=mask.device, dtype=torch.float32) * 1e-6
        )  # ties within a block: from its start
        ranked = (useful.clamp_min(1e-12).log() - earlier_first).masked_fill(~seen, -math.inf).view(B, -1)
        best = ranked.topk(c, dim=-1)
        kept = best.values > -math.inf
        places = prior.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # (B, k): a document's turn
        turn = (places[..., None] * T + torch.arange(T, device=mask.device)).view(B, -1).gather(1, best.indices)
        order = turn.masked_fill(~kept, k * T).argsort(dim=-1, stable=True)
        length = torch.full((B,), max(c, self.context_vectors), device=mask.device)
        positions = torch.arange(c, device=mask.device).expand(B, -1)
        return Selection(best.indices.gather(1, order), kept.gather(1, order), positions, length)

    def _by_block(self, share: Tensor, seen: Tensor) -> Tensor:
        """Every vector's share (B, k, T), replaced by the mean of its block."""
        B, k, T = share.shape
        padded = -(-T // self.block) * self.block
        blocks = nn.functional.pad(share * seen, (0, padded - T)).view(B, k, -1, self.block)
        counts = nn.functional.pad(seen.float(), (0, padded - T)).view(B, k, -1, self.block).sum(dim=-1)
        means = blocks.sum(dim=-1) / counts.clamp_min(1)
        return means.repeat_interleave(self.block, dim=-1)[..., :T]

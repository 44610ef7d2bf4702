"""What the LLM reads before a prompt: the one place where packed memories, or texts, become a placed cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import MemoryFormatError
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.tokens import Tokens, bucket
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.memory.format import MemoryFormat
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.reading.aggregation import (
    Select,
    Selection,
    adjoining,
    likely,
    question_queries,
    question_states,
    rank_prior,
    score_prior,
    to_rerank,
)
from cmt_core.reading.alignment import place, place_chosen, place_rows
from cmt_core.reading.batch import Reading
from cmt_core.reading.prompting import Prompting
from cmt_core.retrieval.query_likelihood import query_log_likelihood

__all__ = ["Contexts"]

_RERANKED_AT_ONCE = 32  # memories behind which questions are read at once, some 6 MB each


@dataclass(frozen=True, slots=True)
class Contexts:
    """Makes contexts of one checkpoint's memories, of texts, and of nothing; prefixes are (p, X)."""

    backbone: Backbone
    tokens: Tokens
    prompting: Prompting
    config: MemoryConfig
    format: MemoryFormat
    select: Select | None
    soft: SoftMemory | None
    encoding_prefix: Tensor
    reading_prefix: Tensor
    decoded: DecodedMemories

    def of_memories(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
    ) -> Reading:
        """Of B questions' packed memories (at least one each) with the retriever's scores; see `CMT.context`."""
        if not all(memories):
            raise MemoryFormatError("a question without memories has nothing to read; ask it with answer_closed")
        if scores is not None and [len(row) for row in scores] != [len(row) for row in memories]:
            raise ValueError(f"{[len(row) for row in scores]} scores for {[len(row) for row in memories]} memories")
        if self.soft is not None and self.soft.context is not None:
            return self._single_context(self.soft, questions, memories)
        if self.select is not None:
            return self._selected(self.select, questions, memories, scores)
        decoded = self._decoded(memories)
        mask = self._mask(decoded)
        spans = [len(row) * self.config.slot_tokens for row in memories]
        documents = self._padded(decoded, mask.shape[1:])
        self._keep(memories, decoded)
        return self._placed(self.reading_prefix, documents, mask, spans, self.prompting.stop_ids)

    def likely(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
    ) -> list[list[int]]:
        """The places of each question's memories that ψ `select` reads, the likeliest first."""
        orders = self._prior(questions, memories, scores).sort(dim=-1, descending=True, stable=True)
        found = zip(orders.values.isfinite().sum(dim=-1).tolist(), orders.indices.tolist(), strict=True)
        return [order[:count] for count, order in found]

    def of_text(self, passages: Sequence[Sequence[str]]) -> Reading:
        """The exact keys and values of B questions' passages (at least one each), which the LLM reads now."""
        ids = [self.prompting.texts(row) for row in passages]
        if not all(ids):
            raise MemoryFormatError("a question without passages has nothing to read; ask it with answer_closed")
        batch, mask = self.tokens.padded(ids)
        exact = self.backbone.read(batch, mask, self.encoding_prefix)
        spans = [max(self.config.window_tokens, bucket(len(row))) for row in ids]
        reading = self._placed(self.encoding_prefix, exact[:, None], mask[:, None], spans, self.prompting.stop_ids)
        return replace(reading, text_tokens=[len(row) for row in ids], passages=[len(row) for row in passages])

    def of_nothing(self, rows: int, prefixed: bool) -> Reading:
        """No document at all: for the LLM by itself, or (`prefixed`) behind the reading prefix, as a memory would be read."""
        prefix = self.reading_prefix if prefixed else self.reading_prefix[:0]
        nothing = torch.zeros(rows, 0, 0, self.backbone.shape.width, dtype=self.backbone.dtype)
        mask = torch.zeros(rows, 0, 0, dtype=torch.long, device=self.backbone.device)
        stop_ids = self.prompting.stop_ids if prefixed else self.prompting.closed_stop_ids()
        return self._placed(prefix, nothing.to(self.backbone.device), mask, [0] * rows, stop_ids)

    def _selected(
        self,
        select: Select,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
    ) -> Reading:
        """The vectors that ψ keeps, best document first. Memories that are left out are not even decoded for it."""
        prior = self._prior(questions, memories, scores)
        kept = [row.isfinite().nonzero().squeeze(1).tolist() for row in prior]
        read = [[row[i] for i in own] for row, own in zip(memories, kept, strict=True)]
        decoded = self._decoded(read)
        mask = self._mask(decoded)
        left = _rectangle([row[own].tolist() for row, own in zip(prior, kept, strict=True)], -math.inf).to(mask.device)
        chosen = select.choose(self._attention(select, questions, decoded, mask), left, mask)
        if not self.prompting.fixed_slots:
            chosen = replace(chosen, length=chosen.seen.sum(dim=-1))
        context = place_rows(self.backbone, self._rows(decoded, mask, chosen), len(self.reading_prefix), chosen)
        self._keep(read, decoded)
        original = _rectangle(kept, -1).to(mask.device)  # (B, k): which memory a document is
        owner = original.gather(1, chosen.index // mask.shape[2])
        prefix = owner.new_full((len(owner), len(self.reading_prefix)), -1)
        return Reading(
            context, torch.cat([prefix, owner], dim=1), [len(row) for row in memories], self.prompting.stop_ids
        )

    def _prior(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], scores: Sequence[Sequence[float]] | None
    ) -> Tensor:
        """Log-prior (B, k) of each question's memories, -inf for those that ψ leaves out."""
        present = _rectangle([[1] * len(row) for row in memories], 0)[..., None]
        temperature = self.config.prior_temperature
        prior = rank_prior(present) if scores is None else score_prior(_rectangle(scores, 0.0), present, temperature)
        reranked = to_rerank(prior) if self.config.likelihood_weight else torch.zeros_like(prior, dtype=torch.bool)
        prior[reranked.any(dim=-1, keepdim=True) & ~reranked] = -math.inf
        pairs = reranked.nonzero().tolist()
        for start in range(0, len(pairs), _RERANKED_AT_ONCE):
            part = pairs[start : start + _RERANKED_AT_ONCE]
            nats = self._likelihoods([questions[b] for b, _ in part], [memories[b][i] for b, i in part])
            for (b, i), own in zip(part, nats, strict=True):
                prior[b, i] += self.config.likelihood_weight * own
        return likely(prior)

    def _likelihoods(self, questions: Sequence[str], memories: Sequence[bytes]) -> list[float]:
        """Log-probability in nats of N questions, each behind a memory of its own."""
        single = [[memory] for memory in memories]
        decoded = self._decoded(single)
        mask = self._mask(decoded)
        documents = self._padded(decoded, mask.shape[1:])
        self._keep(single, decoded)
        spans = [self.config.slot_tokens] * len(single)
        reading = self._placed(self.reading_prefix, documents, mask, spans, self.prompting.stop_ids)
        asked = [self.prompting.for_likelihood(question) for question in questions]
        return query_log_likelihood(self.backbone, reading.context, asked)

    def _rows(self, decoded: Sequence[Sequence[Tensor]], mask: Tensor, chosen: Selection) -> Tensor:
        """Rows (B, p + S, X) of the reading prefix and the chosen vectors, each copied once; zeros where none is seen."""
        prefix, T = self.reading_prefix, mask.shape[2]
        p, (B, S) = len(prefix), chosen.index.shape
        rows = prefix.new_empty(B, p + S, prefix.shape[1])
        rows[:, :p] = prefix
        for b, parts in enumerate(decoded):
            own, at = chosen.index[b, chosen.seen[b]], p  # without gaps, document by document
            for document, run in groupby((own // T).tolist()):
                part, count = parts[document], len(list(run))
                columns = own[at - p : at - p + count] % T
                rows[b, at : at + count] = part if count == len(part) else part[columns]  # a whole one is in its order
                at += count
            rows[b, at:] = 0
        return rows

    def _attention(
        self, select: Select, questions: Sequence[str], decoded: Sequence[Sequence[Tensor]], mask: Tensor
    ) -> Tensor:
        """ψ's cross-attention (B, k, T); even for a question whose one document is kept whole whatever it says."""
        sizes = mask.sum(dim=-1)  # (B, k)
        attention = mask / sizes.clamp_min(1)[..., None]
        choice = ((sizes > 0).sum(dim=-1) > 1) | (sizes.sum(dim=-1) > select.context_vectors)
        rows = choice.nonzero().squeeze(1)
        if len(rows):
            prompts = [self.prompting.question(questions[row]) for row in rows.tolist()]
            queries = question_queries(self.backbone, self.reading_prefix, prompts)
            documents = self._padded([decoded[row] for row in rows.tolist()], mask.shape[1:])
            attention[rows] = select.attention(queries, select.keys(documents), mask[rows])
        return attention

    def _single_context(
        self, soft: SoftMemory, questions: Sequence[str], memories: Sequence[Sequence[bytes]]
    ) -> Reading:
        """The one context of c vectors that ψ makes of each question's memories."""
        B, k, m = len(memories), max(map(len, memories)), self.config.memory_vectors
        vectors = soft.unpack([memory for row in memories for memory in row], self.backbone.device)
        present = torch.arange(k)[None, :] < torch.tensor([len(row) for row in memories])[:, None]  # (B, k)
        documents = vectors.new_zeros(B, k, m, self.config.memory_width)
        documents[present.to(vectors.device)] = vectors
        prompts = [self.prompting.question(question) for question in questions]
        asked = question_states(self.backbone, self.reading_prefix, prompts, soft.source_layer)
        context, shares = soft.aggregate(asked, documents, present.to(vectors.device))
        rows = soft.align(self.backbone, context)[:, None]  # (B, 1, c, X)
        mask = torch.ones(rows.shape[:3], dtype=torch.long, device=rows.device)
        reading = self._placed(self.reading_prefix, rows, mask, [rows.shape[2]] * B, self.prompting.stop_ids)
        given = [shares[row, : len(own)].tolist() for row, own in enumerate(memories)]
        return replace(reading, sizes=[len(row) for row in memories], shares=given)

    def _decoded(self, memories: Sequence[Sequence[bytes]]) -> list[list[Tensor]]:
        """Keys and values (t, X) of packed memories before they are placed, good until `_keep`; those kept are not decoded."""
        flat = [memory for row in memories for memory in row]
        found = {memory: self.decoded[memory] for memory in flat if memory in self.decoded}
        if fresh := [memory for memory in dict.fromkeys(flat) if memory not in found]:
            found.update(zip(fresh, self.format.read(fresh), strict=True))
        return [[found[memory] for memory in row] for row in memories]

    def _keep(self, memories: Sequence[Sequence[bytes]], decoded: Sequence[Sequence[Tensor]]) -> None:
        """Keeps what `_decoded` gave, for the next questions."""
        pairs = zip(memories, decoded, strict=True)
        self.decoded.keep({memory: part for row, parts in pairs for memory, part in zip(row, parts, strict=True)})

    def _mask(self, decoded: Sequence[Sequence[Tensor]]) -> Tensor:
        """(B, k, T): which of T columns, a whole bucket, are tokens of each document."""
        sizes = _rectangle([[len(part) for part in row] for row in decoded], 0)
        columns = torch.arange(bucket(int(sizes.max())))
        return (columns < sizes[..., None]).long().to(self.backbone.device)

    def _padded(self, decoded: Sequence[Sequence[Tensor]], size: Sequence[int]) -> Tensor:
        """Documents (B, k, T, X) with zeros behind their own tokens, `size` being (k, T)."""
        X = self.backbone.shape.width
        documents = torch.zeros(len(decoded), *size, X, dtype=self.backbone.dtype, device=self.backbone.device)
        for b, row in enumerate(decoded):
            for i, part in enumerate(row):
                documents[b, i, : len(part)] = part
        return documents

    def _placed(
        self, prefix: Tensor, documents: Tensor, mask: Tensor, spans: Sequence[int], stop_ids: set[int]
    ) -> Reading:
        """Each question stands behind its own row's `spans` positions, or its last token's, however much its neighbours take."""
        B, k, T = mask.shape
        if self.prompting.fixed_slots:
            context = place(self.backbone, prefix, documents, mask, self.config.slot_tokens)
            context.next_position = len(prefix) + torch.tensor(spans, device=self.backbone.device)
        else:
            context = place_chosen(self.backbone, prefix, documents.flatten(1, 2), adjoining(mask))
        owners = torch.arange(k, device=mask.device)[:, None].expand(k, T).reshape(-1)
        owner = torch.cat([owners.new_full((len(prefix),), -1), owners]).expand(B, -1)  # (B, S)
        sizes = mask.sum(dim=-1).gt(0).sum(dim=-1).tolist() if k else [0] * B
        return Reading(context, owner, sizes, stop_ids)


def _rectangle(rows: Sequence[Sequence[float]], padding: float) -> Tensor:
    """Rows of unequal length as (B, k), padded at their ends."""
    k = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (k - len(row))] for row in rows])

"""What the LLM reads before a prompt: the one place where packed memories, or texts, become a placed cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import MemoryFormatError
from cmt_core.llm.backbone import Backbone
from cmt_core.llm.context import Context
from cmt_core.llm.tokens import Tokens, bucket
from cmt_core.memory.decoded import DecodedMemories
from cmt_core.memory.format import MemoryFormat
from cmt_core.memory.soft.soft_memory import SoftMemory
from cmt_core.reading.aggregation import (
    JOINED_ODDS,
    Select,
    adjoining,
    joined,
    question_queries,
    question_states,
    rectangle,
    start_of_prior,
    to_join,
    with_looks,
    with_odds,
)
from cmt_core.reading.alignment import place, place_chosen
from cmt_core.reading.batch import Reading
from cmt_core.reading.packing import Chosen, chosen_of, stacked
from cmt_core.reading.prompting import Prompting
from cmt_core.retrieval.looks import Look, LookHead, looks_behind
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
    look_head: LookHead | None = None

    def of_memories(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> Reading:
        """Of B questions' packed memories (at least one each) with the retriever's scores; see `CMT.context`."""
        if not all(memories):
            raise MemoryFormatError("a question without memories has nothing to read; ask it with answer_closed")
        for name, given in (("scores", scores), ("completing memories", completed_by)):
            if given is not None and [len(row) for row in given] != [len(row) for row in memories]:
                raise ValueError(f"{[len(row) for row in given]} {name} for {[len(row) for row in memories]} memories")
        if self.soft is not None and self.soft.context is not None:
            return self._single_context(self.soft, questions, memories)
        return self.placed(self.chosen(questions, memories, scores, completed_by))

    def chosen(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> list[Chosen]:
        """Which tokens of its memories each of B questions reads, and where they stand."""
        if self.select is not None:
            prior, together = self._prior(questions, memories, scores, completed_by)
            return self._selected(self.select, questions, memories, prior, together)
        return [self._stacked(row) for row in memories]

    def placed(self, chosen: Sequence[Chosen]) -> Reading:
        """The context of B questions' chosen memories, decoded and turned to their places. Raises MemoryFormatError."""
        memories = [one.context.memories for one in chosen]
        decoded = self._decoded(memories)
        p, device = len(self.reading_prefix), self.backbone.device
        B, S = len(chosen), p + bucket(max(one.context.columns for one in chosen) - p)
        rows = self.reading_prefix.new_zeros(B, S, self.backbone.shape.width)
        rows[:, :p] = self.reading_prefix
        positions, owner = torch.zeros(B, S, dtype=torch.long), torch.full((B, S), -1)
        seen = torch.zeros(B, S, dtype=torch.bool)
        for b, one in enumerate(chosen):
            at = p
            for run in one.context.runs:
                end = at + run.stop - run.start
                rows[b, at:end] = decoded[b][run.memory][run.start : run.stop]
                owner[b, at:end] = one.owners[run.memory]
                at = end
            positions[b, :at] = torch.tensor(one.context.positions())
            seen[b, :at] = True
        self._keep(memories, decoded)
        following = torch.tensor([one.context.next_position for one in chosen], device=device)
        context = Context(self.backbone.cache(rows, positions.to(device)), seen.to(device), following)
        sizes, together = [one.size for one in chosen], [one.together for one in chosen]
        return Reading(context, owner.to(device), sizes, self.prompting.stop_ids, together=together)

    def likely(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
        completed_by: Sequence[Sequence[int | None]] | None = None,
    ) -> list[list[int]]:
        """The places of each question's memories that ψ `select` reads, in their order."""
        prior, _ = self._prior(questions, memories, scores, completed_by)
        orders = prior.sort(dim=-1, descending=True, stable=True)
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
        prior: Tensor,
        together: Sequence[tuple[int, ...]],
    ) -> list[Chosen]:
        """The vectors that ψ keeps, best document first. Memories that are left out are not even decoded for it."""
        kept = [row.isfinite().nonzero().squeeze(1).tolist() for row in prior]
        read = [[row[i] for i in own] for row, own in zip(memories, kept, strict=True)]
        mask = self._mask([[self.config.tokens_of(memory) for memory in row] for row in read])
        left = rectangle([row[own].tolist() for row, own in zip(prior, kept, strict=True)], -math.inf).to(mask.device)
        chosen = select.choose(self._attention(select, questions, read, mask), left, mask)
        T, shares = mask.shape[2], prior.softmax(dim=-1)
        made = []
        for b, row in enumerate(memories):
            columns = chosen.index[b, chosen.seen[b]].tolist()
            length = int(chosen.length[b]) if self.prompting.fixed_slots else len(columns)
            places = [(kept[b][column // T], column % T) for column in columns]
            own = shares[b, : len(row)].tolist()
            made.append(chosen_of(len(self.reading_prefix), row, places, length, own, together[b]))
        return made

    def _stacked(self, memories: Sequence[bytes]) -> Chosen:
        return stacked(self.config, self.prompting.fixed_slots, len(self.reading_prefix), memories)

    def _prior(
        self,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        scores: Sequence[Sequence[float]] | None,
        completed_by: Sequence[Sequence[int | None]] | None,
    ) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Log-prior (B, k) of each question's memories, -inf for those that ψ leaves out, and which it takes together."""
        weight = self.config.likelihood_weight
        prior, pairs = start_of_prior([len(row) for row in memories], scores, self.config.prior_temperature, weight > 0)
        asked, behind = [questions[b] for b, _ in pairs], [memories[b][i] for b, i in pairs]
        if self.look_head is None or scores is None:
            nats: list[float] = []
            for start in range(0, len(pairs), _RERANKED_AT_ONCE):
                part = slice(start, start + _RERANKED_AT_ONCE)
                nats += self._likelihoods(asked[part], [[memory] for memory in behind[part]])
            prior = with_looks(prior, pairs, nats, weight)
        else:
            looks = self.looks(asked, [[memory] for memory in behind], self.look_head.layer)
            ranks = [scores[b][i] for b, i in pairs]
            prior = with_odds(prior, pairs, self.look_head.log_odds(ranks, looks) if pairs else [])
        two = to_join(prior, completed_by)
        if self.look_head is None or scores is None:
            return joined(prior, two, self._gains(questions, memories, two))
        return joined(prior, two, self._answer_gains(self.look_head, questions, memories, two), JOINED_ODDS)

    def looks(self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], layer: int) -> list[Look]:
        """A look of N questions, each behind memories of its own, at what `layer` gets."""
        cue, made = self.prompting.answer_cue(), list[Look]()
        for start in range(0, len(questions), _RERANKED_AT_ONCE):
            part = slice(start, start + _RERANKED_AT_ONCE)
            reading = self.placed([self._stacked(own) for own in memories[part]])
            asked = [self.prompting.for_likelihood(question) for question in questions[part]]
            made += looks_behind(self.backbone, reading.context, asked, cue, layer)
        return made

    def _gains(
        self, questions: Sequence[str], memories: Sequence[Sequence[bytes]], pairs: Sequence[tuple[int, int, int]]
    ) -> list[float]:
        """By how many nats each pair's question is likelier behind both of its memories than behind the last one."""
        gains: list[float] = []
        for start in range(0, len(pairs), _RERANKED_AT_ONCE // 2):
            part = pairs[start : start + _RERANKED_AT_ONCE // 2]
            asked = [questions[b] for b, _, _ in part]
            alone = self._likelihoods(asked, [[memories[b][first]] for b, _, first in part])
            both = self._likelihoods(asked, [[memories[b][other], memories[b][first]] for b, other, first in part])
            gains += [two - one for two, one in zip(both, alone, strict=True)]
        return gains

    def _answer_gains(
        self,
        head: LookHead,
        questions: Sequence[str],
        memories: Sequence[Sequence[bytes]],
        pairs: Sequence[tuple[int, int, int]],
    ) -> list[float]:
        """By how much likelier a look finds an answer behind both of each pair's memories than behind the last one."""
        asked = [questions[b] for b, _, _ in pairs]
        alone = self.looks(asked, [[memories[b][first]] for b, _, first in pairs], head.layer)
        both = self.looks(asked, [[memories[b][other], memories[b][first]] for b, other, first in pairs], head.layer)
        return [head.answer_odds(two) - head.answer_odds(one) for two, one in zip(both, alone, strict=True)]

    def _likelihoods(self, questions: Sequence[str], memories: Sequence[Sequence[bytes]]) -> list[float]:
        """Log-probability in nats of N questions, each behind memories of its own."""
        reading = self.placed([self._stacked(own) for own in memories])
        asked = [self.prompting.for_likelihood(question) for question in questions]
        return query_log_likelihood(self.backbone, reading.context, asked)

    def _attention(
        self, select: Select, questions: Sequence[str], memories: Sequence[Sequence[bytes]], mask: Tensor
    ) -> Tensor:
        """ψ's cross-attention (B, k, T); even for a question whose documents are kept whole whatever it says."""
        sizes = mask.sum(dim=-1)  # (B, k)
        attention = mask / sizes.clamp_min(1)[..., None]
        rows = (sizes.sum(dim=-1) > select.context_vectors).nonzero().squeeze(1)
        if len(rows):
            among = [memories[row] for row in rows.tolist()]
            decoded = self._decoded(among)
            prompts = [self.prompting.question(questions[row]) for row in rows.tolist()]
            queries = question_queries(self.backbone, self.reading_prefix, prompts)
            documents = self._padded(decoded, mask.shape[1:])
            self._keep(among, decoded)
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

    def _mask(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(B, k, T): which of T columns, a whole bucket, are tokens of each document."""
        sizes = rectangle(tokens, 0)
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

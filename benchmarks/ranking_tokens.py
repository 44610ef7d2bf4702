"""What the encoder's own token vectors would add to the ranking: recall of the best 16 rows, ordered by them or with them.

    CMT_DATA_DIR=... python -m benchmarks.ranking_tokens --questions 2000
    ... --dataset realtimeqa_evidence_qa.jsonl.gz --since 2024-01-01 --questions 884

Each word of a question looks for the most alike token in two sentences in a row, rare words counting more (late interaction:
Khattab and Zaharia 2020; passages: Callan 1994). Nothing is trained and nothing encoded twice: keys are means of these vectors.
The states are kept in --keep, since encoding is what takes minutes. Sizes are what a bank would hold, numbers x bits of a token.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from cmt_core.data.qa import QAExample
from cmt_core.data.readers import read_examples
from cmt_core.evaluation.stream import sample
from cmt_core.llm.control_tokens import SafeTokenizer
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.hybrid import HybridIndex, RowHit
from cmt_core.retrieval.proximity import RERANKED
from cmt_core.retrieval.retriever import Retriever
from cmt_core.shipped import CACHE_DIR, LLM, RETRIEVER
from cmt_core.text.windows import sentences, split_document

__all__ = ["Tokens", "closeness", "rounded", "table"]

Floats = NDArray[np.float32]
_AT = (1, 2, 4)
_STEP = {8: 8 / 256, 4: 0.335, 2: 1.0}  # of a standard deviation, as the quantiser of memories has them


@dataclass(frozen=True, slots=True)
class Tokens:
    """Hidden states (n, d) of texts' tokens one behind the other, their ids (n,), and where each text starts (texts + 1,)."""

    states: Floats
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]

    def of(self, text: int) -> slice:
        """A text's tokens."""
        return slice(int(self.starts[text]), int(self.starts[text + 1]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="squad_dev.jsonl.gz")
    parser.add_argument("--since", default="", help="only rows of this date (YYYY-MM-DD) or later")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--keep", type=Path, help="a file for the token vectors; read where it is there")
    parser.add_argument("--weights", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--sizes", nargs="+", default=["384x32", "64x4", "128x1"], help="DIMSxBITS of a token")
    chosen = parser.parse_args()
    rows = list(read_examples(Path(os.environ.get("CMT_DATA_DIR", ".")) / chosen.dataset))
    documents, asked = sample([row for row in rows if row.date >= chosen.since], chosen.questions, None, 0)
    encoder = Retriever(resolve_model(RETRIEVER, CACHE_DIR.expanduser(), print), torch.device("cpu"))
    llm = SafeTokenizer(AutoTokenizer.from_pretrained(resolve_model(LLM, CACHE_DIR.expanduser(), print)))

    def count(text: str) -> int:
        return len(llm.ids(text))

    sizes = [(int(dims), int(bits)) for dims, bits in (one.split("x") for one in chosen.sizes)]
    for line in table(encoder, documents, asked, sizes, chosen.weights, chosen.keep, count):
        print(line, flush=True)


def table(
    encoder: Retriever,
    documents: Sequence[tuple[str, str, str]],
    asked: Sequence[QAExample],
    sizes: Sequence[tuple[int, int]],
    weights: Sequence[float],
    keep: Path | None = None,
    count: Callable[[str], int] = len,
) -> list[str]:
    """Lines of recall@1, @2 and @4: today's ranking, token vectors of each size alone, and added with each weight. `count` are
    an LLM's tokens of a text, by which documents are split."""
    windows = [
        (doc_id, window) for doc_id, title, text in documents for window in split_document(title, text, 256, count)
    ]
    texts = [window.reading for _, window in windows]
    questions = [row.question for row in asked]
    told, wanted = _encoded(encoder, [texts, questions], keep)
    keys, looked = _keys(told), _keys(wanted)
    names = [(doc_id, window.number) for doc_id, window in windows]
    found = HybridIndex(texts, keys, names=names).nearest(questions, looked, RERANKED, every_chunk=True)
    gold = [row.doc_id for row in asked]
    lines = [f"today's ranking: {_recall(found, [[one.score for one in hits] for hits in found], names, gold)}"]
    rarity = _rarity(told)
    cuts = [_sentence_starts(encoder, text, told.of(number)) for number, text in enumerate(texts)]
    token_vectors, looking = _unit(told.states), _unit(wanted.states)
    basis = _basis(token_vectors)
    for dims, bits in sizes:
        held = rounded(token_vectors, basis[:, :dims] if dims < len(basis) else None, bits)
        asking = _unit(looking @ basis[:, :dims]) if dims < len(basis) else looking
        close = [
            closeness(
                asking[wanted.of(q)][1:-1],
                rarity[wanted.ids[wanted.of(q)][1:-1]],
                [held[told.of(hit.row)] for hit in hits],
                [cuts[hit.row] for hit in hits],
            )
            for q, hits in enumerate(found)
        ]
        name = f"{dims} numbers of {bits} bits, {dims * bits * len(told.ids) / 8 / len(texts) / 1000:.1f} kB a window"
        lines.append(f"{name}, alone: {_recall(found, close, names, gold)}")
        for weight in weights:
            added = [
                [hit.score + weight * near for hit, near in zip(hits, own, strict=True)]
                for hits, own in zip(found, close, strict=True)
            ]
            lines.append(f"{name}, added {weight:g} times: {_recall(found, added, names, gold)}")
    return lines


def closeness(
    question: Floats, rarity: Floats, texts: Sequence[Floats], cuts: Sequence[NDArray[np.int64]]
) -> list[float]:
    """How close the best two sentences in a row of each text (n, d) come to a question's tokens (Q, d), each weighed by `rarity`.

    `cuts` are where each text's sentences start. Unit vectors; -1 to 1.
    """
    shares = rarity / max(float(rarity.sum()), 1e-9)
    offsets = np.cumsum([0, *map(len, texts)])
    alike = question @ np.concatenate(texts).T  # (Q, all tokens)
    starts = np.concatenate([cut + offset for cut, offset in zip(cuts, offsets, strict=False)])
    best = np.maximum.reduceat(alike, starts, axis=1)  # (Q, all sentences)
    scores, at = [], 0
    for cut in cuts:
        own = best[:, at : at + len(cut)]
        at += len(cut)
        pairs = np.maximum(own[:, :-1], own[:, 1:]) if len(cut) > 1 else own
        scores.append(float((shares @ pairs).max()))
    return scores


def rounded(vectors: Floats, basis: Floats | None, bits: int) -> Floats:
    """Unit vectors as they would come out of a bank: on `basis` (d, dims) where there is one, rounded to `bits` a number."""
    turned = vectors if basis is None else vectors @ basis
    if bits == 1:
        turned = np.sign(turned)
    elif bits in _STEP:
        step = turned.std(axis=0) * _STEP[bits] + 1e-12
        turned = (np.clip(np.floor(turned / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5) * step
    return _unit(turned)


def _encoded(encoder: Retriever, parts: Sequence[Sequence[str]], keep: Path | None) -> list[Tokens]:
    if keep is not None and keep.exists():
        kept = np.load(keep)
        return [
            Tokens(kept[f"states{i}"].astype(np.float32), kept[f"ids{i}"], kept[f"starts{i}"])
            for i in range(len(parts))
        ]
    made = [_states(encoder, texts) for texts in parts]
    if keep is not None:
        np.savez(
            keep,
            **{f"states{i}": one.states.astype(np.float16) for i, one in enumerate(made)},
            **{f"ids{i}": one.ids for i, one in enumerate(made)},
            **{f"starts{i}": one.starts for i, one in enumerate(made)},
        )
    return made


def _states(encoder: Retriever, texts: Sequence[str]) -> Tokens:
    """The last hidden states of every text's tokens."""
    states: list[Floats] = [np.zeros((0, 0), np.float32)] * len(texts)
    ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        some = [texts[row] for row in chosen]
        for row, own, hidden in zip(chosen, encoder.token_ids(some), encoder.states(some), strict=True):
            states[row], ids[row] = hidden.numpy(), np.array(own)
    return Tokens(np.concatenate(states), np.concatenate(ids), np.cumsum([0, *map(len, ids)]))


def _keys(tokens: Tokens) -> Floats:
    """Means of the tokens' states, as the encoder makes keys."""
    return np.stack([tokens.states[tokens.of(text)].mean(axis=0) for text in range(len(tokens.starts) - 1)])


def _rarity(told: Tokens) -> Floats:
    texts = len(told.starts) - 1
    holding = np.zeros(int(told.ids.max()) + 200_000)
    for text in range(texts):
        holding[np.unique(told.ids[told.of(text)])] += 1
    return np.log(1 + (texts - holding + 0.5) / (holding + 0.5)).astype(np.float32)


def _sentence_starts(encoder: Retriever, text: str, place: slice) -> NDArray[np.int64]:
    """Where a text's sentences start among its tokens, as far as they were encoded."""
    lengths = [len(ids) for ids in encoder.token_ids(sentences(text))]
    starts = np.cumsum([0, *(length - 2 for length in lengths)])[:-1] + 1
    starts[0] = 0
    return np.unique(starts[starts < place.stop - place.start])


def _basis(vectors: Floats) -> Floats:
    """The directions (d, d) in which a sample of token vectors varies, the largest first."""
    some = vectors[:: max(1, len(vectors) // 20_000)]
    return np.ascontiguousarray(np.linalg.eigh(some.T @ some)[1][:, ::-1])


def _recall(
    found: Sequence[Sequence[RowHit]],
    scores: Sequence[Sequence[float]],
    names: Sequence[tuple[str, int]],
    gold: Sequence[str],
) -> str:
    """recall@1, @2 and @4 in per cent, of a document by its best window."""
    ranks = []
    for hits, own, wanted in zip(found, scores, gold, strict=True):
        order = sorted(range(len(hits)), key=lambda i: -own[i])
        documents = list(dict.fromkeys(names[hits[i].row][0] for i in order))
        ranks.append(documents.index(wanted) if wanted in documents else len(documents) + max(_AT))
    return ", ".join(f"{100 * sum(rank < at for rank in ranks) / len(ranks):.2f}" for at in _AT)


def _unit(vectors: NDArray[np.floating]) -> Floats:
    wide = vectors.astype(np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-9), dtype=np.float32)


if __name__ == "__main__":
    main()

"""Late interaction: each token of a question looks for the most alike token of a text (ColBERT: Khattab and Zaharia 2020).

The vectors are those that the sentence encoder makes a key of, so that they cost no second pass; nothing is trained for it. A
bank keeps their signs, as packed bits. Only two sentences in a row count at a time, as in proximity.py: what answers a question
stands close together (passages: Callan 1994). Decision 0170 has the measurements.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEPT_NUMBERS", "DocumentKeys", "QueryKeys", "closeness", "pack_tokens"]

KEPT_NUMBERS = 256
"""Of each token's vector, the first ones, as one bit each."""
_HEAD = struct.Struct("<HHH")  # tokens, numbers a token, sentences
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DocumentKeys:
    """What N texts are found by: unit keys (N, d_key), and the packed signs of each one's tokens (b"" where there are none)."""

    vectors: NDArray[np.floating]
    tokens: Sequence[bytes]

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.tokens):
            raise ValueError(f"{len(self.vectors)} keys, and the tokens of {len(self.tokens)} texts")


@dataclass(frozen=True, slots=True)
class QueryKeys:
    """What B questions look for: unit keys (B, d_key), and each one's token vectors (Q, D), with Q 0 where there are none."""

    vectors: NDArray[np.floating]
    tokens: Sequence[_Floats]

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.tokens):
            raise ValueError(f"{len(self.vectors)} keys, and the tokens of {len(self.tokens)} questions")


def pack_tokens(vectors: NDArray[np.floating | np.bool_], sentence_starts: Sequence[int]) -> bytes:
    """The signs of a text's token vectors (n, D), and where its sentences start, as `closeness` reads them; b"" of no token.

    Their signs alone, true where a number is positive, give the same.
    """
    if not len(vectors):
        return b""
    kept = vectors[:, :KEPT_NUMBERS]
    starts = np.unique([0, *(start for start in sentence_starts if 0 < start < len(kept))]).astype("<u2")
    signs = np.packbits(kept > 0, axis=1)
    return _HEAD.pack(len(kept), kept.shape[1], len(starts)) + starts.tobytes() + signs.tobytes()


def closeness(question: _Floats, packed: Sequence[bytes]) -> list[float]:
    """How close the best two sentences in a row of each text come to a question's tokens (Q, D): the mean cosine, -1 to 1.

    `packed` are what `pack_tokens` gave, none of them empty. Raises ValueError for bytes that it did not give.
    """
    if not packed or not len(question):
        return [0.0] * len(packed)
    texts = [_unpacked(one) for one in packed]
    numbers = min(question.shape[1], KEPT_NUMBERS)
    if any(signs.shape[1] != numbers for signs, _ in texts):
        raise ValueError(f"a text's tokens do not have the {numbers} numbers of the question's")
    asked = question[:, :numbers]
    unit = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9) / np.sqrt(numbers)
    alike = unit.astype(np.float32) @ np.concatenate([signs for signs, _ in texts]).T  # (Q, all tokens)
    scores, at = [], 0
    for signs, starts in texts:
        best = np.maximum.reduceat(alike[:, at : at + len(signs)], starts, axis=1)  # (Q, sentences)
        pairs = np.maximum(best[:, :-1], best[:, 1:]) if len(starts) > 1 else best
        scores.append(float(pairs.mean(axis=0).max()))
        at += len(signs)
    return scores


def _unpacked(packed: bytes) -> tuple[_Floats, NDArray[np.int64]]:
    """Signs (n, numbers) as -1 and 1, and where sentences start."""
    try:
        tokens, numbers, sentences = _HEAD.unpack_from(packed)
        starts = np.frombuffer(packed, "<u2", sentences, _HEAD.size)
        row_bytes = -(-numbers // 8)
        bits = np.frombuffer(packed, np.uint8, tokens * row_bytes, _HEAD.size + starts.nbytes).reshape(
            tokens, row_bytes
        )
    except (struct.error, ValueError):
        raise ValueError(f"{len(packed)} bytes are no packed tokens") from None
    signs = np.unpackbits(bits, axis=1, count=numbers)
    return signs.astype(np.float32) * 2 - 1, starts.astype(np.int64)

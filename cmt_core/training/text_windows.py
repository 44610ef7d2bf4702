"""Plain text as training windows: the memory of a window is asked to give the text back, and to go on with it.

Reconstruction and continuation are the pretraining of ICAE (arXiv 2307.06945) and 500xCompressor; here they are questions like
any other, so that every stage trains on them as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cmt_core.text.windows import split_document
from cmt_core.training.batches import TrainingWindow

__all__ = ["text_windows"]

_REPEAT = "\n\nRepeat the document:"
_CONTINUE = "\n\nContinue the document:"
_TARGET_TOKENS = 96  # of the text that is repeated or goes on: enough to reward detail, short enough to pack


def text_windows(
    texts: Iterable[str], encode: Callable[[str], list[int]], eos_id: int, max_tokens: int
) -> list[TrainingWindow]:
    """Windows of `texts` (max_tokens each), each with its reconstruction and, but for a text's last, its continuation."""
    windows: list[TrainingWindow] = []
    for text in texts:
        parts = [part.reading for part in split_document("", text, max_tokens, lambda piece: len(encode(piece)))]
        ids = [tuple(encode(part)[:max_tokens]) for part in parts]
        for number, own in enumerate(ids):
            asked = [(tuple(encode(_REPEAT)), (*own[:_TARGET_TOKENS], eos_id))]
            if number + 1 < len(ids):
                # windows overlap by a sentence: what goes on is what this window does not hold
                following = tuple(encode(" " + _new_part(parts[number], parts[number + 1])))
                asked.append((tuple(encode(_CONTINUE)), (*following[:_TARGET_TOKENS], eos_id)))
            windows.append(TrainingWindow(parts[number], own, tuple(asked)))
    return windows


def _new_part(before: str, after: str) -> str:
    """`after` without the beginning that it shares with the end of `before`."""
    longest = min(len(before), len(after))
    shared = next((n for n in range(longest, 0, -1) if before.endswith(after[:n])), 0)
    return after[shared:].strip() or after

"""Windows as a checkpoint encodes them, for the bank's re-encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cmt_core.text.windows import Window
from services.bank.reindex import Encode
from services.ingest.ports import Compressor

__all__ = ["encoder"]


def encoder(model: Compressor) -> Encode:
    """Encodes (title, text) of windows as they are cut already; a text beyond the model's window is cut short by it."""

    def encode(texts: Sequence[tuple[str, str]]) -> list[tuple[npt.NDArray[np.floating[Any]], bytes, int]]:
        windows = [Window(number, title, text) for number, (title, text) in enumerate(texts)]
        memories = model.compress(windows)
        keys = model.document_keys(windows)
        return [(key, memory.code, memory.n_tokens) for key, memory in zip(keys, memories, strict=True)]

    return encode

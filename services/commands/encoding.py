"""Windows as a checkpoint encodes them, where no Kafka brings them: the sample bank, the bank's re-encoding."""

from __future__ import annotations

from collections.abc import Sequence

from cmt_core.text.windows import Window
from services.bank.records import Chunk
from services.bank.reindex import Encode
from services.ingest.ports import Compressor

__all__ = ["chunks_of", "encoder"]


def chunks_of(model: Compressor, windows: Sequence[Window]) -> list[Chunk]:
    """The windows as a bank keeps them."""
    keys, memories = model.document_keys(windows), model.compress(windows)
    return [
        Chunk(window.text, key, memory.code, memory.n_tokens, tokens)
        for window, key, tokens, memory in zip(windows, keys.vectors, keys.tokens, memories, strict=True)
    ]


def encoder(model: Compressor) -> Encode:
    """Encodes (title, text) of windows as they are cut already; a text beyond the model's window is cut short by it."""

    def encode(texts: Sequence[tuple[str, str]]) -> list[Chunk]:
        return chunks_of(model, [Window(number, title, text) for number, (title, text) in enumerate(texts)])

    return encode

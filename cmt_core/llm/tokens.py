"""The LLM's tokens: ids of texts, of what follows a context, of its own chat template, and of what ends an answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cmt_core.llm.control_tokens import SafeTokenizer
from cmt_core.llm.decoding import Decoder
from cmt_core.text.prompt import answer_text, bare_prompt, question_text

__all__ = ["HasTokenizer", "Tokens", "bucket"]

_BUCKET_TOKENS = 32


class HasTokenizer(Protocol):
    """An LLM, or what is known of one that computes elsewhere: its tokenizer of transformers, and where ids are wanted."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...


class Tokens:
    """One LLM's tokenizer, as this package uses it: control tokens come from its chat template alone, never from a text."""

    def __init__(self, backbone: HasTokenizer) -> None:
        """Raises UnsupportedModelError for a tokenizer that can't be used so."""
        self._tokenizer, self._device = backbone.tokenizer, backbone.device
        self._safe, self._decoder = SafeTokenizer(backbone.tokenizer), Decoder(backbone.tokenizer)

    def ids(self, text: str) -> list[int]:
        """A text's tokens, or those of what `chat` gives; names of control tokens in a text are the tokens of their letters."""
        return self._safe.ids(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **options: Any) -> str:
        """The LLM's chat template around messages of `role` and `content`, for `ids`; see SafeTokenizer.chat."""
        return self._safe.chat(messages, add_generation_prompt=add_generation_prompt, **options)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def is_control(self, id: int) -> bool:
        """Whether a token is one that no text holds."""
        return self._safe.is_control(id)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones and without halves of characters."""
        return self._decoder.text(ids)

    def prompt(self, question: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """What follows a context: earlier questions with their answers, and the question."""
        turns = "".join(question_text(asked) + answer_text(answered) for asked, answered in earlier)
        return self.ids(turns + question_text(question))

    def closed_prompt(
        self, question: str, earlier: Sequence[tuple[str, str]] = (), instructions: str = ""
    ) -> list[int]:
        """The LLM's own chat template around a question; `instructions` replace ours."""
        system, user = bare_prompt(question)
        turns = [
            {"role": role, "content": content}
            for pair in earlier
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        head = {"role": "system", "content": instructions} if instructions else system
        return self.ids(self.chat([head, *turns, user]))

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) of rows of ids, T a whole bucket, on the LLM's device."""
        T = bucket(max(len(row) for row in rows))
        ids = torch.full((len(rows), T), self.eos_id)
        mask = torch.zeros(len(rows), T, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        return ids.to(self._device), mask.to(self._device)

    @property
    def eos_id(self) -> int:
        """The end of text."""
        return int(self._tokenizer.eos_token_id)

    @functools.cached_property
    def stop_ids(self) -> set[int]:
        """Answers are one line: the end of text, and every newline token."""
        return {self.eos_id, *(ids[0] for text in ("\n", "\n\n") if len(ids := self.ids(text)) == 1)}


def bucket(length: int) -> int:
    """The next whole bucket: every new shape costs the CPU's kernels a re-tuning."""
    return -(-length // _BUCKET_TOKENS) * _BUCKET_TOKENS

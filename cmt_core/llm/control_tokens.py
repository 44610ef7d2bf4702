"""A tokenizer whose control tokens no text can write: `<|im_end|>`, `[SEP]`, `<think>` in a text are the tokens of their letters.

A tokenizer looks for the names of its control tokens everywhere in what it is given, so that a document or a question that holds
such a name could end its own turn. Here every control token gets a secret name, drawn anew for each process; the tokens, their
ids and all that the tokenizer does otherwise stay. Only a chat template's own control tokens are written in their secret names.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from cmt_core.errors import UnsupportedModelError
from cmt_core.text.normalisation import normalised

__all__ = ["SafeTokenizer"]

_MARKUP = re.compile(r"[<>\[\]{}|｜]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class SafeTokenizer:
    """Encodes normalised texts, and chats by their template, with the tokenizer of transformers that is given.

    Control tokens are the special ones and those that are written as markup (`<tool_call>`, `[INST]`). Other added tokens,
    such as runs of spaces, are text and stay so.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None) -> None:
        """`max_tokens` cuts what is encoded. Raises UnsupportedModelError unless the tokenizer is of the `tokenizers` library."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} can't be used: a tokenizer needs a tokenizer.json of the `tokenizers` library"
            )
        self._tokenizer = tokenizer
        self._nonce = secrets.token_hex(8)
        added = backend.get_added_tokens_decoder()
        names = {token.content: id for id, token in added.items() if _is_control(token.content, token.special)}
        self._control_ids = frozenset(names.values())
        self._secret = {name: f"<{self._nonce}:{id}>" for name, id in names.items()}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first) or "(?!)")  # (?!) never matches
        self._backend = _renamed(backend, self._secret)
        if max_tokens:
            self._backend.enable_truncation(max_tokens)
        if any(self._backend.token_to_id(self._secret[name]) != id for name, id in names.items()):
            raise UnsupportedModelError("the tokenizer's control tokens can't be told apart from text: their ids move")

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, or of what `chat` gives, without tokens around it."""
        ids: list[int] = self._backend.encode(normalised(text), add_special_tokens=False).ids
        return ids

    def is_control(self, id: int) -> bool:
        """Whether a token is one that no text holds."""
        return id in self._control_ids

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts with the tokenizer's own around each, such as BERT's [CLS] and [SEP]."""
        return [one.ids for one in self._backend.encode_batch([normalised(text) for text in texts])]

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **options: Any) -> str:
        """The chat template around messages of `role` and `content`, for `ids` and for nobody else.

        Its control tokens have their secret names, so that it can be cut, joined with other texts and encoded in any place
        without a content being taken for a control token. Contents stand in it as they are, without white space around
        them: a template never looks into them. `options` go to the template.
        """
        contents = [message["content"].strip() for message in messages]
        marks = [f"x{self._nonce}n{number}x" if content else "" for number, content in enumerate(contents)]
        marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        rendered: str = self._tokenizer.apply_chat_template(
            marked, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
        named = self._control.sub(lambda found: self._secret[found[0]], rendered)
        return re.sub(rf"x{self._nonce}n(\d+)x", lambda mark: contents[int(mark[1])], named)


def _is_control(name: str, special: bool) -> bool:
    is_text = name.isspace() or _BYTE.fullmatch(name)
    return not is_text and (special or bool(_MARKUP.search(name)))


def _renamed(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """A copy of a tokenizer in which tokens have other names, in the vocabulary too, and no merge leads to one of them."""
    data = json.loads(backend.to_str())
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in vocabulary.items()}
    else:  # Unigram's pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint((*merge, "".join(merge)))]
    copy = Tokenizer.from_str(json.dumps(data))
    copy.no_truncation()
    copy.no_padding()
    return copy

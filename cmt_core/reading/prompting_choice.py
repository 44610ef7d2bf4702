"""Which way of asking a checkpoint was made for."""

from __future__ import annotations

from typing import Any

from cmt_core.config import MemoryConfig
from cmt_core.llm.tokens import Tokens
from cmt_core.reading.chat_prompting import ChatPrompting
from cmt_core.reading.prefix_prompting import PrefixPrompting
from cmt_core.reading.prompting import Prompting

__all__ = ["prompting_of"]


def prompting_of(config: MemoryConfig, generation: Any, tokens: Tokens) -> Prompting:
    """The checkpoint's way of asking an LLM whose generation configuration is given.

    Raises UnsupportedModelError for `chat` without a usable chat template.
    """
    if config.reading == "prefix":
        return PrefixPrompting(tokens)
    return ChatPrompting(tokens, generation, config.instruction)

"""Reads a conversation: the question, what it is looked up by, and the turns before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.query.errors import ApiError

__all__ = ["Conversation", "Message", "TextPart", "conversation_of"]

_KEPT_TURNS = 3  # questions with their answers that stay in the prompt
_LOOKUP_CHARS = 600  # of earlier turns, in front of a question that is looked up with them


class TextPart(BaseModel):
    """One part of a message's content; only text can be read."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The last user turn, the texts it is looked up by, earlier questions with their answers, and the system's words.

    A follow-up like "And when did it open?" finds nothing by itself, a new topic finds the wrong thing behind the old one:
    so both the question and the question behind its last turn are looked up, and a document counts by its better score.
    """

    question: str
    lookups: tuple[str, ...]
    earlier: tuple[tuple[str, str], ...]
    instructions: str


def conversation_of(messages: Sequence[Message], longest_chars: int, param: str = "messages") -> Conversation:
    """Raises ApiError 400 when there is no question, or one that can't be read or is too long."""
    at = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    if at is None:
        raise ApiError(400, "no message has the role 'user'", param=param)
    question = _text(messages[at], param)
    if not question:
        what = "the prompt" if param == "prompt" else "the last user message"
        raise ApiError(400, f"{what} is empty", param=param)
    if len(question) > longest_chars:
        detail = f"the question has {len(question)} characters, {longest_chars} are allowed"
        raise ApiError(400, detail, param=param, code="context_length_exceeded")
    earlier = _turns(messages[:at], param, longest_chars)
    lookups = [question]
    if earlier:
        lookups.append(f"{' '.join(earlier[-1])[-_LOOKUP_CHARS:]} {question}")
    instructions = [_text(message, param) for message in messages if message.role in ("system", "developer")]
    return Conversation(question, tuple(lookups), earlier, "\n".join(text for text in instructions if text))


def _turns(messages: Sequence[Message], param: str, longest_chars: int) -> tuple[tuple[str, str], ...]:
    """The latest questions that were answered, each cut to what a question may have."""
    turns: list[tuple[str, str]] = []
    asked = ""
    for message in messages:
        text = _text(message, param)[:longest_chars]
        if message.role == "user":
            asked = text
        elif message.role == "assistant" and asked and text:
            turns.append((asked, text))
            asked = ""
    return tuple(turns[-_KEPT_TURNS:])


def _text(message: Message, param: str) -> str:
    parts = [] if message.content is None else message.content
    text = parts if isinstance(parts, str) else "\n".join(_part(part, param) for part in parts)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "a message is not valid Unicode", param=param) from None
    return text.strip()


def _part(part: TextPart, param: str) -> str:
    if part.type != "text" or part.text is None:
        detail = f"only text parts can be read, not {part.type!a}"
        raise ApiError(400, detail, param=param, code="unsupported_content")
    return part.text

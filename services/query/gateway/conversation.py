"""Reads a conversation: the question, what it is looked up by, and the turns before it.

Only the last user message has to be readable. What is not read (images, refusals, tool turns, roles of other makers, ...) is
passed over, however much of it there is: a client sends its whole history with every question, and can't take it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cmt_core.text.normalisation import normalised
from services.query.gateway.errors import ApiError

__all__ = ["Conversation", "Message", "conversation_of", "lookups_of", "require_question_chars"]

_KEPT_TURNS = 3  # questions with their answers that stay in the prompt
_TURN_CHARS = 4000  # of each side of such a turn
_LOOKUP_CHARS = 600  # of earlier turns, in front of a question that is looked up with them
_KEY_CHARS = 1000  # what a retrieval key is made of: 256 tokens, about so many characters
_TEXT_PARTS = ("text", "input_text", "output_text")


class Message(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: str = Field(description="system, developer, user, assistant; messages of other roles are not read")
    content: Any = Field(None, description="a text, or a list of parts; of the last user message only text can be read")


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
    """Raises ApiError 400 when there is no question, or one that can't be read or has over `longest_chars` characters."""
    at = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    if at is None:
        raise ApiError(400, "no message has the role 'user'", param=param)
    question = _question(messages[at], param)
    if not normalised(question).strip():
        what = "the prompt" if param == "prompt" else "the last user message"
        raise ApiError(400, f"{what} is empty", param=param)
    require_question_chars(question, longest_chars, param)
    earlier = _turns(messages[:at])
    instructions = [_readable(message) for message in messages if message.role in ("system", "developer")]
    return Conversation(
        question, lookups_of(question, earlier), earlier, "\n".join(text for text in instructions if text)
    )


def require_question_chars(question: str, longest_chars: int, param: str) -> None:
    """Raises ApiError 400 `question_too_long` for a question of over `longest_chars` characters."""
    if len(question) > longest_chars:
        detail = f"the question has {len(question)} characters, {longest_chars} are allowed (serve.max_question_chars)"
        raise ApiError(400, detail, param=param, code="question_too_long")


def lookups_of(question: str, earlier: Sequence[tuple[str, str]] = ()) -> tuple[str, ...]:
    """The texts that a question is looked up by.

    A key is made of 256 tokens at most: of a longer question, whose task may stand before or behind what it quotes, the
    beginning and the end are looked up.
    """
    if len(question) > _KEY_CHARS:
        return question[:_KEY_CHARS], question[-_KEY_CHARS:]
    if earlier:
        return question, f"{' '.join(earlier[-1])[-_LOOKUP_CHARS:]} {question}"
    return (question,)


def _turns(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """The latest questions that were answered; read from the end, so that a long history costs nothing."""
    turns: list[tuple[str, str]] = []
    answer = ""
    for message in reversed(messages):
        if len(turns) == _KEPT_TURNS:
            break
        if message.role == "assistant":
            answer = answer or _readable(message)[:_TURN_CHARS].strip()
        elif message.role == "user":
            asked = _readable(message)[:_TURN_CHARS].strip()
            turns += [(asked, answer)] if asked and answer else []
            answer = ""
    return tuple(reversed(turns))


def _question(message: Message, param: str) -> str:
    """The text of the message that is answered. Raises ApiError 400 when there is more to it than text."""
    for part in _parts(message.content):
        if _part_text(part) is None:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            detail = f"only text parts can be read in the last user message, not {kind!a}"
            raise ApiError(400, detail, param=param, code="unsupported_content")
    text = _text(message)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the last user message is not valid Unicode", param=param) from None
    return text


def _readable(message: Message) -> str:
    """What can be read of a message that need not be read: its text, halves of characters replaced."""
    return _text(message).encode(errors="replace").decode()


def _text(message: Message) -> str:
    return "\n".join(text for part in _parts(message.content) if (text := _part_text(part))).strip()


def _parts(content: Any) -> Sequence[Any]:
    return content if isinstance(content, list) else [] if content is None else [content]


def _part_text(part: Any) -> str | None:
    """The text of a content part, None where it has none."""
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    return None

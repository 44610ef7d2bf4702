"""Makes OpenAI's objects of a reply: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from services.query.engine.messages import Delta, Event, Failure, Reply
from services.query.gateway.errors import error_body, refusal
from services.query.gateway.responses import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    CmtInfo,
    PlaceInfo,
    SourceInfo,
    TextChoice,
    TextCompletion,
    Usage,
)

__all__ = ["Kind", "chat_completion", "sse_chunks", "text_completion"]

Kind = Literal["chat", "text"]
_DONE = b"data: [DONE]\n\n"


def chat_completion(model: str, reply: Reply) -> ChatCompletion:
    """The `chat.completion` object."""
    choice = ChatChoice(message=ChatMessage(content=reply.answer), finish_reason=reply.finish_reason)
    return ChatCompletion(**_common("chatcmpl", model, reply), choices=[choice])


def text_completion(model: str, reply: Reply) -> TextCompletion:
    """The `text_completion` object."""
    choice = TextChoice(text=reply.answer, finish_reason=reply.finish_reason)
    return TextCompletion(**_common("cmpl", model, reply), choices=[choice])


async def sse_chunks(kind: Kind, model: str, events: AsyncIterator[Event], include_usage: bool) -> AsyncIterator[bytes]:
    """The server-sent events of a stream: text as it comes, then a chunk with finish_reason, `sources` and `cmt`, the
    usage when it was asked for, and [DONE]. A failure on the way is a last event with OpenAI's error envelope.
    """
    base = {
        "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    if kind == "chat":
        yield _data(base | {"choices": [_choice(kind, "", None) | {"delta": {"role": "assistant", "content": ""}}]})
    async for event in events:
        match event:
            case Delta():
                yield _data(base | {"choices": [_choice(kind, event.text, None)]})
            case Reply():
                extra = {"sources": _plain(_sources(event)), "cmt": _info(event).model_dump(mode="json")}
                last = {"choices": [_choice(kind, "", event.finish_reason)], "system_fingerprint": event.model_id}
                yield _data(base | last | extra)
                if include_usage:
                    yield _data(base | {"choices": [], "usage": _usage(event).model_dump()})
                yield _DONE
            case Failure():
                yield _data(error_body(refusal(event)))


def _choice(kind: Kind, text: str, finish_reason: str | None) -> dict[str, Any]:
    content = {"delta": {"content": text} if text else {}} if kind == "chat" else {"text": text}
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _common(prefix: str, model: str, reply: Reply) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": reply.model_id,
        "usage": _usage(reply),
        "sources": _sources(reply),
        "cmt": _info(reply),
    }


def _usage(reply: Reply) -> Usage:
    return Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
    )


def _info(reply: Reply) -> CmtInfo:
    return CmtInfo(
        mode=reply.mode,
        known=reply.known,
        read=reply.read,
        grounded=reply.grounded,
        weighted_by=reply.weighted_by,
        bank_version=reply.bank_version,
        model_id=reply.model_id,
        retrieve_ms=round(reply.retrieve_ms, 3),
        first_token_ms=round(reply.first_token_ms, 3),
        generate_ms=round(reply.generate_ms, 3),
        notes=list(reply.notes),
    )


def _sources(reply: Reply) -> list[SourceInfo]:
    names = SourceInfo.model_fields.keys() - {"place"}
    return [
        SourceInfo(
            **{name: getattr(source, name) for name in names},
            place=PlaceInfo(start=source.place[0], end=source.place[1]) if source.place else None,
        )
        for source in reply.sources
    ]


def _plain(sources: list[SourceInfo]) -> list[dict[str, Any]]:
    return [source.model_dump(mode="json") for source in sources]

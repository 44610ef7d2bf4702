"""The HTTP bodies: OpenAI's chat completions with one extension field, `cmt`, and the errors in OpenAI's shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from services.errors import ServiceError
from services.query.engine import MODELS, Ask, Reply

__all__ = [
    "LONGEST_ANSWER_TOKENS",
    "ApiError",
    "ChatRequest",
    "CmtOptions",
    "SearchRequest",
    "completion",
    "error_body",
]

LONGEST_ANSWER_TOKENS = 1024
LONGEST_QUESTION_CHARS = 4000


class ApiError(ServiceError):
    """A refusal with its HTTP status and OpenAI-style fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type_, param, code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"type": self.type, "param": self.param, "code": self.code, "headers": self.headers}
        return ApiError, (self.status, str(self)), state


def error_body(error: ApiError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _name(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


Namespace = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_name)]
TopK = Annotated[int, Field(ge=1, le=64)]


class CmtOptions(_Body):
    """The extension field: how many memories to read, as the bank was when, and from which namespace."""

    top_k: TopK | None = None
    as_of: AwareDatetime | None = None
    namespace: Namespace = "default"


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


class ChatRequest(_Body):
    """POST /v1/chat/completions; a field that OpenAI does not know is an error, so that a typo is not ignored."""

    model: str
    messages: list[Message] = Field(min_length=1)
    cmt: CmtOptions = CmtOptions()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    # accepted, and refused by `refuse_unsupported` when they ask for something that is not done here
    n: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None
    # accepted without effect: greedy generation is the same for every seed, and nothing is stored or billed
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    prediction: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def ask(self, default_max_new_tokens: int) -> Ask:
        """The question to the engine; raises ApiError (400, 404) when it can't be served as asked."""
        model = next((known for known in MODELS if known == self.model), None)
        if model is None:
            known = ", ".join(MODELS)
            raise ApiError(404, f"model {self.model!r} does not exist: {known}", param="model", code="model_not_found")
        self.refuse_unsupported()
        wanted = self.max_completion_tokens or self.max_tokens or default_max_new_tokens
        return Ask(
            question=self.question(),
            model=model,
            top_k=self.cmt.top_k,
            namespace=self.cmt.namespace,
            as_of=self.cmt.as_of,
            max_new_tokens=min(wanted, LONGEST_ANSWER_TOKENS),
        )

    def question(self) -> str:
        """The text of the last user message."""
        last = next((message for message in reversed(self.messages) if message.role == "user"), None)
        if last is None:
            raise ApiError(400, "no message has the role 'user'", param="messages")
        text = _text(last).strip()
        if not text:
            raise ApiError(400, "the last user message is empty", param="messages")
        if len(text) > LONGEST_QUESTION_CHARS:
            detail = f"the question has {len(text)} characters, {LONGEST_QUESTION_CHARS} are allowed"
            raise ApiError(400, detail, param="messages", code="context_length_exceeded")
        return text

    def refuse_unsupported(self) -> None:
        """Raises ApiError 400 for a field that asks for what this service does not do."""
        asked = {
            "stream": (self.stream, "streaming is not supported yet: send stream=false"),
            "n": (self.n not in (None, 1), "one answer is generated per request: n must be 1"),
            "tools": (self.tools, "tools are not supported"),
            "functions": (self.functions, "functions are not supported"),
            "response_format": (
                (self.response_format or {}).get("type", "text") != "text",
                "only response_format text is supported",
            ),
            "logprobs": (self.logprobs or self.top_logprobs, "log probabilities are not supported"),
            "logit_bias": (self.logit_bias, "logit_bias is not supported"),
            "presence_penalty": (self.presence_penalty, "presence_penalty is not supported: it must be 0"),
            "frequency_penalty": (self.frequency_penalty, "frequency_penalty is not supported: it must be 0"),
            "audio": (self.audio, "audio is not supported"),
            "modalities": (set(self.modalities or ()) - {"text"}, "only the modality text is supported"),
            "web_search_options": (self.web_search_options is not None, "web search is not supported"),
        }
        for param, (wanted, message) in asked.items():
            if wanted:
                raise ApiError(400, message, param=param, code="unsupported_parameter")

    def notes(self) -> tuple[str, ...]:
        """What was accepted and has no effect, in words."""
        if self.temperature or self.top_p not in (None, 1):
            return ("temperature and top_p have no effect: answers are generated greedily",)
        return ()

    def cut(self, text: str) -> tuple[str, bool]:
        """`text` up to the first stop string, and whether one was met."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        ends = [text.find(stop) for stop in stops if stop and stop in text]
        return (text[: min(ends)], True) if ends else (text, False)


class SearchRequest(_Body):
    """POST /v1/search."""

    query: str = Field(min_length=1, max_length=LONGEST_QUESTION_CHARS)
    top_k: TopK = 8
    as_of: AwareDatetime | None = None
    namespace: Namespace = "default"


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for part in message.content:
        if part.type != "text" or part.text is None:
            detail = f"only text parts can be read, not {part.type!r}"
            raise ApiError(400, detail, param="messages", code="unsupported_content")
    return "\n".join(part.text or "" for part in message.content)


def completion(request: ChatRequest, reply: Reply) -> dict[str, Any]:
    """The `chat.completion` object of a reply, with `sources` and `cmt` beside OpenAI's own fields."""
    text, stopped = request.cut(reply.answer)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": reply.model_id,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop" if stopped else reply.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
        "sources": _sources(reply),
        "cmt": {
            "bank_version": reply.bank_version,
            "model_id": reply.model_id,
            "retrieve_ms": round(reply.retrieve_ms, 3),
            "generate_ms": round(reply.generate_ms, 3),
            "notes": [*request.notes(), *reply.notes],
        },
    }


def _sources(reply: Reply) -> Sequence[dict[str, Any]]:
    return [
        {
            "doc_id": source.doc_id,
            "chunk_no": source.chunk_no,
            "title": source.title,
            "url": source.url,
            "source": source.source,
            "published_at": source.published_at,
            "score": source.score,
            "weight": source.weight,
        }
        for source in reply.sources
    ]

"""The HTTP bodies that are accepted: OpenAI's chat and text completions with one extension field, `cmt`, and searches."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema

from cmt_core.generation.query import Mode, Sampling
from services.bank.document_filter import DocumentFilter
from services.bank.labels import label
from services.query.engine.messages import MODELS, Ask
from services.query.gateway.conversation import (
    Conversation,
    Message,
    conversation_of,
    lookups_of,
    require_question_chars,
)
from services.query.gateway.errors import ApiError
from services.settings import LONGEST_ANSWER_TOKENS

__all__ = [
    "ChatRequest",
    "CmtOptions",
    "CompletionRequest",
    "Limits",
    "Namespace",
    "SearchRequest",
    "StreamOptions",
]

_MOST_STOPS = 16  # OpenAI allows 4; editors send more


def _name(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _moment(value: datetime) -> datetime:
    """In UTC; moments of the calendar's outermost years have no name in some time zones."""
    if not 2 <= value.year <= 9998:
        raise ValueError("must be a moment of the years 2 to 9998")
    return value.astimezone(UTC)


_MOST_NAMES, _MOST_CONTENTS, _LONGEST_CONTENT = 16, 64, 512
_CONTENT: dict[str, Any] = {
    "anyOf": [{"type": "string", "maxLength": _LONGEST_CONTENT}, {"type": "boolean"}, {"type": "number"}]
}


def _metadata(wanted: dict[str, Any]) -> dict[str, Any]:
    """Checked here and not by a union of types, whose errors name every branch."""
    if len(wanted) > _MOST_NAMES:
        raise ValueError(f"has {len(wanted)} names, {_MOST_NAMES} are allowed")
    for name, content in wanted.items():
        contents = content if isinstance(content, list) else [content]
        if any("\ud800" <= char <= "\udfff" for text in (name, *contents) if isinstance(text, str) for char in text):
            raise ValueError(f"{name!a}: must be valid Unicode")
        if not (name and 0 < len(contents) <= _MOST_CONTENTS and all(_comparable(one) for one in contents)):
            raise ValueError(
                f"{name!a}: give a text of at most {_LONGEST_CONTENT} characters, a number, true or false, "
                f"or a list of 1 to {_MOST_CONTENTS} of these"
            )
    return wanted


def _comparable(content: Any) -> bool:
    if isinstance(content, str):
        return len(content) <= _LONGEST_CONTENT
    return isinstance(content, int) or (isinstance(content, float) and math.isfinite(content))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


Namespace = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_name)]
Values = Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64)]
Metadata = Annotated[
    dict[str, Any],
    AfterValidator(_metadata),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": _MOST_NAMES,
            "propertyNames": {"minLength": 1},
            "additionalProperties": {
                "anyOf": [
                    *_CONTENT["anyOf"],
                    {"type": "array", "items": _CONTENT, "minItems": 1, "maxItems": _MOST_CONTENTS},
                ]
            },
        }
    ),
]
TopK = Annotated[int, Field(ge=1, le=64)]
Moment = Annotated[AwareDatetime, AfterValidator(_moment)]


class Limits(BaseModel):
    """What the service allows and what it takes when a request does not say."""

    model_config = ConfigDict(frozen=True)
    max_new_tokens: int | None = None
    deadline_s: float = 120.0
    max_question_chars: int = 100_000
    citations: bool = False


class Filters(_Body):
    """Only documents of these sources, ids, times or metadata are read; every condition that is given must hold."""

    sources: Values | None = None
    doc_ids: Values | None = None
    published_after: Moment | None = None
    published_before: Moment | None = None
    metadata: Metadata | None = Field(
        None, description="by (dotted) name the content of a document's metadata, or a list of which one will do"
    )

    def wanted(self) -> DocumentFilter | None:
        """The filter, None when nothing was asked for."""
        asked = DocumentFilter(
            tuple(self.sources or ()),
            tuple(self.doc_ids or ()),
            self.published_after,
            self.published_before,
            tuple(
                tuple(label(name, one) for one in (content if isinstance(content, list) else [content]))
                for name, content in (self.metadata or {}).items()
            ),
        )
        return None if asked == DocumentFilter() else asked


class CmtOptions(_Body):
    """The extension field: what is read, as the bank was when, and how much it counts."""

    top_k: TopK | None = Field(None, description="memories to read; default the checkpoint's own")
    as_of: Moment | None = Field(None, description="answer from the bank as it was at this moment (with time zone)")
    namespace: Namespace | None = Field(None, description="default `default`")
    filters: Filters | None = None
    mode: Mode | None = Field(None, description="what the model reads; default as the model's name says")
    memory_weight: float | None = Field(
        None, ge=0, le=2, description="next-token scores: w with what is read + (1 - w) without it; default 1"
    )
    min_score: float | None = Field(None, ge=-1, le=1, description="least relevance; below it the answer is unknown")
    deadline_s: float | None = Field(None, gt=0, description="give up after this many seconds")
    citations: bool | None = Field(
        None,
        description="end what stands in sources with their numbers in `sources`, as in [1]; default serve.citations",
    )


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="allow", frozen=True)
    include_usage: bool | None = None


class _Generation(_Body):
    """What chat and text completions have in common; an unknown field is an error, so that a typo is not ignored."""

    model: str
    cmt: CmtOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    # accepted, and refused by `refuse_unsupported` when they ask for something that is not done here
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # accepted without effect: nothing is stored or billed
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def mode(self) -> Mode:
        """What the model reads. Raises ApiError 404 for a model that does not exist."""
        known = {str(name): mode for name, mode in MODELS.items()}.get(self.model)
        if known is None:
            names = ", ".join(MODELS)
            raise ApiError(404, f"model {self.model!a} does not exist: {names}", param="model", code="model_not_found")
        return (self.cmt and self.cmt.mode) or known

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _ask(self, conversation: Conversation, wanted_tokens: int | None, limits: Limits) -> Ask:
        mode = self.mode
        self.refuse_unsupported()
        cmt = self.cmt or CmtOptions()
        longest = wanted_tokens or limits.max_new_tokens
        return Ask(
            question=conversation.question,
            mode=mode,
            lookups=conversation.lookups,
            top_k=cmt.top_k,
            namespace=cmt.namespace or "default",
            as_of=cmt.as_of,
            wanted=cmt.filters.wanted() if cmt.filters else None,
            min_score=cmt.min_score,
            memory_weight=1.0 if cmt.memory_weight is None else cmt.memory_weight,
            earlier=conversation.earlier,
            instructions=conversation.instructions,
            sampling=self._sampling(),
            stop=self._stops(),
            max_new_tokens=min(longest, LONGEST_ANSWER_TOKENS) if longest else None,
            deadline_s=min(cmt.deadline_s or limits.deadline_s, limits.deadline_s),
            citations=limits.citations if cmt.citations is None else cmt.citations,
        )

    def _sampling(self) -> Sampling:
        """Greedy unless a temperature is asked for: answers are read off memories, not made up."""
        return Sampling(self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, self.seed)

    def _stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS:
            raise ApiError(400, f"stop: {len(stops)} strings, {_MOST_STOPS} are allowed", param="stop")
        return tuple(stop for stop in stops if stop)

    def unsupported(self) -> dict[str, tuple[object, str]]:
        """Parameters with whether they ask for what is not done here, and how that is said."""
        return {
            "n": (self.n not in (None, 1), "one answer is generated per request: n must be 1"),
            "stream_options": (self.stream_options and not self.stream, "stream_options needs stream=true"),
            "logit_bias": (self.logit_bias, "logit_bias is not supported"),
            "presence_penalty": (self.presence_penalty, "presence_penalty is not supported: it must be 0"),
            "frequency_penalty": (self.frequency_penalty, "frequency_penalty is not supported: it must be 0"),
        }

    def refuse_unsupported(self) -> None:
        """Raises ApiError 400 for a field that asks for what this service does not do."""
        for param, (wanted, message) in self.unsupported().items():
            if wanted:
                raise ApiError(400, message, param=param, code="unsupported_parameter")


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def ask(self, limits: Limits) -> Ask:
        """The question to the engine; raises ApiError (400, 404) when it can't be served as asked."""
        mode = self.mode  # a wrong model is told before a wrong message
        del mode
        conversation = conversation_of(self.messages, limits.max_question_chars)
        return self._ask(conversation, self.max_completion_tokens or self.max_tokens, limits)

    def unsupported(self) -> dict[str, tuple[object, str]]:
        """See _Generation."""
        wanted = (self.response_format or {}).get("type", "text") != "text"
        return super().unsupported() | {
            "tools": (self.tools, "tools are not supported"),
            "functions": (self.functions, "functions are not supported"),
            "response_format": (wanted, "only response_format text is supported"),
            "logprobs": (self.logprobs or self.top_logprobs, "log probabilities are not supported"),
            "audio": (self.audio, "audio is not supported"),
            "modalities": (set(self.modalities or ()) - {"text"}, "only the modality text is supported"),
            "web_search_options": (self.web_search_options is not None, "web search is not supported"),
        }


class CompletionRequest(_Generation):
    """POST /v1/completions; the prompt is the question."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None

    def ask(self, limits: Limits) -> Ask:
        """The question to the engine; raises ApiError (400, 404) when it can't be served as asked."""
        mode = self.mode
        del mode
        text = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        message = Message(role="user", content=text)
        return self._ask(conversation_of([message], limits.max_question_chars, "prompt"), self.max_tokens, limits)

    def unsupported(self) -> dict[str, tuple[object, str]]:
        """See _Generation."""
        return super().unsupported() | {
            "echo": (self.echo, "echo is not supported"),
            "suffix": (self.suffix, "suffix is not supported"),
            "best_of": (self.best_of not in (None, 1), "one answer is generated per request: best_of must be 1"),
            "logprobs": (self.logprobs is not None, "log probabilities are not supported"),
        }


class SearchRequest(_Body):
    """POST /v1/search."""

    query: Annotated[str, Field(min_length=1), AfterValidator(_name)]
    top_k: TopK | None = Field(None, description="default 8")
    as_of: Moment | None = None
    namespace: Namespace | None = Field(None, description="default `default`")
    filters: Filters | None = None

    def ask(self, limits: Limits) -> Ask:
        """The search as a question; raises ApiError 400 when it is too long."""
        require_question_chars(self.query, limits.max_question_chars, "query")
        return Ask(
            self.query,
            lookups=lookups_of(self.query),
            top_k=self.top_k or 8,
            namespace=self.namespace or "default",
            as_of=self.as_of,
            wanted=self.filters.wanted() if self.filters else None,
        )

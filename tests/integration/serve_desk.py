"""What the tests of the served application share: a desk that publishes into the real bank, small models, OpenAI's client."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import openai
import ray

from services.bank.records import Chunk, DocumentDelete, DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.errors import ServiceError
from services.query.ray_serve.app import stop
from services.query.ray_serve.proxy import proxy_environment
from services.settings import Settings, load_settings
from services.testing.lexical import LexicalBatch, LexicalModel
from tests.integration.conftest import find_free_port

NOW = datetime.now(UTC)
MODEL = LexicalModel()


class Desk:
    """Writes articles into the real bank."""

    def __init__(self, uri: str, model: LexicalModel = MODEL) -> None:
        layout = BankLayout(model.model_id, model.d_key, model.memory_bytes)
        self.uri = uri
        self._writer = BankWriter(uri, layout)
        self._offset = 0

    def publish(self, doc_id: str, title: str, text: str) -> float:
        """Returns the time (time.monotonic) at which the commit was done."""
        chunk = Chunk(text, MODEL.query_keys([text]).vectors[0], MODEL.pack(text), len(text.split()))
        write = DocumentWrite(
            namespace="default",
            doc_id=doc_id,
            title=title,
            url=f"https://news.example/{doc_id}",
            source="The Example",
            published_at=NOW,
            expires_at=None,
            position=self._next(),
            chunks=(chunk,),
        )
        self._writer.commit([write])
        return time.monotonic()

    def delete(self, doc_id: str) -> float:
        """Returns the time (time.monotonic) at which the commit was done."""
        self._writer.commit([DocumentDelete("default", doc_id, self._next())])
        return time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def _next(self) -> Position:
        self._offset += 1
        return Position(0, 0, self._offset, datetime.now(UTC))


class SlowBatch(LexicalBatch):
    """Takes `pause_s` for every word."""

    pause_s = 0.05

    def step(self) -> dict[int, list[int | None]]:
        time.sleep(self.pause_s)
        return super().step()


class SlowModel(LexicalModel):
    """The lexical model, slow enough to be caught in the middle of an answer."""

    def answer_batch(self) -> LexicalBatch:
        return SlowBatch(self)


def slow_model(settings: Settings) -> LexicalModel:
    return SlowModel(model_id=model_id_of(settings))


def quick_model(settings: Settings) -> LexicalModel:
    return LexicalModel(model_id=model_id_of(settings))


def model_id_of(settings: Settings) -> str:
    """`lexical-1`, or the name of the checkpoint where one is set. Raises ServiceError for the checkpoint `missing`."""
    if settings.model.checkpoint == "missing":
        raise ServiceError("checkpoint `missing` was not found")
    return MODEL.model_id if settings.model.checkpoint == "auto" else settings.model.checkpoint


def settings_for(uri: str, **flags: Any) -> Settings:
    return load_settings(bank__uri=uri, serve__port=find_free_port(), **flags)


@contextmanager
def ray_for(*modules: str) -> Iterator[None]:
    """A local Ray in whose workers the functions of these modules are known by value: the tests can't be imported there."""
    proxy_environment(os.environ)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, namespace="cmt")
    for module in (__name__, *modules):
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        yield
    finally:
        stop()
        ray.shutdown()


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60.0)


def ask(url: str, question: str, model: str = "cmt", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client(url).chat.completions.create(model=model, messages=messages, **options)


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

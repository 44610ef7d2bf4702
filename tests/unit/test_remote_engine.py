"""What the gateway makes of a question that Serve could not hand to a replica, with Serve's own response object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import NodeDiedError
from ray.serve._private.common import RequestMetadata
from ray.serve.handle import DeploymentResponseGenerator

from services.bank.records import BankStats
from services.query.engine.messages import Ask, Overview
from services.query.gateway.errors import ApiError
from services.query.ray_serve.remote import RemoteEngine


class Handle:
    """A deployment's handle whose router has failed with `error`, or never finds a replica."""

    def __init__(self, error: Exception | None = None) -> None:
        self.assignment: Future[Any] = Future()
        if error is not None:
            self.assignment.set_exception(error)
        self.overview = self.ask = self

    def options(self, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, *args: object) -> Any:
        if isinstance(args[0], int):  # the gateway's look at the bank before the first question
            return self._overview()
        metadata = RequestMetadata(request_id="1", internal_request_id="1", is_streaming=True)
        return DeploymentResponseGenerator(self.assignment, metadata)

    @staticmethod
    async def _overview() -> Overview:
        return Overview(BankStats(), (), "model")


def question() -> Ask:
    return Ask("Who?")


async def first(events: AsyncIterator[Any]) -> Any:
    return await anext(events)


def test_question_that_no_replica_could_take_is_refused_as_unavailable() -> None:
    with pytest.raises(ApiError, match="the engine failed: the node died") as caught:
        asyncio.run(first(RemoteEngine(Handle(NodeDiedError("the node died"))).ask(question())))
    assert caught.value.status == 503


def test_client_that_leaves_takes_its_waiting_question_back() -> None:
    handle = Handle()

    async def leave() -> None:
        asked = asyncio.create_task(first(RemoteEngine(handle).ask(question())))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asked

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert handle.assignment.cancelled()

"""The engine as the gateway reaches it through Ray Serve, with Ray's errors turned into HTTP's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from services.metrics import Snapshot
from services.metrics_hub import hub_handle
from services.query.engine.messages import Ask, Event, Failure, HitList, Overview, ReplicaState, Versions
from services.query.gateway.errors import ApiError

__all__ = ["HubSnapshots", "RemoteEngine", "last_line"]

_LOOK_S = 3.0  # how long a look at the bank may take before the engine counts as not reachable
_TRIES = 3  # a replica that dies before the first piece of an answer: nothing was said yet, so another one is asked


class RemoteEngine:
    """The engine's deployment handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._seen = False

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer piece by piece; a question whose replica dies before the first piece goes to another one."""
        await self._must_be_up()
        for attempt in range(_TRIES):
            said = False
            response = self._handle.options(stream=True).ask.remote(ask)
            try:
                async for event in response:
                    if _is_other_ones_turn(event) and not said and attempt + 1 < _TRIES:
                        break
                    said = True
                    yield event
                else:
                    return
            except RayActorError as error:
                if said or attempt + 1 == _TRIES:
                    raise _unavailable(f"the engine failed: {last_line(str(error))}") from None
            except (BackPressureError, RayError, RayServeException) as error:
                raise _translated(error) from None
            except (asyncio.CancelledError, GeneratorExit):  # the client went away
                with suppress(BackPressureError, RayError, RayServeException):  # it raises what no replica could take
                    response.cancel()
                raise
            await asyncio.sleep(0.2 * attempt)

    async def search(self, ask: Ask) -> HitList | Failure:
        """What the bank holds for a question."""
        await self._must_be_up()
        found: HitList | Failure = await _reached(lambda: self._handle.search.remote(ask))
        return found

    async def history(self, doc_id: str, namespace: str) -> Versions | Failure:
        """Every version of a document."""
        await self._must_be_up()
        found: Versions | Failure = await _reached(lambda: self._handle.history.remote(doc_id, namespace))
        return found

    async def overview(self, n: int, namespace: str) -> Overview | Failure:
        """Size of the bank and its latest documents."""
        seen: Overview | Failure = await self._looked(lambda: self._handle.overview.remote(n, namespace))
        return seen

    async def ready(self) -> str | None:
        """None when one of the replicas can answer, else why it can't."""
        reason: str | None = await self._looked(lambda: self._handle.ready.remote())
        return reason

    async def loaded(self) -> ReplicaState:
        """What one of the replicas has loaded."""
        one: ReplicaState = await _reached(lambda: self._handle.loaded.remote())
        return one

    async def _must_be_up(self) -> None:
        """A question must not wait in Serve's router for minutes while the LLM is loading."""
        if not self._seen:
            await self.overview(0, "default")

    async def _looked(self, call: Callable[[], Any]) -> Any:
        """What a quick call gave. Raises ApiError 503 when it takes longer than a look at the bank may."""
        try:
            found = await asyncio.wait_for(_reached(call), _LOOK_S)
        except TimeoutError:
            raise _unavailable("the engine does not answer" if self._seen else "the LLM is still loading") from None
        self._seen = True
        return found


class HubSnapshots:
    """The snapshots in the metrics hub; none while it can't be reached."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def __call__(self) -> list[Snapshot]:
        try:
            self._handle = self._handle or hub_handle()
            found: list[Snapshot] = await asyncio.wait_for(self._handle.snapshots.remote(), 2.0)
        except (RayError, TimeoutError, ValueError):
            self._handle = None
            return []
        return found


async def _reached(call: Callable[[], Any]) -> Any:
    """What a replica gave; a call that changes nothing goes to another one when its replica dies."""
    for attempt in range(_TRIES):
        try:
            return await call()
        except RayActorError as error:
            if attempt + 1 == _TRIES:
                raise _translated(error) from None
        except (BackPressureError, RayError, RayServeException) as error:
            raise _translated(error) from None
        await asyncio.sleep(0.2 * attempt)
    raise AssertionError("the last try returns or raises")


def _translated(error: Exception) -> Exception:
    if isinstance(error, BackPressureError):
        wait = {"Retry-After": "1"}
        return ApiError(429, "the engine's queue is full", type_="rate_limit_error", code="queue_full", headers=wait)
    if isinstance(error, RequestCancelledError | TaskCancelledError):
        return asyncio.CancelledError()  # type: ignore[return-value]
    return _unavailable(f"the engine failed: {last_line(str(error))}")


def _is_other_ones_turn(event: Event) -> bool:
    """Whether a replica that is being replaced has refused the question."""
    return isinstance(event, Failure) and event.kind == "engine"


def _unavailable(reason: str) -> ApiError:
    return ApiError(503, reason, type_="server_error", code="engine_unavailable", headers={"Retry-After": "2"})


def last_line(trace: str) -> str:
    """The exception's own line from a remote trace: `services.errors.BankMismatch: text` gives `text`."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    raised = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception|Unavailable|Mismatch|Full|InUse)\b.*?: ", line)
    ]
    text = raised[-1] if raised else (lines[-1] if lines else "no reason was given")
    return re.sub(r"^(services|cmt_core)\.errors\.\w+: ", "", text)

"""The engine of a replica whose model batches by itself (vLLM): every question is a task of one event loop; no Ray, no HTTP.

The loop runs in a thread of its own, with the engine's client in it. A question waits for a place among `max_batch`, is looked up
together with those that wait at that moment, and streams from the engine. Closing its stream is what cancels it there. A question
that fails fails alone; when the engine itself is lost, all are told, and the replica is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing

from cmt_core.generation.engine import EngineLost
from cmt_core.generation.query import AnswerStart
from services.metrics import Metrics
from services.query.engine.answer_row import AnswerRow
from services.query.engine.bank_looks import Retired, SchedulerOptions
from services.query.engine.grouping import failure_of
from services.query.engine.messages import Ask, Delta, Event, Failure, HitList
from services.query.engine.one_question import OneQuestion, late, replaced
from services.query.engine.ports import MemoryReader, StreamingModel
from services.query.engine.prompt_budget import QueryInBudget
from services.query.engine.ticket import Doubt, Ticket
from services.supervision import ServiceThread

__all__ = ["StreamAnswerer"]


class StreamAnswerer(OneQuestion):
    """Answers questions with `model` from what `bank` holds, until `stop`. The constructor returns when the engine has started.

    Raises what its start raises.
    """

    def __init__(
        self,
        model: StreamingModel,
        bank: MemoryReader,
        options: SchedulerOptions | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(model, bank, options, metrics, weighted_by="prior")
        self._model = model
        self.loop = asyncio.new_event_loop()
        self._bank_threads = ThreadPoolExecutor(1, thread_name_prefix="bank")
        self._tasks: dict[Ticket, asyncio.Task[None]] = {}
        self._to_look_up: list[tuple[Ask, asyncio.Future[HitList | Failure]]] = []
        self._looker: asyncio.Task[None] | None = None
        self._running = 0
        self._written_s = time.monotonic()
        self._stopping = False
        self._started: Future[None] = Future()
        self._thread = ServiceThread(
            "engine", self._run, self._metrics, failed=self._ended, given_up=self._fail_all, most_failures=1
        ).start()
        self._started.result()

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return self._running

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered here: the engine is lost, or says nothing for too long."""
        if self.lost:
            return self._thread.trouble or "the engine has ended"
        silent_s = time.monotonic() - self._written_s if self._running else 0.0
        if silent_s > self._options.stalled_after_s:
            return f"the engine has written nothing for {silent_s:.0f} s"
        return None

    @property
    def lost(self) -> bool:
        """Whether the engine or its thread has ended for good."""
        return self._thread.trouble is not None or self._model.lost

    def submit(self, ask: Ask, deliver: Callable[[Event], None]) -> Ticket:
        """Takes a question; `deliver` gets its answer piece by piece, from another thread. Raises Retired."""
        if self._stopping:
            raise Retired
        ticket = Ticket(ask, deliver)
        if (trouble := self.trouble) is not None:
            ticket.send(replaced(trouble))
            return ticket
        try:
            self.loop.call_soon_threadsafe(self._enter, ticket)
        except RuntimeError:  # closed between the lines above
            raise Retired from None
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a question, wherever it is; the engine drops it before its next step."""
        waited_for, ticket.gone = not ticket.gone, True
        if waited_for:
            self._metrics.count("cmt_query_cancelled_total")
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody is in it
            self.loop.call_soon_threadsafe(self._drop, ticket)

    def stop(self) -> None:
        """Answers what is inside, takes nothing new, and ends the engine."""
        self._stopping = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._may_end.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()
            self._bank_threads.shutdown(wait=False)

    async def _serve(self) -> None:
        self._may_end, self._places = asyncio.Event(), asyncio.Semaphore(self._options.max_batch)
        try:
            self._model.start()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start is told
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        try:
            await self._may_end.wait()
            while self._tasks:
                await asyncio.wait(list(self._tasks.values()))
        finally:
            self._model.close()

    def _enter(self, ticket: Ticket) -> None:
        task = self.loop.create_task(self._answer(ticket))
        self._tasks[ticket] = task
        task.add_done_callback(lambda _: self._tasks.pop(ticket, None))

    def _drop(self, ticket: Ticket) -> None:
        if (task := self._tasks.get(ticket)) is not None:
            task.cancel()

    async def _answer(self, ticket: Ticket) -> None:
        """A question from its arrival to its last event, whatever happens to it."""
        try:
            async with asyncio.timeout(max(0.0, ticket.ask.deadline_s - ticket.ms() / 1e3)) as limit:
                async with self._places:
                    await self._looked_up(ticket)
        except asyncio.CancelledError:
            ticket.gone = True
        except EngineLost as error:
            ticket.send(replaced(str(error)))
        except BaseException as error:  # noqa: BLE001 - Rust code, which the bank and tokenizers are, panics past Exception
            expired = isinstance(error, TimeoutError) and limit.expired()
            ticket.send(late(ticket.ask) if expired else failure_of(error))

    async def _looked_up(self, ticket: Ticket) -> None:
        found = await self._found(ticket.ask)
        if self._is_over_without_llm(ticket, found):
            return
        self._written_s = self._written_s if self._running else time.monotonic()
        self._count(+1)
        try:
            await self._written(ticket)
        finally:
            self._count(-1)

    async def _found(self, ask: Ask) -> HitList | Failure:
        """Looked up with all that wait while the bank is busy with others."""
        own: asyncio.Future[HitList | Failure] = self.loop.create_future()
        self._to_look_up.append((ask, own))
        if self._looker is None:
            self._looker = self.loop.create_task(self._look_up_all())
        return await own

    async def _look_up_all(self) -> None:
        try:
            while self._to_look_up:
                waiting, self._to_look_up = self._to_look_up, []
                asks = [ask for ask, _ in waiting]
                try:
                    found: Sequence[HitList | Failure] = await self.loop.run_in_executor(
                        self._bank_threads, self._retrieval.find, asks
                    )
                except Exception as error:  # noqa: BLE001 - those who wait are told, the next ones are looked up
                    found = [failure_of(error)] * len(asks)
                for (_, own), one in zip(waiting, found, strict=True):
                    if not own.done():
                        own.set_result(one)
        finally:
            self._looker = None

    async def _written(self, ticket: Ticket) -> None:
        """Asks the engine; a doubted answer of mode `auto` goes on from its best source's text."""
        asked = self._fitted(ticket, None, self._model.prompt_tokens)
        while True:
            if isinstance(asked, Failure):
                ticket.send(asked)
                return
            row = await self._streamed(ticket, asked)
            if (doubt := row.takes_two or row.doubt) is not None:
                asked = self._fitted(ticket, doubt, self._model.prompt_tokens)
                if isinstance(asked, QueryInBudget):
                    self._begin_again(ticket, doubt)
                    continue
            self._deliver(row)
            return

    async def _streamed(self, ticket: Ticket, asked: QueryInBudget) -> AnswerRow:
        """The answer's row, ended; its text was sent as it came. One that had better read two sources' texts has none."""
        longest = ticket.ask.max_new_tokens or self._model.answer_tokens
        begun = await self._model.begin(asked.query, longest)
        row: AnswerRow | None = None
        async with aclosing(begun.pieces) as pieces:
            async for piece in pieces:
                self._written_s = time.monotonic()
                tokens: list[int | None] = list(piece.tokens)
                if piece.finish == "stop":
                    tokens.append(None)
                for token in tokens:
                    if row is None:
                        start = AnswerStart(0, begun.prompt_tokens, begun.weights, together=begun.together)
                        row = self._row(ticket, start, asked.notes, self._model.text)
                        if row.takes_two is not None and self._has_room(ticket, row.takes_two):
                            return row
                    if text := row.push(token):
                        ticket.send(Delta(text))
                    if row.finish_reason is not None:
                        return row
                if piece.finish is not None and row is not None:  # no room for more tokens in the engine
                    if text := row.cut():
                        ticket.send(Delta(text))
                    return row
        raise RuntimeError("the engine ended an answer without its last word")

    def _has_room(self, ticket: Ticket, doubt: Doubt) -> bool:
        return isinstance(self._fitted(ticket, doubt, self._model.prompt_tokens), QueryInBudget)

    def _count(self, step: int) -> None:
        self._running += step
        self._metrics.gauge("cmt_query_running", self._running)
        if step > 0:
            self._metrics.observe("cmt_query_batch_questions", self._running)

    def _ended(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    def _fail_all(self) -> None:
        """Nobody answers any more: all who wait are told."""
        for ticket in list(self._tasks):
            ticket.send(replaced(self.trouble))

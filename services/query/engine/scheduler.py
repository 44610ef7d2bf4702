"""The engine of one replica: questions join and leave the running batch between any two tokens; no Ray, no HTTP.

Two threads of its own. `bank` looks questions up, and only as many as may join, so that nobody reads an old bank.
`model` repeats, as long as anybody is there:

1. rows whose client went away or whose deadline has passed leave
2. questions that were looked up join: their prompts are read, their first tokens come out
3. every running row gets one token more (or, once its candidates are written, all of the likeliest), and those that are done
leave; an answer of mode `auto` that goes where its sources do not, or that takes two of them, joins again with their text

What fails outside of one question's own part fails everybody whom the thread had in hand, and the next one is answered.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from services.metrics import Metrics
from services.query.engine.answer_row import AnswerRow
from services.query.engine.bank_looks import Retired, SchedulerOptions
from services.query.engine.grouping import failure_of, isolated
from services.query.engine.messages import Ask, Delta, Event, Failure
from services.query.engine.one_question import OneQuestion, late, replaced
from services.query.engine.ports import AnsweringModel, MemoryReader, RunningBatch
from services.query.engine.prompt_budget import QueryInBudget
from services.query.engine.ticket import Doubt, Ticket
from services.supervision import ServiceThread

__all__ = ["Retired", "Scheduler", "SchedulerOptions"]

_log = logging.getLogger(__name__)
_MOST_FAILURES = 5  # in a row, with no whole answer between them: then the replica needs another process


class Scheduler(OneQuestion):
    """Answers questions with `model` from what `bank` holds, until `stop`."""

    def __init__(
        self,
        model: AnsweringModel,
        bank: MemoryReader,
        options: SchedulerOptions | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(model, bank, options, metrics, weighted_by="attention")
        self._model = model
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._looking: list[Ticket] = []  # questions that are being looked up
        self._joining: list[Ticket] = []  # questions whose prompts are being read
        self._ready: deque[Ticket] = deque()
        self._rows: dict[int, AnswerRow] = {}
        self._stopping = False
        self._batch: RunningBatch | None = None  # a failed one is thrown away with all that it holds
        self._bank_thread = self._thread("bank", self._look_up_forever, self._looking_up_failed)
        self._model_thread = self._thread("model", self._generate_forever, self._generating_failed)
        self._threads = (self._bank_thread, self._model_thread)
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return len(self._rows)

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered here: a thread has ended, or hangs in one piece of work; None while both go on."""
        return self._ended or next((thread.stall for thread in self._threads if thread.stall), None)

    @property
    def lost(self) -> bool:
        """Whether a thread has ended for good."""
        return self._ended is not None

    @property
    def _ended(self) -> str | None:
        return next((thread.trouble for thread in self._threads if thread.trouble), None)

    def submit(self, ask: Ask, deliver: Callable[[Event], None]) -> Ticket:
        """Queues a question; `deliver` gets its answer piece by piece, from another thread. Raises Retired."""
        ticket = Ticket(ask, deliver)
        with self._changed:
            if self._stopping:
                raise Retired
            if (trouble := self.trouble) is None:
                self._waiting.append(ticket)
                self._changed.notify_all()
                return ticket
        ticket.send(replaced(trouble))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a question, wherever it is; a running one leaves before the next token."""
        with self._changed:
            waited_for, ticket.gone = not ticket.gone, True
            self._changed.notify_all()
        if waited_for:
            self._metrics.count("cmt_query_cancelled_total")

    def stop(self) -> None:
        """Answers what is inside, takes nothing new, and ends the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _thread(self, name: str, work: Callable[[], None], failed: Callable[[BaseException], None]) -> ServiceThread:
        return ServiceThread(
            name,
            work,
            self._metrics,
            failed=failed,
            given_up=self._fail_all,
            most_failures=_MOST_FAILURES,
            stalled_after_s=self._options.stalled_after_s,
        )

    def _look_up_forever(self) -> None:
        while tickets := self._next_to_look_up():
            with self._bank_thread.at_work():
                found = self._retrieval.find([ticket.ask for ticket in tickets])
            with self._changed:
                for ticket, one in zip(tickets, found, strict=True):
                    if not self._is_over_without_llm(ticket, one):
                        self._ready.append(ticket)
                self._looking = []
                self._changed.notify_all()
            self._bank_thread.worked()

    def _looking_up_failed(self, error: BaseException) -> None:
        with self._changed:
            failed, self._looking = [one for one in self._looking if one not in self._ready], []
            self._changed.notify_all()
        _fail(failed, failure_of(error))

    def _fail_all(self) -> None:
        """Nobody answers any more: all who wait are told, and the other thread ends, too."""
        with self._changed:
            left = [*self._waiting, *self._looking, *self._ready, *self._joining]
            left += [row.ticket for row in self._rows.values()]
            self._waiting.clear()
            self._ready.clear()
            self._changed.notify_all()
        _fail(left, replaced(self.trouble))

    def _next_to_look_up(self) -> list[Ticket]:
        """Those that may join now, in the order they came; empty when the scheduler stops."""
        with self._changed:
            while True:
                self._drop_gone(self._waiting)
                if (self._stopping and not self._waiting) or self._ended:
                    return []
                room = self._options.max_batch - len(self._rows) - len(self._ready) - len(self._joining)
                if self._waiting and room > 0:
                    self._looking = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
                    return self._looking
                self._changed.wait(1.0 if self._waiting else None)  # waiting ones have deadlines

    def _generate_forever(self) -> None:
        while self._wait_for_work():
            with self._model_thread.at_work():
                self._leave([row for row, one in self._rows.items() if self._is_over(one.ticket)])
                self._join(self._next_to_join())
                self._advance()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._rows and not self._ready:
                if (self._stopping and not self._waiting and not self._looking) or self._ended:
                    return False
                self._changed.wait(0.2 if self._stopping else None)
            return True

    def _next_to_join(self) -> list[Ticket]:
        with self._changed:
            many = min(len(self._ready), self._options.join_at_once)
            self._joining = [self._ready.popleft() for _ in range(many)]
        return [ticket for ticket in self._joining if not self._is_over(ticket)]

    def _join(self, tickets: Sequence[Ticket]) -> None:
        if tickets:
            self._metrics.observe("cmt_query_batch_questions", len(self._rows) + len(tickets))
            for ticket, outcome in zip(tickets, isolated(tickets, self._read), strict=True):
                if isinstance(outcome, Failure):
                    ticket.send(outcome)
                else:
                    self._take(outcome, outcome.first_tokens)
        self._joining = []
        self._settle()

    def _read(self, tickets: Sequence[Ticket]) -> list[AnswerRow | Failure]:
        """Reads the prompts of those that are not too long, together."""
        batch = self._running_batch()
        asked = [self._fitted(ticket, ticket.doubt, batch.prompt_tokens) for ticket in tickets]
        fit = {i: one for i, one in enumerate(asked) if isinstance(one, QueryInBudget)}
        started = dict(zip(fit, batch.join([one.query for one in fit.values()]), strict=True)) if fit else {}
        return [
            self._row(ticket, started[i], one.notes, batch.text) if isinstance(one, QueryInBudget) else one
            for i, (ticket, one) in enumerate(zip(tickets, asked, strict=True))
        ]

    def _take(self, row: AnswerRow, tokens: Sequence[int | None]) -> None:
        """A row's next tokens: what can be shown of them is sent, and a finished answer is delivered."""
        self._rows[row.number] = row
        if (two := row.takes_two) is not None and self._ask_again(row.ticket, two):
            row.finish_reason = "stop"  # here, before its first word
            return
        for token in tokens:
            if text := row.push(token):
                row.ticket.send(Delta(text))
            if row.finish_reason is not None:
                break
        else:
            return
        if (doubt := row.doubt) is not None and self._ask_again(row.ticket, doubt):
            return
        self._model_thread.worked()
        self._deliver(row)

    def _ask_again(self, ticket: Ticket, doubt: Doubt) -> bool:
        """Lets a doubted answer join again with the texts that it wants, if they fit in a prompt."""
        if isinstance(self._fitted(ticket, doubt, self._running_batch().prompt_tokens), Failure):
            return False
        self._begin_again(ticket, doubt)
        with self._changed:
            self._ready.appendleft(ticket)
        return True

    def _advance(self) -> None:
        if not self._rows:
            return
        for number, tokens in self._running_batch().step().items():
            self._take(self._rows[number], tokens)
        self._settle()

    def _running_batch(self) -> RunningBatch:
        if self._batch is None:
            self._batch = self._model.answer_batch()
        return self._batch

    def _generating_failed(self, error: BaseException) -> None:
        """The running batch is lost with all that is in it; the next one starts afresh."""
        with self._changed:
            failed = [*self._joining, *(row.ticket for row in self._rows.values())]
            self._joining, self._batch = [], None
            self._rows.clear()
            self._changed.notify_all()
        _fail(failed, failure_of(error))
        self._metrics.gauge("cmt_query_running", 0)

    def _settle(self) -> None:
        """Rows that are done leave, and those who wait are told that there is room."""
        self._leave([number for number, row in self._rows.items() if row.finish_reason is not None])

    def _leave(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._running_batch().leave(number)
            del self._rows[number]
        if numbers:
            with self._changed:
                self._changed.notify_all()
        self._metrics.gauge("cmt_query_running", len(self._rows))

    def _is_over(self, ticket: Ticket) -> bool:
        if ticket.late:
            ticket.send(late(ticket.ask))
        return ticket.gone

    def _drop_gone(self, tickets: deque[Ticket]) -> None:
        for _ in range(len(tickets)):
            ticket = tickets.popleft()
            if not self._is_over(ticket):
                tickets.append(ticket)


def _fail(tickets: Sequence[Ticket], failure: Failure) -> None:
    for ticket in tickets:
        ticket.send(failure)

"""What every engine of a replica does with one question, whichever computes the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cmt_core.generation.query import AnswerStart, Query
from services.metrics import Metrics
from services.query.engine.answer_row import AnswerRow, query_of, unknown_reply
from services.query.engine.bank_looks import BankLooks, SchedulerOptions
from services.query.engine.messages import Ask, Delta, Failure, HitList, Reply, WeightedBy
from services.query.engine.ports import BankModel, MemoryReader
from services.query.engine.prompt_budget import PromptBudget, QueryInBudget
from services.query.engine.ticket import Doubt, Ticket

__all__ = ["OneQuestion", "late", "replaced"]


class OneQuestion(BankLooks):
    """The steps of a question between the bank and the tokens."""

    def __init__(
        self,
        model: BankModel,
        bank: MemoryReader,
        options: SchedulerOptions | None,
        metrics: Metrics | None,
        *,
        weighted_by: WeightedBy,
    ) -> None:
        super().__init__(model, bank, options or SchedulerOptions(), metrics or Metrics())
        self._weighted_by: WeightedBy = weighted_by

    def _is_over_without_llm(self, ticket: Ticket, found: HitList | Failure) -> bool:
        """Keeps what was found with the question; a failed look, or one that found nothing, is told instead."""
        if isinstance(found, Failure):
            ticket.send(found)
            return True
        ticket.found = found
        if ticket.ask.mode == "closed" or found.hits:
            return False
        self._metrics.count("cmt_query_unknown_total")
        reply = unknown_reply(ticket.ask, found, self.model_id, ticket.ms())
        ticket.send(Delta(reply.answer))
        ticket.send(reply)
        return True

    def _fitted(
        self, ticket: Ticket, doubt: Doubt | None, prompt_tokens: Callable[[Query], int]
    ) -> QueryInBudget | Failure:
        """What the LLM is asked, cut to the longest prompt."""
        options, instructed = self._options, self._looking_model.follows_instructions
        budget = PromptBudget(options.max_prompt_tokens, options.shorten, prompt_tokens, instructed)
        asked = query_of(
            ticket.ask,
            ticket.found,
            instructed,
            doubt,
            spelled=options.spell_answers,
            candidates=options.answer_candidates,
        )
        return budget.fitted(asked)

    def _row(
        self, ticket: Ticket, started: AnswerStart, notes: Sequence[str], text: Callable[[Sequence[int]], str]
    ) -> AnswerRow:
        return AnswerRow(
            ticket,
            started,
            text,
            self._looking_model.answer_tokens,
            notes,
            by_sentence=self._looking_model.follows_instructions,  # a trained prefix answers in a few words
            doubt=ticket.doubt,
            weighted_by=self._weighted_by,
        )

    def _begin_again(self, ticket: Ticket, doubt: Doubt) -> None:
        """A doubted answer of mode `auto` is thrown away for one that reads its best source's text."""
        self._metrics.count("cmt_query_text_reads_total")
        ticket.doubt = doubt

    def _deliver(self, row: AnswerRow) -> None:
        """The last words of a whole answer."""
        if row.doubt is not None and (text := row.accept()):  # doubted, but there is no room for its source's text
            row.ticket.send(Delta(text))
        reply = row.reply(self._looking_model)
        _measure(self._metrics, row.ticket.ask, reply)
        row.ticket.send(reply)


def replaced(why: str | None) -> Failure:
    """What questions are told that this replica can't answer; the gateway gives them to another one."""
    return Failure("engine", f"the engine is being replaced: {why or 'it has ended'}")


def late(ask: Ask) -> Failure:
    """What a question is told whose time is over."""
    return Failure("deadline", f"the deadline of {ask.deadline_s:g} s has passed")


def _measure(metrics: Metrics, ask: Ask, reply: Reply) -> None:
    """Counts a whole answer."""
    metrics.observe("cmt_query_generate_seconds", reply.generate_ms / 1e3)
    metrics.observe("cmt_query_first_token_seconds", reply.first_token_ms / 1e3, mode=ask.mode)
    metrics.count("cmt_query_prompt_tokens_total", reply.prompt_tokens, mode=ask.mode)
    metrics.count("cmt_query_completion_tokens_total", reply.completion_tokens, mode=ask.mode)

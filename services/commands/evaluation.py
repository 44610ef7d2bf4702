"""`cmt eval`: the stream protocol on one checkpoint; the paper's experiments are beside it (experiments.py)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_core.generation.query import MOST_CANDIDATES
from services.commands.evaluation_inputs import (
    SQUAD,
    Dataset,
    Experiment,
    K,
    Questions,
    Seed,
    Systems,
    names,
    say,
)
from services.commands.experiments import register
from services.commands.options import Config
from services.terminal import echo

if TYPE_CHECKING:
    from cmt_core.data.qa import QAExample
    from cmt_core.evaluation.stream import Keep, StreamScores
    from cmt_core.evaluation.systems import SystemAnswer

__all__ = ["app"]

app = typer.Typer(help="Score a checkpoint.", invoke_without_command=True)
register(app)

_QUICK_QUESTIONS = 24


@app.callback()
def evaluate(
    context: typer.Context,
    config: Config = None,
    quick: Annotated[bool, typer.Option("--quick", help="All systems on the sample news, within 3 minutes.")] = False,
) -> None:
    """Score a checkpoint."""
    if context.invoked_subcommand is not None:
        return
    if not quick:
        echo(context.get_help())
        raise typer.Exit(0)
    from cmt_core.evaluation.stream import evaluate_stream
    from services.sample_news import sample_questions

    asked = Experiment.of(config, "", _QUICK_QUESTIONS, 2, 0)
    systems = ("select", "rag_prefix", "rag_bare", "closed")
    _print(
        evaluate_stream(
            asked.model(), sample_questions(), systems=systems, questions=asked.questions, k=asked.k, report=say
        )
    )


@app.command("stream")
def stream(
    dataset: Dataset = SQUAD,
    config: Config = None,
    questions: Questions = 300,
    documents: Annotated[int | None, typer.Option(min=1, help="Documents in the bank; default all.")] = None,
    since: Annotated[str | None, typer.Option(help="Only rows dated YYYY-MM-DD or later.")] = None,
    systems: Systems = "select,rag_prefix,rag_bare,closed",
    k: K = 2,
    seed: Seed = 0,
    lexical_weight: Annotated[
        float | None, typer.Option(min=0, help="Share of BM25 beside the cosine of the keys; 0 is the keys alone.")
    ] = None,
    single_context: Annotated[
        Path | None, typer.Option(help="Checkpoint of the paper's parts, for the system single_context.")
    ] = None,
    spelling: Annotated[
        bool, typer.Option("--spelling/--no-spelling", help="Short answers are spelled from their sources' texts.")
    ] = True,
    candidates: Annotated[
        int,
        typer.Option(min=1, help="Short answers are the likeliest of so many, which begin with other likely words."),
    ] = MOST_CANDIDATES,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Also write every system's answer to every question here, one JSON a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a table, a JSON file and a plot, too.")] = None,
) -> None:
    """The stream protocol: compress every document, then ask all questions against the full bank.

    A system NAME@K reads K documents a question, whatever --k says.
    """
    from cmt_core.evaluation.bank import ranking_of
    from cmt_core.evaluation.stream import evaluate_stream
    from cmt_core.retrieval.ranking import HYBRID

    asked = Experiment.of(config, dataset, questions, k, seed)
    examples = asked.examples(since)
    scored = evaluate_stream(
        asked.model(),
        examples,
        systems=names(systems),
        questions=questions,
        documents=documents,
        k=k,
        seed=seed,
        ranking=HYBRID if lexical_weight is None else ranking_of(lexical_weight),
        single_context=asked.model(single_context) if single_context else None,
        spelled=spelling,
        candidates=candidates,
        report=say,
        keep=_answers_to(answers) if answers else None,
    )
    rows = _print(scored, as_json)
    if out is not None:
        asked.write(out, "stream", rows, "k", "f1", "documents read for a question")


def _answers_to(path: Path) -> Keep:
    """Adds lines to a file that is made anew."""
    path.write_text("", encoding="utf-8")

    def keep(system: str, k: int, asked: Sequence[QAExample], answers: Sequence[SystemAnswer]) -> None:
        with path.open("a", encoding="utf-8") as file:
            for row, one in zip(asked, answers, strict=True):
                about = {"system": system, "k": k, "question": row.question, "gold": row.answers}
                made = {name: value for name, value in dataclasses.asdict(one).items() if name != "answer"}
                file.write(json.dumps(about | {"answer": one.answer.text} | made, ensure_ascii=False) + "\n")

    return keep


def _print(scored: Iterable[StreamScores], as_json: Path | None = None) -> list[StreamScores]:
    """One line a system, as it is done; the file always holds those done so far."""
    rows = []
    for score in scored:
        rows.append(score)
        echo(json.dumps(dataclasses.asdict(score)))
        if as_json is not None:
            as_json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return rows

"""`cmt eval`: the stream protocol and the paper's experiments on one checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.commands.options import Config, progress, read_settings
from services.errors import SettingsError
from services.settings import Settings

if TYPE_CHECKING:
    from cmt_core.data.qa import QAExample

__all__ = ["app"]

app = typer.Typer(help="Score a checkpoint.", invoke_without_command=True)

Dataset = Annotated[str, typer.Option(help="Dataset inside data_dir, or a path.")]
Questions = Annotated[int, typer.Option(min=1, help="Questions asked, the same ones everywhere.")]
Systems = Annotated[str, typer.Option(help="Of select, stack, rag_prefix, rag_bare, closed; comma-separated.")]
K = Annotated[int, typer.Option("--k", min=1, help="Documents read per question.")]
Seed = Annotated[int, typer.Option(help="Seed of the choice of documents and questions.")]
Out = Annotated[Path, typer.Option(help="Folder for the table, the JSON and the plot.")]
Numbers = Annotated[str, typer.Option(help="Comma-separated numbers.")]

_SQUAD = "squad_dev.jsonl.gz"
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
        typer.echo(context.get_help())
        raise typer.Exit(0)
    settings = read_settings(config)
    from services.sample_news import sample_questions

    _stream(settings, sample_questions(), "select,rag_prefix,rag_bare,closed", _QUICK_QUESTIONS, None, 2, 0, None, None)


@app.command("stream")
def stream(
    dataset: Dataset = _SQUAD,
    config: Config = None,
    questions: Questions = 300,
    documents: Annotated[int | None, typer.Option(min=1, help="Documents in the bank; default all.")] = None,
    systems: Systems = "select,rag_prefix,rag_bare,closed",
    k: K = 2,
    seed: Seed = 0,
    lexical_weight: Annotated[
        float | None, typer.Option(min=0, help="Share of BM25 beside the cosine of the keys; 0 is the keys alone.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """The stream protocol: compress every document, then ask all questions against the full bank."""
    settings = read_settings(config)
    examples = _examples(settings, dataset)
    _stream(settings, examples, systems, questions, documents, k, seed, lexical_weight, as_json)


@app.command("retention")
def retention_command(
    dataset: Dataset = _SQUAD,
    config: Config = None,
    sizes: Numbers = "200,500,1000,2067",
    questions: Questions = 200,
    systems: Systems = "select,rag_prefix",
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """A fixed set of questions while the bank grows around their documents."""
    from cmt_core.evaluation.experiments import retention

    settings = read_settings(config)
    points = retention(
        _model(settings), _examples(settings, dataset), _integers(sizes), systems=_names(systems), questions=questions,
        k=k, seed=seed, report=_say,
    )  # fmt: skip
    _written(out, "retention", points, "x", "f1", "documents in the bank", dataset, k, questions, seed)


@app.command("robustness")
def robustness_command(
    dataset: Dataset = _SQUAD,
    config: Config = None,
    shares: Numbers = "0,0.2,0.4,0.6,0.8",
    relevant: Annotated[int, typer.Option(min=1, help="Documents that are asked about.")] = 200,
    questions: Questions = 200,
    systems: Systems = "select,rag_prefix",
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """A growing share of the bank has nothing to do with any question."""
    from cmt_core.evaluation.experiments import robustness

    settings = read_settings(config)
    wanted = _floats(shares)
    if not all(0 <= share < 1 for share in wanted):
        raise SettingsError("--shares must be from 0 to below 1")
    points = robustness(
        _model(settings), _examples(settings, dataset), wanted, relevant=relevant, systems=_names(systems),
        questions=questions, k=k, seed=seed, report=_say,
    )  # fmt: skip
    _written(out, "robustness", points, "x", "f1", "irrelevant documents, %", dataset, k, questions, seed)


@app.command("scaling")
def scaling_command(
    dataset: Dataset = _SQUAD,
    config: Config = None,
    filler: Annotated[
        str | None, typer.Option(help="JSONL file of articles (id, title, text) that follow the dataset's documents.")
    ] = None,
    sizes: Numbers = "50,200,500,2000,10000,50000",
    questions: Questions = 100,
    systems: Systems = "select,rag_prefix",
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """Accuracy and time from 50 to 50,000 documents."""
    from cmt_core.data.articles import read_articles
    from cmt_core.evaluation.experiments import scaling

    settings = read_settings(config)
    more = list(read_articles(_path(settings, filler))) if filler else []
    points = scaling(
        _model(settings), _examples(settings, dataset), _integers(sizes), filler=more, systems=_names(systems),
        questions=questions, k=k, seed=seed, report=_say,
    )  # fmt: skip
    _written(out, "scaling", points, "x", "f1", "documents in the bank", dataset, k, questions, seed)


@app.command("forgetting")
def forgetting_command(
    dataset: Dataset = _SQUAD,
    config: Config = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of the stream.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 3,
    questions: Questions = 200,
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """Fine-tune the same LLM on the stream, and see what it learns and forgets beside a memory."""
    from cmt_core.evaluation.forgetting import forgetting

    settings = read_settings(config)
    from services.sample_news import sample_questions

    other = list(dict.fromkeys(row.text for row in sample_questions()))
    points = forgetting(
        _model(settings), _examples(settings, dataset), other, documents=documents, questions=questions, epochs=epochs,
        k=k, seed=seed, report=_say,
    )  # fmt: skip
    _written(out, "forgetting", points, "epochs", "other_text_nats", "epochs", dataset, k, questions, seed)


def _stream(
    settings: Settings,
    examples: list[QAExample],
    systems: str,
    questions: int,
    documents: int | None,
    k: int,
    seed: int,
    lexical_weight: float | None,
    as_json: Path | None,
) -> None:
    from cmt_core.evaluation.stream import evaluate_stream
    from cmt_core.hybrid import LEXICAL_WEIGHT

    scores = evaluate_stream(
        _model(settings),
        examples,
        systems=_names(systems),
        questions=questions,
        documents=documents,
        k=k,
        seed=seed,
        lexical_weight=LEXICAL_WEIGHT if lexical_weight is None else lexical_weight,
        report=_say,
    )
    rows = [dataclasses.asdict(score) for score in scores]
    if as_json is not None:
        as_json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    typer.echo("\n".join(json.dumps(row) for row in rows))


def _written(
    out: Path,
    name: str,
    points: list[Any],
    x: str,
    y: str,
    x_label: str,
    dataset: str,
    k: int,
    questions: int,
    seed: int,
) -> None:
    from cmt_core.evaluation.report import write_experiment

    about = {"dataset": dataset, "k": k, "questions": questions, "seed": seed}
    for path in write_experiment(out, name, points, x=x, y=y, x_label=x_label, about=about):
        typer.echo(str(path))


def _model(settings: Settings) -> Any:
    from services.models import load_cmt

    return load_cmt(settings)


def _examples(settings: Settings, dataset: str) -> list[QAExample]:
    from cmt_core.data.qa import read_qa

    return list(read_qa(_path(settings, dataset)))


def _path(settings: Settings, name: str) -> Path:
    return Path(name) if Path(name).exists() else settings.data_dir / name


def _names(systems: str) -> list[str]:
    return [name.strip() for name in systems.split(",") if name.strip()]


def _integers(numbers: str) -> list[int]:
    return [int(number) for number in _floats(numbers)]


def _floats(numbers: str) -> list[float]:
    try:
        found = [float(part) for part in numbers.split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"{numbers!r} is not a list of numbers like 50,200,500") from None
    if not found:
        raise SettingsError("at least one number is needed")
    return found


def _say(line: str) -> None:
    progress.print(line, highlight=False)

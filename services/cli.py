"""The `cmt` command: every part of the system from a terminal.

Results go to stdout, progress and errors to stderr. An error is one line and an exit code (services/errors.py lists them).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cmt_core.errors import ConfigError, CoreError
from services.commands import dlq, feed, ingest
from services.commands.options import Bank, Config, RayAddress, progress, read_settings
from services.errors import ServiceError

__all__ = ["app", "main"]

app = typer.Typer(
    name="cmt",
    help="A live memory of the news for a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bank_app = typer.Typer(help="Look at the memory bank.", no_args_is_help=True)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
eval_app = typer.Typer(help="Score a checkpoint.", no_args_is_help=True)
app.add_typer(feed.app, name="feed")
app.add_typer(ingest.app, name="ingest")
app.add_typer(dlq.app, name="dlq")
app.add_typer(bank_app, name="bank")
app.add_typer(config_app, name="config")
app.add_typer(eval_app, name="eval")

Port = Annotated[int | None, typer.Option(help="Port of the query service.")]


def main() -> None:
    """Entry point: runs the command and turns our errors into one line and an exit code."""
    try:
        app()
    except ServiceError as error:
        _fail(str(error), error.exit_code)
    except CoreError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError) else 7)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)


@app.command()
def demo(
    config: Config = None,
    port: Port = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Articles a second.")] = 6.0,
    once: Annotated[bool, typer.Option("--once", envvar="DEMO_ONCE", help="End after the table.")] = False,
    news: Annotated[Path | None, typer.Option(help="Folder with feeds and questions.jsonl.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Ask, play the news through Kafka, ask again: the whole system on this machine."""
    from services.demo import run_demo

    settings = read_settings(config, serve__port=port)
    sys.exit(run_demo(settings, news=news, rate_per_s=rate, once=once, report=report))


@app.command()
def serve(config: Config = None, bank: Bank = None, port: Port = None, ray: RayAddress = None) -> None:
    """Answer questions over HTTP from the latest bank, until Ctrl-C."""
    settings = read_settings(config, bank__uri=bank, serve__port=port, ray__address=ray)
    from services.query.run import run_serve

    run_serve(settings, progress)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    config: Config = None,
    url: Annotated[str | None, typer.Option(help="The query service; default from the settings.")] = None,
    model: Annotated[str, typer.Option(help="cmt, cmt-rag or cmt-closed.")] = "cmt",
    top_k: Annotated[int | None, typer.Option(min=1, help="Memories to read.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole response.")] = False,
) -> None:
    """Ask the running query service one question."""
    settings = read_settings(config)
    from services.query.client import ask_service

    reply = ask_service(url or f"http://{settings.serve.host}:{settings.serve.port}", settings, question, model, top_k)
    if as_json:
        typer.echo(json.dumps(reply, indent=2, ensure_ascii=False))
        return
    typer.echo(reply["choices"][0]["message"]["content"])
    for source in reply.get("sources", []):
        typer.echo(f"  {source['score']:.2f}  {source['title'] or source['doc_id']}  {source['url'] or ''}".rstrip())


@bank_app.command("stats")
def bank_stats(
    config: Config = None,
    bank: Bank = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Size, version and age of the bank."""
    settings = read_settings(config, bank__uri=bank)
    from services.bank.summary import summarise

    figures = summarise(settings.bank)
    typer.echo(json.dumps(figures) if as_json else "\n".join(f"{key:20} {value}" for key, value in figures.items()))


@config_app.command("show")
def config_show(
    config: Config = None, as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False
) -> None:
    """The effective settings, secrets masked."""
    effective = read_settings(config).masked()
    typer.echo(json.dumps(effective, indent=2) if as_json else yaml.safe_dump(effective, sort_keys=False).rstrip())


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    config: Config = None,
    run: Annotated[Path, typer.Option(help="Folder of the run; a stopped run goes on from it.")] = Path("runs/kv_code"),
    dataset: Annotated[str, typer.Option(help="Training set inside data_dir.")] = "qa_train.jsonl.gz",
    start: Annotated[
        str | None, typer.Option(help="Checkpoint to train further: a folder, or `default` for the shipped one.")
    ] = None,
    prefix_steps: Annotated[int, typer.Option(min=0, help="Steps of the prefix on text; 0 keeps the start's.")] = 120,
    code_steps: Annotated[int, typer.Option(min=1, help="Steps of the code.")] = 320,
    top_k: Annotated[int, typer.Option(min=1, help="Memories read per question that the checkpoint recommends.")] = 1,
    aggregation: Annotated[
        str, typer.Option(help="ψ: `select` gives the LLM the most useful vectors of the k memories, `stack` all.")
    ] = "select",
    seed: Annotated[int, typer.Option(help="Seed of data order and start.")] = 0,
) -> None:
    """Train a memory checkpoint for the frozen LLM: prefix, PCA, bits, code."""
    settings = read_settings(config)
    if not prefix_steps and start is None:
        _fail("--prefix-steps 0 needs --start: without a trained prefix the LLM can't read a memory", 2)
    from cmt_core.checkpoint import checkpoint_folder
    from cmt_core.training.command import train_checkpoint
    from cmt_core.training.recipe import RecipeConfig

    recipe = RecipeConfig(prefix_steps=prefix_steps, code_steps=code_steps, seed=seed)
    model = settings.model
    done = train_checkpoint(
        recipe,
        settings.data_dir / dataset,
        run,
        output,
        llm=model.llm,
        retriever=model.retriever,
        cache_dir=model.cache_dir,
        device=model.device,
        top_k=top_k,
        aggregation=aggregation,
        start=checkpoint_folder(start) if start else None,
        report=lambda line: progress.print(line, highlight=False),
    )
    if not done:
        _fail(f"stopped; the same command goes on from {run}", 130)


@eval_app.command("stream")
def eval_stream(
    dataset: Annotated[str, typer.Option(help="Dataset inside data_dir, or a path.")] = "squad_dev.jsonl.gz",
    config: Config = None,
    questions: Annotated[int, typer.Option(min=1)] = 300,
    documents: Annotated[int | None, typer.Option(min=1, help="Documents in the bank; default all.")] = None,
    systems: Annotated[str, typer.Option(help="Of select, stack, rag_prefix, rag_bare, closed.")] = (
        "select,rag_prefix,rag_bare,closed"
    ),
    k: Annotated[int, typer.Option(min=1, help="Documents read per question.")] = 2,
    seed: Annotated[int, typer.Option()] = 0,
    lexical_weight: Annotated[
        float | None, typer.Option(min=0, help="Share of BM25 beside the cosine of the keys; 0 is the keys alone.")
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """The stream protocol: compress every document, then ask all questions against the full bank."""
    from cmt_core.data.qa import read_qa
    from cmt_core.evaluation.stream import evaluate_stream
    from cmt_core.hybrid import LEXICAL_WEIGHT
    from services.models import load_cmt

    settings = read_settings(config)
    scores = evaluate_stream(
        load_cmt(settings),
        read_qa(Path(dataset) if Path(dataset).exists() else settings.data_dir / dataset),
        systems=[name.strip() for name in systems.split(",") if name.strip()],
        questions=questions,
        documents=documents,
        k=k,
        seed=seed,
        lexical_weight=LEXICAL_WEIGHT if lexical_weight is None else lexical_weight,
        report=lambda line: progress.print(line, highlight=False),
    )
    rows = [dataclasses.asdict(score) for score in scores]
    if as_json is not None:
        as_json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    typer.echo("\n".join(json.dumps(row) for row in rows))


def _fail(line: str, code: int) -> None:
    progress.print(f"cmt: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

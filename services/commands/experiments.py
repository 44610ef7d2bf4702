"""`cmt eval own|retention|robustness|scaling|forgetting|bytes|ablation`: experiments on one checkpoint, or several."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from services.commands.evaluation_inputs import (
    SQUAD,
    Dataset,
    Experiment,
    K,
    Numbers,
    Out,
    Questions,
    Seed,
    Systems,
    floats,
    integers,
    names,
    say,
)
from services.commands.options import Config
from services.errors import SettingsError
from services.interrupts import temporary_folder
from services.terminal import echo

__all__ = ["register"]

_SHORT_TOKENS, _FREE_TOKENS = 24, 96


def register(app: typer.Typer) -> None:
    """Adds the experiments to `cmt eval`."""
    app.command("own")(own_command)
    app.command("ask")(ask_command)
    app.command("retention")(retention_command)
    app.command("robustness")(robustness_command)
    app.command("scaling")(scaling_command)
    app.command("forgetting")(forgetting_command)
    app.command("bytes")(bytes_command)
    app.command("ablation")(ablation_command)


def own_command(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints of one LLM, folders or `auto`; default the settings'.")
    ] = None,
    dataset: Dataset = SQUAD,
    config: Config = None,
    questions: Questions = 300,
    bits: Annotated[
        str | None, typer.Option(help="Bits a token to round the codes to, comma-separated; default the checkpoint's.")
    ] = None,
    seed: Seed = 0,
    closed: Annotated[bool, typer.Option("--closed", help="Also without any document.")] = False,
    free: Annotated[
        bool, typer.Option("--free", help="100 questions about the sample news that ask for a sentence or a list.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="Only rows dated YYYY-MM-DD or later.")] = None,
    out: Out = Path("results"),
) -> None:
    """Questions about their own documents, as text and as memories: the reading alone. It goes on where it was ended."""
    from cmt_core.evaluation.own_document import KeptAnswers, beside, own_documents
    from cmt_core.text.prompt import SHORT_ANSWERS
    from services.sample_news import free_questions

    asked = Experiment.of(config, "free questions" if free else dataset, questions, 0, seed)
    name = "free" if free else "own"
    kept = KeptAnswers(out / f"{name}_answers.jsonl")
    examples = free_questions() if free else asked.examples(since)
    instructions, longest = ("", _FREE_TOKENS) if free else (SHORT_ANSWERS, _SHORT_TOKENS)
    first, *others = checkpoints or [asked.settings.model.checkpoint]
    model = asked.model(first)
    models = itertools.chain([(first, model)], ((other, beside(model, Path(other))) for other in others))
    points = []
    for point in own_documents(
        models, examples, questions=questions, bits=integers(bits) if bits else (), seed=seed,
        max_new_tokens=longest, instructions=instructions, kept=kept, closed=closed, report=say,
    ):  # fmt: skip
        points.append(point)
        echo(json.dumps(dataclasses.asdict(point)))
    asked.write(out, name, points, "token_bytes", "contained" if free else "f1", "bytes a token")


def ask_command(
    config: Config = None,
    models: Annotated[
        str, typer.Option(help="Of cmt, cmt-memory, cmt-rag, cmt-hybrid, cmt-closed; comma-separated.")
    ] = "cmt,cmt-memory,cmt-rag,cmt-closed",
    leave_out: Annotated[
        int | None, typer.Option(min=2, help="Leave every n-th article out: its questions have no answer then.")
    ] = None,
    bridges: Annotated[
        bool, typer.Option("--bridges", help="Ask 30 questions instead that take two articles for one answer.")
    ] = False,
    updates: Annotated[
        bool, typer.Option("--updates", help="Ask after some 150 made updates instead, and count answers that are old.")
    ] = False,
    answers: Annotated[Path | None, typer.Option(help="Also write every answer here, one JSON a line.")] = None,
    out: Out = Path("results"),
) -> None:
    """150 questions as people ask them about the sample news, put to the service's engine; by kind."""
    from services.commands.ask_evaluation import ask_all, left_out, made_updates, models_of, points
    from services.commands.sample_bank import fill_bank, sample_items
    from services.sample_news import ask_questions, bridge_questions, read_questions

    asked = Experiment.of(config, "sample news", 0, 0, 0)
    model = asked.model()
    items, questions = sample_items(), bridge_questions() if bridges else ask_questions()
    stale: list[list[str]] = []
    if leave_out:
        items, questions = left_out(items, questions, leave_out)
    if updates:
        known = [(row["question"], row["answers"][-1], row["article_id"]) for row in read_questions()]
        made, questions, stale = made_updates(items, known)
        items = [*items, *made]
        say(f"{len(made)} updates of {len({one.id for one in made})} articles")
    found = []
    with temporary_folder("cmt-ask-") as name_of_folder:
        bank = Path(name_of_folder) / "bank"
        fill_bank(model, bank, items, lambda done: say(f"{done} of {len(items)} records") if done % 20 == 0 else None)
        if answers:
            answers.write_text("", encoding="utf-8")
        for name in models_of(models):
            judged = ask_all(asked.settings, model, bank, questions, name, stale)
            for point in points(name, judged):
                found.append(point)
                echo(json.dumps(dataclasses.asdict(point)))
            if answers:
                lines = [json.dumps({"model": name, **dataclasses.asdict(one)}, ensure_ascii=False) for one in judged]
                with answers.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
    asked.write(out, "ask", found, "", "", "")


def retention_command(
    dataset: Dataset = SQUAD,
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

    asked = Experiment.of(config, dataset, questions, k, seed)
    points = retention(
        asked.model(), asked.examples(), integers(sizes), systems=names(systems), questions=questions, k=k, seed=seed,
        report=say,
    )  # fmt: skip
    asked.write(out, "retention", points, "x", "f1", "documents in the bank")


def robustness_command(
    dataset: Dataset = SQUAD,
    config: Config = None,
    shares: Numbers = "0,0.2,0.4,0.6,0.8",
    relevant: Annotated[int, typer.Option(min=1, help="Documents that are asked about.")] = 200,
    filler: Annotated[
        str | None,
        typer.Option(
            help="JSONL file of articles (id, title, text) that nobody asks about; default the dataset's others."
        ),
    ] = None,
    questions: Questions = 200,
    systems: Systems = "select,rag_prefix",
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """A growing share of the bank has nothing to do with any question."""
    from cmt_core.data.articles import read_articles
    from cmt_core.evaluation.experiments import robustness

    asked = Experiment.of(config, dataset, questions, k, seed)
    wanted = floats(shares)
    if not all(0 <= share < 1 for share in wanted):
        raise SettingsError("--shares must be from 0 to below 1")
    more = list(read_articles(asked.path(filler))) if filler else []
    points = robustness(
        asked.model(), asked.examples(), wanted, relevant=relevant, filler=more, systems=names(systems),
        questions=questions, k=k, seed=seed, report=say,
    )  # fmt: skip
    asked.write(out, "robustness", points, "x", "f1", "irrelevant documents, %")


def scaling_command(
    dataset: Dataset = SQUAD,
    config: Config = None,
    filler: Annotated[
        str | None,
        typer.Option(
            help="JSONL file of articles (id, title, text) that follow the dataset's documents, each of their windows one."
        ),
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

    asked = Experiment.of(config, dataset, questions, k, seed)
    more = read_articles(asked.path(filler)) if filler else ()
    points = scaling(
        asked.model(), asked.examples(), integers(sizes), filler=more, systems=names(systems), questions=questions,
        k=k, seed=seed, report=say,
    )  # fmt: skip
    asked.write(out, "scaling", points, "x", "f1", "documents in the bank")


def forgetting_command(
    dataset: Dataset = SQUAD,
    config: Config = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of the stream.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 3,
    rates: Annotated[str, typer.Option(help="Learning rates of fine-tuning, comma-separated.")] = "2e-5,1e-4,5e-4",
    questions: Questions = 200,
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """Fine-tune the same LLM on the stream, and see what it learns and forgets beside a memory."""
    from cmt_core.evaluation.forgetting import forgetting
    from services.sample_news import sample_questions

    asked = Experiment.of(config, dataset, questions, k, seed)
    wanted = floats(rates)
    if min(wanted) <= 0:
        raise SettingsError("--rates must be above 0")
    other = list(dict.fromkeys(row.text for row in sample_questions()))
    points = forgetting(
        asked.model(), asked.examples(), other, documents=documents, questions=questions, epochs=epochs,
        rates=wanted, k=k, seed=seed, report=say,
    )  # fmt: skip
    asked.write(out, "forgetting", points, "epochs", "other_text_nats", "epochs")


def bytes_command(
    dataset: Dataset = SQUAD,
    config: Config = None,
    bits: Annotated[str, typer.Option(help="Bits a token, comma-separated; 0 keeps the code in float16.")] = (
        "0,2304,1152,576,288,144,64"
    ),
    documents: Annotated[int | None, typer.Option(min=1, help="Documents in the bank; default all.")] = None,
    questions: Questions = 300,
    k: K = 2,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """The same questions with memories of fewer and fewer bytes."""
    from cmt_core.evaluation.budget import budgets

    asked = Experiment.of(config, dataset, questions, k, seed)
    points = budgets(
        asked.model(), asked.examples(), integers(bits), questions=questions, documents=documents, k=k, seed=seed,
        report=say,
    )  # fmt: skip
    asked.write(out, "bytes", points, "window_kb", "f1", "kilobytes a window")


def ablation_command(
    variants: Annotated[
        list[str],
        typer.Argument(help="NAME=CHECKPOINT@K, the whole method first; K documents a question, or `all` of the bank."),
    ],
    dataset: Dataset = SQUAD,
    config: Config = None,
    documents: Annotated[int | None, typer.Option(min=1, help="Documents in the bank; default all.")] = None,
    questions: Questions = 300,
    seed: Seed = 0,
    out: Out = Path("results"),
) -> None:
    """The same questions to checkpoints that each leave out one part of the method."""
    from cmt_core.evaluation.ablation import Variant, ablation

    named = [_variant(text) for text in variants]
    asked = Experiment.of(config, dataset, questions, 0, seed)
    models = {folder: asked.model(folder) for _, folder, _ in named}
    points = ablation(
        [Variant(name, models[folder], k) for name, folder, k in named], asked.examples(), questions=questions,
        documents=documents, seed=seed, report=say,
    )  # fmt: skip
    asked.write(out, "ablation", points, "row", "f1", "row of the table")


def _variant(text: str) -> tuple[str, Path, int | None]:
    """Name, checkpoint and k (None for `all`) of NAME=CHECKPOINT@K; raises SettingsError."""
    name, _, rest = text.partition("=")
    folder, _, k = rest.rpartition("@")
    if not name or not folder or not (k == "all" or (k.isdigit() and int(k) > 0)):
        raise SettingsError(f"{text!r} is not NAME=CHECKPOINT@K, K a number of documents or all")
    return name, Path(folder), None if k == "all" else int(k)

"""The query service under load: time to first token, answers a second, and memory that stays flat.

    CMT_DATA_DIR=... python -m benchmarks.query [--minutes 10] [--documents 200]

1. compress articles of a question-answering set into a real LanceDB bank
2. serve it with Ray Serve, and ask by streaming HTTP with 1, 4 and 16 clients: memory, RAG and closed on the same LLM
   (query_clients.py)
3. answer the same questions with transformers' own `generate`, and through the engine without HTTP or Ray, one after the other
   (query_alone.py)
4. ask at 80% of what 16 clients got for `--minutes`, and watch the replica's memory
Prints every figure beside its bar, writes benchmarks/results/query.json, and ends with 1 when a bar is missed.
"""

from __future__ import annotations

# isort: off
import benchmarks.all_cores  # noqa: F401 - before torch
# isort: on

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.bars import machine
from benchmarks.cpu_kind import cpu_kind
from benchmarks.plots import plot_query
from benchmarks.query_alone import in_process, plain_loop, stock_model
from benchmarks.query_clients import MODES, Figure, console, figures_of, steady_load
from cmt_core.data.qa import QAExample, read_qa
from cmt_core.model import CMT
from services.bank.records import DocumentWrite, Position
from services.bank.schema import BankLayout
from services.bank.writer import BankWriter
from services.commands.encoding import chunks_of
from services.models import fetch_models, load_cmt
from services.query.ray_serve import app
from services.runtime import ray_session
from services.settings import Settings, load_settings

HERE = Path(__file__).parent
RESULT = HERE / "results" / "query.json"
PICTURE = HERE.parent / "docs" / "query-benchmark.svg"
TTFT_SHARE, SPEED_UP, GROWTH, HTTP_S = 0.2, 5.0, 0.05, 0.02
STEP_S = {"AMX": 0.022}  # of a running batch with one row, by the CPU's kind
_INSIDE = 12


def main(
    documents: Annotated[int, typer.Option(min=20, help="Articles in the bank.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of each client, at least 12 in all.")] = 4,
    minutes: Annotated[float, typer.Option(min=0, help="Length of the part at 80% load; 0 leaves it out.")] = 10.0,
    loop: Annotated[int, typer.Option(min=4, help="Questions of the plain loop.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Runs all parts and compares them with the bars."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(folder, device)
        examples = _examples(settings, documents, seed)
        fetch_models(settings.model, console)
        cmt = load_cmt(settings)
        passages = _fill(settings, cmt, examples)
        stock = stock_model(settings, cmt)
        plain = {f"{mode}_k{k}": plain_loop(cmt, stock, examples[:loop], passages, mode, k) for mode, k in MODES}
        del stock
        questions = [example.question for example in examples]
        inside = in_process(settings, cmt, questions[:_INSIDE])
        about = {"device": str(cmt.backbone.device), "dtype": str(cmt.backbone.dtype), "model_id": cmt.model_id}
        del cmt
        with ray_session(settings.ray):
            url = app.start(settings)
            figures = figures_of(url, questions, rounds)
            best = next(one for one in figures if (one.mode, one.k, one.clients) == ("memory", 1, 16))
            steady = steady_load(url, questions, 0.8 * best.answers_per_s, minutes) if minutes else None
            app.stop()
    bars = [*_bars(figures, plain, steady), *_inside_bars(figures, inside)]
    result = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "documents": documents,
        **about,
        "figures": [asdict(one) for one in figures],
        "plain_generate_answers_per_s": plain,
        "in_process_s": inside,
        "steady": steady,
        "bars": bars,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot_query(PICTURE, result)
    for bar in bars:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['name']}: {bar['figure']} (bar {bar['bar']})")
    raise typer.Exit(0 if all(bar["met"] for bar in bars) else 1)


def _settings(folder: str, device: str) -> Settings:
    from tests.integration.conftest import find_free_port

    gpus = 1.0 if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else 0.0
    return load_settings(
        bank__uri=f"{folder}/bank",
        model__device=device,
        serve__port=find_free_port(),
        serve__gpus=gpus,
        serve__min_score=-1.0,  # every question is to be answered: this measures speed
        serve__max_queued=256,
        serve__max_body_bytes=256 * 1024,
    )


def _examples(settings: Settings, documents: int, seed: int) -> list[QAExample]:
    """One question for each of so many articles, in random order."""
    by_document = {example.doc_id: example for example in read_qa(settings.data_dir / "squad_dev.jsonl.gz")}
    chosen = sorted(by_document.values(), key=lambda example: example.doc_id)
    random.Random(seed).shuffle(chosen)
    return chosen[:documents]


def _fill(settings: Settings, cmt: CMT, examples: Sequence[QAExample]) -> dict[str, str]:
    """Writes the articles' memories into the bank; gives each article's text."""
    console.print(f"compressing {len(examples)} articles")
    layout = BankLayout(cmt.model_id, cmt.d_key, cmt.memory_bytes)
    with BankWriter(settings.bank.uri, layout) as writer:
        for start in range(0, len(examples), 32):
            writer.commit([_write(cmt, one, start + i) for i, one in enumerate(examples[start : start + 32])])
    return {example.doc_id: example.text for example in examples}


def _write(cmt: CMT, example: QAExample, offset: int) -> DocumentWrite:
    chunks = tuple(chunks_of(cmt, cmt.windows(example.title, example.text)))
    now = datetime.now(UTC)
    return DocumentWrite(
        "default", example.doc_id, example.title, None, None, None, None, Position(0, 0, offset, now), chunks
    )


def _bars(
    figures: Sequence[Figure], plain: dict[str, float | None], steady: dict[str, Any] | None
) -> list[dict[str, Any]]:
    by_key = {(one.mode, one.k, one.clients): one for one in figures}
    share = by_key["memory", 4, 1].first_token_p50_s / by_key["rag", 4, 1].first_token_p50_s
    bars = [_bar("time to first token, memory / RAG at k=4, 1 client", round(share, 3), TTFT_SHARE, _at_most)]
    served = by_key["memory", 1, 16].answers_per_s
    for name, loop in (("RAG k=4", plain["rag_k4"]), ("RAG k=1", plain["rag_k1"])):
        assert loop is not None
        ratio = round(served / loop, 2)
        bars.append(_bar(f"answers/s, memory at 16 clients / plain generate loop ({name})", ratio, SPEED_UP, _at_least))
    if steady is not None:
        name = f"growth of the replica's memory in {steady['minutes']:g} minutes at 80% load"
        bars.append(_bar(name, steady["rss_growth"], GROWTH, _at_most))
        bars.append(_bar("questions refused at 80% load", steady["refused"], 0, _at_most))
    return bars


def _inside_bars(figures: Sequence[Figure], inside: dict[str, float]) -> list[dict[str, Any]]:
    alone = {f"{one.mode}_k{one.k}": one.first_token_p50_s for one in figures if one.clients == 1}
    bars = [
        _bar(f"first token over HTTP less in-process, {name}, s", round(seconds - inside[name], 4), HTTP_S, _at_most)
        for name, seconds in alone.items()
    ]
    kind = cpu_kind()
    if kind in STEP_S:
        bars.append(_bar(f"a step of one row ({kind}), s", inside["step"], STEP_S[kind], _at_most))
    return bars


def _bar(name: str, figure: float, bar: float, met: Callable[[float, float], bool]) -> dict[str, Any]:
    sign = "<=" if met is _at_most else ">="
    return {"name": name, "figure": figure, "bar": f"{sign} {bar:g}", "met": met(figure, bar)}


def _at_most(figure: float, bar: float) -> bool:
    return figure <= bar


def _at_least(figure: float, bar: float) -> bool:
    return figure >= bar


if __name__ == "__main__":
    typer.run(main)

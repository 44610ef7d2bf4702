"""Chooses what is relevant on data: how often questions with and without their article in the bank pass a threshold.

    CMT_DATA_DIR=... python -m benchmarks.relevance [--paragraphs 20] [--questions 500]

A third of a set's articles is left out whole. Questions about what is there should pass, questions about what is not, and
questions of another dataset, on subjects that the bank knows nothing of, should not. By the key's cosine alone, and by cosine
and proximity together (cmt_core/retrieval/evidence.py). Only the retriever is needed.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from cmt_core.data.qa import QAExample, read_qa
from cmt_core.llm.backbone import pick_device
from cmt_core.llm.model_source import resolve_model
from cmt_core.retrieval.evidence import evidence
from cmt_core.retrieval.hybrid import HybridIndex
from cmt_core.retrieval.retriever import Retriever
from services.settings import load_settings

RESULT = Path(__file__).parent / "results" / "relevance.json"
THRESHOLDS = [round(0.05 * step, 2) for step in range(4, 15)]
_READ = 4  # memories a question


def main(
    dataset: Annotated[str, typer.Option(help="Dataset inside data_dir.")] = "squad_dev.jsonl.gz",
    foreign: Annotated[str, typer.Option(help="Dataset with questions on other subjects.")] = "fairytaleqa.jsonl.gz",
    paragraphs: Annotated[int, typer.Option(min=2, help="Paragraphs of each article in the bank.")] = 20,
    questions: Annotated[int, typer.Option(min=20, help="Questions of each kind.")] = 500,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Prints, for every threshold, the shares of questions that pass, and writes them to benchmarks/results."""
    settings = load_settings()
    torch.set_num_threads(2)
    folder = resolve_model(settings.model.retriever, settings.model.cache_dir.expanduser(), print)
    retriever = Retriever(folder, pick_device("cpu"))
    rng = random.Random(seed)
    examples = list(read_qa(settings.data_dir / dataset))
    others = list(read_qa(settings.data_dir / foreign))
    there, missing, texts = _parted(examples, paragraphs, rng)
    rng.shuffle(others)
    keys = retriever.document_keys(list(texts.values()))
    index = HybridIndex(list(texts.values()), keys.vectors, tokens=keys.tokens)
    asked = {"answerable": there[:questions], "missing": missing[:questions], "foreign": others[:questions]}
    seen = {name: _judged(index, list(texts.items()), retriever, own) for name, own in asked.items()}
    seen["found_first"] = [one for one in seen["answerable"] if one[2]]
    rows = [
        {"by": by, "threshold": threshold}
        | {
            f"{name}_passed": round(sum(one[place] >= threshold for one in own) / len(own), 4)
            for name, own in seen.items()
        }
        for place, by in enumerate(("cosine", "cosine + proximity"))
        for threshold in THRESHOLDS
    ]
    for row in rows:
        print(json.dumps(row))
    RESULT.parent.mkdir(exist_ok=True)
    about = {"dataset": dataset, "foreign": foreign, "windows": len(texts), "seed": seed}
    about |= {"questions": {name: len(own) for name, own in seen.items()}}
    RESULT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def _parted(
    examples: Sequence[QAExample], paragraphs: int, rng: random.Random
) -> tuple[list[QAExample], list[QAExample], dict[str, str]]:
    """Questions about articles that stay, about those that are left out, and the texts that stay by document."""
    articles: dict[str, dict[str, QAExample]] = defaultdict(dict)
    for example in examples:
        articles[example.title][example.doc_id] = example
    titles = sorted(articles)
    rng.shuffle(titles)
    gone = set(titles[: len(titles) // 3])
    kept: dict[str, str] = {}
    for title in titles:
        ids = sorted(articles[title])
        rng.shuffle(ids)
        kept.update(dict.fromkeys(ids[:paragraphs], title))
    there = [example for example in examples if example.doc_id in kept and example.title not in gone]
    missing = [example for example in examples if example.doc_id in kept and example.title in gone]
    rng.shuffle(there)
    rng.shuffle(missing)
    texts = {doc: f"{title}\n{articles[title][doc].text}" for doc, title in kept.items() if title not in gone}
    return there, missing, texts


def _judged(
    index: HybridIndex, texts: Sequence[tuple[str, str]], retriever: Retriever, asked: Sequence[QAExample]
) -> list[tuple[float, float, bool]]:
    """Of each question the best cosine, the best evidence, and whether its own document was found first."""
    questions = [example.question for example in asked]
    judged = []
    keys = retriever.query_keys(questions)
    found = index.nearest(questions, keys.vectors, _READ, tokens=keys.tokens)
    for example, hits in zip(asked, found, strict=True):
        cosines = [hit.cosine for hit in hits]
        both = evidence([example.question], [texts[hit.row][1] for hit in hits], cosines)
        judged.append((max(cosines), max(both), texts[hits[0].row][0] == example.doc_id))
    return judged


if __name__ == "__main__":
    typer.run(main)

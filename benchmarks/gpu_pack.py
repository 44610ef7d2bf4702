"""What benchmarks/gpu.py needs on a machine without a network, in parts of limited size.

    python -m benchmarks.gpu_pack pack luggage --part-mib 40      # here: luggage/part-1, luggage/part-2, ...
    python -m benchmarks.gpu_pack unpack ready luggage/part-*     # there: ready/llm, ready/qa.jsonl.gz, ready/keys.npy

The LLM's folder, the openly licensed training questions, and the keys of their windows, so that no encoder is needed there. All
of it is one LZMA stream, cut into numbered files with their digests in their names: a part that is damaged or missing is told.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["joined", "main", "split"]

_COPY_BYTES = 2**20
_PRESET = 2  # half an hour's patience would save 5%


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("target", type=Path)
    pack.add_argument("--part-mib", type=float, default=40.0)
    pack.add_argument("--llm", default="pypi:smollm2-135m-instruct")
    pack.add_argument("--retriever", default="pypi:all-minilm-l6-v2")
    pack.add_argument("--data", type=Path, default=Path(os.environ.get("CMT_DATA_DIR", ".")) / "qa_train.jsonl.gz")
    unpack = commands.add_parser("unpack")
    unpack.add_argument("target", type=Path)
    unpack.add_argument("parts", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    if chosen.command == "unpack":
        joined(chosen.parts, chosen.target)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        _gather(Path(scratch), chosen)
        for part in split(Path(scratch), chosen.target, int(chosen.part_mib * 2**20)):
            print(f"{part} {part.stat().st_size / 2**20:.1f} MiB")
    return 0


def split(folder: Path, target: Path, part_bytes: int) -> list[Path]:
    """Writes all files of `folder` as parts of at most `part_bytes` into the new folder `target`."""
    target.mkdir(parents=True)
    with tempfile.TemporaryFile() as whole:
        with lzma.open(whole, "wb", preset=_PRESET) as squeezed, tarfile.open(fileobj=squeezed, mode="w|") as archive:
            for path in sorted(folder.rglob("*")):
                archive.add(path, str(path.relative_to(folder)), recursive=False)
        whole.seek(0)
        cuts = list(_cuts(whole, part_bytes))
    parts = []
    for number, cut in enumerate(cuts, 1):
        parts.append(target / f"part-{number}-of-{len(cuts)}-{hashlib.sha256(cut).hexdigest()[:12]}")
        parts[-1].write_bytes(cut)
    return parts


def joined(parts: Sequence[Path], target: Path) -> None:
    """Unpacks all parts, in any order, into `target`; exits with one line when one is missing or damaged."""
    found: dict[int, Path] = {}
    wanted = 0
    for part in parts:
        _, number, _, total, digest = part.name.split("-")
        if hashlib.sha256(part.read_bytes()).hexdigest()[:12] != digest:
            raise SystemExit(f"{part} is damaged: bring it again")
        found[int(number)], wanted = part, int(total)
    if missing := [str(number) for number in range(1, wanted + 1) if number not in found]:
        raise SystemExit(f"of {wanted} parts, {', '.join(missing)} is missing")
    with tempfile.TemporaryFile() as whole:
        for number in sorted(found):
            with found[number].open("rb") as part_file:
                shutil.copyfileobj(part_file, whole, _COPY_BYTES)
        whole.seek(0)
        with lzma.open(whole) as squeezed, tarfile.open(fileobj=squeezed, mode="r|") as archive:
            archive.extractall(target, filter="data")


def _cuts(file: IO[bytes], size: int) -> Iterator[bytes]:
    while cut := file.read(size):
        yield cut


def _gather(folder: Path, chosen: Any) -> None:
    """The files that travel."""
    import torch

    from benchmarks.gpu import gpu_arguments
    from benchmarks.gpu_training import configuration
    from cmt_core.llm.backbone import Backbone
    from cmt_core.llm.model_source import resolve_model
    from cmt_core.retrieval.retriever import Retriever
    from cmt_core.shipped import CACHE_DIR
    from cmt_core.training.recipe import Recipe
    from cmt_core.training.recipe_config import TRAINED_MEMORY

    cache, cpu = CACHE_DIR.expanduser(), torch.device("cpu")
    llm = resolve_model(chosen.llm, cache, print)
    shutil.copytree(llm, folder / "llm")
    questions = folder / "qa.jsonl.gz"
    _open_questions(chosen.data, questions)
    plan = gpu_arguments([])
    recipe = Recipe(
        Backbone.load(llm, cpu),
        Retriever(resolve_model(chosen.retriever, cache, print), cpu),
        TRAINED_MEMORY,
        configuration(plan.steps, plan.groups, plan.code_lr),
        folder,
        lambda *unused: None,
    )
    print(f"{recipe.prepare(questions)} windows have their keys")


def _open_questions(source: Path, target: Path) -> None:
    """The rows of openly licensed sources, as they are."""
    from cmt_core.data.training_mix import OPEN_SOURCES

    with gzip.open(source, "rt", encoding="utf-8") as rows, gzip.open(target, "wt", encoding="utf-8") as kept:
        for row in rows:
            if json.loads(row)["source"] in OPEN_SOURCES:
                kept.write(row)


if __name__ == "__main__":
    raise SystemExit(main())

"""benchmarks/gpu.py, rehearsed: its figures and limits, training that goes on, luggage for a machine without a network."""

from __future__ import annotations

import ast
import copy
import gzip
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu import Plan, gpu_arguments, main
from benchmarks.gpu_pack import joined, split
from benchmarks.gpu_speed import measured
from benchmarks.gpu_training import trained
from cmt_core.checkpoint import Checkpoint
from cmt_core.errors import DataError

if TYPE_CHECKING:
    from tests.unit.conftest import TinyFolders

ROOT = Path(__file__).parents[2]


@pytest.fixture
def questions(tmp_path: Path, corpus: tuple[str, ...]) -> Path:
    """Sixteen documents of an open source, each with a question that its text answers."""
    path = tmp_path / "qa_train.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number in range(16):
            text = f"Note {number}. {corpus[number % 3]}"
            row = {"source": "squad1.1-train-sample", "doc_id": f"d{number}", "title": "", "text": text}
            file.write(json.dumps(row | {"question": "What is told?", "answers": [text.split()[3]]}) + "\n")
    return path


def plan(folders: TinyFolders, tmp_path: Path, questions: Path, **values: Any) -> Plan:
    """A rehearsal's plan."""
    chosen = gpu_arguments(["--rehearse", "--device", "cpu", "--run", str(tmp_path / "run"), "--data", str(questions)])
    parts = {"llm": str(folders.llm), "checkpoint": str(folders.checkpoint), "retriever": str(folders.retriever)}
    return Plan(**{name: getattr(chosen, name) for name in Plan.__slots__} | parts | values)


def test_every_speed_is_measured(tiny_folders: TinyFolders, tmp_path: Path, questions: Path) -> None:
    kept: list[dict[str, Any]] = []
    measured(plan(tiny_folders, tmp_path, questions), lambda figures: kept.append(copy.deepcopy(figures)))
    assert "engine" not in kept[1]  # what is found is kept at once
    speed = kept[-1]
    assert speed["compressor"]["windows_per_s"] > 0
    assert speed["compressor"]["share_of_peak"] > 0
    assert set(speed["decoding"]) == {"ms_1", "ms_4", "ms_16"}
    asked = {(one["reads"], one["k"], one["in_doubt"], one["clients"]) for one in speed["engine"]}
    modes = {("memory", 1, False), ("memory", 4, False), ("memory", 4, True), ("rag", 1, False), ("rag", 4, False)}
    assert asked == {(*mode, clients) for mode in modes for clients in (1, 2)}
    for one in speed["engine"]:
        assert one["answers"] == (4 if one["clients"] == 2 else 1)
        assert one["first_token_ms"] > 0
        assert one["answers_per_s"] > 0


def test_it_imports_only_what_a_gpu_machine_has() -> None:
    """Module by module, as far as they are imported when they are loaded."""
    modules = ["benchmarks.gpu", "benchmarks.gpu_speed", "benchmarks.gpu_training", "benchmarks.gpu_pack"]
    foreign: set[str] = set()
    for module in modules:
        for name in imported(module):
            if name.split(".")[0] in ("benchmarks", "cmt_core"):
                modules += [] if name in modules else [name]
            else:
                foreign.add(name.split(".")[0])
    ours = {"torch", "transformers", "safetensors", "numpy"}
    assert foreign - sys.stdlib_module_names == ours | {"tokenizers", "jinja2"}  # transformers' and torch's own


def imported(module: str) -> list[str]:
    """The modules that one imports outside of its functions, and where those stand; none for what is no module of ours."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = [module.rpartition(".")[0]] if "." in module else []
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name for name in below if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()]
    return [name for name in names if name]


def test_a_part_that_fails_or_is_too_slow_says_why(tmp_path: Path) -> None:
    out, missing = tmp_path / "gpu.json", tmp_path / "none"
    assert main(["--rehearse", "--limit-s", "21", "--only", "speed", "--llm", str(missing), "--out", str(out)]) == 1
    error = json.loads(out.read_text(encoding="utf-8"))["speed"]["error"]
    assert (
        f"{missing} does not exist" in error or "was stopped after" in error
    )  # importing torch alone can take as long


def test_training_stops_in_time_with_a_checkpoint_and_goes_on(
    tiny_folders: TinyFolders, tmp_path: Path, questions: Path
) -> None:
    kept: list[dict[str, Any]] = []
    trained(plan(tiny_folders, tmp_path, questions, minutes=0.0), kept.append)
    assert kept[-1]["steps_done"] == 1
    assert kept[-1]["finished"] is False
    begun = Checkpoint.load(tmp_path / "run" / "checkpoint")
    trained(plan(tiny_folders, tmp_path, questions, retriever="none"), kept.append)  # its keys are in the run's folder
    assert (kept[-1]["steps_done"], kept[-1]["steps_now"], kept[-1]["finished"]) == (4, 3, True)
    assert len(kept[-1]["held_out"]) == 3
    ended = Checkpoint.load(tmp_path / "run" / "checkpoint")
    assert begun.training["finished"] is False
    assert "finished" not in ended.training
    assert begun.code is not None
    assert ended.code is not None
    assert not begun.code.encoder.equal(ended.code.encoder)


def test_training_without_an_encoder_or_keys_says_what_to_bring(
    tiny_folders: TinyFolders, tmp_path: Path, questions: Path
) -> None:
    with pytest.raises(DataError, match=r"put keys\.npy into the run's folder"):
        trained(plan(tiny_folders, tmp_path, questions, retriever="none"), lambda figures: None)


def test_what_no_time_is_left_for_is_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--rehearse", "--limit-s", "1", "--out", str(out), "--llm", str(tmp_path)]) == 1
    made = json.loads(out.read_text(encoding="utf-8"))
    assert {made[part]["error"] for part in ("speed", "fused", "training")} == {"no time was left"}


def test_luggage_arrives_whole_and_a_lost_or_damaged_part_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "weights").write_bytes(os.urandom(50_000))
    (folder / "keys.npy").write_bytes(b"keys")
    parts = split(folder, tmp_path / "luggage", 20_000)
    assert len(parts) == 3
    assert all(part.stat().st_size <= 20_000 for part in parts)
    joined(parts[::-1], tmp_path / "there")
    for name in ("llm/weights", "keys.npy"):
        assert (tmp_path / "there" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(SystemExit, match="2 is missing"):
        joined([parts[0], parts[2]], tmp_path / "lost")
    parts[1].write_bytes(b"other")
    with pytest.raises(SystemExit, match="is damaged"):
        joined(parts, tmp_path / "damaged")

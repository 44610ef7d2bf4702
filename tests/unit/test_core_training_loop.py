"""The loop's levers: accumulation, several processes, held-out loss, and the log with its plot."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmt_core.errors import ConfigError, DataError, MissingPackageError
from cmt_core.training.loop import LoopConfig, run_stage
from cmt_core.training.overrides import parse_overrides
from cmt_core.training.plot import plot_run, read_log
from cmt_core.training.recipe import RecipeConfig


class Fit(nn.Module):
    """Fits weights to the numbers of its batches; a batch is its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        target = torch.tensor([float(batch), 1.0])
        loss = (self.weight - target).square().sum()
        return loss, {"answer_k1": loss.item(), f"only_{batch % 2}": float(batch)}


def fit(folder: Path, steps: int, held_out: Any = (), **options: Any) -> tuple[Fit, list[dict[str, float]]]:
    stage, rows = Fit(), []
    config = LoopConfig(steps, warmup_steps=1, clip=1e9, **options)
    groups = [{"params": [stage.weight], "lr": 0.1, "weight_decay": 0.0}]
    feed: Any = lambda number, rng: number  # noqa: E731
    run_stage(stage, groups, feed, config, folder, lambda step, figures: rows.append(dict(figures)), held_out)
    return stage, rows


def test_accumulated_gradient_is_the_mean_over_consecutive_batches(tmp_path: Path) -> None:
    stage, rows = fit(tmp_path, 1, accumulate=4)
    assert stage.weight.grad is not None
    assert stage.weight.grad.tolist() == pytest.approx([-2 * (0 + 1 + 2 + 3) / 4, -2.0])
    assert rows[0]["loss"] == pytest.approx(sum(n**2 + 1 for n in range(4)) / 4)
    assert (rows[0]["only_0"], rows[0]["only_1"]) == (1.0, 2.0)  # the mean over the batches that have it


def test_held_out_loss_is_taken_when_asked_for_and_at_the_end(tmp_path: Path) -> None:
    stage, rows = fit(tmp_path, 5, held_out=[10, 20], evaluate_every_steps=2)
    assert [step for step, row in enumerate(rows) if "held_out" in row] == [1, 3, 4]
    expected = sum(stage.loss(batch)[0].item() for batch in (10, 20)) / 2
    assert rows[-1]["held_out"] == pytest.approx(expected)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("held_out") for row in logged] == [
        round(row["held_out"], 6) if "held_out" in row else None for row in rows
    ]


WORKER = """
import sys, pathlib, torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from tests.unit.test_core_training_loop import Fit
from cmt_core.training.loop import LoopConfig, run_stage
rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
stage = Fit()
with torch.no_grad():
    stage.weight += rank  # every process takes the first one's start
reports = []
groups = [{"params": [stage.weight], "lr": 0.1, "weight_decay": 0.0}]
config = LoopConfig(6, warmup_steps=1, clip=1e9)
run_stage(stage, groups, lambda n, rng: n, config, folder / "run", lambda step, f: reports.append(step))
print(rank, len(reports), stage.weight.tolist())
"""


def test_two_processes_train_as_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path), root], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].split(" ", 2) for process in processes]
    one, _ = fit(tmp_path / "one", 6, accumulate=2)
    for rank, (number, reports, weight) in enumerate(printed):
        assert (int(number), int(reports)) == (rank, 6 if rank == 0 else 0)
        assert json.loads(weight) == pytest.approx(one.weight.tolist(), abs=1e-6)
    assert len((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_accumulating_run_goes_on_with_the_batches_it_would_have_seen(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", 6, accumulate=3)
    stage = Fit()
    groups = [{"params": [stage.weight], "lr": 0.1, "weight_decay": 0.0}]
    config = LoopConfig(6, warmup_steps=1, clip=1e9, accumulate=3, save_every_steps=1)

    def die(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise RuntimeError("the power is gone")

    feed: Any = lambda number, rng: number  # noqa: E731
    with pytest.raises(RuntimeError):
        run_stage(stage, groups, feed, config, tmp_path / "broken", die)
    again = Fit()
    groups = [{"params": [again.weight], "lr": 0.1, "weight_decay": 0.0}]
    run_stage(again, groups, feed, config, tmp_path / "broken", lambda *_: None)
    assert torch.equal(again.weight, whole.weight)
    steps = [int(row["step"]) for row in read_log(tmp_path / "broken" / "log.jsonl")]
    assert steps == list(range(6))  # the step that was trained twice is counted once


def test_plot_shows_every_stage_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for stage in ("prefix", "soft"):
        fit(tmp_path / stage, 3, held_out=[1], evaluate_every_steps=1)
    plot_run(tmp_path, tmp_path / "losses.png")
    both = (tmp_path / "losses.png").read_bytes()
    assert both.startswith(b"\x89PNG")
    (tmp_path / "soft" / "log.jsonl").unlink()
    plot_run(tmp_path, tmp_path / "one.png")
    width = [int.from_bytes(data[16:20], "big") for data in (both, (tmp_path / "one.png").read_bytes())]
    assert width[0] > 1.5 * width[1]


def test_plot_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'cmt-memory\[plot\]'"):
        plot_run(tmp_path, tmp_path / "losses.png")


def test_damaged_log_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 1}\n{"ste', encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.jsonl:2: not a line of a training log"):
        read_log(tmp_path / "log.jsonl")
    pytest.importorskip("matplotlib")
    with pytest.raises(DataError, match="has no log of any stage"):
        plot_run(tmp_path, tmp_path / "losses.png")


def test_overrides_are_typed_as_their_fields() -> None:
    (values,) = parse_overrides(["accumulate=4", "soft_lr=1e-3", "k_cycle=1,4"], RecipeConfig())
    assert values == {"accumulate": 4, "soft_lr": 0.001, "k_cycle": (1, 4)}
    for pair, complaint in (
        ("accumulate", "is not KEY=VALUE"),
        ("accumulte=4", "unknown configuration key 'accumulte'"),
        ("accumulate=many", "accumulate must be of type int, not 'many'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            parse_overrides([pair], RecipeConfig())


def test_batches_are_drawn_by_number_and_seed(tmp_path: Path) -> None:
    drawn: list[tuple[int, float]] = []

    def feed(number: int, rng: random.Random) -> Any:
        drawn.append((number, rng.random()))
        return number

    for _ in range(2):
        stage = Fit()
        config = LoopConfig(2, accumulate=2, seed=7)
        folder = tmp_path / str(len(drawn))
        run_stage(stage, [{"params": [stage.weight], "lr": 0.1}], feed, config, folder, lambda *_: None)
    assert drawn[:4] == drawn[4:]
    assert [number for number, _ in drawn[:4]] == [0, 1, 2, 3]

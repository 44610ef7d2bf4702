"""Training on several workers of a Ray cluster: Ray Train sets torch.distributed up, cmt_core trains as if alone.

The run's folder must be one that all workers see. A stopped or failed run goes on from its last state when started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.errors import ServiceError
from services.runtime import ray_session
from services.settings import RaySettings
from services.terminal import Terminal

__all__ = ["train_on_workers"]


def train_on_workers(arguments: dict[str, Any], workers: int, settings: RaySettings, console: Terminal) -> bool:
    """Runs `train_checkpoint(**arguments)` in `workers` processes; true when the checkpoint was written.

    Raises ServiceError in one line when Ray Train is not installed or a worker failed.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise ServiceError("several workers need Ray Train: pip install 'cmt-memory[train]'") from None
    import torch

    with ray_session(settings):
        console.print(f"{workers} workers train in {arguments['run']}; log.jsonl there shows how far")
        trainer = TorchTrainer(
            _train_here,
            train_loop_config=arguments,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(name="workers", storage_path=str(Path(arguments["run"]) / "ray")),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 Ray wraps whatever a worker raised in classes of its own
            raise ServiceError(f"training failed: {_cause(error)}") from None
    return (Path(arguments["output"]) / "config.json").exists()


def _train_here(arguments: dict[str, Any]) -> None:
    """One worker's part."""
    from ray.train.torch import get_device

    from cmt_core.training.command import train_checkpoint

    train_checkpoint(**(arguments | {"device": str(get_device())}))


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

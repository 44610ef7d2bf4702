"""Options that several commands share, and how a command reads its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.logs import set_up_logging
from services.terminal import Terminal

if TYPE_CHECKING:
    from services.settings import Settings

__all__ = ["Bank", "Bootstrap", "Config", "RayAddress", "Topic", "progress", "read_settings"]

progress = Terminal(stderr=True)

Config = Annotated[Path | None, typer.Option("--config", help="Settings file; default ./cmt.yaml where there is one.")]
Topic = Annotated[str | None, typer.Option(help="Kafka topic with the documents.")]
Bootstrap = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Kafka brokers, host:port[,host:port]; default: the one of `cmt ingest`."),
]
Bank = Annotated[str | None, typer.Option("--bank", help="Folder or s3:// address of the bank.")]
RayAddress = Annotated[str | None, typer.Option("--ray", help="Ray cluster: local, auto, or ray://host:port.")]


def read_settings(config: Path | None, **flags: Any) -> Settings:
    """The effective settings; sets the log level. Raises SettingsError."""
    from services.settings import load_settings

    settings = load_settings(config, **flags)
    set_up_logging(settings.log_level)
    return settings

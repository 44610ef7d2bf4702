"""`cmt serve` and `cmt serve reload`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.terminal import Terminal

if TYPE_CHECKING:
    from services.settings import Settings

__all__ = ["serve_app"]

Config = Annotated[Path | None, typer.Option("--config", help="Settings file; default ./cmt.yaml where there is one.")]
Bank = Annotated[str | None, typer.Option("--bank", help="Folder or s3:// address of the bank.")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="`default`, or a checkpoint's folder.")]
Port = Annotated[int | None, typer.Option(help="Port of the query service.")]
RayAddress = Annotated[str | None, typer.Option("--ray", help="Ray cluster: local, auto, or ray://host:port.")]


def serve_app(load: Callable[..., Settings], console: Terminal) -> typer.Typer:
    """The commands; `load(config, **flags)` gives the settings."""
    app = typer.Typer(help="Answer questions over HTTP from the latest bank, until Ctrl-C.")

    @app.callback(invoke_without_command=True)
    def serve(
        context: typer.Context,
        config: Config = None,
        bank: Bank = None,
        checkpoint: Checkpoint = None,
        host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
        port: Port = None,
        ray: RayAddress = None,
        allow_anonymous: Annotated[
            bool, typer.Option("--allow-anonymous", help="Listen beyond loopback without API keys.")
        ] = False,
    ) -> None:
        """Answer questions over HTTP from the latest bank, until Ctrl-C."""
        if context.invoked_subcommand is not None:
            return
        settings = load(
            config,
            bank__uri=bank,
            model__checkpoint=checkpoint,
            serve__host=host,
            serve__port=port,
            serve__allow_anonymous=allow_anonymous or None,
            ray__address=ray,
        )
        console.print("starting the query service")
        from services.query.ray_serve.run import run_serve

        run_serve(settings, console)

    @app.command()
    def reload(
        config: Config = None,
        bank: Bank = None,
        checkpoint: Checkpoint = None,
        port: Port = None,
        ray: RayAddress = None,
    ) -> None:
        """Switch the running service to the settings' checkpoint and bank, without dropping a request."""
        settings = load(config, bank__uri=bank, model__checkpoint=checkpoint, serve__port=port, ray__address=ray)
        from services.query.ray_serve.session_note import join_session

        address = join_session(settings)
        from services.query.ray_serve.reload import run_reload  # it loads Ray, which reads its environment then

        run_reload(settings, address, console)

    return app

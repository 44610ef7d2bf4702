"""The query service for a Serve config file, as `serve deploy` and KubeRay's RayService take it.

    applications: [{name: cmt, import_path: "services.query.ray_serve.serve_app:application", route_prefix: /}]

The settings come from the environment and file of the node where Serve builds the application, as for every command.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ImportString

from services.query.engine.ports import ModelFactory
from services.query.gateway.addresses import require_auth_beyond_loopback
from services.query.ray_serve.app import build_app, open_bank
from services.settings import load_settings

__all__ = ["Arguments", "application"]


class Arguments(BaseModel):
    """`args` of the Serve config: who loads the model (`module:function`)."""

    model_config = ConfigDict(extra="forbid")

    model_factory: ImportString[Any] = Field("services.models:load_answering", validate_default=True)


def application(args: dict[str, str]) -> Any:
    """The Serve application of the effective settings; `args` are `Arguments`.

    Raises SettingsError, also when strangers could ask without a key, and ValidationError for unknown arguments.
    """
    chosen = Arguments.model_validate(args)
    settings = load_settings()
    require_auth_beyond_loopback(settings.serve)
    return build_app(settings, cast(ModelFactory, chosen.model_factory), open_bank)

"""The application that a Serve config file names, as far as no Ray is needed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.errors import SettingsError
from services.models import load_answering
from services.query.ray_serve.serve_app import application


def test_strangers_are_kept_out_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMT_SERVE__HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match=r"serve\.api_keys is empty"):
        application({})


@pytest.mark.parametrize(
    "args", [{"model_factry": "services.testing.lexical:load_lexical"}, {"model_factory": "no.such:thing"}]
)
def test_a_mistake_in_the_arguments_is_named(args: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"model_fact(o)?ry"):
        application(args)


def test_the_model_may_be_another() -> None:
    built = application({"model_factory": "services.testing.lexical:load_lexical"})
    engine = built._bound_deployment.init_args[1]._bound_deployment
    assert engine.init_args[1].__name__ == "load_lexical"


def test_without_arguments_it_is_the_models_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the chart's Serve config: the default is imported, too, not handed on as its name."""
    monkeypatch.setenv("CMT_SERVE__HOST", "127.0.0.1")
    engine = application({})._bound_deployment.init_args[1]._bound_deployment
    assert engine.init_args[1] is load_answering

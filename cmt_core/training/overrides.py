"""Sets fields of a configuration from KEY=VALUE texts, as a command line gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from cmt_core.errors import ConfigError

__all__ = ["parse_overrides"]


def parse_overrides(pairs: Iterable[str], *defaults: Any) -> list[dict[str, Any]]:
    """The values for each of the dataclass instances `defaults`, typed as their fields are now.

    Raises ConfigError for a key that none of them has, and for a value of another type.
    """
    found: list[dict[str, Any]] = [{} for _ in defaults]
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not KEY=VALUE")
        owner = next((i for i, one in enumerate(defaults) if key in _names(one)), None)
        if owner is None:
            raise ConfigError(f"unknown configuration key {key!r}")
        found[owner][key] = _typed(key, text, getattr(defaults[owner], key))
    return found


def _names(instance: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(instance)}


def _typed(key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split(","))
        return type(default)(text)
    except ValueError:
        raise ConfigError(f"{key} must be of type {type(default).__name__}, not {text!r}") from None

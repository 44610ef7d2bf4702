"""Where settings come from: the environment, a YAML file, and the command line's flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource

from services.errors import SettingsError

__all__ = ["CONFIG_VARIABLE", "Environment", "File", "Flags", "nested", "read_file"]

CONFIG_VARIABLE = "CMT_CONFIG"  # names the settings file


class Environment(EnvSettingsSource):
    """CMT_... variables; one that holds a group as JSON is read before those of its single keys, which win."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        """By name, since pydantic takes them in the environment's order, and a shell changes that."""
        return dict(sorted(super()._load_env_vars().items()))


class _Layer(PydanticBaseSettingsSource):
    """A settings source whose values `load_settings` hands over."""

    values: dict[str, Any] = {}  # noqa: RUF012

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.values


class Flags(_Layer):
    """The command line's flags."""

    values: dict[str, Any] = {}  # noqa: RUF012


class File(_Layer):
    """The settings file."""

    values: dict[str, Any] = {}  # noqa: RUF012


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises SettingsError with one line."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"settings file {path.absolute()} does not exist (--config, {CONFIG_VARIABLE})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} can't be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise SettingsError(
            f"settings file {path}{where}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"settings file {path}: expected keys and values, found a {type(loaded).__name__}")
    return loaded


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys with `__` for the dot as nested dictionaries."""
    whole: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split("__")
        target = whole
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
    return whole

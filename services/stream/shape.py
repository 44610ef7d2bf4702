"""The shape of a topic's records, as the settings describe it: where another producer keeps what a document needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.errors import SettingsError
from services.settings import KafkaSettings
from services.stream.change_events import deletions, ids_in_keys, with_rows_before
from services.stream.json_tree import ABSENT, JsonTree
from services.stream.record import FIELDS
from services.stream.times import EpochUnit

__all__ = ["METADATA_PREFIX", "RecordShape"]

METADATA_PREFIX = "metadata."
_KEY_FIELDS = ("id", "namespace")
_ANYTHING = "*"


Paths = Mapping[str, tuple[str, ...]]

_UNWRAPPED_DELETED: Paths = {"__deleted": ("true",)}  # as change data capture marks rows that it has unwrapped


@dataclass(frozen=True, slots=True)
class RecordShape:
    """How records are read; the defaults read the document record itself.

    `fields` has the paths (see JsonTree) of a document's fields in the value, `key_fields` of id and namespace in a JSON
    key, which may be a plain id all the same where `plain_keys` says so; of several paths the first that leads to something
    counts. `deleted_if` has the paths and texts that make a value a deletion.
    """

    fields: Paths = field(default_factory=dict)
    id_from: Literal["value", "key"] = "value"
    key_fields: Paths = field(default_factory=dict)
    plain_keys: bool = False
    key_pattern: re.Pattern[str] | None = None
    deleted_if: Paths = field(default_factory=lambda: _UNWRAPPED_DELETED)
    epoch_unit: EpochUnit = "auto"
    max_bytes: int = 1_000_000

    @classmethod
    def of(cls, settings: KafkaSettings) -> RecordShape:
        """The shape that settings describe, with what follows from them (change_events.py). Raises SettingsError in one line."""
        fields = _checked("field_map", settings.field_map, FIELDS)
        key_fields = _checked("key_map", settings.key_map, _KEY_FIELDS)
        pattern, plain = _pattern(settings), settings.id_from == "value" and not settings.key_map
        guessed = ids_in_keys(fields) if plain and pattern is None else ()
        return cls(
            fields=with_rows_before(fields),
            id_from=settings.id_from,
            key_fields={"id": guessed} if guessed else key_fields,
            plain_keys=bool(guessed),
            key_pattern=pattern,
            deleted_if=deletions(fields) | _conditions(settings),
            epoch_unit=settings.epoch_unit,
            max_bytes=settings.max_record_bytes,
        )

    def deletes(self, tree: JsonTree) -> bool:
        """Whether a value says that its document is deleted."""
        for path, wanted in self.deleted_if.items():
            found = tree.at(path)
            if found is ABSENT:
                continue
            if _ANYTHING in wanted and found is not None and found is not False:
                return True
            if not isinstance(found, dict | list) and _as_text(found) in wanted:
                return True
        return False


def _checked(setting: str, paths: Mapping[str, str | list[str]], known: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    checked: dict[str, tuple[str, ...]] = {}
    for name, given in paths.items():
        if name not in known and not (name.startswith(METADATA_PREFIX) and METADATA_PREFIX[:-1] in known):
            raise SettingsError(f"settings: kafka.{setting}: there is no field {name!r} (only {', '.join(known)})")
        checked[name] = (given,) if isinstance(given, str) else tuple(given)
        if not checked[name]:
            raise SettingsError(f"settings: kafka.{setting}: {name}: no path is given")
        for path in checked[name]:
            _check_path(f"{setting}: {name}", path)
    if setting == "key_map" and checked and "id" not in checked:
        raise SettingsError("settings: kafka.key_map: the path of the id is missing: {id: PATH}")
    return checked


def _conditions(settings: KafkaSettings) -> dict[str, tuple[str, ...]]:
    conditions = dict(_UNWRAPPED_DELETED)
    for path, given in settings.deleted_if.items():
        _check_path("deleted_if", path)
        conditions[path] = tuple(_as_text(one) for one in (given if isinstance(given, list) else [given]))
    return conditions


def _check_path(where: str, path: str) -> None:
    if not all(path.split(".")):
        raise SettingsError(f"settings: kafka.{where}: {path!r} is not a dotted path")


def _pattern(settings: KafkaSettings) -> re.Pattern[str] | None:
    if settings.key_pattern is None:
        return None
    if settings.key_map:
        raise SettingsError("settings: kafka.key_pattern is for plain keys and kafka.key_map for JSON keys: set one")
    try:
        pattern = re.compile(settings.key_pattern, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise SettingsError(f"settings: kafka.key_pattern: not a regular expression ({error})") from None
    if "id" not in pattern.groupindex or not set(pattern.groupindex) <= set(_KEY_FIELDS):
        raise SettingsError(
            "settings: kafka.key_pattern: needs a group (?P<id>...), may have (?P<namespace>...), and no other name"
        )
    return pattern


def _as_text(found: Any) -> str:
    """A scalar as JSON spells it, a text as it is."""
    if found is None:
        return "null"
    return str(found).lower() if isinstance(found, bool) else str(found)

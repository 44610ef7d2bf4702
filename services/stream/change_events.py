"""What follows from a field map that leads through `after`, as change events have it (Debezium and its like).

`{id: payload.after.id}` says that values hold a row before and after its change. Then `payload.op: d` is a deletion, the deleted
row's id stands in `payload.before.id`, and in a JSON key at `payload.id`: nobody has to say so again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

__all__ = ["deletions", "ids_in_keys", "with_rows_before"]

Paths = Mapping[str, tuple[str, ...]]


def with_rows_before(fields: Paths) -> Paths:
    """The fields, and for the id the row before the change, behind the paths that were given."""
    before = [f"{front}before.{column}" for front, column in _rows(fields.get("id", ()))]
    if not before:
        return fields
    return dict(fields) | {"id": tuple(dict.fromkeys([*fields["id"], *before]))}


def deletions(fields: Paths) -> dict[str, tuple[str, ...]]:
    """The conditions, as of `deleted_if`, of a row's end."""
    return {f"{front}op": ("d",) for paths in fields.values() for front, _ in _rows(paths)}


def ids_in_keys(fields: Paths) -> tuple[str, ...]:
    """Where a JSON key keeps the id: under the column's name, in the same wrapping as the value."""
    return tuple(dict.fromkeys(f"{front}{column}" for front, column in _rows(fields.get("id", ()))))


def _rows(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What stands before `after` (empty, or with its dot) and behind it, of the paths that lead through one."""
    for path in paths:
        names = path.split(".")
        if "after" in names[:-1]:
            place = names.index("after")
            yield "".join(f"{name}." for name in names[:place]), ".".join(names[place + 1 :])

"""Labels: a document's metadata as short texts `name=value`, by which rows are filtered; importable without Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["label", "labels_of"]

_MOST_LABELS = 256
_MAX_LABEL_CHARS = 512


def labels_of(metadata: Any) -> list[str]:
    """A label for every text, number and truth value in an object, each once; names of nested objects are joined by dots.

    The elements of a list have its name. Null has no label, nor has what is not in an object. At most 256 labels of at
    most 512 characters: a document's rows all carry them.
    """
    labels: dict[str, None] = {}
    for name, value in _leaves("", metadata) if isinstance(metadata, dict) else ():
        one = label(name, value)
        if len(one) <= _MAX_LABEL_CHARS:
            labels[one] = None
        if len(labels) == _MOST_LABELS:
            break
    return list(labels)


def label(name: str, value: str | bool | float) -> str:
    """The label of one value: as JSON spells it, whole numbers without a fraction, texts as they are."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{name.replace('%', '%25').replace('=', '%3D')}={value}"


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str | bool | float]]:
    if isinstance(value, dict):
        for inner, content in value.items():
            yield from _leaves(f"{name}.{inner}" if name else inner, content)
    elif isinstance(value, list):
        for content in value:
            yield from _leaves(name, content)
    elif value is not None:
        yield name, value

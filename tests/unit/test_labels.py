"""What of a document's metadata can be filtered by, and how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bank.labels import label, labels_of


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"section": "local"}, ["section=local"]),
        (
            {"views": 212, "pinned": True, "draft": False, "score": 0.5, "none": None},
            ["views=212", "pinned=true", "draft=false", "score=0.5"],
        ),
        ({"tags": ["market", "eels", "market"]}, ["tags=market", "tags=eels"]),
        ({"place": {"name": "Ollen", "at": [1, 2.0]}}, ["place.name=Ollen", "place.at=1", "place.at=2"]),
        ({"authors": [{"name": "Ada"}, {"name": "Bo"}]}, ["authors.name=Ada", "authors.name=Bo"]),
        ({"a=b": "c", "a": "b=c", "a%3Db": "d"}, ["a%3Db=c", "a=b=c", "a%253Db=d"]),
        ({"empty": "", "list": [], "object": {}}, ["empty="]),
        ({}, []),
        (None, []),
        ("market", []),
        (["market"], []),
        (7, []),
    ],
)
def test_every_scalar_of_an_object_is_a_label(metadata: Any, labels: list[str]) -> None:
    assert labels_of(metadata) == labels


def test_labels_are_few_and_short_enough_for_every_row() -> None:
    assert len(labels_of({str(number): number for number in range(1000)})) == 256
    assert labels_of({"long": "x" * 512, "name" * 200: 1, "fits": "x" * 507}) == ["fits=" + "x" * 507]


@given(
    st.text(min_size=1), st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
)
def test_what_is_asked_for_by_name_has_the_label_of_the_document(name: str, value: str | bool | float) -> None:
    written = label(name, value)
    assert len(written) > 512 or labels_of({name: value}) == [written]


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_different_names_and_texts_have_different_labels(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (label(*one) == label(*other)) == (one == other)

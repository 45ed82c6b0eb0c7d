"""JSON is read as declared types, or refused with the place and the value."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.manifests.typed import typed


@dataclass(frozen=True)
class Inner:
    count: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner, ...] = ()
    share: float | None = None
    rest: Mapping[str, Any] | None = None


def test_nested_values_become_what_is_declared():
    found = typed(Outer, {"name": "a", "inner": [{"count": 1}], "share": 1, "rest": {"b": [None]}})
    assert found == Outer("a", (Inner(1),), 1, {"b": [None]})
    assert typed(Outer, {"name": "a"}) == Outer("a")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it is [], not an object"),
        ({}, "name is missing"),
        ({"name": "a", "size": 1}, "size is not known"),
        ({"name": "a", "inner": [{"count": 1}, {"count": "1"}]}, 'inner[1].count is "1", not a whole number'),
        ({"name": "a", "inner": [{"count": True}]}, "inner[0].count is true, not a whole number"),
        ({"name": "a", "inner": [{}]}, "inner[0].count is missing"),
        ({"name": "a", "share": "half"}, 'share is "half", not a number'),
        ({"name": "a", "rest": 1}, "rest is 1, not an object"),
        ({"name": ["a" * 100]}, f'name is ["{"a" * 58}…, not text'),
    ],
)
def test_another_type_is_refused_with_its_place(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        typed(Outer, value)

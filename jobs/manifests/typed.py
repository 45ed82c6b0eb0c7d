"""JSON as the types that dataclasses declare: what a file of ours should hold, or where it holds something else."""

from __future__ import annotations

import collections.abc
import json
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def typed(hint: Any, value: Any, name: str = "") -> Any:
    """Return a JSON value as the type that `hint` says.

    Args:
        hint: `str`, `int`, `float`, `bool`, one of them or None, a tuple or a mapping of such, or a dataclass.
        value: what `json.loads` gave.
        name: where it stands, for the message.

    Raises:
        ValueError: it is of another type; the message says where, with the value.
    """
    kind, args = get_origin(hint), get_args(hint)
    is_null = value is None and NoneType in args
    if is_null or hint is Any or type(value) is hint or (hint is float and type(value) is int):
        return value
    if kind in (Union, UnionType):
        (inner,) = (arg for arg in args if arg is not NoneType)
        return typed(inner, value, name)
    if kind is tuple and isinstance(value, list):
        return tuple(typed(args[0], each, f"{name}[{index}]") for index, each in enumerate(value))
    if kind is collections.abc.Mapping and isinstance(value, dict):
        return {key: typed(args[1], each, f"{name}.{key}") for key, each in value.items()}
    if is_dataclass(hint) and isinstance(value, dict):
        return _record(hint, value, name)
    words = WORDS.get(hint) or ("a list" if kind is tuple else "an object")
    text = json.dumps(value)
    raise ValueError(f"{name or 'it'} is {text[:60]}{'…' if len(text) > 60 else ''}, not {words}")


def _record(kind: Any, values: dict[str, Any], name: str) -> Any:
    within = f"{name}." if name else ""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ValueError(f"{within}{key} is not known")
    for field in fields(kind):
        if field.name not in values and field.default is MISSING:
            raise ValueError(f"{within}{field.name} is missing")
    return kind(**{key: typed(hints[key], value, f"{within}{key}") for key, value in values.items()})

"""What verbs share on the command line: options, and how their text becomes values."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import PurePosixPath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import fsspec
from fsspec.utils import get_protocol

from homoalign.config import AlignConfig
from jobs.errors import UsageError
from jobs.storage.errors import StorageError
from jobs.storage.store import Store

F = TypeVar("F", bound=Callable[..., Any])

LEAST_RESOURCE = 0.0001
"""Of a CPU or GPU for a task: Ray counts no finer."""


class Number(click.FloatRange):
    """A number of a range, finite unless it is a time; click takes NaN for one of any range."""

    is_time = False

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number) or (math.isinf(number) and not self.is_time):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Seconds(Number):
    """A time; `inf` is one without end."""

    is_time = True


class Resource(Number):
    """How much of a kind of resource a task takes, as Ray counts."""

    def __init__(self, *, may_be_none: bool, is_whole_above_1: bool) -> None:
        super().__init__(min=0 if may_be_none else LEAST_RESOURCE)
        self.is_whole_above_1 = is_whole_above_1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the amount."""
        amount = super().convert(value, param, ctx)
        if 0 < amount < LEAST_RESOURCE:
            self.fail(f"{value} is below {LEAST_RESOURCE}, the least Ray counts.", param, ctx)
        if self.is_whole_above_1 and amount > 1 and not amount.is_integer():
            self.fail(f"{value} is above 1 and not whole.", param, ctx)
        return amount


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that applies several, the first on top."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


storage_options = click.option(
    "--storage-options",
    metavar="JSON",
    default="{}",
    show_default=False,
    envvar="HOMOALIGN_STORAGE_OPTIONS",
    help="fsspec's options by protocol, {\"s3\": {...}}, or without it for the manifest's and OUT's own. Never shown; "
    "taken from HOMOALIGN_STORAGE_OPTIONS where not given.",
)
align_config = together(
    click.option("--config", "config_file", metavar="FILE", help="AlignConfig as TOML or JSON."),
    click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="One AlignConfig value. Repeatable."),
)


def read_config(store: Store, file: str | None, settings: Iterable[str]) -> AlignConfig:
    """Return the config of `--config` and `--set`, the latter on top.

    Raises:
        UsageError: an unknown key, with the names most like it; a wrong type or a value out of range.
    """
    values = {} if file is None else _read_config_file(store, file)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: it should be KEY=VALUE")
        values[name.strip()] = _parsed(text.strip())
    hints = get_type_hints(AlignConfig)
    known = [field.name for field in fields(AlignConfig)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise UsageError(
                f"AlignConfig has no {name!r}; {'did you mean' if near else 'it has'} {_or(near or known)}?"
            )
    try:
        return AlignConfig(**{name: _typed(name, value, hints[name]) for name, value in values.items()})
    except (ValueError, OverflowError) as error:
        raise UsageError(f"AlignConfig: {error}") from error


def read_storage_options(text: str, urls: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return fsspec's options by protocol; options without a protocol go to those of `urls`.

    Raises:
        UsageError: no JSON object. What it holds is not repeated, it may be secret.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"--storage-options is not valid JSON{place}") from None
    if not isinstance(options, dict):
        raise UsageError("--storage-options should be a JSON object")
    protocols = set(fsspec.available_protocols())
    if all(name in protocols and isinstance(value, dict) for name, value in options.items()):
        return options
    own = {get_protocol(link) for url in urls for link in url.split("::")} - {"file", "local"}
    return dict.fromkeys(own, options)


def column_names(values: Iterable[str]) -> tuple[str, ...]:
    """Return the names in comma-separated lists."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def _read_config_file(store: Store, file: str) -> dict[str, Any]:
    try:
        text = store.read(store.url_of(file), max_bytes=2**20).decode()
        values = json.loads(text) if PurePosixPath(file).suffix == ".json" else tomllib.loads(text)
    except (StorageError, ValueError) as error:
        raise UsageError(f"--config {file}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {file}: it should hold names and values, not a {type(values).__name__}")
    return values


def _parsed(text: str) -> Any:
    """Return a TOML value, or the text itself where it is none: `5`, `0.5`, `true`, `[1, 2]`, `adam`."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type of its field, or say what it should be."""
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (arg for arg in get_args(hint) if arg is not NoneType)
        return _typed(name, value, hint)
    if kind is Literal and value in get_args(hint):
        return value
    if kind is tuple and isinstance(value, list):
        return tuple(_typed(name, each, get_args(hint)[0]) for each in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = _or(map(str, get_args(hint))) if kind is Literal else getattr(hint, "__name__", str(hint))
    raise UsageError(f"AlignConfig {name}={value!r} should be {wanted}")


def _or(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last

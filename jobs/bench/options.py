"""The options that benchmarks on many pairs share, read into one value."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from homoalign.config import AlignConfig
from jobs.bench.photographs import find_photographs
from jobs.errors import UsageError
from jobs.options import align_config, read_config, together
from jobs.rendering.synthetic import PHOTOGRAPHS, Size
from jobs.storage.store import Store

Function = Callable[..., None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What the shared options say.

    Attributes:
        config: of homoalign.
        peers: whether they run.
        json_path: where the figures go too.
    """

    config: AlignConfig
    peers: bool
    json_path: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderOptions:
    """Which pairs are rendered.

    Attributes:
        pairs: how many.
        seed: of everything random; a pair depends on the seed and its own number alone.
        photographs: taken in turn.
    """

    pairs: int
    seed: int
    photographs: tuple[str, ...]


own_options = together(
    align_config,
    click.option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path),
        help="Write the figures to this file, and all they are made of.",
    ),
)
peers_option = click.option(
    "--peers/--no-peers", default=True, show_default=True, help="Run the peers, which take the time."
)


def bench_options(function: Function) -> Function:
    """Add the shared options; the command gets them as `options`, a `BenchOptions`."""
    return peers_option(without_peers(function))


def without_peers(function: Function) -> Function:
    """Add the shared options of a benchmark that has no peers."""

    @functools.wraps(function)
    def call(
        *,
        config_file: str | None,
        settings: tuple[str, ...],
        json_path: Path | None,
        peers: bool = False,
        **others: Any,
    ) -> None:
        config = read_config(Store({}), config_file, settings)
        if json_path is not None and not json_path.parent.is_dir():
            raise UsageError(f"--json {json_path}: there is no folder {json_path.parent}")  # not after an hour's run
        function(options=BenchOptions(config=config, peers=peers, json_path=json_path), **others)

    return own_options(call)


def render_options(*, pairs: int, tone: str = "as gray") -> Callable[[Function], Function]:
    """Add the options of rendered pairs; the command gets them as `render`, a `RenderOptions`.

    Args:
        pairs: how many where `--pairs` is not given.
        tone: how photographs are taken, for the help.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*, pairs: int, seed: int, photographs: str, **others: Any) -> None:
            names = find_photographs(photographs)
            function(render=RenderOptions(pairs=pairs, seed=seed, photographs=names), **others)

        return together(
            click.option("--pairs", type=click.IntRange(min=1), default=pairs, show_default=True, help="How many."),
            click.option(
                "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn."
            ),
            click.option(
                "--photographs",
                metavar="LIST",
                default=",".join(PHOTOGRAPHS),
                show_default="all of scikit-image's wheel",
                help=f"Taken in turn, {tone}: names of scikit-image's, image files or folders, separated by commas.",
            ),
        )(call)

    return decorate


def motion_options(
    *, least_px: int = 32, offset_px: float = 10.0, sigma: float | None = None
) -> Callable[[Function], Function]:
    """Add the options of square pairs whose corners move a little: `size`, `offset` and, with a `sigma`, that.

    Args:
        least_px: smallest side that may be asked for.
        offset_px: how far each corner moves where `--offset` is not given.
        sigma: of the noise where `--sigma` is not given, 8-bit units; None: the benchmark has its own.
    """
    options = [
        click.option(
            "--size", type=click.IntRange(min=least_px), default=256, show_default=True, help="Side of the images, px."
        ),
        click.option(
            "--offset", type=float, default=offset_px, show_default=True, help="Each corner moves by up to this, px."
        ),
    ]
    if sigma is not None:
        noise = click.FloatRange(min=0)
        options.append(
            click.option("--sigma", type=noise, default=sigma, show_default=True, help="Noise, 8-bit units.")
        )
    return together(*options)


def parse_sizes(name: str, text: str, *, least: int) -> tuple[Size, ...]:
    """Return (height, width) of each WIDTHxHEIGHT of a comma-separated list, each once.

    Raises:
        UsageError: something else, or a side below `least`.
    """
    found = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip()) for part in text.split(",")]
    sizes = tuple(dict.fromkeys((int(match[2]), int(match[1])) for match in found if match))
    if not all(found) or min(map(min, sizes)) < least:
        raise UsageError(f"{name} {text}: it should be WIDTHxHEIGHT, separated by commas, of sides from {least}")
    return sizes


def parse_numbers(name: str, text: str, *, count: int | None = None) -> tuple[float, ...]:
    """Return the non-negative numbers of a comma-separated list.

    Raises:
        UsageError: something else, or not `count` of them.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 <= number < float("inf") for number in numbers):
        raise UsageError(f"{name} {text}: it should be numbers from 0, separated by commas")
    if count is not None and len(numbers) != count:
        raise UsageError(f"{name} {text}: it should be {count} numbers, got {len(numbers)}")
    return numbers

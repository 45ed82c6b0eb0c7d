"""`homoalign bench speed`: what a pair costs the library by size and batch, beside what it costs its peers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from jobs.bench.measure import show
from jobs.bench.methods import BARE, ECC, HOMOALIGN, SIFT
from jobs.bench.options import (
    BenchOptions,
    RenderOptions,
    bench_options,
    parse_numbers,
    parse_sizes,
    render_options,
)
from jobs.bench.pairs import BenchPair, draw_pair, offset_of
from jobs.bench.processes import MB, check_proc
from jobs.bench.score import NOT_APPLICABLE, Row, median, percent
from jobs.bench.speed_run import PEERS, Candidate, Measured, measure
from jobs.errors import UsageError
from jobs.rendering.degrade import to_uint8
from jobs.rendering.synthetic import Size

REFERENCE: Size = (256, 256)
"""Growth is told from here."""
SHORT = {ECC: "/ ECC", SIFT: "/ SIFT"}


@dataclass(frozen=True, slots=True)
class Target:
    """What a column should be at most, at one size."""

    size: Size
    column: str
    most: float
    batch: int | None = None
    """None: the largest that was measured."""


TARGETS = (
    Target((256, 256), SHORT[ECC], 1 / 4, batch=64),
    Target((480, 640), SHORT[ECC], 1 / 8),
    Target((640, 800), SHORT[ECC], 1 / 8),
    Target((640, 800), SHORT[SIFT], 1 / 25),
    Target((1080, 1920), "/ 256x256", 12),
)


@click.command(
    "speed", epilog="Example: homoalign bench speed --sizes 256x256,640x480 --batches 1,64 --json speed.json"
)
@click.option(
    "--sizes",
    metavar="LIST",
    default="128x128,256x256,640x480,800x640,1920x1080",
    show_default=True,
    help="Of both images, WIDTHxHEIGHT px.",
)
@click.option("--batches", metavar="LIST", default="1,8,64", show_default=True, help="Pairs in one call of homoalign.")
@click.option(
    "--max-batch-mb",
    type=click.FloatRange(min=0),
    default=256.0,
    show_default=True,
    help="Leave out batches whose images, as float32, take more; aligning takes several times as much.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Of homoalign.")
@click.option(
    "--sigma", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Noise of both images, 8-bit units."
)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Counted runs over the pairs.")
@render_options(pairs=8)
@bench_options
def speed_command(
    *,
    sizes: str,
    batches: str,
    max_batch_mb: float,
    device: str,
    sigma: float,
    runs: int,
    render: RenderOptions,
    options: BenchOptions,
) -> None:
    """Compare the cost of a pair with that of OpenCV's multi-scale ECC and of SIFT with USAC_MAGSAC.

    Everything has one thread, and each row a process of its own; rows take turns, run after run. A batch of more than
    --pairs takes them again. Corners move by up to 10 px at 256, by the shorter side; images are gray, 8 bits. Where a
    photograph is smaller than an image, the scene goes on mirrored. On a GPU the images are there already.
    """
    frames = parse_sizes("--sizes", sizes, least=options.config.min_side_px)
    counts = _read_batches(batches)
    check_proc()
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here")
    left_out: list[str] = []
    measured: dict[Size, list[Measured]] = {}
    for size in frames:
        fitting = [batch for batch in counts if batch_mb(size, batch) <= max_batch_mb]
        left_out += [f"{name_of(size)} x {batch}" for batch in counts if batch not in fitting]
        candidates = [
            Candidate(method=method, batch=batch, device=device, config=options.config)
            for batch in fitting
            for method in (HOMOALIGN, BARE)
        ]
        candidates += [Candidate(method=method) for method in PEERS if options.peers]
        measured[size] = measure(candidates, draw_speed_pairs(render, size, sigma), runs=runs) if candidates else []
    if not any(measured.values()):
        raise UsageError(f"--max-batch-mb {max_batch_mb:g} leaves nothing to measure")
    rows = list(speed_rows(measured))
    targets = check_targets(rows)
    unit = "CPU time" if device == "cpu" else "wall time on the GPU"
    show(
        f"bench speed: {render.pairs} pairs of each size, median of {runs} runs, {device}",
        rows,
        caption=f"Times are of one pair, one thread. / ECC, / SIFT: {unit} as a multiple of the peer's CPU time, "
        "from runs in turn. / 256x256: of the same at that size and batch; sizes are measured one after the other. "
        f"{BARE}: pyramids and steps, without noise, light, cover, precision and verdict. "
        "<1 px, median px: mean corner error; a pair without a matrix is infinite. peak: of the process, "
        f"{'with its libraries' if device == 'cpu' else 'of homoalign its GPU memory'}; grew: what aligning added. "
        f"Corners moved by up to 10 px at 256, by the shorter side; noise {sigma:g}. "
        f"Left out, above {max_batch_mb:g} MB: {', '.join(left_out) or 'nothing'}. {describe_targets(targets)}",
        json_path=options.json_path,
        more={
            "device": device,
            "seed": render.seed,
            "photographs": render.photographs,
            "left_out": left_out,
            "targets": targets,
            "laps": [lap for size, found in measured.items() for lap in _laps_as_json(size, found)],
        },
    )


def _read_batches(text: str) -> list[int]:
    numbers = parse_numbers("--batches", text)
    if not all(number >= 1 and number.is_integer() for number in numbers):
        raise UsageError(f"--batches {text}: it should be whole numbers from 1, separated by commas")
    return list(dict.fromkeys(map(int, numbers)))


def batch_mb(size: Size, batch: int) -> float:
    """Return what the images of a batch take as float32."""
    return 2 * batch * size[0] * size[1] * 4 / MB


def name_of(size: Size) -> str:
    """Return a size as people write it, width first."""
    return f"{size[1]}x{size[0]}"


def draw_speed_pairs(render: RenderOptions, size: Size, sigma_8bit: float) -> list[BenchPair]:
    """Render the pairs of one size."""
    pairs = []
    for number in range(render.pairs):
        drawn = draw_pair(render, number, size=size, offset_px=offset_of(size))
        src, dst = map(to_uint8, drawn.noisy(sigma_8bit))
        truth = drawn.views.dst_homo_src
        pairs.append(BenchPair(number=number, name=drawn.name, case="", src=src, dst=dst, dst_homo_src=truth))
    return pairs


def speed_rows(measured: Mapping[Size, Sequence[Measured]]) -> Iterator[Row]:
    """Yield a row for every size and candidate."""
    references = {(each.candidate.method, each.candidate.batch): each for each in measured.get(REFERENCE, ())}
    for size, found in measured.items():
        by_method = {each.candidate.method: each for each in found}
        for each in found:
            candidate, laps = each.candidate, each.laps
            is_ours = candidate.method in (HOMOALIGN, BARE)
            ratios: dict[str, float | str] = {
                column: each.ratio_to(by_method[peer]) if is_ours and peer in by_method else NOT_APPLICABLE
                for peer, column in SHORT.items()
            }
            reference = references.get((candidate.method, candidate.batch))
            yield {
                "size": name_of(size),
                "method": candidate.method,
                "batch": candidate.batch,
                "<1 px %": percent(sum(error < 1 for error in each.errors_px), len(each.errors_px)),
                "median px": median(each.errors_px),
                "CPU ms": statistics.median([1000 * lap.cpu_s for lap in laps]),
                "wall ms": statistics.median([1000 * lap.wall_s for lap in laps]),
                **ratios,
                "/ 256x256": NOT_APPLICABLE if reference is None else each.cost_s / reference.cost_s,
                "peak MB": laps[-1].peak_mb,
                "grew MB": laps[-1].grown_mb,
            }


def check_targets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each target that the rows hold something for, and whether it is met."""
    checked = []
    for target in TARGETS:
        fitting = [
            row
            for row in rows
            if row["method"] == HOMOALIGN
            and row["size"] == name_of(target.size)
            and row["batch"] == (target.batch or row["batch"])
            and row[target.column] != NOT_APPLICABLE
        ]
        if fitting:
            row = max(fitting, key=lambda row: row["batch"])
            ratio = row[target.column]
            names = {"size": row["size"], "batch": row["batch"], "column": target.column}
            checked.append({**names, "ratio": ratio, "most": target.most, "is_met": ratio <= target.most})
    return checked


def describe_targets(targets: Sequence[Mapping[str, Any]]) -> str:
    """Return `check_targets` as a sentence."""
    if not targets:
        return "No target is set for these sizes and batches."
    parts = [
        f"{each['size']} x {each['batch']} {each['column']} {each['ratio']:.3g} "
        f"({'at' if each['is_met'] else 'not at'} most {each['most']:.3g})"
        for each in targets
    ]
    return f"Targets: {'; '.join(parts)}."


def _laps_as_json(size: Size, found: Sequence[Measured]) -> Iterator[Row]:
    for each in found:
        names = {"size": name_of(size), "method": each.candidate.method, "batch": each.candidate.batch}
        for run, lap in enumerate(each.laps):
            yield {**names, "run": run, "cpu_s": lap.cpu_s, "wall_s": lap.wall_s}

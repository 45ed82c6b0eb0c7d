"""The manifest of `bench job`: JPEG files of rendered pairs, which the rows name in turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair, offset_of
from jobs.bench.photographs import gray_scene, rgb_scene
from jobs.rendering.demo_pairs import encode_image
from jobs.rendering.synthetic import Matrix, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPairs:
    """What lies in the benchmark's folder."""

    manifest: Path
    files: tuple[tuple[Path, Path], ...]
    """src and dst of every distinct pair; row n of the manifest is pair n modulo their number."""
    truths: tuple[Matrix, ...]
    """(3, 3) float64, likewise."""


def write_job_pairs(
    folder: Path, render: RenderOptions, *, size: Size, num_rendered: int, gray: bool, num_threads: int
) -> JobPairs:
    """Render the pairs and write their files and the manifest, which holds no truth: a job's seldom does.

    Args:
        folder: where; it exists.
        render: how many rows, seed and photographs.
        size: height, width of all images.
        num_rendered: distinct pairs; more rows name the same files again.
        gray: JPEG of one channel.
        num_threads: pairs that are rendered at a time.
    """

    def write_pair(number: int) -> tuple[tuple[Path, Path], Matrix]:
        scene = gray_scene if gray else rgb_scene
        drawn = draw_pair(render, number, size=size, offset_px=offset_of(size), scene=scene)
        files = folder / f"{number}-src.jpg", folder / f"{number}-dst.jpg"
        for file, view in zip(files, (drawn.views.src, drawn.views.dst), strict=True):
            file.write_bytes(encode_image(view, "jpg"))
        return files, drawn.views.dst_homo_src

    with ThreadPoolExecutor(num_threads) as pool:  # SciPy lets go of the interpreter while it samples
        files, truths = zip(*pool.map(write_pair, range(min(num_rendered, render.pairs))), strict=True)
    rows = [(number, *(file.name for file in files[number % len(files)])) for number in range(render.pairs)]
    table = pa.table(dict(zip(("pair_id", "src", "dst"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, folder / "manifest.parquet")
    return JobPairs(manifest=folder / "manifest.parquet", files=files, truths=truths)

"""`homoalign bench tutorial`: the pair that kornia's tutorial aligns, by its own loop, this project and peers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

import homoalign
from homoalign.decoding.images import decode_image
from homoalign.homography import corner_errors
from jobs.bench import peers
from jobs.bench.measure import Timed, one_thread, show, time_call

PAIR_ID = "kornia_tutorial/graf_1_2"
STAND_IN_SIZE = (320, 400)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A pair with its truth: RGB uint8 images (H, W, 3), and (3, 3) float64."""

    name: str
    src: npt.NDArray[np.uint8]
    dst: npt.NDArray[np.uint8]
    dst_homo_src_gt: npt.NDArray[np.float64]


@click.command("tutorial", epilog="Example: homoalign bench tutorial --runs 3 --json tutorial.json")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/manifest.parquet"),
    show_default=True,
    help="Manifest that holds the tutorial's pair; a stand-in is rendered where it is absent.",
)
@click.option("--pair-id", default=PAIR_ID, show_default=True, help="Row of the manifest to align.")
@click.option("--photograph", default="astronaut", show_default=True, help="scikit-image photograph of the stand-in.")
@click.option("--seed", default=0, show_default=True, help="Of the stand-in's motion.")
@click.option("--runs", default=5, show_default=True, help="Counted runs of each method; the tutorial's loop has one.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def tutorial_command(
    manifest: Path, pair_id: str, photograph: str, seed: int, runs: int, json_path: Path | None
) -> None:
    """Compare corner error and CPU seconds on the tutorial's pair, one thread each."""
    pair = read_pair(manifest, pair_id) if manifest.exists() else render_stand_in(photograph, seed)
    with one_thread():
        rows = measure(pair, runs)
    ratio = rows[0]["cpu_s"] / rows[1]["cpu_s"]
    show(
        f"bench tutorial: {pair.name}",
        rows,
        caption=f"One thread; median of {runs} runs, the tutorial's loop once. Its CPU time is {ratio:.0f} times this "
        "solver's, whose time includes metrics and verdict.",
        json_path=json_path,
    )


def read_pair(manifest: Path, pair_id: str) -> Pair:
    """Read one row of a manifest whose images are local files relative to it."""
    table = pq.read_table(manifest, columns=["pair_id", "src", "dst", "dst_homo_src_gt"])
    found = [row for row in table.to_pylist() if row["pair_id"] == pair_id]
    if not found:
        raise click.BadParameter(f"{manifest} has no row with pair_id {pair_id!r}", param_hint="--pair-id")
    src, dst = (decode_image((manifest.parent / found[0][side]).read_bytes()).pixels for side in ("src", "dst"))
    return Pair(pair_id, src, dst, np.array(found[0]["dst_homo_src_gt"]).reshape(3, 3))


def render_stand_in(photograph: str, seed: int) -> Pair:
    """Render a pair from a photograph of scikit-image's wheel, the corners moved by up to a tenth of its width."""
    from jobs.rendering.degrade import to_uint8
    from jobs.rendering.synthetic import load_scene, random_homography, render_pair

    rng = np.random.default_rng(seed)
    dst_homo_src = random_homography(rng, STAND_IN_SIZE, 0.1 * STAND_IN_SIZE[1])
    rendered = render_pair(load_scene(photograph), dst_homo_src, STAND_IN_SIZE, rng=rng)
    src, dst = (
        to_uint8(np.broadcast_to(np.atleast_3d(image), (*STAND_IN_SIZE, 3))) for image in (rendered.src, rendered.dst)
    )
    return Pair(f"{photograph}, seed {seed} (stand-in)", src, dst, rendered.dst_homo_src)


def measure(pair: Pair, runs: int) -> list[dict[str, Any]]:
    """Run every method on the pair; the first two rows are the tutorial's loop and this project's solver."""

    def ours(config: homoalign.AlignConfig) -> npt.NDArray[np.float64]:
        result = homoalign.align(pair.src, pair.dst, config=config)
        return result.dst_homo_src[0].numpy()

    methods = {
        "kornia's tutorial, its own loop": (lambda: peers.tutorial(pair.src, pair.dst), 1, 0),
        "homoalign": (lambda: ours(homoalign.AlignConfig()), runs, 2),
        "homoalign --set solver=adam": (lambda: ours(homoalign.AlignConfig(solver="adam")), 1, 0),
        "OpenCV ECC multi-scale": (lambda: peers.ecc_multi_scale(pair.src, pair.dst), runs, 1),
        "SIFT + USAC_MAGSAC": (lambda: peers.sift_magsac(pair.src, pair.dst), runs, 1),
    }
    return [
        {"method": name, **score(pair, time_call(call, runs=counted, warm_ups=warm_ups))}
        for name, (call, counted, warm_ups) in methods.items()
    ]


def score(pair: Pair, timed: Timed) -> dict[str, float | None]:
    """Return corner error and cost of an answer; None where the method gave up."""
    if timed.value is None:
        return {"mce_px": None, "mce_at_480_px": None, "cpu_s": timed.cpu_s, "wall_s": timed.wall_s}
    found, truth = torch.from_numpy(timed.value)[None], torch.from_numpy(pair.dst_homo_src_gt)[None]
    error = float(corner_errors(found, truth, *pair.src.shape[:2]).mean())
    at_480 = error * 480 / min(pair.dst.shape[:2])
    return {"mce_px": error, "mce_at_480_px": at_480, "cpu_s": timed.cpu_s, "wall_s": timed.wall_s}

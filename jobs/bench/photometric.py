"""`homoalign bench photometric`: corner error where the light differs between the images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import click
import numpy as np
import numpy.typing as npt

from jobs.bench.against import show_against
from jobs.bench.bound import mean_corner_error_bound, pixel_variance
from jobs.bench.methods import run_methods
from jobs.bench.options import BenchOptions, RenderOptions, bench_options, motion_options, render_options
from jobs.bench.pairs import CHANGE, BenchPair, Drawn, draw_pairs
from jobs.rendering.degrade import add_vignette, adjust_exposure, compress_jpeg
from jobs.rendering.synthetic import Image

JPEG_QUALITY = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """What happens to dst before its noise, in this order: vignetting, gamma, gain and bias; and both images' files.

    Attributes:
        vignette: share of the light lost in the corners.
        gamma: exponent.
        gain: factor.
        bias_8bit: offset, 8-bit units; what leaves the range saturates.
        jpeg: both images pass through JPEG, after their noise.
    """

    vignette: float = 0.0
    gamma: float = 1.0
    gain: float = 1.0
    bias_8bit: float = 0.0
    jpeg: bool = False


@click.command("photometric", epilog="Example: homoalign bench photometric --pairs 50 --json photometric.json")
@motion_options(sigma=5.0)
@render_options(pairs=100)
@bench_options
def photometric_command(
    *, size: int, offset: float, sigma: float, render: RenderOptions, options: BenchOptions
) -> None:
    """Compare corner errors under changes of light, each pair with the same motion and noise in every case.

    \b
    unchanged      noise only
    gain and bias  dst times 0.5 to 2 (log-uniform), plus -40 to 40 of 255; saturates
    gamma          dst to the power of 0.6 to 1.6 (log-uniform)
    vignetting     dst loses 30 to 80 % of its light in the corners, as the squared radius
    JPEG           both images at quality 30
    everything     all of it
    """
    outcomes = run_methods(photometric_pairs(render, size, offset, sigma), options)
    show_against(
        "unchanged",
        outcomes,
        title=f"bench photometric: {render.pairs} pairs of {size} x {size}, corners moved by up to {offset:g} px, "
        f"sigma {sigma:g}",
        column="change",
        caption=(
            "bound: what the case's own gradients, noise and saturation allow an aligner that knows the light; it "
            "knows nothing of JPEG's losses.",
            "where nothing changed",
        ),
        render=render,
        options=options,
    )


def photometric_pairs(render: RenderOptions, size: int, offset_px: float, sigma_8bit: float) -> Iterator[BenchPair]:
    """Render each pair once, and change its light in every way."""
    for drawn in draw_pairs(render, size=size, offset_px=offset_px):
        for case, light in draw_lights(drawn.rng(CHANGE)).items():
            yield change_light(drawn, case, light, sigma_8bit)


def draw_lights(rng: np.random.Generator) -> dict[str, Light]:
    """Draw one pair's changes by case; the last has those of all others."""
    gain = math.exp(rng.uniform(math.log(0.5), math.log(2)))
    bias_8bit = rng.uniform(-40, 40)
    gamma = math.exp(rng.uniform(math.log(0.6), math.log(1.6)))
    vignette = rng.uniform(0.3, 0.8)
    return {
        "unchanged": Light(),
        "gain and bias": Light(gain=gain, bias_8bit=bias_8bit),
        "gamma": Light(gamma=gamma),
        "vignetting": Light(vignette=vignette),
        "JPEG": Light(jpeg=True),
        "everything": Light(vignette=vignette, gamma=gamma, gain=gain, bias_8bit=bias_8bit, jpeg=True),
    }


def change_light(drawn: Drawn, case: str, light: Light, sigma_8bit: float) -> BenchPair:
    """Return the pair with dst in another light, its noise added after, and the bound that this light leaves."""
    views = drawn.views
    dst, gain, usable = lit(views.dst, light)
    # Only what the scene shows moves with it, not the slopes of the light.
    bound = mean_corner_error_bound(
        views.dst,
        views.dst_homo_src,
        (views.src.shape[0], views.src.shape[1]),
        variance=pixel_variance(sigma_8bit, gain) / np.square(gain, dtype=np.float64).clip(1e-12),
        usable=usable,
    )
    noisy = drawn.noisy(sigma_8bit, dst=dst)
    if light.jpeg:
        noisy = [compress_jpeg(image, quality=JPEG_QUALITY) for image in noisy]
    return drawn.as_pair(case, noisy, bound)


def lit(image: Image, light: Light) -> tuple[Image, Image, npt.NDArray[np.bool_]]:
    """Return an image in another light.

    Returns:
        The image, its local gain over the original, and which pixels the change of light has not saturated; all (H, W).
    """
    shade = add_vignette(np.ones_like(image), strength=light.vignette)
    shaded = np.clip(image * shade, 0, 1)
    changed = adjust_exposure(shaded, gain=light.gain, bias_8bit=light.bias_8bit, gamma=light.gamma)
    # A gamma below 1 has no end of gain in the dark; a step of 8 bits is as far as that goes.
    slope = light.gamma * np.maximum(shaded, 1 / 255) ** (light.gamma - 1)
    is_changed = light.gain != 1 or light.bias_8bit != 0
    usable = (changed > 0) & (changed < 1) if is_changed else np.ones(image.shape, dtype=bool)
    return changed, np.asarray(light.gain * slope * shade, dtype=np.float32), usable

"""What happens to the two views of a pair of `bench trust` on their way to two files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from jobs.bench.photometric import Light, draw_lights, lit
from jobs.rendering.degrade import (
    add_blur,
    add_noise,
    add_relief,
    compress_jpeg,
    occlude,
    see_by_other_sensor,
    to_uint8,
)
from jobs.rendering.synthetic import Image, RenderedPair

UNCHANGED = Light()


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What happens to the views of a pair before and after their noise.

    Attributes:
        contrast: factor on both views' distance from their means; 0 leaves no texture.
        covered: share of dst under rectangles of another photograph.
        blur_src_px, blur_dst_px: standard deviations, pixels.
        light: of dst.
        sensor_bends: knots of the tone curve of dst's sensor; 0 is src's own.
        relief_480: root mean square shift of dst's parts, pixels at a shorter side of 480.
        jpeg_quality: of both files, 1 to 95; 0 is no JPEG.
    """

    contrast: float = 1.0
    covered: float = 0.0
    blur_src_px: float = 0.0
    blur_dst_px: float = 0.0
    light: Light = UNCHANGED
    sensor_bends: int = 0
    relief_480: float = 0.0
    jpeg_quality: int = 0

    def parameters(self) -> dict[str, float | str]:
        """Return what differs from no change, by name."""
        mine, none = asdict(self), asdict(Change())
        light = {name: value for name, value in mine.pop("light").items() if value != none["light"][name]}
        return {name: value for name, value in mine.items() if value != none[name]} | light


def draw_change(case: str, rng: np.random.Generator) -> Change:
    """Draw what the case's name says; nothing for a name that is not about change."""
    change = Change()
    match case:
        case "lighting":
            change = Change(light=draw_lights(rng)[str(rng.choice(["gain and bias", "gamma", "vignetting"]))])
        case "blur":
            src_px, dst_px = rng.uniform(0.5, 3, size=2).tolist()
            which = rng.integers(3)
            change = Change(blur_src_px=0.0 if which == 0 else src_px, blur_dst_px=0.0 if which == 1 else dst_px)
        case "JPEG":
            change = Change(jpeg_quality=int(rng.integers(10, 71)))
        case "occlusion":
            change = Change(covered=rng.uniform(0.1, 0.6))
        case "texture":
            change = Change(contrast=0.0 if rng.uniform() < 0.1 else math.exp(rng.uniform(math.log(0.005), 0)))
        case "sensor":
            change = Change(sensor_bends=int(rng.integers(1, 6)), blur_dst_px=rng.uniform(0, 1))
        case "relief":
            change = Change(relief_480=math.exp(rng.uniform(math.log(0.3), math.log(20))))
        case "everything":
            change = Change(
                contrast=rng.uniform(0.4, 1),
                covered=rng.uniform(0, 0.2),
                blur_dst_px=rng.uniform(0, 1.5),
                light=draw_lights(rng)["gain and bias"],
                jpeg_quality=int(rng.integers(30, 91)),
            )
    return change


def apply_change(
    change: Change, views: RenderedPair, *, sigma_8bit: float, other: Image | None, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return src and dst as they are stored.

    Args:
        change: what happens besides noise.
        views: src and dst.
        sigma_8bit: noise of both, 8-bit units.
        other: photograph that covers dst; None where `change.covered` is 0.
        rng: places the cover, and gives the noise.
    """
    src, dst = (_faded(view, change.contrast) for view in (views.src, views.dst))
    if change.sensor_bends:
        dst = see_by_other_sensor(dst, bends=change.sensor_bends, rng=rng)
    if change.relief_480:
        dst = add_relief(dst, shift_px=change.relief_480 * min(dst.shape) / 480, rng=rng)
    if other is not None:
        dst, _ = occlude(dst, other=other, share=change.covered, rng=rng)
    src, dst = _blurred(src, change.blur_src_px), _blurred(dst, change.blur_dst_px)
    if change.light != UNCHANGED:
        dst, _, _ = lit(dst, change.light)
    return _stored(src, sigma_8bit, change.jpeg_quality, rng), _stored(dst, sigma_8bit, change.jpeg_quality, rng)


def _faded(image: Image, contrast: float) -> Image:
    return image if contrast == 1 else (image.mean() + np.float32(contrast) * (image - image.mean())).astype(np.float32)


def _blurred(image: Image, sigma_px: float) -> Image:
    return add_blur(image, sigma_px=sigma_px) if sigma_px else image


def _stored(image: Image, sigma_8bit: float, jpeg_quality: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    noisy = add_noise(image, sigma_8bit=sigma_8bit, rng=rng)
    return to_uint8(compress_jpeg(noisy, quality=jpeg_quality) if jpeg_quality else noisy)

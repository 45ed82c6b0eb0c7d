"""What happens to an image between the scene and the file: small functions that compose.

Images are (H, W) or (H, W, 3) float32 in [0, 1]; every function returns a new one. What is random takes a generator.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from jobs.rendering.synthetic import Image, to_gray

Levels = npt.NDArray[np.float64]
"""A value for each row."""


def adjust_exposure(image: Image, *, gain: float = 1.0, bias_8bit: float = 0.0, gamma: float = 1.0) -> Image:
    """Return gain * image ** gamma + bias, the bias in 8-bit units; what leaves [0, 1] saturates."""
    changed: Image = gain * np.clip(image, 0, 1) ** gamma + bias_8bit / 255
    return np.clip(changed, 0, 1).astype(np.float32)


def add_vignette(image: Image, *, strength: float) -> Image:
    """Darken towards the corners, where `strength` in [0, 1] of the light is lost; grows as the squared radius."""
    height, width = image.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    shade = (1 - strength * (x**2 + y**2) / 2).astype(np.float32)
    return image * (shade[..., None] if image.ndim == 3 else shade)


def add_blur(image: Image, *, sigma_px: float) -> Image:
    """Blur with a Gaussian."""
    from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

    return np.asarray(gaussian_filter(image, (sigma_px, sigma_px, 0)[: image.ndim], mode="mirror"))


def defocus_kernel(radius_px: float) -> npt.NDArray[np.float64]:
    """Return what a point becomes out of focus: a disc, its edge as wide as a pixel; (K, K) of sum 1."""
    reach = int(np.ceil(radius_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius_px + 0.5 - np.hypot(x, y), 0, 1)
    return np.asarray(kernel / kernel.sum())


def motion_kernel(length_px: float, angle_deg: float) -> npt.NDArray[np.float64]:
    """Return what a point becomes in motion: a line, as wide as a pixel; (K, K) of sum 1."""
    reach = int(np.ceil(length_px / 2))
    kernel = np.zeros((2 * reach + 3,) * 2)
    for step in np.linspace(-0.5, 0.5, 8 * reach + 1):
        x, y = (reach + 1 + step * length_px * along(np.radians(angle_deg)) for along in (np.cos, np.sin))
        column, row = int(np.floor(x)), int(np.floor(y))
        across, down = np.array([1 - x + column, x - column]), np.array([1 - y + row, y - row])
        kernel[row : row + 2, column : column + 2] += np.outer(down, across)
    return np.asarray(kernel / kernel.sum())


def convolve_with(image: Image, kernel: npt.NDArray[np.float64]) -> Image:
    """Convolve (H, W) with (K, K), mirrored at the borders."""
    from scipy.ndimage import convolve

    return np.asarray(convolve(image, kernel, mode="mirror"), dtype=np.float32)


def add_noise(image: Image, *, sigma_8bit: float, rng: np.random.Generator) -> Image:
    """Add white Gaussian noise; sigma in 8-bit units. Does not clip: `to_uint8` and `to_uint16` do."""
    return image + rng.normal(0, sigma_8bit / 255, image.shape).astype(np.float32)


def add_photon_noise(image: Image, *, sigma_8bit: float, rng: np.random.Generator) -> Image:
    """Count as few photons (Poisson) as make `sigma_8bit` of noise at white, in 8-bit units; 0: none."""
    if sigma_8bit == 0:
        return image
    photons = (255 / sigma_8bit) ** 2
    return np.asarray(rng.poisson(image.clip(0) * photons) / photons, dtype=np.float32)


def add_speckle(image: Image, *, sigma_8bit: float, rng: np.random.Generator) -> Image:
    """Multiply by speckle (gamma) of as few looks as make `sigma_8bit` of noise at white, in 8-bit units; 0: none."""
    if sigma_8bit == 0:
        return image
    looks = (255 / sigma_8bit) ** 2
    return np.asarray(image * rng.gamma(looks, 1 / looks, image.shape), dtype=np.float32)


def add_stripes(image: Image, *, gain: Levels | float = 1.0, offset: Levels | float = 0.0) -> Image:
    """Return (H, W) with a gain and an offset, in [0, 1], for each row (H,); does not clip."""
    gain, offset = (np.broadcast_to(np.asarray(value), len(image))[:, None] for value in (gain, offset))
    return (gain * image + offset).astype(np.float32)


def posterise(image: Image, *, levels: int) -> Image:
    """Round to so many gray levels, black and white among them."""
    return (np.round(image.clip(0, 1) * (levels - 1)) / (levels - 1)).astype(np.float32)


def dither(image: Image) -> Image:
    """Round to black and white, and spread what that loses over the neighbours (Floyd and Steinberg, 1976)."""
    from PIL import Image as Pil

    return np.asarray(Pil.fromarray(to_uint8(image)).convert("1"), dtype=np.float32)


def compress_jpeg(image: Image, *, quality: int) -> Image:
    """Pass through a JPEG file of the given quality, 1 to 95."""
    return _through_file(image, "JPEG", quality)


def compress_webp(image: Image, *, quality: int) -> Image:
    """Pass through a lossy WebP file of the given quality, 0 to 100."""
    return _through_file(image, "WEBP", quality)


def _through_file(image: Image, kind: str, quality: int) -> Image:
    from PIL import Image as PillowImage

    file, whole = io.BytesIO(), PillowImage.fromarray(to_uint8(image))
    whole.save(file, kind, quality=quality)
    decoded = PillowImage.open(file).convert(whole.mode)  # WebP knows no gray
    return np.asarray(decoded, dtype=np.float32) / np.float32(255)


def see_by_other_sensor(image: Image, *, bends: int, rng: np.random.Generator) -> Image:
    """Give intensities a smooth random tone curve that rises and falls: edges stay, which side is bright does not.

    Args:
        image: what the first sensor sees.
        bends: how many knots the curve has between black and white.
        rng: draws the curve.
    """
    from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

    tones = rng.uniform(0, 1, bends + 2)
    span = np.ptp(tones)
    curve = PchipInterpolator(np.linspace(0, 1, bends + 2), (tones - tones.min()) / max(span, 1e-6))
    return np.asarray(curve(np.clip(image, 0, 1)), dtype=np.float32)


def add_relief(image: Image, *, shift_px: float, rng: np.random.Generator) -> Image:
    """Shift the parts of an (H, W) image by a smooth random field, as parallax does where a scene is not flat.

    The field's best homography is about none, so that the truth stays what it was.

    Args:
        image: (H, W).
        shift_px: root mean square length of the shifts.
        rng: draws the field.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    height, width = image.shape
    places = np.mgrid[:height, :width].astype(np.float64)
    y, x = ((place - place.mean()).ravel() / max(height, width) for place in places)
    # What a homography can do, to first order, is taken out of the field.
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    field = rng.standard_normal((2, height, width))
    field = np.stack([gaussian_filter(part, max(height, width) / 12, mode="reflect") for part in field])
    flat = field.reshape(2, -1).T
    flat = flat - basis @ np.linalg.lstsq(basis, flat, rcond=None)[0]
    field = flat.T.reshape(2, height, width)
    field *= shift_px / np.sqrt((field**2).sum(0).mean())
    return np.asarray(map_coordinates(image, places + field, order=3, mode="mirror"), dtype=np.float32)


def occlude(
    image: Image, *, other: Image, share: float, rng: np.random.Generator
) -> tuple[Image, npt.NDArray[np.bool_]]:
    """Paste rectangles of another photograph until `share` of the frame, in [0, 1), is covered to 0.5 %.

    Returns:
        The image, and (H, W) where True is covered.
    """
    height, width = image.shape[:2]
    if image.ndim == 2:
        other = to_gray(other)
    elif other.ndim == 2:
        other = np.repeat(other[..., None], 3, axis=2)
    shift = rng.integers(0, other.shape[:2])
    rows = (np.arange(height) + shift[0]) % other.shape[0]
    columns = (np.arange(width) + shift[1]) % other.shape[1]
    covered = np.zeros((height, width), dtype=bool)
    while (missing := share - covered.mean()) > 0.005:
        area = min(missing, rng.uniform(0.03, 0.12)) * height * width
        side = np.sqrt(area) * np.exp(rng.uniform(-0.4, 0.4))
        patch_height = int(np.clip(side, 1, height))
        patch_width = int(np.clip(area / patch_height, 1, width))
        top, left = rng.integers(0, height - patch_height + 1), rng.integers(0, width - patch_width + 1)
        covered[top : top + patch_height, left : left + patch_width] = True
    cover = covered[..., None] if image.ndim == 3 else covered
    return np.where(cover, other[rows][:, columns], image), covered


def to_uint8(image: Image) -> npt.NDArray[np.uint8]:
    """Round to 8 bits; what is outside [0, 1] saturates."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_uint16(image: Image) -> npt.NDArray[np.uint16]:
    """Round to 16 bits; what is outside [0, 1] saturates."""
    return np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)

"""Scenes that `bench trust` draws by code: façades, brick walls, pages, forms and textures.

Images are (H, W) float32 in [0, 1]; what is random takes a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from jobs.rendering.degrade import add_blur
from jobs.rendering.synthetic import Image, Size

SCENE_SIZE: Size = (540, 720)

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def draw_windows(rng: np.random.Generator) -> Image:
    """Return a façade: rows of windows, more or less alike."""
    period_y, period_x = rng.uniform(24, 90, size=2)
    return _weathered(_lattice(rng, (period_y, period_x), rng.uniform(0.35, 0.75, size=2), stagger=0.0), rng)


def draw_bricks(rng: np.random.Generator) -> Image:
    """Return a wall of staggered bricks, more or less alike."""
    height = rng.uniform(14, 40)
    joint = rng.uniform(2, 5)
    width = height * rng.uniform(1.8, 3.2)
    filled = np.array([1 - joint / height, 1 - joint / width])
    return _weathered(_lattice(rng, (height, width), filled, stagger=0.5), rng)


def draw_text(rng: np.random.Generator) -> Image:
    """Return a page of made-up words."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    page = PillowImage.new("L", SCENE_SIZE[::-1], 255)
    draw = ImageDraw.Draw(page)
    height = int(rng.integers(12, 30))
    font = ImageFont.load_default(height)
    left = int(rng.integers(5, 40))
    for y in range(int(rng.integers(5, 30)), SCENE_SIZE[0], round(height * rng.uniform(1.2, 1.8))):
        draw.text((left, y), _words(rng, 100), font=font, fill=0)
    return _inked(page, rng)


PATTERNS: dict[str, Callable[[np.random.Generator], Image]] = {
    "windows": draw_windows,
    "bricks": draw_bricks,
    "text": draw_text,
}
"""Scenes that repeat themselves."""


def draw_forms(rng: np.random.Generator) -> tuple[Image, Image]:
    """Return one printed form filled in twice, each time with other words."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    pages = [PillowImage.new("L", SCENE_SIZE[::-1], 255) for _ in range(2)]
    draws = [ImageDraw.Draw(page) for page in pages]
    height, width = SCENE_SIZE
    title, label, entry = (ImageFont.load_default(size) for size in (34, 13, 22))
    heading, top = _words(rng, 30), int(rng.integers(60, 100))
    columns = int(rng.integers(2, 4))
    for draw in draws:
        draw.text((30, 15), heading, font=title, fill=0)
    for y in range(top, height - 50, int(rng.integers(50, 80))):
        edges = np.linspace(20, width - 20, columns + 1)
        edges[1:-1] += rng.uniform(-40, 40, columns - 1)
        for x, end in pairwise(edges):
            printed = _words(rng, 14)
            for draw in draws:
                draw.rectangle((x, y, end, y + 45), outline=0, width=2)
                draw.text((x + 5, y + 3), printed, font=label, fill=0)
                draw.text((x + 8, y + 18), _words(rng, int((end - x) / 14)), font=entry, fill=40)
    ink = rng.integers(2**32)
    first, second = (_inked(page, np.random.default_rng(ink)) for page in pages)
    return first, second


def draw_textures(rng: np.random.Generator) -> tuple[Image, Image]:
    """Return two textures of the same kind, from other draws: noise of one spectrum, coarse or fine, grained or not."""
    grain = rng.uniform(0.5, 2.0)
    angle = rng.uniform(0, np.pi)
    slope = rng.uniform(0.5, 2.0)
    y, x = (np.fft.fftfreq(side) for side in SCENE_SIZE)
    y = y[:, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    amplitude = (along**2 + (grain * across) ** 2 + rng.uniform(0.005, 0.05) ** 2) ** (-slope / 2)
    first, second = (_with_amplitude(amplitude, rng) for _ in range(2))
    return first, second


def same_spectrum(image: Image, rng: np.random.Generator) -> Image:
    """Return an image with the spectrum and histogram spread of another, and none of its content: phases by lot."""
    other = _with_amplitude(np.abs(np.fft.fft2(image - image.mean())), rng)
    scaled = (other - other.mean()) / max(float(other.std()), 1e-6) * image.std() + image.mean()
    return np.asarray(np.clip(scaled, 0, 1), dtype=np.float32)


def _with_amplitude(amplitude: npt.NDArray[np.float64], rng: np.random.Generator) -> Image:
    noise = np.fft.fft2(rng.normal(size=amplitude.shape))
    field = np.fft.ifft2(noise / np.abs(noise) * amplitude).real
    low, high = np.quantile(field, (0.005, 0.995))
    return np.asarray(np.clip((field - low) / max(high - low, 1e-12), 0, 1), dtype=np.float32)


def _lattice(
    rng: np.random.Generator, period: tuple[float, float], filled: npt.NDArray[np.float64], *, stagger: float
) -> Image:
    """Return rectangles on a lattice, each of its own brightness; rows alternate by `stagger` of a period."""
    height, width = SCENE_SIZE
    row = (np.arange(height) + rng.uniform(0, period[0])) / period[0]
    column = (np.arange(width) + rng.uniform(0, period[1])) / period[1]
    x = column[None] + stagger * (np.floor(row)[:, None] % 2)
    inside = (np.abs(row % 1 - 0.5) < filled[0] / 2)[:, None] & (np.abs(x % 1 - 0.5) < filled[1] / 2)
    ground, figure = rng.permutation([rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.9)])
    variation = rng.choice([0.0, 0.03, 0.15])
    shade = rng.normal(0, variation, size=(int(row.max()) + 2, int(x.max()) + 2))
    of_cell = shade[np.floor(row).astype(int)[:, None], np.floor(x).astype(int)]
    return np.asarray(np.where(inside, figure + of_cell, ground), dtype=np.float32)


def _weathered(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with soft edges and as much of a texture of its own as is drawn, which may be none."""
    strength = rng.choice([0.0, 0.02, 0.1])
    stain = draw_textures(rng)[0] - np.float32(0.5)
    return np.asarray(np.clip(add_blur(image + np.float32(strength) * stain, sigma_px=0.8), 0, 1))


def _inked(page: object, rng: np.random.Generator) -> Image:
    paper, ink = rng.uniform(0.7, 1.0), rng.uniform(0.0, 0.3)
    return add_blur((ink + (paper - ink) * np.asarray(page, dtype=np.float32) / 255).astype(np.float32), sigma_px=0.7)


def _words(rng: np.random.Generator, num_letters: int) -> str:
    text = ""
    while len(text) < num_letters:
        text += "".join(rng.choice(LETTERS, size=int(rng.integers(2, 10)))) + " "
    return text[:num_letters]

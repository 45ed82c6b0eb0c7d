"""Drawings: slides, charts and screens, of which most pixels are as flat as can be.

Images are (H, W) float32 in [0, 1].
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from jobs.rendering.synthetic import Image, Scene, Size, build_scene

if TYPE_CHECKING:
    from PIL import Image as PillowImage
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SIZE: Size = (1080, 1440)
"""Twice what views of half a megapixel need: text is as sharp in them as on a screen."""

NUM_DRAWINGS = 4
"""Of each kind."""


def draw_slide(rng: np.random.Generator) -> Image:
    """Return a slide: a title, a few lines and a page number on white."""
    page, draw = _blank(255)
    draw.text((120, 100), f"Quarterly results {rng.integers(100)}", font=_font(84), fill=60)
    for i in range(rng.integers(2, 5)):
        line = f"- point {i} of the plan {rng.integers(1000)}"
        draw.text((180, 330 + 140 * i), line, font=_font(56), fill=40)
    draw.text((1280, 1000), f"p. {rng.integers(100)}", font=_font(36), fill=90)
    return _pixels(page)


def draw_chart(rng: np.random.Generator) -> Image:
    """Return a chart: two curves between labelled axes."""
    page, draw = _blank(255)
    draw.line([(160, 120), (160, 920), (1320, 920)], fill=0, width=4)
    for gray in (60, 130):
        heights = 520 + np.cumsum(rng.normal(0, 26, 60))
        draw.line(list(zip(np.linspace(165, 1310, 60), heights, strict=True)), fill=gray, width=5)
    for i in range(6):
        draw.text((90, 890 - 150 * i), str(20 * i), font=_font(36), fill=0)
        draw.text((160 + 210 * i, 940), str(i), font=_font(36), fill=0)
    return _pixels(page)


def draw_screen(rng: np.random.Generator) -> Image:
    """Return a screen: a bar, a menu and some cards."""
    page, draw = _blank(240)
    draw.rectangle([(0, 0), (1440, 70)], fill=95)
    draw.rectangle([(0, 70), (290, 1080)], fill=227)
    for i in range(10):
        draw.text((30, 110 + 60 * i), f"Menu {rng.integers(100)}", font=_font(36), fill=40)
    for _ in range(5):
        x, y = (int(rng.integers(320, 1080)), int(rng.integers(100, 900)))
        draw.rectangle([(x, y), (x + 320, y + 140)], fill=255, outline=190, width=2)
        text, gray = f"Item {rng.integers(1000)}", int(rng.integers(150))
        draw.text((x + 25, y + 40), text, font=_font(48), fill=gray)
    return _pixels(page)


KINDS: dict[str, Callable[[np.random.Generator], Image]] = {
    "slide": draw_slide,
    "chart": draw_chart,
    "screen": draw_screen,
}

DRAWINGS = tuple(f"{kind} {i}" for i in range(NUM_DRAWINGS) for kind in KINDS)
"""Their names, by which `drawn_scene` draws them, always alike."""


@lru_cache(maxsize=32)
def drawn_scene(name: str) -> Scene:
    """Return the scene of a drawing, kept for the next call."""
    return build_scene(KINDS[name.split(maxsplit=1)[0]](np.random.default_rng(zlib.crc32(name.encode()))))


def _blank(gray: int) -> tuple[PillowImage.Image, ImageDraw.ImageDraw]:
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    page = PillowImage.new("L", SIZE[::-1], gray)
    return page, ImageDraw.Draw(page)


def _font(height: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(height)


def _pixels(page: PillowImage.Image) -> Image:
    return np.asarray(page, dtype=np.float32) / np.float32(255)

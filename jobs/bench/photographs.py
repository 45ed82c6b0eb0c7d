"""The photographs that benchmarks render their pairs from: scikit-image's by name, or image files and folders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np

from homoalign.decoding.images import decode_image
from homoalign.errors import PairError
from jobs.errors import UsageError
from jobs.rendering.synthetic import PHOTOGRAPHS, Image, Scene, build_scene, load_photograph, to_gray

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".bmp")
"""What is taken from a folder; a file that is named is read whatever its suffix."""

Split = Literal["fit", "held-out", "all"]

HELD_OUT = frozenset({"camera", "chelsea", "coffee", "coins", "gravel", "ihc", "retina", "rocket", "text"})
"""Of scikit-image's photographs those that nothing is fitted on: each split has textures, print and photographs."""


def place_of(name: str) -> str:
    """Return what a photograph shows: its name, without the side of a stereo pair."""
    return Path(name).stem.removesuffix("_left").removesuffix("_right")


def split_of(name: str) -> Split:
    """Return the split of a photograph, from its name alone: of a file, by a checksum of the name."""
    is_held_out = name in HELD_OUT if name in PHOTOGRAPHS else crc32(place_of(name).encode()) % 2 == 1
    return "held-out" if is_held_out else "fit"


def select_split(names: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Return the photographs of a split, in their order."""
    return tuple(name for name in names if split in ("all", split_of(name)))


def find_photographs(text: str) -> tuple[str, ...]:
    """Return the photographs of a comma-separated list: names of `PHOTOGRAPHS`, files, or folders of files.

    Raises:
        UsageError: a part is none of these, or a folder holds no image.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part in PHOTOGRAPHS:
            found.append(part)
            continue
        path = Path(part)
        if not path.exists():
            raise UsageError(f"photograph {part!r} is neither a file or folder nor one of {', '.join(PHOTOGRAPHS)}")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"photographs: the folder {part!r} holds no image ({', '.join(SUFFIXES)})")
        found += map(str, files)
    if not found:
        raise UsageError("--photographs names none")
    return tuple(found)


def load_pixels(name: str) -> Image:
    """Return (H, W) or (H, W, 3) float32 in [0, 1] of a name that `find_photographs` gave.

    Raises:
        UsageError: the file is no image that can be read.
    """
    if name in PHOTOGRAPHS:
        return load_photograph(name)
    try:
        pixels = decode_image(Path(name).read_bytes()).pixels
    except (OSError, PairError) as error:
        raise UsageError(f"photograph {name!r}: {error}") from error
    top = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
    return np.asarray(pixels.astype(np.float32) / np.float32(top))


@lru_cache(maxsize=32)
def load_gray(name: str) -> Image:
    """Return (H, W) of `load_pixels`, kept for the next call."""
    return to_gray(load_pixels(name))


@lru_cache(maxsize=32)
def gray_scene(name: str) -> Scene:
    """Return the scene of a photograph, kept for the next call."""
    return build_scene(load_gray(name))


@lru_cache(maxsize=32)
def rgb_scene(name: str) -> Scene:
    """Return the scene of a photograph in three channels, equal ones of a gray photograph."""
    pixels = np.atleast_3d(load_pixels(name))
    return build_scene(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


@lru_cache(maxsize=32)
def resized_gray(name: str, width: int) -> Image:
    """Return the photograph cropped to 4:3 about its centre and resized to `width`, as (3/4 width, width).

    `cv2.INTER_AREA` where it shrinks, as in the deep-homography protocol; cubic where it has to grow.
    """
    import cv2

    photograph = load_gray(name)
    height, full_width = photograph.shape
    crop_width = min(full_width, round(height * 4 / 3))
    crop_height = min(height, round(crop_width * 3 / 4))
    top, left = (height - crop_height) // 2, (full_width - crop_width) // 2
    crop = photograph[top : top + crop_height, left : left + crop_width]
    how = cv2.INTER_AREA if crop_width >= width else cv2.INTER_CUBIC
    resized = cv2.resize(crop, (width, round(width * 3 / 4)), interpolation=how)
    return np.asarray(np.clip(resized, 0, 1), dtype=np.float32)


@lru_cache(maxsize=32)
def resized_scene(name: str, width: int) -> Scene:
    """Return the scene of `resized_gray`."""
    return build_scene(resized_gray(name, width))

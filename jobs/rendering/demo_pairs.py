"""The demo's manifest: pairs rendered from real photographs with exact truth, and rows that cannot be aligned.

Everything follows from `SEED`: the same versions of the packages write the same manifest and the same files.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import UsageError
from jobs.rendering import degrade, synthetic
from jobs.rendering.synthetic import Image, Matrix, Size
from jobs.schema import MATRIX

SEED = 20
MARK = b"homoalign.demo"
"""In the footer of a manifest that may be written over."""
FORMATS = ("jpg", "png", "webp", "ppm", "16.png", "tif", "bmp")
FINE_TEXTURE = frozenset({"brick", "cell", "grass", "gravel", "page", "text"})
"""Photographs without coarse structure: what a coarse level shows of them carries no motion of many pixels."""

MANIFEST = pa.schema(
    [
        ("pair_id", pa.string()),
        ("photograph", pa.string()),
        ("change", pa.string()),
        ("src", pa.string()),
        ("dst", pa.string()),
        ("dst_mask", pa.string()),
        ("dst_homo_src_init", MATRIX),
        ("dst_homo_src_gt", MATRIX),
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one pair is made."""

    photograph: str
    change: str
    """One of `CHANGES`."""


CHANGES = {
    "none": ("astronaut", "coffee", "moon", "retina", "ihc"),
    "noise": ("camera", "chelsea", "rocket", "hubble_deep_field", "brick"),
    "exposure": ("motorcycle_left", "coins", "coffee", "astronaut", "gravel"),
    "vignetting": ("retina", "camera", "chelsea", "page"),
    "blur": ("rocket", "coins", "motorcycle_right", "astronaut"),
    "jpeg": ("coffee", "ihc", "hubble_deep_field", "grass"),
    "occlusion": ("camera", "motorcycle_left", "retina", "chelsea"),
    "everything": ("astronaut", "coffee", "coins", "rocket"),
    "unlike sizes": ("retina", "motorcycle_right", "camera", "text"),
    "large motion": ("astronaut", "coffee", "hubble_deep_field", "camera"),
    "half turn": ("chelsea", "cell"),
    "prior": ("motorcycle_left", "brick"),
    "mask": ("coffee", "camera"),
}
"""What happens between src and dst, and the photographs it happens to."""


def recipes() -> Iterator[Recipe]:
    """Yield the recipes of all pairs that have a truth."""
    for change, photographs in CHANGES.items():
        for photograph in photographs:
            yield Recipe(photograph, change)


def build_demo(folder: Path) -> Path:
    """Write `folder/images/` and `folder/manifest.parquet`, in place of what was there.

    Returns:
        The manifest's path.

    Raises:
        UsageError: a manifest that no demo wrote is there, or scikit-image is not installed.
    """
    path, images = folder / "manifest.parquet", folder / "images"
    if path.exists() and MARK not in (pq.read_schema(path).metadata or {}):
        raise UsageError(f"{path} is not a demo's; name another folder")
    images.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # SciPy lets go of the interpreter while it samples
        rows = list(pool.map(lambda numbered: build_row(numbered[1], images, numbered[0]), enumerate(recipes())))
    rows += broken_rows(images)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST.with_metadata({MARK: str(SEED)})), path)
    return path


def build_row(recipe: Recipe, images: Path, number: int) -> Row:
    """Render one pair, write its files and return its manifest row."""
    name = f"{recipe.photograph}-{recipe.change.replace(' ', '-')}"
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    scene = synthetic.load_scene(recipe.photograph)
    share = min(rng.uniform(0.5, 0.62), 480 / max(scene.size))
    height, width = (round(share * side) for side in scene.size)
    src_size = height, width
    dst_size = (round(0.7 * height), round(0.9 * width)) if recipe.change == "unlike sizes" else src_size
    dst_homo_src = draw_motion(recipe, rng, src_size, dst_size)
    pair = synthetic.render_pair(scene, dst_homo_src, src_size, rng=rng, dst_size=dst_size, density=1.6)
    dst, covered = apply_change(pair.dst, recipe.change, other_than(recipe.photograph, rng), rng)
    src = degrade.add_noise(pair.src, sigma_8bit=1, rng=rng)
    src_format, dst_format = formats_of(number)
    row: Row = {
        "pair_id": name,
        "photograph": recipe.photograph,
        "change": recipe.change,
        "src": write_image(images, f"{name}-src", src, src_format),
        "dst": write_image(images, f"{name}-dst", dst, dst_format),
        "dst_homo_src_gt": pair.dst_homo_src.ravel().tolist(),
    }
    if recipe.change == "mask":
        row["dst_mask"] = write_image(images, f"{name}-mask", (~covered).astype(np.float32), "png")
    if recipe.change == "prior":
        off_px = 0.03 * min(dst_size)
        prior = synthetic.random_homography(rng, dst_size, off_px) @ pair.dst_homo_src
        row["dst_homo_src_init"] = (prior / prior[2, 2]).ravel().tolist()
    return row


def formats_of(number: int) -> tuple[str, str]:
    """Return the formats of src and dst of the pair of this number; every seven pairs meet in another way."""
    return FORMATS[number % len(FORMATS)], FORMATS[(number + number // len(FORMATS)) % len(FORMATS)]


def draw_motion(recipe: Recipe, rng: np.random.Generator, src_size: Size, dst_size: Size) -> Matrix:
    """Return `dst_homo_src` as the recipe's change asks for it."""
    share = 0.025 if recipe.photograph in FINE_TEXTURE else 0.07
    if recipe.change == "large motion":
        share = 0.16
    moved = synthetic.random_homography(rng, src_size, share * min(dst_size), dst_size=dst_size)
    if recipe.change == "half turn":
        return moved @ synthetic.similarity_homography(src_size, angle_deg=180)
    if recipe.change == "prior":
        return moved @ synthetic.similarity_homography(src_size, angle_deg=35, scale=1.25)
    return moved


def apply_change(
    image: Image, change: str, other: Image, rng: np.random.Generator
) -> tuple[Image, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return the destination as its camera would have stored it, and which of its pixels are covered."""
    covered = np.zeros(image.shape[:2], dtype=bool)
    if change in ("occlusion", "mask", "everything"):
        share = {"occlusion": 0.2, "mask": 0.45, "everything": 0.1}[change]
        image, covered = degrade.occlude(image, other=other, share=share, rng=rng)
    if change in ("blur", "everything"):
        image = degrade.add_blur(image, sigma_px=1.5 if change == "blur" else 0.7)
    if change in ("vignetting", "everything"):
        image = degrade.add_vignette(image, strength=0.4)
    if change in ("exposure", "everything"):
        image = degrade.adjust_exposure(image, gain=rng.uniform(0.6, 0.85), bias_8bit=20, gamma=rng.uniform(0.8, 1.2))
    image = degrade.add_noise(image, sigma_8bit={"noise": 15, "everything": 6}.get(change, 1), rng=rng)
    if change in ("jpeg", "everything"):
        image = degrade.compress_jpeg(image, quality=25 if change == "jpeg" else 50)
    return image, covered


def other_than(photograph: str, rng: np.random.Generator) -> Image:
    """Return a photograph that is not the given one."""
    others = [name for name in ("astronaut", "coffee", "chelsea", "rocket") if name != photograph]
    return synthetic.load_photograph(others[rng.integers(len(others))])


def broken_rows(images: Path) -> list[Row]:
    """Write the files of the rows that cannot be aligned and return the rows; `change` says what is wrong."""
    good = synthetic.load_photograph("coffee")[::2, ::2]
    write_image(images, "good", good, "jpg")
    write_image(images, "unrelated", synthetic.load_photograph("gravel")[:200, :300], "jpg")
    write_image(images, "constant", np.full_like(good, 0.5), "png")
    write_image(images, "one-pixel", good[:1, :1], "png")
    encoded = (images / "good.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(encoded[: len(encoded) // 2])
    (images / "text.png").write_text("This is a text that somebody named .png.\n")
    (images / "empty.jpg").write_bytes(b"")
    broken = {
        "missing file": "images/missing.png",
        "truncated JPEG": "images/truncated.jpg",
        "text named .png": "images/text.png",
        "empty file": "images/empty.jpg",
        "constant image": "images/constant.png",
        "one pixel": "images/one-pixel.png",
        "unrelated images": "images/unrelated.jpg",
        "foreign URI": "http://example.org/photograph.jpg",
        "null cell": None,
    }
    return [
        {"pair_id": change.replace(" ", "-").lower(), "change": change, "src": "images/good.jpg", "dst": dst}
        for change, dst in broken.items()
    ]


def write_image(images: Path, name: str, image: Image, suffix: str) -> str:
    """Write one image file and return its URI relative to the manifest.

    Args:
        images: the folder.
        name: without suffix.
        image: (H, W) or (H, W, 3) float32 in [0, 1].
        suffix: one of `FORMATS`; `16.png` is PNG of 16 bits, `tif` is float32.
    """
    file = images / f"{name}.{suffix}"
    file.write_bytes(encode_image(image, suffix))
    return f"images/{file.name}"


def encode_image(image: Image, suffix: str) -> bytes:
    """Return the file of an image, in the format that `suffix` names."""
    if suffix == "16.png":
        import imagecodecs

        return bytes(imagecodecs.png_encode(degrade.to_uint16(image)))
    file = io.BytesIO()
    if suffix == "tif":
        import tifffile

        tifffile.imwrite(file, np.clip(image, 0, 1), photometric="rgb" if image.ndim == 3 else "minisblack")
        return file.getvalue()
    from PIL import Image as PillowImage

    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 95}, "webp": {"quality": 95}}
    kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    PillowImage.fromarray(degrade.to_uint8(image)).save(file, kind, **options.get(suffix, {}))
    return file.getvalue()

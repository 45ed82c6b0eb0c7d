"""Small image files of every format, each with what it must decode to, and what spoils them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from homoalign.decoding.images import decode_image
from homoalign.errors import ImageUnreadable

Array = npt.NDArray[np.generic]
HEIGHT, WIDTH = 21, 34


def picture(channels: int, dtype: type = np.uint8, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Smooth waves with noise, all of the range, alpha (an even channel count's last) with some zeros."""
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[:height, :width]
    waves = [0.5 + 0.4 * np.sin(0.2 * (c + 1) * x + 0.15 * y + c) for c in range(channels)]
    unit = np.clip(np.stack(waves, -1) + rng.normal(0, 0.03, (height, width, channels)), 0, 1)
    pixels = unit.astype(dtype) if dtype == np.float32 else np.rint(unit * np.iinfo(dtype).max).astype(dtype)
    if channels in (2, 4):
        pixels[:5, :7, -1] = 0
    return pixels[..., 0] if channels == 1 else pixels


def by_cv2(extension: str, rgb: Array, *params: int) -> bytes:
    """A file as OpenCV writes it."""
    bgr = rgb if rgb.ndim == 2 else rgb[..., [2, 1, 0, 3][: rgb.shape[2]]]
    return cv2.imencode(extension, np.ascontiguousarray(bgr), params)[1].tobytes()


def by_pillow(image: Image.Image | Array, kind: str, **options: object) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_tifffile(pixels: Array, **options: object) -> bytes:
    """A TIFF as tifffile writes it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, color_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of raw rows, filter bytes included."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def with_true_checksums(data: bytes) -> bytes:
    """The PNG with every chunk's checksum made right, so that the mutation reaches the decoder."""
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        end = min(at + 8 + int.from_bytes(data[at : at + 4], "big"), len(data) - 4)
        parts.append(data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end])))
        at = end + 4
    return b"".join(parts)


def noise_png(bits: int, color_type: int, channels: int, *chunks: bytes) -> bytes:
    """A PNG of noise, at any depth."""
    row = (WIDTH * bits * channels + 7) // 8
    rows = np.random.default_rng(bits).integers(0, 256, (HEIGHT, 1 + row), dtype=np.uint8)
    rows[:, 0] = 0
    return png(WIDTH, HEIGHT, bits, color_type, rows.tobytes(), *chunks)


def palette_picture() -> Image.Image:
    """A picture of at most 50 colours."""
    return Image.fromarray(picture(3)).quantize(50)


def apng() -> bytes:
    """A PNG of two frames."""
    frames = [Image.fromarray(picture(3)), Image.fromarray(255 - picture(3))]
    return by_pillow(frames[0], "PNG", save_all=True, append_images=frames[1:])


def animated_webp() -> bytes:
    """A WebP of two frames."""
    frames = [Image.fromarray(picture(3)), Image.fromarray(255 - picture(3))]
    return by_pillow(frames[0], "WebP", save_all=True, append_images=frames[1:], lossless=True)


def rgb16_pnm(maxval: int, samples: Array) -> bytes:
    """A binary PNM with two bytes a sample and a comment."""
    return b"P6\n# made by hand\n%d %d\n%d\n" % (WIDTH, HEIGHT, maxval) + samples.astype(">u2").tobytes()


def plain_pnm(kind: bytes, pixels: Array, maxval: int | None) -> bytes:
    """A PNM whose samples are written as text."""
    head = b"%s %d %d\n" % (kind, pixels.shape[1], pixels.shape[0]) + (b"" if maxval is None else b"%d\n" % maxval)
    return head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in pixels) + b"\n"


def run_length_bmp() -> bytes:
    """A row of palette entry 0 above one of entry 1: rows are stored from the bottom up."""
    rows = b"\x28\x01\0\0" + b"\x28\x00\0\1"  # 40 times index 1, end of line, 40 times index 0, end of bitmap
    header = struct.pack("<IiiHHIIiiII", 40, 40, 2, 1, 8, 1, len(rows), 0, 0, 2, 0)
    palette = b"\0\0\0\0\xff\xff\xff\0"
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows


GRAY, RGB, RGBA = picture(1), picture(3), picture(4)
GRAY16, RGB16, RGBA16 = picture(1, np.uint16), picture(3, np.uint16), picture(4, np.uint16)
GRAY32F, RGB32F = picture(1, np.float32), picture(3, np.float32)
PALETTE = png_chunk(b"PLTE", bytes(range(48)))

# Lossless files and exactly what they must decode to; None: what OpenCV makes of them.
LOSSLESS: dict[str, tuple[bytes, Array | None]] = {
    "png gray": (by_cv2(".png", GRAY), GRAY),
    "png rgb": (by_cv2(".png", RGB), RGB),
    "png rgba": (by_cv2(".png", RGBA), RGBA[..., :3]),
    "png gray 16": (by_cv2(".png", GRAY16), GRAY16),
    "png rgb 16": (by_cv2(".png", RGB16), RGB16),
    "png rgba 16": (by_cv2(".png", RGBA16), RGBA16[..., :3]),
    "png gray alpha": (by_pillow(picture(2), "PNG"), picture(2)[..., 0]),
    "png gray alpha 16": (imagecodecs.png_encode(picture(2, np.uint16)), picture(2, np.uint16)[..., 0]),
    "png palette": (by_pillow(palette_picture(), "PNG"), None),
    "png palette transparent": (by_pillow(palette_picture(), "PNG", transparency=3), None),
    "png palette 4 bit": (noise_png(4, 3, 1, PALETTE), None),
    "png palette 1 bit": (noise_png(1, 3, 1, png_chunk(b"PLTE", b"\0\1\2\xff\xfe\xfd")), None),
    "png gray 1 bit": (noise_png(1, 0, 1), None),
    "png gray 2 bit": (noise_png(2, 0, 1), None),
    "png gray 4 bit": (noise_png(4, 0, 1), None),
    "png palette 2 bit": (noise_png(2, 3, 1, PALETTE), None),
    "png gray transparent 4 bit": (noise_png(4, 0, 1, png_chunk(b"tRNS", b"\0\7")), None),
    "png rgb transparent colour": (noise_png(8, 2, 3, png_chunk(b"tRNS", bytes(6))), None),
    "png with text": (by_pillow(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0", dpi=(72, 72)), RGB),
    "png animated": (apng(), RGB),
    "webp lossless": (by_pillow(RGB, "WebP", lossless=True), RGB),
    "webp lossless alpha": (by_pillow(RGBA, "WebP", lossless=True, exact=True), RGBA[..., :3]),
    "webp animated": (animated_webp(), RGB),
    "bmp gray": (by_pillow(GRAY, "BMP"), GRAY),
    "bmp rgb": (by_cv2(".bmp", RGB), RGB),
    "bmp rgba": (by_cv2(".bmp", RGBA), RGBA[..., :3]),
    "bmp palette": (by_pillow(palette_picture(), "BMP"), None),
    "bmp 1 bit": (by_pillow(Image.fromarray(GRAY > 128), "BMP"), np.where(GRAY > 128, 255, 0).astype(np.uint8)),
    "pgm": (by_cv2(".pgm", GRAY), GRAY),
    "ppm": (by_cv2(".ppm", RGB), RGB),
    "pgm 16": (by_cv2(".pgm", GRAY16), GRAY16),
    "ppm 16": (rgb16_pnm(65535, RGB16), RGB16),
    "pbm": (by_pillow(Image.fromarray(GRAY > 128), "PPM"), np.where(GRAY > 128, 255, 0).astype(np.uint8)),
    "pgm plain": (plain_pnm(b"P2", GRAY, 255), GRAY),
    "ppm plain 16": (plain_pnm(b"P3", RGB16, 65535), RGB16),
    "pbm plain": (plain_pnm(b"P1", (GRAY < 128).astype(np.uint8), None), np.where(GRAY < 128, 0, 255).astype(np.uint8)),
    "tiff gray": (by_tifffile(GRAY), GRAY),
    "tiff rgb": (by_tifffile(RGB, photometric="rgb"), RGB),
    "tiff rgb lzw by cv2": (by_cv2(".tiff", RGB), RGB),
    "tiff rgb deflate predictor": (by_tifffile(RGB, photometric="rgb", compression="zlib", predictor=True), RGB),
    "tiff rgb 16 tiled lzw": (by_tifffile(RGB16, photometric="rgb", tile=(16, 16), compression="lzw"), RGB16),
    "tiff planes": (
        by_tifffile(np.moveaxis(RGB, -1, 0).copy(), photometric="rgb", planarconfig="separate", compression="packbits"),
        RGB,
    ),
    "tiff planes tiled": (
        by_tifffile(np.moveaxis(RGB16, -1, 0).copy(), photometric="rgb", planarconfig="separate", tile=(16, 16)),
        RGB16,
    ),
    "tiff big-endian gray 16": (by_tifffile(GRAY16, byteorder=">"), GRAY16),
    "tiff big": (by_tifffile(GRAY16, bigtiff=True, rowsperstrip=4, compression="zstd"), GRAY16),
    "tiff float": (by_tifffile(GRAY32F), GRAY32F),
    "tiff float predictor": (by_tifffile(RGB32F, photometric="rgb", compression="zlib", predictor=True), RGB32F),
    "tiff float64": (by_tifffile(GRAY32F.astype(np.float64)), GRAY32F),
    "tiff int16": (by_tifffile(GRAY16.astype(np.int32).astype(np.int16)), GRAY16.astype(np.int16).astype(np.float32)),
    "tiff rgba": (by_tifffile(RGBA, photometric="rgb", extrasamples=["unassalpha"]), RGBA[..., :3]),
    "tiff palette": (by_pillow(palette_picture(), "TIFF"), None),
    "tiff white is zero": (by_tifffile(GRAY, photometric="miniswhite"), 255 - GRAY),
    "tiff 1 bit": (by_tifffile(GRAY > 128, photometric="minisblack"), np.where(GRAY > 128, 255, 0).astype(np.uint8)),
    "tiff 1 bit white is zero": (by_tifffile(GRAY > 128), np.where(GRAY > 128, 0, 255).astype(np.uint8)),
    "tiff cmyk": (by_tifffile(np.dstack([255 - RGB, 0 * GRAY]), photometric="separated"), RGB),
    "tiff two pages": (by_tifffile(np.stack([GRAY, 255 - GRAY])), GRAY),
    "tiff bands": (
        by_tifffile(picture(7, np.uint16), photometric="minisblack", planarconfig="contig"),
        picture(7, np.uint16)[..., 0],
    ),
}  # fmt: skip


def lossy_files() -> dict[str, tuple[bytes, int]]:
    """Lossy files and how many colours they have."""
    inks = Image.fromarray(RGB).convert("CMYK")
    return {
        "jpeg gray": (by_cv2(".jpg", GRAY), 1),
        "jpeg rgb": (by_cv2(".jpg", RGB), 3),
        "jpeg rgb progressive": (by_pillow(RGB, "JPEG", progressive=True, quality=90), 3),
        "jpeg rgb 4:4:4 restarts": (by_cv2(".jpg", RGB, cv2.IMWRITE_JPEG_RST_INTERVAL, 2), 3),
        "jpeg cmyk": (by_pillow(inks, "JPEG", quality=95), 3),
        "jpeg cmyk progressive": (by_pillow(inks, "JPEG", quality=95, progressive=True), 3),
        "jpeg ycck": (
            imagecodecs.jpeg8_encode(255 - np.asarray(inks), 95, colorspace="CMYK", outcolorspace="YCCK"),
            3,
        ),
        "webp": (by_pillow(RGB, "WebP", quality=90), 3),
        "webp alpha": (by_pillow(RGBA, "WebP", quality=90), 3),
        "tiff jpeg": (by_tifffile(RGB, photometric="rgb", compression="jpeg", rowsperstrip=8), 3),
        "tiff jpeg tiled": (by_tifffile(RGB, photometric="rgb", compression="jpeg", tile=(16, 16)), 3),
    }


LOSSY = lossy_files()
FILES = {name: data for name, (data, _) in {**LOSSLESS, **LOSSY}.items()}


def by_opencv(data: bytes) -> Array:
    """What OpenCV decodes, in RGB order and without alpha."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    return decoded if decoded.ndim == 2 else decoded[..., 2::-1]


def unreadable(data: bytes, decode: Callable[[bytes], object] = decode_image) -> str:
    """What is said of a file that must be refused."""
    with pytest.raises(ImageUnreadable) as caught:
        decode(data)
    return str(caught.value)


def patched_tiff(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian classic TIFF with one tag's single value replaced."""
    for kind, letter in ((3, "H"), (4, "I")):
        at = data.find(struct.pack("<HHI", tag, kind, 1))
        if at >= 0:
            return data[: at + 8] + struct.pack("<" + letter, value) + data[at + 8 + struct.calcsize(letter) :]
    raise AssertionError(tag)

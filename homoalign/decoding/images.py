"""Encoded images to pixels: the one door to every decoder.

bytes -> header and limit -> decoder -> `DecodedImage`

| format | decoder |
|---|---|
| JPEG gray, RGB | kornia-rs (libjpeg-turbo; raises where data is missing) |
| JPEG CMYK, YCCK | Pillow |
| PNG | kornia-rs; Pillow where interlaced with 1 to 4 bits; see `png.py` |
| TIFF | tifffile and imagecodecs, see `tiff.py` |
| WebP, BMP | Pillow |
| PNM | NumPy, see `pnm.py` |

Whole or not at all: what a decoder would fill or pad is found from the file's structure first.
Orientation (EXIF, TIFF) and colour profiles are not applied. Integer samples are at full scale, so 255 or 65535 is
white whatever depth the file has; float samples are as stored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from homoalign.decoding.encoded import ImageHeader
from homoalign.decoding.headers import read_bmp_layout, read_header
from homoalign.decoding.jpeg import check_jpeg, jpeg_segments
from homoalign.errors import ImageTooLarge, ImageUnreadable, PairError

__all__ = ["DecodedImage", "ImageHeader", "decode_image", "decode_mask", "read_header"]

MAX_PIXELS = 268_435_456
"""Most pixels an image may have unless told otherwise: 16384 x 16384."""

# RGBA in float32, the largest that is handed on; many-banded and float64 files are held to the same.
_BYTES_PER_PIXEL = 16

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DecodedImage:
    """One image's pixels."""

    pixels: Array
    """(H, W) gray or (H, W, 3) RGB, C-contiguous; uint8 or uint16 at full scale, or float32 as stored."""

    mask: npt.NDArray[np.bool_] | None
    """(H, W), False where alpha is 0 or a float sample is NaN or infinite; None where all pixels count."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file.

    Args:
        data: The encoded file: JPEG, PNG, TIFF (first page), WebP (first frame), PNM or BMP.
        max_pixels: Most pixels the header may state; also bounds the decoded bytes, 16 for each pixel.

    Returns:
        Pixels and which of them count. A pixel with NaN or infinity is 0 in every channel.

    Raises:
        ImageUnreadable: Not an image, a kind that is not supported, or one that is cut short or damaged.
        ImageTooLarge: More pixels or decoded bytes than allowed; found before anything is decoded.
    """
    data = bytes(data)
    header = read_header(data)
    _check_size(header, max_pixels)
    with _translated(header, len(data)):
        pixels, alpha = _decode(data, header, max_pixels)
        if pixels.shape[:2] != (header.height, header.width):
            raise ImageUnreadable(f"decoded to shape {pixels.shape}, unlike its header")
        return _with_mask(pixels, alpha)


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.bool_]:
    """Decode a mask: any image file that `decode_image` reads.

    Returns:
        (H, W), True where any colour channel is nonzero; a fully transparent or NaN pixel counts as zero.

    Raises:
        ImageUnreadable, ImageTooLarge: As `decode_image`.
    """
    image = decode_image(data, max_pixels=max_pixels)
    nonzero = image.pixels != 0
    nonzero = np.asarray(nonzero.any(axis=-1) if nonzero.ndim == 3 else nonzero)
    return nonzero if image.mask is None else nonzero & image.mask


def _check_size(header: ImageHeader, max_pixels: int) -> None:
    num_pixels = header.height * header.width
    size = f"{header.format} of {header.width} x {header.height} = {num_pixels} pixels"
    if num_pixels > max_pixels:
        raise ImageTooLarge(f"{size}, limit {max_pixels}")
    num_bytes = num_pixels * header.channels * header.bits // 8
    if num_bytes > _BYTES_PER_PIXEL * max_pixels:
        samples = f"{header.channels} channels of {header.bits} bits"
        raise ImageTooLarge(f"{size}, {samples}: {num_bytes} bytes, limit {_BYTES_PER_PIXEL * max_pixels}")


@contextmanager
def _translated(header: ImageHeader, num_bytes: int) -> Iterator[None]:
    """Turn whatever a decoder raises into an error of ours that names the file's format and size."""
    what = f"{header.format} of {header.width} x {header.height} pixels, {num_bytes} bytes"
    try:
        yield
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{what}: {error}") from error
    except PairError:
        raise
    except MemoryError as error:
        raise ImageTooLarge(f"{what}: not enough memory to decode it") from error
    except BaseException as error:  # kornia-rs raises bare Exception, and a BaseException where its Rust code panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ImageUnreadable(f"{what}: cut short or damaged ({type(error).__name__}: {error})") from error


def _with_mask(pixels: Array, alpha: Array | None) -> DecodedImage:
    counts = None if alpha is None else np.asarray(alpha != 0)
    if pixels.dtype == np.float32:
        finite = np.isfinite(pixels)
        finite = np.asarray(finite.all(axis=-1) if finite.ndim == 3 else finite)
        if not finite.all():
            pixels = pixels.copy()
            pixels[~finite] = 0
            counts = finite if counts is None else counts & finite
    mask = None if counts is None or counts.all() else np.ascontiguousarray(counts)
    # Writeable: torch.from_numpy warns of arrays that are not, and what comes from a buffer is not.
    return DecodedImage(np.require(pixels, requirements=["C", "W"]), mask)


def _decode(data: bytes, header: ImageHeader, max_pixels: int) -> tuple[Array, Array | None]:
    """Pixels and alpha by the format's own decoder."""
    if header.format == "JPEG":
        return _decode_jpeg(data, header), None
    if header.format == "PNG":
        from homoalign.decoding.png import decode_png

        return decode_png(data, header)
    if header.format == "TIFF":
        from homoalign.decoding.tiff import decode_tiff

        return decode_tiff(data, max_bytes=_BYTES_PER_PIXEL * max_pixels)
    if header.format == "WebP":
        return _decode_webp(data)
    if header.format == "BMP":
        return _decode_bmp(data)
    from homoalign.decoding.pnm import decode_pnm

    return decode_pnm(data), None


def _split_alpha(samples: Array) -> tuple[Array, Array | None]:
    """(H, W[, C]) with alpha last where C is 2 or 4, to pixels (H, W) or (H, W, 3) and alpha."""
    if samples.ndim == 2:
        return samples, None
    num_channels = samples.shape[2]
    alpha = samples[..., -1] if num_channels in (2, 4) else None
    return (samples[..., :3] if num_channels >= 3 else samples[..., 0]), alpha


def _decode_jpeg(data: bytes, header: ImageHeader) -> Array:
    eoi = check_jpeg(data)
    if header.channels == 4:
        return _decode_cmyk_jpeg(data, eoi)
    if header.channels not in (1, 3):
        raise ImageUnreadable(f"{header.channels} colour components are not supported")
    from kornia_rs.io import decode_image_jpegturbo

    return np.asarray(_split_alpha(decode_image_jpegturbo(data, "mono" if header.channels == 1 else "rgb"))[0])


def _decode_cmyk_jpeg(data: bytes, eoi: int) -> Array:
    from PIL.JpegImagePlugin import JpegImageFile

    # Only what decoding needs is handed on: Pillow warns of damaged EXIF. APP14 (0xEE) says whether inks are inverted.
    parts, at, num_scans = [data[:2]], 2, 0
    for marker, start, end in jpeg_segments(data):
        if 0xE0 <= marker <= 0xEF and marker != 0xEE:
            parts.append(data[at : start - 4])
            at = end
        num_scans += marker == 0xDA
    parts.append(data[at:eoi])
    # Pillow fills what a scan lacks with gray once it sees the end marker; without it, it says that data is missing.
    # 64 one-bits in its place let the last block be read ahead of; no block is made of them. Progressive files need
    # the marker.
    parts.append(b"\xff\x00" * 8 if num_scans == 1 else b"\xff\xd9")
    with JpegImageFile(io.BytesIO(b"".join(parts))) as image:
        return np.asarray(image.convert("RGB"))


def _decode_webp(data: bytes) -> tuple[Array, Array | None]:
    from PIL.WebPImagePlugin import WebPImageFile

    stated = 8 + int.from_bytes(data[4:8], "little")
    if stated > len(data):
        raise ImageUnreadable(f"its header says {stated} bytes, but it ends after {len(data)}")
    with WebPImageFile(io.BytesIO(data)) as image:
        return _split_alpha(np.asarray(image))


def _decode_bmp(data: bytes) -> tuple[Array, Array | None]:
    from PIL.BmpImagePlugin import BmpImageFile

    _, end = read_bmp_layout(data)
    if end > len(data):
        raise ImageUnreadable(f"pixel data goes on to byte {end}, but the file ends after {len(data)}")
    with BmpImageFile(io.BytesIO(data)) as image:
        mode = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
        pixels, alpha = _split_alpha(np.asarray(image.convert(mode)))
    # Many writers leave the fourth byte 0 throughout and do not mean it.
    return pixels, alpha if alpha is not None and alpha.any() else None

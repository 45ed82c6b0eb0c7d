"""PNM (PBM, PGM, PPM, raw and plain): from bytes to samples.

bytes -> `read_pnm_layout` -> `decode_pnm` -> samples (H, W) or (H, W, 3)
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from homoalign.decoding.encoded import ImageHeader, stretch
from homoalign.errors import ImageUnreadable

Array = npt.NDArray[Any]

_PNM_FIELD = rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})"
_MAX_PNM_HEADER = 65_536  # comments are free text; matching a longer one would cost memory
_PNM_BITMAP = re.compile(rb"P[14]" + _PNM_FIELD * 2)
_PNM_GRAY_OR_COLOR = re.compile(rb"P[2356]" + _PNM_FIELD * 3)


def read_pnm_layout(data: bytes) -> tuple[ImageHeader, int, int]:
    """Read a PNM's header, the value of a full sample (maxval), and where its samples start, in bytes.

    Raises:
        ImageUnreadable: A field is missing, or maxval is outside [1, 65535].
    """
    is_bitmap = data[1:2] in b"14"
    found = (_PNM_BITMAP if is_bitmap else _PNM_GRAY_OR_COLOR).match(data, 0, _MAX_PNM_HEADER)
    # One whitespace byte ends the header: without it the last number may have been cut.
    if found is None or not data[found.end() : found.end() + 1].isspace():
        raise ImageUnreadable(f"PNM ends within its header, or is none: {len(data)} bytes starting with {data[:16]!r}")
    fields = [int(field) for field in found.groups()]
    maxval = 1 if is_bitmap else fields[2]
    if not 1 <= maxval <= 65535:
        raise ImageUnreadable(f"PNM with maxval {maxval}, outside [1, 65535]")
    channels = 3 if data[1:2] in b"36" else 1
    return ImageHeader("PNM", fields[1], fields[0], channels, maxval.bit_length()), maxval, found.end() + 1


def decode_pnm(data: bytes) -> Array:
    """Decode the first image of a PNM.

    Returns:
        (H, W) or (H, W, 3), uint8 for a maxval up to 255 and uint16 above, maxval stretched to full scale.

    Raises:
        ImageUnreadable: Samples are missing, above maxval or, in the plain formats, no numbers.
    """
    header, maxval, start = read_pnm_layout(data)
    shape = (header.height, header.width, 3) if header.channels == 3 else (header.height, header.width)
    count = header.height * header.width * header.channels
    kind = data[1:2]
    if kind in b"123":
        samples = _plain_samples(data[start:], count, is_bitmap=kind == b"1")
    elif kind == b"4":
        row_bytes = (header.width + 7) // 8
        packed = _raw_samples(data, start, header.height * row_bytes, np.dtype(np.uint8))
        samples = np.unpackbits(packed.reshape(header.height, row_bytes), axis=1, count=header.width)
    else:
        samples = _raw_samples(data, start, count, np.dtype(np.uint8 if maxval < 256 else ">u2"))
    if samples.max() > maxval:
        raise ImageUnreadable(f"a sample of {samples.max()} is above maxval {maxval}")
    pixels = stretch(samples.reshape(shape), maxval)
    return np.invert(pixels) if kind in b"14" else pixels  # a bitmap's 1 is black


def _raw_samples(data: bytes, start: int, count: int, dtype: np.dtype[Any]) -> Array:
    if start + count * dtype.itemsize > len(data):
        raise ImageUnreadable(f"{len(data) - start} bytes of pixel data where {count * dtype.itemsize} are needed")
    return np.frombuffer(data, dtype, count, start)


def _plain_samples(text: bytes, count: int, *, is_bitmap: bool) -> Array:
    text = re.sub(rb"#[^\n\r]*", b"", text)
    if is_bitmap:  # digits may follow each other without a space
        samples = np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8, -1) - ord("0")
    elif text.translate(None, b"0123456789 \t\n\v\f\r"):
        raise ImageUnreadable("pixel data is not made of numbers")
    else:
        samples = np.fromstring(text, np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)
        if samples.size == count and text[-1:].isdigit():
            raise ImageUnreadable("the last number is not followed by a space or new line, so it may be cut")
    if samples.size < count:
        raise ImageUnreadable(f"{samples.size} numbers of pixel data where {count} are needed")
    return samples[:count]

"""What every image format shares: the header's fields, and samples brought to full scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Format = Literal["JPEG", "PNG", "TIFF", "WebP", "PNM", "BMP"]

# A gigabyte of PNG in the usual 8 KB chunks has half of this; a file made of nothing but parts is an attack.
MAX_PARTS = 250_000


@dataclass(frozen=True)
class ImageHeader:
    """An image's own account of itself, as stored: nothing is scaled, converted or turned yet."""

    format: Format

    height: int
    """Rows as stored, at least 1; EXIF orientation is not applied."""

    width: int
    """Columns as stored, at least 1."""

    channels: int
    """Samples a pixel has in the file: alpha counts, a palette index is one."""

    bits: int
    """Bits of one sample; of one palette index where there is a palette."""


def stretch(samples: Array, maxval: int) -> Array:
    """Stretch samples in [0, maxval] to all of uint8 (maxval up to 255) or uint16, rounded; exact where it fits."""
    dtype, full = (np.uint8, 255) if maxval <= 255 else (np.uint16, 65535)
    if maxval == full:
        return samples.astype(dtype, copy=False)
    table = (np.arange(maxval + 1, dtype=np.uint64) * full + maxval // 2) // maxval
    return table.astype(dtype)[samples.astype(np.uint16, copy=False)]  # bilevel TIFFs come as bool

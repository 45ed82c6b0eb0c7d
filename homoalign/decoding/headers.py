"""What an encoded image says of itself before a pixel is decoded: format, size, channels, depth.

bytes -> `read_header` -> `ImageHeader`

Only headers are read, so a file of a few bytes that claims 60000 x 60000 pixels costs nothing. The structures of JPEG,
PNG, TIFF and PNM are in files of their own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from homoalign.decoding.encoded import ImageHeader
from homoalign.decoding.jpeg import read_jpeg_header
from homoalign.decoding.pnm import read_pnm_layout
from homoalign.decoding.tiff import read_tiff_layout
from homoalign.errors import ImageUnreadable


def read_header(data: bytes) -> ImageHeader:
    """Read an image's header without decoding pixels.

    Args:
        data: The encoded file: JPEG, PNG, TIFF, WebP, PNM (P1 to P6) or BMP.

    Returns:
        The header. It says nothing about whether the rest of the file is whole.

    Raises:
        ImageUnreadable: Another format, or a header that is cut short or contradicts itself.
    """
    parse = next((parse for pattern, parse in _PARSERS if pattern.match(data)), None)
    if parse is None:
        raise ImageUnreadable(_not_an_image(data))
    try:
        header = parse(data)
    except (struct.error, IndexError) as error:
        raise ImageUnreadable(f"the file ends within its header, after {len(data)} bytes") from error
    if header.height < 1 or header.width < 1 or header.channels < 1:
        size = f"{header.width} x {header.height} pixels of {header.channels} channels"
        raise ImageUnreadable(f"{header.format} header says {size}")
    return header


_FOREIGN = {
    "GIF": rb"GIF8[79]a",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "AVIF or HEIF": rb".{4}ftyp(?:avif|avis|heic|heix|mif1|msf1)",
    "PAM": rb"P7\n",
    "PFM": rb"P[Ff]\n",
    "PDF": rb"%PDF",
    "HTML or XML": rb"\s*<(?:!|\?|html|HTML|svg|head|body)",
    "gzip": rb"\x1f\x8b",
}


def _not_an_image(data: bytes) -> str:
    """What to say of bytes that no supported format starts with."""
    if not data:
        return "empty: 0 bytes"
    for name, pattern in _FOREIGN.items():
        if re.match(pattern, data, re.DOTALL):
            return f"{name} is not supported: {len(data)} bytes starting with {data[:12]!r}"
    return f"no supported image format: {len(data)} bytes starting with {data[:16]!r}"


# PNG ----------------------------------------------------------------------------------------------------------------

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# By colour type: channels, depths.
_PNG_KINDS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}


def _read_png(data: bytes) -> ImageHeader:
    if data[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise ImageUnreadable(f"PNG starts with the chunk {data[8:16]!r}, not with IHDR")
    width, height, bits, color_type, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    channels, depths = _PNG_KINDS.get(color_type, (0, ()))
    if bits not in depths or (compression, filtering) != (0, 0) or interlace > 1:
        methods = f"methods {compression}, {filtering}, {interlace}"
        raise ImageUnreadable(f"PNG with colour type {color_type}, {bits} bits a sample and {methods}")
    return ImageHeader("PNG", height, width, channels, bits)


# WebP ---------------------------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        struct.unpack_from("30x", data)
        return ImageHeader("WebP", height, width, 4 if data[20] & 0x10 else 3, 8)
    if kind == b"VP8L" and data[20] == 0x2F:
        (packed,) = struct.unpack_from("<I", data, 21)
        alpha = packed >> 28 & 1
        return ImageHeader("WebP", 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF), 3 + alpha, 8)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WebP", height & 0x3FFF, width & 0x3FFF, 3, 8)
    raise ImageUnreadable(f"WebP starts with the chunk {data[12:26]!r}, {len(data)} bytes")


# BMP ----------------------------------------------------------------------------------------------------------------


def read_bmp_layout(data: bytes) -> tuple[ImageHeader, int]:
    """Read a BMP's header, and where its pixel data has to end at least, in bytes.

    Raises:
        ImageUnreadable: A header of unknown size, depth or compression.
    """
    offset, header_size = struct.unpack_from("<II", data, 10)
    compression = image_size = 0
    if header_size == 12:
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
    elif header_size in (40, 52, 56, 64, 108, 124):
        width, height, planes, bits, compression, image_size = struct.unpack_from("<iiHHII", data, 18)
    else:
        raise ImageUnreadable(f"BMP with a header of {header_size} bytes")
    run_length = compression in (1, 2)
    if planes != 1 or bits not in (1, 4, 8, 16, 24, 32) or not (run_length or compression in (0, 3, 6)):
        raise ImageUnreadable(f"BMP with {planes} planes, {bits} bits a pixel and compression {compression}")
    if run_length and image_size == 0:
        raise ImageUnreadable("run-length coded BMP that does not say how many bytes it has")
    row_bytes = (width * bits + 31) // 32 * 4
    channels = 1 if bits <= 8 else 4 if bits == 32 else 3
    header = ImageHeader("BMP", abs(height), width, channels, 5 if bits == 16 else min(bits, 8))
    return header, offset + (image_size if run_length else row_bytes * abs(height))


# The others ---------------------------------------------------------------------------------------------------------


_PARSERS: list[tuple[re.Pattern[bytes], Callable[[bytes], ImageHeader]]] = [
    (re.compile(rb"\xff\xd8\xff"), read_jpeg_header),
    (re.compile(re.escape(PNG_SIGNATURE)), _read_png),
    (re.compile(rb"II[*+]\x00|MM\x00[*+]"), lambda data: read_tiff_layout(data).header),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _read_webp),
    (re.compile(rb"P[1-6][\s#]"), lambda data: read_pnm_layout(data)[0]),
    (re.compile(rb"BM"), lambda data: read_bmp_layout(data)[0]),
]

"""What an encoded image says of itself before a pixel is decoded: format, size, channels, depth.

bytes -> `read_header` -> `ImageHeader`

Only headers are read, so a file of a few bytes that claims 60000 x 60000 pixels costs nothing. `check_jpeg` walks the
rest of the file's structure without decoding it: that is how a file cut short is told from a whole one where the
decoder would fill the missing part with gray. The structures of PNG, TIFF and PNM are in files of their own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from homoalign.errors import ImageUnreadable

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


# JPEG ---------------------------------------------------------------------------------------------------------------

_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FILL = re.compile(rb"\xff*(?=\xff)")
# libjpeg-turbo's own fuzzers stop at 500 scans: real files have about ten, and each costs a pass over the image.
_MAX_JPEG_SCANS = 500


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each JPEG segment, payload bounds without the length field, up to EOI.

    Entropy-coded data is skipped: after SOS the next marker that is neither stuffing nor a restart follows.

    Raises:
        ImageUnreadable: The file ends before EOI, or what should be a segment is none.
    """
    at = 2
    for _ in range(MAX_PARTS):
        fill = _JPEG_FILL.match(data, at)
        at = fill.end() if fill else at
        if at + 2 > len(data):
            raise ImageUnreadable(f"JPEG ends without its end marker, after {len(data)} bytes")
        if data[at] != 0xFF:
            raise ImageUnreadable(f"JPEG has {data[at : at + 2]!r} where a marker belongs, at byte {at}")
        marker = data[at + 1]
        at += 2
        if marker == 0xD9:
            yield marker, at, at
            return
        if marker in _JPEG_STANDALONE:
            continue
        end = at + (int.from_bytes(data[at : at + 2], "big") if at + 2 <= len(data) else len(data))
        if end > len(data) or end < at + 2:
            raise ImageUnreadable(f"JPEG ends within the segment at byte {at}, after {len(data)} bytes")
        yield marker, at + 2, end
        at = end
        if marker == 0xDA:
            found = _JPEG_MARKER_IN_SCAN.search(data, at)
            at = found.start() if found else len(data)
    raise ImageUnreadable(f"JPEG with more than {MAX_PARTS} segments")


def check_jpeg(data: bytes) -> int:
    """Walk a JPEG to its end marker.

    Returns:
        Where the end marker starts, in bytes.

    Raises:
        ImageUnreadable: No end marker, no scan, two frames, or more scans than any real file has.
    """
    scans = frames = eoi = 0
    for marker, start, _ in jpeg_segments(data):
        scans += marker == 0xDA
        frames += marker in _JPEG_FRAME
        eoi = start - 2
    if not 1 <= scans <= _MAX_JPEG_SCANS or frames != 1:
        raise ImageUnreadable(f"JPEG with {scans} scans (limit {_MAX_JPEG_SCANS}) and {frames} frames")
    return eoi


def _read_jpeg(data: bytes) -> ImageHeader:
    for marker, start, _ in jpeg_segments(data):
        if marker in _JPEG_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            if bits != 8:
                raise ImageUnreadable(f"JPEG with {bits} bits a sample is not supported")
            return ImageHeader("JPEG", height, width, channels, bits)
        if marker == 0xDA:
            break
    raise ImageUnreadable(f"JPEG without a frame header, {len(data)} bytes")


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


def _read_tiff(data: bytes) -> ImageHeader:
    from homoalign.tiff import read_tiff_layout

    return read_tiff_layout(data).header


def _read_pnm(data: bytes) -> ImageHeader:
    from homoalign.pnm import read_pnm_layout

    return read_pnm_layout(data)[0]


_PARSERS: list[tuple[re.Pattern[bytes], Callable[[bytes], ImageHeader]]] = [
    (re.compile(rb"\xff\xd8\xff"), _read_jpeg),
    (re.compile(re.escape(PNG_SIGNATURE)), _read_png),
    (re.compile(rb"II[*+]\x00|MM\x00[*+]"), _read_tiff),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _read_webp),
    (re.compile(rb"P[1-6][\s#]"), _read_pnm),
    (re.compile(rb"BM"), lambda data: read_bmp_layout(data)[0]),
]

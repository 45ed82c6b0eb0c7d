"""JPEG's structure: its segments, walked without decoding.

`check_jpeg` is how a file cut short is told from a whole one where the decoder would fill the missing part with gray.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from homoalign.decoding.encoded import MAX_PARTS, ImageHeader
from homoalign.errors import ImageUnreadable

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


def read_jpeg_header(data: bytes) -> ImageHeader:
    """Read the frame header, wherever in the file it stands."""
    for marker, start, _ in jpeg_segments(data):
        if marker in _JPEG_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            if bits != 8:
                raise ImageUnreadable(f"JPEG with {bits} bits a sample is not supported")
            return ImageHeader("JPEG", height, width, channels, bits)
        if marker == 0xDA:
            break
    raise ImageUnreadable(f"JPEG without a frame header, {len(data)} bytes")

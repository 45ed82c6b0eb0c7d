"""PNG: from bytes to samples, whatever the colour type and depth.

bytes -> `png_chunks` -> stored samples (H, W, C) -> palette, transparent colour, full scale -> pixels and alpha

kornia-rs decodes gray, RGB and RGBA with 8 or 16 bits, and is strict. The other kinds are handed to it as one of these
with the same bytes in a row: gray + alpha of 8 bits lies in the file as gray of 16 bits does, a row of 1-bit samples as
a shorter row of 8-bit ones. (imagecodecs' libpng decodes them all, but drops a reference to None with every damaged
file: Python dies after some thousands.)
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from homoalign.decoding.encoded import MAX_PARTS, ImageHeader, stretch
from homoalign.decoding.headers import PNG_SIGNATURE
from homoalign.errors import ImageUnreadable

Array = npt.NDArray[Any]

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
# A deflate stream cannot say more than this many bytes per byte (zlib's technical details: 1032 to 1).
_MAX_DEFLATE_RATIO = 1032
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """Split a PNG into its chunks up to IEND: name to content, that of several IDAT joined.

    Raises:
        ImageUnreadable: The file ends before IEND, a checksum is wrong, or a critical chunk is unknown.
    """
    chunks: dict[bytes, list[bytes]] = {}
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > len(data) or end > len(data):
            raise ImageUnreadable(f"PNG ends before its IEND chunk, after {len(data)} bytes")
        name = data[at + 4 : at + 8]
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageUnreadable(f"PNG has a wrong checksum in the chunk {name!r} at byte {at}")
        if not name[0] & 0x20 and name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ImageUnreadable(f"PNG has the unknown critical chunk {name!r}")
        if name in (b"PLTE", b"tRNS", b"IDAT"):  # nothing else changes the pixels; text may be a bomb of its own
            chunks.setdefault(name, []).append(data[at + 8 : end - 4])
        if name == b"IEND":
            return {name: b"".join(parts) for name, parts in chunks.items()}
        at = end
    raise ImageUnreadable(f"PNG with more than {MAX_PARTS} chunks")


def decode_png(data: bytes, header: ImageHeader) -> tuple[Array, Array | None]:
    """Decode a PNG; of an animation its default image.

    Returns:
        pixels: (H, W) or (H, W, 3), uint8 or uint16 at full scale.
        alpha: (H, W), or None where there is none.

    Raises:
        ImageUnreadable: The file is cut or damaged. What kornia-rs and Pillow raise is left to the caller.
    """
    chunks = png_chunks(data)
    color_type, interlace = data[25], data[28]
    row_bytes = (header.width * header.channels * header.bits + 7) // 8
    packed = chunks.get(b"IDAT", b"")
    if header.height * row_bytes > _MAX_DEFLATE_RATIO * len(packed):
        raise ImageUnreadable(
            f"{len(packed)} bytes of pixel data cannot hold {header.height} rows of {row_bytes} bytes"
        )
    if header.bits < 8 and interlace:
        samples = _decode_interlaced_bits(packed, header)
    elif header.bits < 8:
        rows = _decode_as(packed, header.height, row_bytes, 8, _GRAY, 0)
        bits = np.unpackbits(rows, axis=1, count=header.width * header.bits)
        powers = (1 << np.arange(header.bits, dtype=np.uint8))[::-1]
        samples = bits.reshape(header.height, header.width, header.bits) @ powers
    elif color_type == _GRAY_ALPHA and header.bits == 8:
        samples = _decode_as(packed, header.height, header.width, 16, _GRAY, interlace)
        samples = np.stack([samples >> 8, samples & 255], axis=-1).astype(np.uint8)
    elif color_type == _GRAY_ALPHA:
        as_bytes = _decode_as(packed, header.height, header.width, 8, _RGBA, interlace)
        samples = np.ascontiguousarray(as_bytes).view(">u2").astype(np.uint16)
    else:
        like = _GRAY if color_type == _PALETTE else color_type
        samples = _decode_as(packed, header.height, header.width, header.bits, like, interlace)

    key = chunks.get(b"tRNS")
    if color_type == _PALETTE:
        return _look_up(samples, chunks.get(b"PLTE", b""), key)
    if color_type in (_GRAY_ALPHA, _RGBA):
        return (samples[..., 0] if color_type == _GRAY_ALPHA else samples[..., :3]), samples[..., -1]
    pixels = stretch(samples, (1 << header.bits) - 1)
    if key is None:
        return pixels, None
    transparent = samples == np.asarray(struct.unpack_from(f">{header.channels}H", key))
    return pixels, ~(transparent.all(axis=-1) if color_type == _RGB else transparent)


def _write_png(packed: bytes, height: int, width: int, bits: int, color_type: int, interlace: int) -> bytes:
    """A PNG around rows that are compressed already; with a palette of zeros where it needs one."""
    fields = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
    palette = [(b"PLTE", bytes(3 << bits))] if color_type == _PALETTE else []
    parts = [PNG_SIGNATURE]
    for name, content in [(b"IHDR", fields), *palette, (b"IDAT", packed), (b"IEND", b"")]:
        checksum = struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))
        parts += [struct.pack(">I", len(content)), name, content, checksum]
    return b"".join(parts)


def _decode_as(packed: bytes, height: int, width: int, bits: int, color_type: int, interlace: int) -> Array:
    """Samples (H, W) or (H, W, C) of 8 or 16 bits by kornia-rs, which raises where any are missing."""
    from kornia_rs.io import decode_image_png_u8, decode_image_png_u16

    decode = decode_image_png_u16 if bits == 16 else decode_image_png_u8
    mode = {_GRAY: "mono", _RGB: "rgb", _RGBA: "rgba"}[color_type]
    samples = decode(_write_png(packed, height, width, bits, color_type, interlace), (height, width), mode)
    return np.asarray(samples[..., 0] if color_type == _GRAY else samples)


def _decode_interlaced_bits(packed: bytes, header: ImageHeader) -> Array:
    """Samples (H, W) of 1, 2 or 4 bits in Adam7 order, whose rows end within bytes: by Pillow, as palette indices."""
    from PIL.PngImagePlugin import PngImageFile

    size = 0
    for row, column, row_step, column_step in _ADAM7:
        height, width = -(-(header.height - row) // row_step), -(-(header.width - column) // column_step)
        size += height * (1 + (width * header.bits + 7) // 8) if width > 0 and height > 0 else 0
    found = len(zlib.decompressobj().decompress(packed, size))
    if found < size:  # Pillow would leave the rest black
        raise ImageUnreadable(f"{found} bytes of pixel data where {size} are needed")
    whole = _write_png(packed, header.height, header.width, header.bits, _PALETTE, 1)
    with PngImageFile(io.BytesIO(whole)) as image:
        return np.asarray(image)


def _look_up(index: Array, palette: bytes, alphas: bytes | None) -> tuple[Array, Array | None]:
    """Colours (H, W, 3) and alpha (H, W) of palette indices (H, W)."""
    colors = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    if index.max() >= len(colors):
        raise ImageUnreadable(f"palette index {index.max()}, but a palette of {len(colors)} colours")
    if alphas is None:
        return colors[index], None
    opaque = np.full(256, 255, np.uint8)
    opaque[: len(alphas[:256])] = np.frombuffer(alphas[:256], np.uint8)
    return colors[index], opaque[index]

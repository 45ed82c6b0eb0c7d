"""TIFF: its first page, from bytes to samples; classic and BigTIFF.

bytes -> `read_tiff_layout` -> `TiffLayout` -> `decode_tiff` -> samples (H, W) or (H, W, C), and their alpha

The layout is read here rather than by tifffile because it has to be judged before tifffile trusts it: every strip or
tile inside the file, sizes within the limit, JPEG tiles whole and no larger than the tile. tifffile and imagecodecs
then decode, on one thread.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from homoalign.decoding.encoded import ImageHeader, stretch
from homoalign.decoding.jpeg import check_jpeg, read_jpeg_header
from homoalign.errors import ImageTooLarge, ImageUnreadable

# tifffile logs what it does not like; without a handler Python prints that on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

Array = npt.NDArray[Any]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 256, 257, 258, 259, 262, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_COLOR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DEPTH, _TILE_DEPTH = 320, 338, 339, 32997, 32998
_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _STRIP_OFFSETS, _ROWS_PER_STRIP}
    | {_STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _COLOR_MAP, _EXTRA_SAMPLES}
    | {_SAMPLE_FORMAT, _DEPTH, _TILE_DEPTH}
)
_TYPES = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 16: "u8", 17: "i8"}

_UNCOMPRESSED, _JPEG = 1, 7
# None, LZW, JPEG, deflate (both numbers), PackBits, Zstandard: those whose decoders report missing data.
_COMPRESSIONS = frozenset({_UNCOMPRESSED, 5, _JPEG, 8, 32946, 32773, 50000})
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_UINT, _INT, _FLOAT, _VOID = 1, 2, 3, 4


@dataclass(frozen=True)
class TiffLayout:
    """How the first page lies in the file."""

    header: ImageHeader
    photometric: int
    compression: int
    sample_format: int
    alpha: int | None
    """Which sample of a pixel is alpha."""
    color_map: npt.NDArray[np.uint16] | None
    """(3, 2 ** bits)."""
    segment_height: int
    segment_width: int
    segment_bytes: int
    """One strip or tile, decoded."""
    offsets: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]


def _read_tags(data: bytes) -> dict[int, npt.NDArray[np.int64]]:
    """The integer tags of the first page that matter here, each an array of its values."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = 43 in data[2:4]
    entry, inline = (20, 8) if is_big else (12, 4)
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    if at >= len(data):
        raise ImageUnreadable(f"TIFF says its directory is at byte {at}, but ends after {len(data)}")
    (num_tags,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, at)
    at += 8 if is_big else 2
    if at + entry * num_tags > len(data):
        raise ImageUnreadable(f"TIFF ends within its directory of {num_tags} tags, after {len(data)} bytes")
    tags = {}
    for start in range(at, at + entry * num_tags, entry):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if is_big else "HHI"), data, start)
        if tag not in _TAGS or kind not in _TYPES:
            continue
        dtype = np.dtype(order + _TYPES[kind])
        value_at = start + entry - inline
        if count * dtype.itemsize > inline:
            (value_at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, value_at)
        if value_at + count * dtype.itemsize > len(data) or count == 0:
            raise ImageUnreadable(f"TIFF ends within the {count} values of tag {tag}, after {len(data)} bytes")
        tags[tag] = np.frombuffer(data, dtype, count, value_at).astype(np.int64)
    return tags


def read_tiff_layout(data: bytes) -> TiffLayout:
    """Read how the first page of a TIFF is stored.

    Raises:
        ImageUnreadable: A directory cut short, or a kind of TIFF that is not supported.
    """
    tags = _read_tags(data)

    def value(tag: int, default: int) -> int:
        return int(tags[tag][0]) if tag in tags else default

    width, height, channels = value(_WIDTH, 0), value(_HEIGHT, 0), value(_SAMPLES, 1)
    bits, compression, planar = value(_BITS, 1), value(_COMPRESSION, 1), value(_PLANAR, 1)
    photometric = value(_PHOTOMETRIC, _BLACK_IS_ZERO if channels < 3 else _RGB)
    sample_format = value(_SAMPLE_FORMAT, _UINT)
    sample_format = _UINT if sample_format == _VOID else sample_format
    for wrong, what in (
        (min(width, height, channels, bits) < 1, f"{width} x {height} pixels of {channels} samples with {bits} bits"),
        (compression not in _COMPRESSIONS, f"compression {compression}"),
        (photometric not in _COLORS or channels < _COLORS[photometric], f"colours {photometric}, {channels} samples"),
        (photometric == _YCBCR and compression != _JPEG, "YCbCr colours that are not JPEG"),
        (bool((tags.get(_BITS, np.ones(1)) != bits).any()), "samples of unequal depth"),
        (bool((tags.get(_SAMPLE_FORMAT, np.ones(1)) != value(_SAMPLE_FORMAT, _UINT)).any()), "samples of unequal kind"),
        (not _is_depth_supported(sample_format, bits), f"sample format {sample_format} with {bits} bits"),
        (value(_DEPTH, 1) != 1 or value(_TILE_DEPTH, 1) != 1, "more than one layer"),
        (planar not in (1, 2), f"planar configuration {planar}"),
    ):
        if wrong:
            raise ImageUnreadable(f"TIFF with {what} is not supported")

    color_map = tags.get(_COLOR_MAP)
    if photometric == _PALETTE and (sample_format != _UINT or color_map is None or color_map.size != 3 << bits):
        raise ImageUnreadable(
            f"TIFF with a palette for {bits} bits, but {getattr(color_map, 'size', 0)} palette values"
        )
    alphas = np.flatnonzero(np.isin(tags.get(_EXTRA_SAMPLES, np.zeros(0)), (1, 2)))
    extras = tags.get(_EXTRA_SAMPLES, np.zeros(0)).size
    is_tiled = _TILE_OFFSETS in tags
    segment_width = value(_TILE_WIDTH, 0) if is_tiled else width
    segment_height = value(_TILE_HEIGHT, 0) if is_tiled else min(value(_ROWS_PER_STRIP, height), height)
    if min(segment_width, segment_height) < 1:
        raise ImageUnreadable(f"TIFF with strips or tiles of {segment_width} x {segment_height} pixels")
    num_segments = -(-width // segment_width) * -(-height // segment_height) * (channels if planar == 2 else 1)
    offsets = tags.get(_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS, np.zeros(0, np.int64))
    num_bytes = tags.get(_TILE_BYTES if is_tiled else _STRIP_BYTES, np.zeros(0, np.int64))
    row_bits = segment_width * bits * (1 if planar == 2 else channels)
    return TiffLayout(
        header=ImageHeader("TIFF", height, width, channels, bits),
        photometric=photometric,
        compression=compression,
        sample_format=sample_format,
        alpha=channels - extras + int(alphas[0]) if alphas.size and channels > extras else None,
        color_map=color_map.reshape(3, -1).astype(np.uint16)
        if photometric == _PALETTE and color_map is not None
        else None,
        segment_height=segment_height,
        segment_width=segment_width,
        segment_bytes=(row_bits + 7) // 8 * segment_height,
        offsets=offsets[:num_segments] if offsets.size >= num_segments else offsets[:0],
        num_bytes=num_bytes[:num_segments] if num_bytes.size >= num_segments else num_bytes[:0],
    )


def _is_depth_supported(sample_format: int, bits: int) -> bool:
    if sample_format == _UINT:
        return bits <= 16 or bits in (32, 64)
    return bits in {_INT: (8, 16, 32, 64), _FLOAT: (16, 32, 64)}.get(sample_format, ())


def _check_segments(data: bytes, layout: TiffLayout, max_bytes: int) -> None:
    """Every strip or tile is there, inside the file, and within `max_bytes` when all are decoded."""
    offsets, num_bytes, header = layout.offsets, layout.num_bytes, layout.header
    if offsets.size == 0 or offsets.size != num_bytes.size:
        raise ImageUnreadable(f"TIFF without all of its strips or tiles for {header.width} x {header.height} pixels")
    decoded = layout.segment_bytes * offsets.size
    if decoded > max_bytes:
        raise ImageTooLarge(f"TIFF whose strips or tiles have {decoded} bytes, limit {max_bytes}")
    # Bounds first: two values within the file cannot overflow when added.
    outside = (offsets <= 0) | (num_bytes <= 0) | (offsets > len(data)) | (num_bytes > len(data))
    outside |= np.where(outside, 0, offsets) + np.where(outside, 0, num_bytes) > len(data)
    if outside.any():
        first = int(outside.argmax())
        raise ImageUnreadable(
            f"TIFF strip or tile {first} of {offsets.size} has {num_bytes[first]} bytes at {offsets[first]}, "
            f"but the file ends after {len(data)}"
        )
    if layout.compression == _JPEG:
        for offset, length in zip(offsets.tolist(), num_bytes.tolist(), strict=True):
            segment = data[offset : offset + length]
            check_jpeg(segment)
            size = read_jpeg_header(segment)
            if size.height > layout.segment_height or size.width > layout.segment_width:
                tile = f"{layout.segment_width} x {layout.segment_height}"
                raise ImageUnreadable(f"TIFF holds a JPEG of {size.width} x {size.height} pixels in a tile of {tile}")


def decode_tiff(data: bytes, *, max_bytes: int) -> tuple[Array, Array | None]:
    """Decode the first page of a TIFF.

    Unsigned samples up to 16 bits keep 8 or 16 bits (other depths are stretched to full scale); anything else becomes
    float32 with its values as stored. Gray means one sample, RGB three, whatever further bands follow.

    Args:
        data: The encoded file.
        max_bytes: Most bytes that all strips or tiles may have when decoded, padding included.

    Returns:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
        alpha: (H, W), or None where no sample is alpha.

    Raises:
        ImageUnreadable: Strips or tiles are missing or outside the file, or the kind of TIFF is not supported.
        ImageTooLarge: More than `max_bytes`.
    """
    import tifffile

    layout = read_tiff_layout(data)
    header = layout.header
    _check_segments(data, layout, max_bytes)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        # A tag that is there twice, or of an odd type, may mean another image to tifffile than the one judged above.
        if page.shaped not in ((header.channels, 1, header.height, header.width, 1), (1, 1, *_shape(header))) or (
            page.compression != layout.compression
            or (page.is_tiled and (page.tilelength, page.tilewidth) != (layout.segment_height, layout.segment_width))
            or tuple(page.dataoffsets[: layout.offsets.size]) != tuple(layout.offsets.tolist())
            or tuple(page.databytecounts[: layout.offsets.size]) != tuple(layout.num_bytes.tolist())
        ):
            raise ImageUnreadable(f"tags that contradict each other: {page.shaped} or {_shape(header)}")
        stored = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, samples)
    samples = np.moveaxis(stored[:, 0, :, :, 0], 0, -1) if stored.shape[0] > 1 else stored[0, 0]  # (H, W, C)

    alpha = None if layout.alpha is None else samples[..., layout.alpha]
    colors = samples[..., : _COLORS[layout.photometric]]
    if layout.color_map is not None:
        # Some writers fill only the lower byte of the palette's 16 bits.
        shift = 8 if layout.color_map.max() > 255 else 0
        return (layout.color_map.T >> shift).astype(np.uint8)[colors[..., 0]], alpha
    pixels = _full_scale(colors, layout)
    if layout.photometric == _WHITE_IS_ZERO and pixels.dtype != np.float32:
        pixels = np.invert(pixels)
    if layout.photometric == _CMYK:
        pixels = cmyk_to_rgb(pixels)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels, alpha


def _shape(header: ImageHeader) -> tuple[int, int, int]:
    return header.height, header.width, header.channels


def _full_scale(samples: Array, layout: TiffLayout) -> Array:
    """uint8 or uint16 at full scale, or float32 as stored."""
    bits = layout.header.bits
    if layout.sample_format != _UINT or bits > 16:
        with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 becomes inf, which is masked
            return samples.astype(np.float32)
    return stretch(samples, (1 << bits) - 1)


def cmyk_to_rgb(cmyk: Array) -> Array:
    """Ink (H, W, 4), full scale is full ink, to light (H, W, 3): each colour is (1 - ink) (1 - black)."""
    if cmyk.dtype not in (np.uint8, np.uint16):
        raise ImageUnreadable(f"CMYK with {cmyk.dtype} samples is not supported")
    full = 255 if cmyk.dtype == np.uint8 else 65535
    light = full - cmyk.astype(np.uint32)  # 65535 ** 2 + 32767 still fits
    return ((light[..., :3] * light[..., 3:] + full // 2) // full).astype(cmyk.dtype)

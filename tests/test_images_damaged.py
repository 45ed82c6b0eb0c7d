"""Files that are cut, damaged or foreign are unreadable, and what is said of them."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest
from image_files import (
    FILES,
    GRAY,
    HEIGHT,
    LOSSY,
    RGB,
    WIDTH,
    by_cv2,
    by_opencv,
    by_pillow,
    by_tifffile,
    patched_tiff,
    picture,
    png,
    png_chunk,
    unreadable,
    with_true_checksums,
)

from homoalign.decoding.images import decode_image, decode_mask
from homoalign.decoding.tiff import read_tiff_layout
from homoalign.errors import ImageUnreadable


@pytest.mark.parametrize(
    ("bits", "color_type", "channels"),
    [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (1, 3, 1), (4, 3, 1), (8, 3, 1),
     (8, 4, 2), (16, 4, 2), (8, 6, 4), (16, 6, 4)],
)  # fmt: skip
@pytest.mark.parametrize("size", [(21, 34), (1, 1), (3, 9)])
def test_interlaced_png_is_read_and_missing_rows_are_found(
    bits: int, color_type: int, channels: int, size: tuple[int, int]
) -> None:
    height, width = size
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rng, rows = np.random.default_rng(bits), b""
    for top, left, down, right in passes:
        num_rows, num_columns = len(range(top, height, down)), len(range(left, width, right))
        row_bytes = (num_columns * channels * bits + 7) // 8
        rows += b"".join(b"\0" + rng.bytes(row_bytes) for _ in range(num_rows)) if num_columns else b""
    palette = [png_chunk(b"PLTE", rng.bytes(3 << bits))] if color_type == 3 else []

    def interlaced(rows: bytes) -> bytes:
        plain = png(width, height, bits, color_type, rows, *palette)
        return with_true_checksums(plain[:28] + b"\1" + plain[29:])

    theirs = by_opencv(interlaced(rows))
    ours = decode_image(interlaced(rows)).pixels
    np.testing.assert_array_equal(ours, theirs[..., 0] if color_type == 4 and theirs.ndim == 3 else theirs)
    assert unreadable(interlaced(rows[:-1]))
    assert unreadable(interlaced(rows[: len(rows) // 2]))
    assert unreadable(interlaced(rows[: len(rows) - row_bytes - 1]))  # one row short


def test_a_palette_index_without_a_colour_is_unreadable() -> None:
    rows = b"\0\1\2"
    assert "palette index 2, but a palette of 2 colours" in unreadable(
        png(2, 1, 8, 3, rows, png_chunk(b"PLTE", bytes(6)))
    )


def test_a_tiff_with_a_tag_twice_is_judged_as_it_is_decoded() -> None:
    data = by_tifffile(GRAY, metadata=None)
    at = data.index(struct.pack("<HHI", 296, 3, 1))  # the resolution's unit becomes a second width
    assert "contradict" in unreadable(data[:at] + struct.pack("<HHIHH", 256, 3, 1, 17, 0) + data[at + 12 :])


def many_scans() -> bytes:
    """A JPEG whose one scan is there 600 times."""
    data = FILES["jpeg gray"]
    scan = data.index(b"\xff\xda")
    return data[:scan] + 600 * data[scan:-2] + data[-2:]


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_unreadable_unless_every_pixel_is_there(name: str) -> None:
    data = FILES[name]
    whole = decode_image(data)
    lengths = {*range(max(0, len(data) - 24), len(data)), *np.linspace(0, len(data) - 1, 60).astype(int).tolist()}
    survivors = []
    for length in sorted(lengths):
        try:
            image = decode_image(data[:length])
        except ImageUnreadable:
            continue
        survivors.append(length)
        np.testing.assert_array_equal(image.pixels, whole.pixels)
        np.testing.assert_array_equal(image.mask, whole.mask)
    # Only a TIFF may end in what is not pixel data (padding, a second page), and a bitmap in text in a new line.
    end = len(data) - (name == "pbm plain")
    if name.startswith("tiff"):
        layout = read_tiff_layout(data)
        end = int((layout.offsets + layout.num_bytes).max())
    assert all(length >= end for length in survivors), (end, survivors)


@pytest.mark.parametrize("name", [name for name in LOSSY if name.startswith("jpeg") and "progressive" not in name])
def test_a_jpeg_that_lacks_its_middle_is_unreadable(name: str) -> None:
    data = FILES[name]
    scan = data.index(b"\xff\xda") + 20
    assert unreadable(data[: scan + (len(data) - scan) // 3] + data[-2:])


def test_a_png_with_a_wrong_checksum_or_too_few_rows_is_unreadable() -> None:
    data = bytearray(FILES["png rgb"])
    data[len(data) // 2] ^= 4
    assert "wrong checksum in the chunk b'IDAT'" in unreadable(bytes(data))
    for bits, color_type, channels in ((8, 0, 1), (8, 2, 3), (16, 4, 2)):
        row = b"\0" + bytes(8 * channels * bits // 8)
        assert unreadable(png(8, 8, bits, color_type, 7 * row))
    palette = png_chunk(b"PLTE", bytes(6))
    assert unreadable(png(8, 8, 8, 3, 7 * (b"\0" + bytes(8)), palette))


@pytest.mark.parametrize("num_bytes", [0, HEIGHT * WIDTH + 1, 2**32 - 1])
def test_a_tiff_with_a_strip_outside_the_file_or_missing_is_unreadable(num_bytes: int) -> None:
    data = by_tifffile(GRAY, rowsperstrip=HEIGHT, metadata=None)
    assert f"strip or tile 0 of 1 has {num_bytes} bytes" in unreadable(patched_tiff(data, 279, num_bytes))


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "jpeg"])
def test_a_tiff_with_a_strip_cut_short_is_unreadable(compression: str) -> None:
    data = by_tifffile(GRAY, compression=compression, rowsperstrip=HEIGHT)
    num_bytes = int(read_tiff_layout(data).num_bytes[0])
    for missing in (1, 2, 7, num_bytes // 2):
        if compression == "lzw" and missing == 1:  # its end code fills the last byte
            continue
        assert unreadable(patched_tiff(data, 279, num_bytes - missing))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty: 0 bytes"),
        (b"hello, not an image", "19 bytes starting with b'hello, not an im'"),
        (b"<!DOCTYPE html><html>404</html>", "HTML or XML is not supported: 31 bytes"),
        (by_pillow(GRAY, "GIF"), "GIF is not supported"),
        (imagecodecs.jpeg2k_encode(RGB), "JPEG 2000 is not supported"),
        (imagecodecs.avif_encode(RGB), "AVIF or HEIF is not supported"),
        (b"P7\nWIDTH 1\n", "PAM is not supported"),
        (b"\x89PNG\r\n\x1a\n", "PNG starts with the chunk b''"),
        (b"\xff\xd8\xff", "JPEG ends"),
        (b"BM", "ends within its header, after 2 bytes"),
        (b"II*\0", "ends within its header, after 4 bytes"),
        (b"P5 0 7 255\n", "PNM header says 0 x 7 pixels"),
        (b"P5 2 2 70000\n1234", "maxval 70000, outside [1, 65535]"),
        (b"P2 2 1 9\n3 10\n", "a sample of 10 is above maxval 9"),
        (b"P2 2 1 9\n3 x\n", "not made of numbers"),
        (b"P2 2 1 99\n3 9", "may be cut"),
        (b"P1 2 1\n12\n", "a sample of 2 is above maxval 1"),
        (by_tifffile(GRAY.astype(np.complex64)), "sample format 6 with 64 bits is not supported"),
        (by_tifffile(GRAY, compression="lzma"), "compression 34925 is not supported"),
        (png(8, 8, 3, 0, b""), "PNG with colour type 0, 3 bits a sample"),
        (with_true_checksums(FILES["png rgb"][:26] + b"\1" + FILES["png rgb"][27:]), "methods 1, 0, 0"),
        (png(8, 8, 8, 0, bytes(72), png_chunk(b"CgBI", b"")), "unknown critical chunk b'CgBI'"),
        (many_scans(), "JPEG with 600 scans (limit 500)"),
        (FILES["webp"][:-2], "bytes, but it ends after"),
        (b"P4 8 1234567890\n\0", "PNM ends within its header, or is none"),
        (FILES["png rgb"][:200], "PNG ends before its IEND chunk, after 200 bytes"),
        (FILES["ppm"][:-1], "2141 bytes of pixel data where 2142 are needed"),
    ],
)  # fmt: skip
def test_unreadable_says_what_is_there(data: bytes, words: str) -> None:
    assert words in unreadable(data)
    assert words in unreadable(data, decode_mask)


def test_a_jpeg_larger_than_its_tile_is_unreadable() -> None:
    large = by_cv2(".jpg", picture(3, height=64, width=64))
    header = struct.pack("<2sHI", b"II", 42, 8)
    values = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 7), (262, 3, 2), (273, 4, 0), (277, 3, 3), (278, 4, 16),
              (279, 4, len(large))]  # fmt: skip
    at = 8 + 2 + 12 * len(values) + 4
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, at if tag == 273 else value) for tag, kind, value in values)
    tiff = header + struct.pack("<H", len(values)) + entries + bytes(4) + large
    assert "JPEG of 64 x 64 pixels in a tile of 16 x 16" in unreadable(tiff)

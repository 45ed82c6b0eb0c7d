"""Files that say or hold too much are refused before they cost memory or time."""

from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
from image_files import FILES, GRAY, HEIGHT, WIDTH, by_tifffile, patched_tiff, png, png_chunk, unreadable

from homoalign.decoding.images import decode_image, decode_mask
from homoalign.errors import ImageTooLarge


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xd8" + b"\xff\xe0\0\2" * 260_000, "JPEG with more than 250000 segments"),
     (b"\xff\xd8" + b"\xff" * 8_000_000, "JPEG ends without its end marker"),
     (png(8, 8, 8, 0, bytes(72), png_chunk(b"teXt", b"") * 260_000), "PNG with more than 250000 chunks"),
     (b"P5" + b" " * 8_000_000, "PNM ends within its header"),
     (b"P5 #" + b"#\n" * 4_000_000, "PNM ends within its header")],
    ids=["JPEG segments", "JPEG fill", "PNG chunks", "PNM spaces", "PNM comments"],
)  # fmt: skip
def test_a_file_of_nothing_but_parts_is_given_up(data: bytes, words: str) -> None:
    start = time.process_time()
    assert words in unreadable(data)
    assert time.process_time() - start < 10  # below 1 s here


def huge_files() -> dict[str, bytes]:
    """Tiny files of each format whose header says 60000 x 60000, or what comes nearest."""
    jpeg = bytearray(FILES["jpeg rgb"])
    frame = bytes(jpeg).index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    webp = bytearray(FILES["webp alpha"])
    webp[24:30] = 2 * struct.pack("<I", 59999)[:3]
    bmp = bytearray(FILES["bmp rgb"])
    bmp[18:26] = struct.pack("<ii", 60000, -60000)
    tiff = patched_tiff(patched_tiff(by_tifffile(GRAY, compression="zlib"), 256, 60000), 257, 60000)
    return {
        "JPEG": bytes(jpeg),
        "PNG": png(60000, 60000, 8, 2, b"\0\0\0"),
        "TIFF": tiff,
        "WebP": bytes(webp),
        "BMP": bytes(bmp),
        "PNM": b"P6 60000 60000 255\n123",
        "plain PNM": b"P3 60000 60000 255\n1 2 3\n",
    }


@pytest.mark.parametrize("kind", huge_files())
def test_60000_by_60000_is_too_large_and_costs_no_memory(kind: str) -> None:
    data = huge_files()[kind]
    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match="60000 x 60000 = 3600000000 pixels, limit 268435456"):
        decode_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000  # tifffile's import, where it is the first, is most of it


@pytest.mark.parametrize("name", FILES)
def test_the_limit_holds_for_every_format(name: str) -> None:
    assert decode_image(FILES[name], max_pixels=HEIGHT * WIDTH).pixels.shape[:2] == (HEIGHT, WIDTH)
    with pytest.raises(ImageTooLarge, match=f"{WIDTH} x {HEIGHT} = 714 pixels, limit 713"):
        decode_image(FILES[name], max_pixels=HEIGHT * WIDTH - 1)
    with pytest.raises(ImageTooLarge):
        decode_mask(FILES[name], max_pixels=HEIGHT * WIDTH - 1)


def test_many_bands_and_huge_tiles_are_too_large() -> None:
    bands = by_tifffile(np.zeros((4, 4, 500), np.uint16), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageTooLarge, match="500 channels of 16 bits: 16000 bytes, limit 256"):
        decode_image(bands, max_pixels=16)
    tiled = patched_tiff(patched_tiff(by_tifffile(GRAY, tile=(64, 64)), 322, 2**17), 323, 2**17)
    with pytest.raises(ImageTooLarge, match="strips or tiles have 17179869184 bytes"):
        decode_image(tiled)


def test_a_png_that_cannot_hold_its_rows_is_refused_before_it_is_decoded() -> None:
    tracemalloc.start()
    assert "cannot hold 16000 rows" in unreadable(png(16000, 16000, 16, 6, b"\0\0\0"))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()

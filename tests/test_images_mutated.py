"""Mutated files are refused or decoded, without a line printed or a reference lost."""

from __future__ import annotations

import gc
import logging
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import FILES, HEIGHT, WIDTH, png, png_chunk, with_true_checksums

from homoalign.decoding.images import decode_image, read_header
from homoalign.errors import ImageTooLarge, ImageUnreadable

# One small file of each decoder's kind: what mutation starts from.
SEEDS = [
    "jpeg gray", "jpeg rgb", "jpeg rgb progressive", "jpeg cmyk", "png rgb", "png palette transparent",
    "png gray 16", "png gray alpha 16", "webp", "webp lossless alpha", "webp animated", "bmp rgb", "bmp palette",
    "bmp rgba", "ppm", "pgm plain", "pbm", "tiff rgb", "tiff rgb 16 tiled lzw", "tiff float predictor",
    "tiff palette", "tiff planes", "tiff jpeg", "tiff big",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "insert"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, edits: list[tuple[str, float, int]], reach: int) -> bytes:
    """Flip a bit, set a byte, cut bytes out or insert some, within the first `reach` bytes."""
    for kind, where, value in edits:
        at = int(where * max(0, min(reach, len(data)) - 1))
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :] if data else data
        elif kind == "set":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + 1 + value % 16 :]
        else:
            data = data[:at] + bytes([value]) * (1 + value % 5) + data[at:]
    return data


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_are_refused_or_decode_to_what_their_header_says(name: str) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(EDITS, st.sampled_from([80, 400, 1 << 30]))
    def check(edits: list[tuple[str, float, int]], reach: int) -> None:
        data = mutated(FILES[name], edits, reach)
        data = with_true_checksums(data) if name.startswith("png") else data
        try:
            image = decode_image(data, max_pixels=1_000_000)
        except (ImageUnreadable, ImageTooLarge):
            return
        header = read_header(data)
        assert image.pixels.shape[:2] == (header.height, header.width)
        assert image.pixels.ndim == 2 or image.pixels.shape[2] == 3
        assert image.pixels.dtype in (np.uint8, np.uint16, np.float32)
        assert image.pixels.flags.c_contiguous
        assert image.mask is None or (image.mask.shape == image.pixels.shape[:2] and image.mask.dtype == bool)
        assert image.pixels.dtype != np.float32 or np.isfinite(image.pixels).all()

    check()


def test_damaged_files_leave_no_reference_behind() -> None:
    """imagecodecs' PNG decoder drops one to None with each damaged file, and some thousands end Python."""
    damaged = [mutated(FILES[name], [("set", where, 0x5A)], 1 << 30) for name in SEEDS for where in (0.5, 0.7, 0.9)]
    damaged = [with_true_checksums(data) if data[1:4] == b"PNG" else data for data in damaged]

    def decode_all() -> int:
        for data in damaged:
            try:
                decode_image(data)
            except (ImageUnreadable, ImageTooLarge):
                continue
        gc.collect()
        return sys.getrefcount(None)

    decode_all()
    assert abs(decode_all() - decode_all()) < 10


def test_nothing_is_written_on_stdout_or_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for name in SEEDS:
        data = FILES[name]
        for at in range(0, len(data), max(1, len(data) // 25)):
            try:
                decode_image(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :], max_pixels=1_000_000)
            except (ImageUnreadable, ImageTooLarge):
                continue
    assert capfd.readouterr() == ("", "")


def test_ancillary_png_chunks_never_reach_the_decoder(capfd: pytest.CaptureFixture[str]) -> None:
    """What libpng warns of on stderr, and what may be a decompression bomb of its own."""
    chunks = [png_chunk(b"gAMA", b"\0"), png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10_000_000)))]
    rows = HEIGHT * (b"\0" + bytes(WIDTH * 4))
    assert decode_image(png(WIDTH, HEIGHT, 16, 4, rows, *chunks)).pixels.shape == (HEIGHT, WIDTH)
    assert capfd.readouterr() == ("", "")


def test_tifffile_logs_without_printing() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("tifffile").handlers)

"""Decoders and headers of every format, against what was encoded and against OpenCV."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    FILES,
    GRAY,
    HEIGHT,
    LOSSLESS,
    LOSSY,
    RGB,
    RGBA,
    WIDTH,
    by_opencv,
    by_pillow,
    by_tifffile,
    run_length_bmp,
    unreadable,
)
from PIL import Image

from homoalign.decoding.images import decode_image, read_header

REAL_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_come_back_exactly(name: str) -> None:
    data, expected = LOSSLESS[name]
    pixels = decode_image(data).pixels
    expected = by_opencv(data) if expected is None else expected
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


# Left out: gray + alpha, which OpenCV 5 widens to four channels; TIFF with alpha, which it multiplies in; float64,
# int16 and many bands, which we turn into other types; Zstandard, which it lacks; planes in tiles, which it garbles.
OPENCV_DIFFERS = ("gray alpha", "tiff float64", "int16", "bands", "tiff rgba", "tiff big", "planes tiled")


@pytest.mark.parametrize("name", [name for name in FILES if not any(word in name for word in OPENCV_DIFFERS)])
def test_opencv_decodes_the_same_pixels(name: str) -> None:
    theirs, ours = by_opencv(FILES[name]), decode_image(FILES[name]).pixels
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    difference = np.abs(ours.astype(np.float64) - theirs)
    assert difference.mean() <= (2 if name in LOSSY else 0)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_come_back_nearly(name: str) -> None:
    data, channels = LOSSY[name]
    pixels = decode_image(data).pixels
    expected = GRAY if channels == 1 else RGB
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    # Noise of 8 levels survives quality 90 and 4:2:0 only in part; another picture, or inverted inks, is 60 off.
    counts = slice(None) if "alpha" not in name else RGBA[..., -1] > 0
    reference = RGBA[..., :3] if "alpha" in name else expected
    assert np.abs(pixels[counts].astype(int) - reference[counts]).mean() < 14


@pytest.mark.parametrize("name", FILES)
def test_headers_agree_with_the_pixels(name: str) -> None:
    header, pixels = read_header(FILES[name]), decode_image(FILES[name]).pixels
    assert (header.height, header.width) == pixels.shape[:2] == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("name", "channels", "bits"),
    [("png rgba 16", 4, 16), ("png palette 4 bit", 1, 4), ("jpeg cmyk", 4, 8), ("jpeg gray", 1, 8),
     ("tiff bands", 7, 16), ("webp alpha", 4, 8), ("webp lossless alpha", 4, 8), ("ppm 16", 3, 16), ("pbm", 1, 1),
     ("bmp rgb", 3, 8)],
)  # fmt: skip
def test_headers_tell_channels_and_depth_as_stored(name: str, channels: int, bits: int) -> None:
    header = read_header(FILES[name])
    assert (header.channels, header.bits) == (channels, bits)


def test_samples_below_full_depth_are_stretched_to_it() -> None:
    samples = np.array([[0, 1, 512, 1023]], np.uint16)
    data = b"P5 4 1 1023\n" + samples.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(data).pixels, np.rint(samples / 1023 * 65535).astype(np.uint16))
    np.testing.assert_array_equal(decode_image(b"P2 3 1 4\n0 1 4\n").pixels, np.uint8([[0, 64, 255]]))
    twelve_bit = bytearray(by_tifffile(np.zeros((1, 2), np.uint16)))
    at = bytes(twelve_bit).index(struct.pack("<HHI", 258, 3, 1)) + 8
    twelve_bit[at : at + 2] = struct.pack("<H", 12)
    twelve_bit[-4:-1] = b"\xff\xf8\x00"
    layout_at = bytes(twelve_bit).index(struct.pack("<HHI", 273, 4, 1)) + 8
    twelve_bit[layout_at : layout_at + 4] = struct.pack("<I", len(twelve_bit) - 4)
    np.testing.assert_array_equal(
        decode_image(bytes(twelve_bit)).pixels, np.uint16([[65535, round(0x800 * 65535 / 4095)]])
    )


def test_run_length_bmp_is_decoded_where_it_says_how_long_it_is() -> None:
    data = run_length_bmp()
    np.testing.assert_array_equal(decode_image(data).pixels, np.repeat(np.uint8([[0], [255]]), 40, axis=1))
    assert "ends after" in unreadable(data[:-1])
    assert "does not say how many bytes" in unreadable(data[:34] + bytes(4) + data[38:])


def test_a_tiff_palette_of_8_bits_is_not_taken_for_16() -> None:
    index = np.uint8([[0, 1, 2]])
    palette = np.zeros((3, 256), np.uint16)
    palette[:, :3] = [[1, 2, 3], [40, 50, 60], [253, 254, 255]]
    for written in (palette, palette * 257):
        pixels = decode_image(by_tifffile(index, photometric="palette", colormap=written)).pixels
        np.testing.assert_array_equal(pixels[0], palette[:, :3].T)


def test_cmyk_tiff_mixes_ink_and_black() -> None:
    inks = np.uint8([[[0, 255, 51, 0], [0, 0, 0, 255], [102, 0, 0, 128]]])
    pixels = decode_image(by_tifffile(inks, photometric="separated")).pixels
    np.testing.assert_array_equal(pixels, np.uint8([[[255, 0, 204], [0, 0, 0], [76, 127, 127]]]))


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WebP", {"lossless": True})):
        turned = decode_image(by_pillow(RGB, kind, exif=exif.tobytes(), **options)).pixels
        np.testing.assert_array_equal(turned, decode_image(by_pillow(RGB, kind, **options)).pixels)
    tiff = by_tifffile(RGB, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(decode_image(tiff).pixels, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "BMP", "PNM"])
def test_what_follows_the_image_is_left_alone(kind: str) -> None:
    name = {"JPEG": "jpeg rgb", "PNG": "png rgb", "WebP": "webp", "BMP": "bmp rgb", "PNM": "ppm"}[kind]
    np.testing.assert_array_equal(decode_image(FILES[name] + b"trailer").pixels, decode_image(FILES[name]).pixels)


def test_decoders_are_imported_only_where_they_are_used() -> None:
    # A bare package stands in for homoalign's own, whose other modules import what they like.
    package = "p = types.ModuleType('homoalign'); p.__path__ = ['homoalign']; sys.modules['homoalign'] = p"
    code = f"import sys, types; {package}; import homoalign.decoding.images; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[1]).split()
    assert "homoalign.decoding.headers" in loaded
    assert not {"PIL", "tifffile", "imagecodecs", "kornia_rs", "cv2"} & set(loaded)


REAL_FILES = sorted(p for p in REAL_IMAGES.rglob("*") if p.suffix in {".png", ".jpg", ".ppm", ".tif"})


@pytest.mark.skipif(not REAL_FILES, reason=f"no images at {REAL_IMAGES}")
def test_real_photographs_decode_as_with_opencv() -> None:
    assert len(REAL_FILES) == 102
    for path in REAL_FILES:
        theirs, ours = by_opencv(path.read_bytes()), decode_image(path.read_bytes()).pixels
        assert ours.shape == theirs.shape, path
        difference = np.abs(ours.astype(int) - theirs).mean()
        assert difference <= (2 if path.suffix == ".jpg" else 0), path

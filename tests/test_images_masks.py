"""Which pixels count: alpha, transparent colours, what is not finite; masks from files of their own."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import (
    FILES,
    GRAY,
    HEIGHT,
    RGB,
    RGB32F,
    WIDTH,
    by_cv2,
    by_pillow,
    by_tifffile,
    palette_picture,
    picture,
    png,
    png_chunk,
)

from homoalign.decoding.images import decode_image, decode_mask


@pytest.mark.parametrize(
    "name",
    ["png rgba", "png rgba 16", "png gray alpha", "png gray alpha 16", "webp lossless alpha", "bmp rgba", "tiff rgba"],
)
def test_transparent_pixels_do_not_count(name: str) -> None:
    expected = np.ones((HEIGHT, WIDTH), bool)
    expected[:5, :7] = False
    mask = decode_image(FILES[name]).mask
    assert mask is not None
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)


def test_a_palettes_transparent_entry_does_not_count() -> None:
    mask = decode_image(FILES["png palette transparent"]).mask
    np.testing.assert_array_equal(mask, np.asarray(palette_picture()) != 3)


def test_a_transparent_colour_does_not_count() -> None:
    rows = b"".join(b"\0" + bytes([1, 2, 3, 1, 2, 4]) for _ in range(2))
    mask = decode_image(png(2, 2, 8, 2, rows, png_chunk(b"tRNS", b"\0\1\0\2\0\3"))).mask
    np.testing.assert_array_equal(mask, [[False, True], [False, True]])


@pytest.mark.parametrize("name", ["png rgb", "jpeg gray", "tiff float", "webp", "ppm"])
def test_images_without_alpha_have_no_mask(name: str) -> None:
    assert decode_image(FILES[name]).mask is None


def test_opaque_alpha_gives_no_mask() -> None:
    assert decode_image(by_cv2(".png", np.dstack([RGB, np.full((HEIGHT, WIDTH), 9, np.uint8)]))).mask is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinite_pixels_do_not_count_and_are_zero(dtype: type) -> None:
    pixels = RGB32F.astype(dtype) - 5
    pixels[3, 4, 1], pixels[0, 0, 0], pixels[7, 7, 2] = np.nan, np.inf, -np.inf
    image = decode_image(by_tifffile(pixels, photometric="rgb"))
    expected = np.isfinite(pixels).all(-1)
    np.testing.assert_array_equal(image.mask, expected)
    np.testing.assert_array_equal(image.pixels, np.where(expected[..., None], pixels, 0).astype(np.float32))


def test_float64_beyond_float32_does_not_count() -> None:
    image = decode_image(by_tifffile(np.array([[1e300, 2.0]])))
    np.testing.assert_array_equal(image.mask, [[False, True]])
    np.testing.assert_array_equal(image.pixels, np.float32([[0, 2]]))


def test_a_bmp_whose_alpha_is_zero_throughout_does_not_mean_it() -> None:
    data = by_cv2(".bmp", np.dstack([RGB, 0 * GRAY]))
    np.testing.assert_array_equal(decode_image(data).pixels, RGB)
    assert decode_image(data).mask is None


def test_alpha_and_nan_are_both_honoured() -> None:
    pixels = np.ones((1, 3, 4), np.float32)
    pixels[0, 0, 3], pixels[0, 1, 0] = 0, np.nan
    mask = decode_image(by_tifffile(pixels, photometric="rgb", extrasamples=["unassalpha"])).mask
    np.testing.assert_array_equal(mask, [[False, False, True]])


def test_a_mask_is_true_where_any_channel_is_nonzero() -> None:
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[1, 2, 2], mask[3, 4, 0] = 1, 255
    np.testing.assert_array_equal(decode_mask(by_cv2(".png", mask)), mask.any(-1))
    np.testing.assert_array_equal(decode_mask(by_cv2(".png", mask[..., 0])), mask[..., 0] > 0)
    np.testing.assert_array_equal(
        decode_mask(by_tifffile(mask[..., 0] > 0, photometric="minisblack")), mask[..., 0] > 0
    )
    np.testing.assert_array_equal(decode_mask(by_pillow(picture(2), "PNG")), (picture(2) > 0).all(-1))

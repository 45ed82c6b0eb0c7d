"""What frames a picture is left out, and what only looks like a frame is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.levels.surround import find_insides

SIZE = HEIGHT, WIDTH = 300, 380


def photograph(name: str) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="its wheel holds the photographs")
    return np.asarray(getattr(data, name)(), dtype=np.float32)


def aperture() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = ((x - WIDTH / 2) ** 2 + (y - HEIGHT / 2) ** 2 < 165**2).astype(np.float32)
    return cv2.GaussianBlur(disc, (0, 0), 1.2)


def scene(photo: np.ndarray, view_homo_scene: np.ndarray, contrast: float) -> np.ndarray:
    to_photo = np.array([[1, 0, 60], [0, 1, 70], [0, 0, 1.0]]) @ np.linalg.inv(view_homo_scene)
    seen = cv2.warpPerspective(
        cv2.GaussianBlur(photo, (0, 0), 1.0), np.linalg.inv(to_photo), (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC
    )
    return np.asarray(120 + contrast * (seen - photo.mean()))


def moved_view() -> np.ndarray:
    angle = np.radians(4.0)
    return np.array([[np.cos(angle), -np.sin(angle), 18], [np.sin(angle), np.cos(angle), -25], [0, 0, 1.0]])


def as_bytes(image: np.ndarray, seed: int, seen: np.ndarray | float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, image.shape)
    return np.asarray((image * seen + noise * (np.asarray(seen) > 0)).clip(0, 255), dtype=np.uint8)


def found(image: np.ndarray) -> tuple[bool, np.ndarray]:
    is_framed, inside = find_insides(torch.from_numpy(image)[None, None].float() / 255)
    return bool(is_framed[0]), inside[0, 0].numpy() > 0


@pytest.mark.parametrize("name", ["moon", "grass"])
@pytest.mark.parametrize("contrast", [1.0, 0.25])
def test_an_aperture_does_not_hold_the_scene_where_it_was(name, contrast):
    photo, truth = photograph(name), moved_view()
    src = as_bytes(scene(photo, np.eye(3), contrast), 0, aperture())
    dst = as_bytes(scene(photo, truth, contrast), 1, aperture())
    result = align(src, dst, gt=truth)
    assert result.status == ["ok"]
    assert float(result.gt_corner_error_px[0]) < 0.5


def test_an_aperture_that_is_not_ignored_holds_the_scene():
    photo, truth = photograph("moon"), moved_view()
    src = as_bytes(scene(photo, np.eye(3), 0.25), 0, aperture())
    dst = as_bytes(scene(photo, truth, 0.25), 1, aperture())
    result = align(src, dst, gt=truth, config=AlignConfig(ignore_surround=False))
    assert float(result.gt_corner_error_px[0]) > 5


def test_a_pair_with_an_aperture_changes_nothing_for_those_beside_it():
    photo, truth = photograph("grass"), moved_view()
    plain = [as_bytes(scene(photo, view, 1.0), seed) for seed, view in enumerate((np.eye(3), truth))]
    framed = [as_bytes(scene(photo, view, 0.5), seed, aperture()) for seed, view in enumerate((np.eye(3), truth))]
    src, dst = (torch.from_numpy(np.stack([plain[side], framed[side], plain[side]]))[:, None] for side in range(2))
    together = align(src, dst)
    for i, (one_src, one_dst) in enumerate([plain, framed, plain]):
        alone = align(one_src, one_dst)
        assert torch.equal(alone.dst_homo_src[0], together.dst_homo_src[i])
        assert alone.status[0] == together.status[i]


@pytest.mark.parametrize("level", [0, 9, 255])
def test_nodata_of_a_turned_tile_is_left_out_with_its_edge(level):
    photo = 30 + 0.75 * photograph("gravel")
    turn = cv2.getRotationMatrix2D((256, 256), 12, 1.0)
    tile = cv2.warpAffine(photo, turn, (512, 512), borderValue=level).astype(np.uint8)
    inside = cv2.warpAffine(np.ones_like(photo), turn, (512, 512)) > 0.999
    is_framed, kept = found(tile)
    assert is_framed
    assert kept[~inside].sum() < 16  # slivers, where an edge meets that of the frame
    assert kept[inside].mean() > 0.93


def test_a_letterbox_of_an_odd_size_is_left_out():
    is_framed, kept = found(np.pad(photograph("camera").astype(np.uint8)[:509, :501], ((61, 62), (0, 0))))
    assert is_framed
    assert kept.shape == (632, 501)
    assert not kept[:61].any()
    assert not kept[-62:].any()
    assert kept[80:-80].all()


def test_what_a_camera_writes_into_the_surround_is_of_the_surround():
    image = as_bytes(scene(photograph("grass"), np.eye(3), 0.5), 0, aperture())
    cv2.putText(image, "R", (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 3)
    assert (image[:40, :40] == 255).any()
    is_framed, kept = found(image)
    assert is_framed
    assert not kept[:40, :40].any()


def test_a_dark_corner_is_no_surround():
    image = as_bytes(scene(photograph("grass"), np.eye(3), 0.5), 0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image[x + y < 70] = 0
    assert not found(image)[0]


def behind_dark_grass() -> np.ndarray:
    image, texture = scene(photograph("grass"), np.eye(3), 0.5), np.random.default_rng(0).normal(0, 1, SIZE)
    smooth = cv2.GaussianBlur(texture, (0, 0), 2.0)
    image[-60:] = (7 + 1.5 * smooth / smooth.std())[-60:]
    return image


def backlit() -> np.ndarray:
    return 255 - 235 * np.asarray(aperture() > 0.5, dtype=np.float32)


def page() -> np.ndarray:
    white = np.full(SIZE, 255, np.uint8)
    for row in range(40, 260, 30):
        cv2.putText(white, "homography", (30 + row % 50, row), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 20, 2)
    return white.astype(np.float32)


def night() -> np.ndarray:
    dark = np.full(SIZE, 4, np.float32)
    for x, top in ((20, 180), (90, 120), (170, 200), (260, 90)):
        dark[top:, x : x + 70] = 90 + 20 * np.sin(np.arange(70) / 3)
    return dark


def street() -> np.ndarray:
    texture = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 8, SIZE).astype(np.float32), (0, 0), 2.0)
    return np.asarray(np.maximum(night(), 6 + 4 * texture / texture.std()))


@pytest.mark.parametrize("picture", [backlit, page, night, street, behind_dark_grass])
def test_outlines_that_are_the_scene_stay(picture):
    assert not found(as_bytes(picture(), 0))[0]


@pytest.mark.parametrize("image", [np.zeros(SIZE), np.full(SIZE, 255.0), np.random.default_rng(0).random(SIZE) * 255])
def test_flat_images_and_noise_have_no_surround(image):
    assert not found(image.astype(np.uint8))[0]


def test_a_mask_of_the_callers_is_all_that_is_masked():
    photo, truth = photograph("moon"), moved_view()
    src = as_bytes(scene(photo, np.eye(3), 0.25), 0, aperture())
    dst = as_bytes(scene(photo, truth, 0.25), 1, aperture())
    everything = np.ones(SIZE, dtype=bool)
    result = align(src, dst, src_mask=everything, dst_mask=everything, gt=truth)
    assert float(result.gt_corner_error_px[0]) > 5


def framed_pair(contrast: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    photo, disc = photograph("camera"), aperture()
    views = [scene(photo, matrix, contrast / photo.std()) for matrix in (np.eye(3), moved_view())]
    src, dst = ((disc * view / 255).clip(0, 1).astype(np.float32) for view in views)
    return src, dst


def test_a_pixel_that_is_no_number_hides_no_surround_and_changes_no_other_pair():
    src, dst = framed_pair()
    alone = align(src, dst, gt=moved_view())
    assert alone.gt_corner_error_px.item() < 1
    spoiled_src, spoiled_dst = src.copy(), dst.copy()
    spoiled_src[2, 2] = spoiled_dst[2, 2] = np.nan
    spoiled = align(spoiled_src, spoiled_dst, gt=moved_view())
    assert spoiled.status == alone.status
    assert spoiled.gt_corner_error_px.item() < 1
    together = align(
        torch.from_numpy(np.stack([src, spoiled_src]))[:, None], torch.from_numpy(np.stack([dst, spoiled_dst]))[:, None]
    )
    for i, each in enumerate((alone, spoiled)):
        assert torch.equal(together.dst_homo_src[i], each.dst_homo_src[0])
        assert torch.equal(together.confidence[i], each.confidence[0])


def test_what_is_no_number_within_a_surround_is_masked_too():
    src, dst = framed_pair()
    whole = align(src, dst)
    src[100:200, 120:260] = np.nan
    spoiled = align(src, dst, gt=moved_view())
    assert spoiled.gt_corner_error_px.item() < 1
    assert spoiled.overlap.item() < whole.overlap.item() - 0.1


def test_a_pixel_that_is_no_number_changes_no_pair_without_a_surround():
    photo = photograph("camera")[100:260, 100:300] / 255
    moved = photograph("camera")[104:264, 97:297] / 255
    spoiled = photo.copy()
    spoiled[5, 5] = np.nan
    alone = align(photo, moved)
    together = align(
        torch.from_numpy(np.stack([photo, spoiled]))[:, None], torch.from_numpy(np.stack([moved, moved]))[:, None]
    )
    assert torch.equal(together.dst_homo_src[0], alone.dst_homo_src[0])
    assert torch.equal(together.corner_covariance[0], alone.corner_covariance[0])

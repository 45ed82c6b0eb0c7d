"""The pairs of the benchmarks: their truth, and what they follow from."""

import dataclasses

import cv2
import numpy as np
import pytest

from jobs.bench.blur import MOST_RADIUS_PX, blur_pairs, draw_kernels
from jobs.bench.compression import compression_pairs
from jobs.bench.occlusion import occlusion_pairs
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import NOISES, Range, draw_range_pairs, stream_of
from jobs.bench.photographs import find_photographs, load_gray, resized_gray
from jobs.bench.photometric import Light, draw_lights, lit, photometric_pairs
from jobs.bench.precision import precision_pairs
from jobs.bench.quantised import quantised_pairs
from jobs.bench.range import PRESETS
from jobs.bench.stripes import striped_pairs
from jobs.bench.surround import draw_insides, surround_pairs
from jobs.bench.template import CASES, template_pairs
from jobs.errors import UsageError
from jobs.rendering.degrade import compress_jpeg, to_uint8
from jobs.rendering.synthetic import corner_points, load_photograph, to_gray, warp_points

RENDER = RenderOptions(pairs=3, seed=5, photographs=("astronaut", "coffee", "camera"))
SMALL = Range(size=128, offset_px=32)
TURNED = Range(size=128, offset_px=32, any_rotation=True, scales=(0.5, 2.0))


def disagreement(pair, dst_homo_src) -> float:
    """Mean absolute difference, 8-bit units, of dst and src warped by cv2, over the overlap."""
    size = pair.dst.shape[::-1]
    warped = cv2.warpPerspective(pair.src, dst_homo_src, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpPerspective(np.full_like(pair.src, 255), dst_homo_src, size, flags=cv2.INTER_LINEAR) == 255
    assert inside.mean() > 0.05
    return float(np.abs(warped.astype(float) - pair.dst)[inside].mean())


@pytest.mark.parametrize("far", [SMALL, TURNED], ids=["corners", "turned"])
def test_the_truth_of_the_range_protocol_lays_src_on_dst(far):
    for pair in draw_range_pairs(RENDER, far, sigma_8bit=0):
        at_truth = disagreement(pair, pair.dst_homo_src)
        off = disagreement(pair, np.array([[1, 0, 3], [0, 1, 0], [0, 0, 1.0]]) @ pair.dst_homo_src)
        assert at_truth < 6  # two interpolations of photographs full of edges
        assert at_truth < 0.6 * off
        assert at_truth < 0.6 * disagreement(pair, np.eye(3))


def test_the_corners_move_by_up_to_the_offset_and_src_holds_no_border(tmp_path):
    bright = 100 + 50 * np.random.default_rng(0).random((240, 320))
    cv2.imwrite(str(tmp_path / "bright.png"), bright.astype(np.uint8))
    render = RenderOptions(pairs=20, seed=5, photographs=(str(tmp_path / "bright.png"),))
    moved = []
    for pair in draw_range_pairs(render, SMALL, sigma_8bit=0):
        corners = corner_points((128, 128))
        moved.append(warp_points(pair.dst_homo_src, corners) - corners)
        assert pair.src.shape == pair.dst.shape == (128, 128)
        assert pair.src.min() >= 100
    assert 30 < np.abs(moved).max() <= 32


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_renders(preset):
    (pair,) = draw_range_pairs(dataclasses.replace(RENDER, pairs=1), PRESETS[preset], sigma_8bit=1)
    assert pair.src.shape == pair.dst.shape == (PRESETS[preset].size,) * 2


def test_photographs_are_cropped_to_4_by_3_and_resized():
    # text is 448 x 172 pixels: its middle 229 columns are kept
    assert resized_gray("text", 320).shape == (240, 320)
    assert PRESETS["small"].photo_size == (240, 320)
    whole = to_gray(load_photograph("camera"))
    crop = whole[64:448]
    np.testing.assert_array_equal(resized_gray("camera", 512), crop)


def test_a_pair_follows_from_seed_and_number_alone():
    few = list(precision_pairs(RENDER, 64, 5.0, (0.0, 5.0)))
    more = list(precision_pairs(dataclasses.replace(RENDER, pairs=4), 64, 5.0, (5.0,)))
    other = list(precision_pairs(dataclasses.replace(RENDER, seed=6), 64, 5.0, (5.0,)))
    at_five = [pair for pair in few if pair.case == "sigma 5"]
    assert [pair.number for pair in at_five] == [0, 1, 2]
    for a, b, c in zip(at_five, more, other, strict=False):
        np.testing.assert_array_equal(a.dst, b.dst)
        np.testing.assert_array_equal(a.dst_homo_src, b.dst_homo_src)
        assert (a.dst != c.dst).any()


@pytest.mark.parametrize(("kind", "at_half"), [("white", 1.0), ("photons", 0.5**0.5), ("speckle", 0.5)])
def test_noise_is_as_strong_at_white_as_it_says_and_grows_as_its_kind_does(kind, at_half, numpy_rng):
    def spread(level):
        return 255 * NOISES[kind](np.full((200, 200), level, np.float32), sigma_8bit=30.0, rng=numpy_rng).std()

    assert spread(1.0) == pytest.approx(30, rel=0.03)
    assert spread(0.5) == pytest.approx(30 * at_half, rel=0.03)
    same = np.full((4, 4), 0.5, np.float32)
    np.testing.assert_array_equal(NOISES[kind](same, sigma_8bit=0.0, rng=numpy_rng), same)


def test_the_cases_of_a_pair_share_motion_and_noise():
    unchanged, *changed = photometric_pairs(dataclasses.replace(RENDER, pairs=1), 64, 5.0, 5.0)
    assert [pair.case for pair in changed] == ["gain and bias", "gamma", "vignetting", "JPEG", "everything"]
    for pair in changed:
        np.testing.assert_array_equal(pair.dst_homo_src, unchanged.dst_homo_src)
        is_same = (pair.src == unchanged.src).all()
        assert is_same == (pair.case not in ("JPEG", "everything"))  # only a file changes src
        assert (pair.dst != unchanged.dst).mean() > 0.3


def test_the_local_gain_is_the_slope_of_the_change():
    rng = stream_of(1, 2, 3)
    image = rng.uniform(0.1, 0.9, (40, 50)).astype(np.float32)
    light = draw_lights(rng)["everything"]
    changed, gain, usable = lit(image, light)
    step = np.float32(1e-3)
    slope = (lit(image + step, light)[0] - changed) / step
    assert 0.2 < usable.mean() <= 1
    # a pixel within the step of saturation is left out; float32 differences of 1e-3 are good to 1e-4 / 1e-3
    steady = usable & (changed < 0.99)
    np.testing.assert_allclose(gain[steady], slope[steady], atol=5e-3)
    assert lit(image, Light())[2].all()


def test_covers_hide_what_they_say_and_more_begins_with_less():
    render = dataclasses.replace(RENDER, pairs=1)
    bare, some, much = occlusion_pairs(render, 128, 5.0, 0.0, (0.0, 20.0, 40.0))
    hidden_some, hidden_much = bare.dst != some.dst, bare.dst != much.dst
    assert hidden_some.mean() == pytest.approx(0.2, abs=0.03)  # a cover's pixel may be what it hides
    assert hidden_much.mean() == pytest.approx(0.4, abs=0.04)
    assert bare.bound_px < some.bound_px < much.bound_px


def test_kernels_move_nothing_and_lose_no_light():
    for kernel in draw_kernels(np.random.default_rng(3)).values():
        at = np.arange(len(kernel)) - len(kernel) // 2
        assert kernel.sum() == pytest.approx(1)
        assert abs(kernel.sum(0) @ at) + abs(kernel.sum(1) @ at) < 1e-9
        assert 0.5 < np.sqrt(kernel.sum(0) @ at**2 + kernel.sum(1) @ at**2) < MOST_RADIUS_PX


def test_blurred_pairs_may_pass_through_jpeg():
    render = dataclasses.replace(RENDER, pairs=1)
    plain, packed = (list(blur_pairs(render, 128, 5.0, 0.0, quality)) for quality in (None, 40))
    for before, after in zip(plain, packed, strict=True):
        for side in ("src", "dst"):
            expected = compress_jpeg(getattr(before, side) / np.float32(255), quality=40)
            np.testing.assert_array_equal(getattr(after, side), to_uint8(expected))


def test_a_blurred_pair_has_one_blurred_image_and_a_higher_bound():
    render = dataclasses.replace(RENDER, pairs=1)
    pairs = {pair.case: pair for pair in blur_pairs(render, 128, 5.0, 0.0)}
    sharp = pairs.pop("none")
    for case, pair in pairs.items():
        blurred, other = case.split(",")[0], "src" if case.startswith("dst") else "dst"
        np.testing.assert_array_equal(getattr(pair, other), getattr(sharp, other))
        contrast = [np.diff(getattr(each, blurred).astype(float)).std() for each in (pair, sharp)]
        assert contrast[0] < 0.95 * contrast[1]
        assert pair.bound_px > sharp.bound_px / 2**0.5


def test_quantised_pairs_have_so_many_levels():
    pairs = {pair.case: pair for pair in quantised_pairs(dataclasses.replace(RENDER, pairs=1), 128, 5.0, 2.0)}
    assert len(np.unique(pairs["256 levels"].src)) > 100
    for levels in (32, 16, 8, 4, 2):
        assert 2 <= len(np.unique(pairs[f"{levels} levels"].dst)) <= levels
    assert sorted(np.unique(pairs["dithered"].src)) == [0, 255]
    assert len(np.unique(pairs["8 steps"].dst)) <= 9
    whole = pairs["256 levels"].src.astype(float)
    means = [whole[:64, :64].mean(), pairs["dithered"].src[:64, :64].mean()]  # gray on the whole is kept
    assert means[0] == pytest.approx(means[1], abs=3)


def test_striped_pairs_are_striped_as_they_say():
    render = dataclasses.replace(RENDER, pairs=1)
    pairs = {pair.case: pair for pair in striped_pairs(render, 128, 5.0, 0.0, 6.0)}
    plain = pairs.pop("none")
    added = {
        case: [getattr(pair, side).astype(float) - getattr(plain, side) for side in ("src", "dst")]
        for case, pair in pairs.items()
    }
    axes = {"rows": 1, "fixed columns": 0, "column gains": 0, "detectors": 1, "lines": 1}
    for case, axis in axes.items():
        for of_lines, of_all in ((image.mean(axis).std(), image.mean(1 - axis).std()) for image in added[case]):
            assert 3 * of_all < of_lines
    together = {case: np.corrcoef(*(image.mean(axes[case]) for image in added[case]))[0, 1] for case in axes}
    assert together["fixed columns"] > 0.95
    assert abs(together["rows"]) < 0.5
    assert added["rows"][0].mean(1).std() == pytest.approx(6, rel=0.3)


def test_compressed_pairs_lose_the_more_the_smaller_the_file():
    pairs = {pair.case: pair for pair in compression_pairs(dataclasses.replace(RENDER, pairs=1), 128, 5.0, 1.0)}
    whole = pairs.pop("lossless")
    lost = {
        case: [np.std(getattr(pair, side).astype(float) - getattr(whole, side)) for side in ("src", "dst")]
        for case, pair in pairs.items()
    }
    for kind in ("JPEG", "WebP"):
        of_kind = [amount for case, amount in lost.items() if case.startswith(kind)]
        assert of_kind == sorted(of_kind)
        assert all(0.3 < amount < 30 for both in of_kind for amount in both)


def test_surrounds_are_black_and_those_of_a_camera_the_same_in_both_images():
    render = dataclasses.replace(RENDER, pairs=1)
    pairs = {pair.case: pair for pair in surround_pairs(render, 128, 5.0, 0.0)}
    insides = draw_insides((128, 128), np.random.default_rng(0))
    for case, (of_src, of_dst) in insides.items():
        assert 0.6 < of_src.mean() <= 1
        assert np.array_equal(of_src, of_dst) == (case != "nodata")
    for case in ("aperture", "letterbox", "nodata"):
        for side in ("src", "dst"):
            bare, framed = getattr(pairs["none"], side), getattr(pairs[case], side)
            assert (framed[framed != bare] == 0).all()
            assert (framed[0, :4] == 0).all()
        assert pairs[case].bound_px > pairs["none"].bound_px


def test_photographs_may_be_names_files_and_folders(tmp_path):
    from PIL import Image

    gray = np.linspace(0, 255, 60 * 80).reshape(60, 80).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "b.png")
    Image.fromarray(gray).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("none")
    found = find_photographs(f"camera, {tmp_path}")
    assert found == ("camera", str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    np.testing.assert_allclose(load_gray(found[1]), gray / 255, atol=1e-6)


def test_photographs_that_are_none_are_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="neither a file or folder"):
        find_photographs("nonesuch")
    with pytest.raises(UsageError, match="holds no image"):
        find_photographs(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"a\.png"):
        load_gray(str(tmp_path / "a.png"))


def test_the_slopes_of_the_light_do_not_pass_for_those_of_the_scene():
    render = RenderOptions(pairs=1, seed=5, photographs=("clock_motion",))
    bound = {pair.case: pair.bound_px for pair in photometric_pairs(render, 256, 10.0, 5.0)}
    assert bound["vignetting"] > bound["unchanged"]  # a vignette takes light away, and tells nothing of motion


def test_the_truth_of_templates_lays_them_where_they_are():
    pairs = list(template_pairs(dataclasses.replace(RENDER, pairs=2), 96, 0.0))
    assert [pair.case for pair in pairs] == [*CASES, *CASES]
    for pair in pairs:
        assert pair.dst.shape == (144, 192)
        if pair.case == "absent":
            assert np.isnan(pair.dst_homo_src).all()
            continue
        side = CASES[pair.case].share * 144
        corners = warp_points(pair.dst_homo_src, corner_points(pair.src.shape))
        assert ((corners >= 0) & (corners < (192, 144))).all()
        assert np.linalg.norm(corners[2] - corners[0]) == pytest.approx(side * np.sqrt(2), rel=0.2)
        # Any gain: what is there is the photograph.
        views = pair.src.astype(np.float32), pair.dst.astype(np.float32)
        src = cv2.GaussianBlur(views[0], None, 0.5 * pair.src.shape[0] / side)
        warped = cv2.warpPerspective(src, pair.dst_homo_src, (192, 144), flags=cv2.INTER_LINEAR)
        inside = cv2.warpPerspective(np.ones_like(src), pair.dst_homo_src, (192, 144)) > 0.999
        likeness = np.corrcoef(warped[inside], views[1][inside])[0, 1]
        assert likeness > (0.5 if CASES[pair.case].is_covered else 0.95), pair.case


def test_templates_at_the_rim_of_a_small_scene_render():
    render = dataclasses.replace(RENDER, pairs=1, seed=1400)  # one pixel from it
    assert all(pair.dst.shape == (96, 128) for pair in template_pairs(render, 64, 0.0))

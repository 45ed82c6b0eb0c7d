"""The library's door: truth recovered, pairs independent, nothing degenerate raises."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import homoalign
from homoalign import AlignConfig, Status, align, cleaning
from homoalign.cascade import attempt
from homoalign.trust.evidence import EVIDENCE
from homoalign.trust.parts import measure_parts
from jobs.rendering.degrade import add_blur, add_relief

FLOATS = ("confidence", "corner_std_px", "photometric_l1", "zncc", "overlap", "inlier_ratio", "gain", "bias")


def as_batch(*images):
    return torch.stack([torch.as_tensor(image) for image in images])[:, None]


def corner_error(result, truth, shape):
    truth = torch.as_tensor(truth, dtype=torch.float64).reshape(-1, 3, 3)
    return homoalign.homography.corner_errors(result.dst_homo_src, truth, *shape).mean(-1)


def test_the_truth_is_found_to_a_few_hundredths_of_a_pixel(make_pair):
    src, dst, truth = make_pair()
    result = align(src, dst, gt=truth)
    assert result.status == [Status.OK]
    assert result.status_detail == [None]
    assert result.gt_corner_error_px.item() < 0.06  # cubic interpolation of a sharp photograph leaves up to 0.04
    assert result.gt_corner_error_max_px.item() < 0.12
    assert result.zncc.item() > 0.99
    assert result.dst_homo_src[0, 2, 2] == 1
    assert result.dst_homo_src.dtype == torch.float64


@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "chelsea", "brick"])
def test_other_photographs_align_too(make_pair, photograph):
    src, dst, truth = make_pair(photograph, max_offset_px=8.0)
    result = align(src, dst, gt=truth)
    assert result.status == [Status.OK]
    assert result.gt_corner_error_px.item() < 0.1


def test_gain_and_bias_are_found(make_pair):
    src, dst, truth = make_pair()
    result = align(src, 0.6 * dst + 0.2, gt=truth)
    assert result.gt_corner_error_px.item() < 0.06  # cubic interpolation of a sharp photograph leaves up to 0.04
    assert result.gain.item() == pytest.approx(0.6, abs=0.01)
    assert result.bias.item() == pytest.approx(0.2, abs=0.01)


def test_without_a_photometric_model_intensities_are_compared_as_they_are(make_pair):
    src, dst, truth = make_pair()
    result = align(src, dst, gt=truth, config=AlignConfig(photometric="none"))
    assert (result.gain.item(), result.bias.item()) == (1, 0)
    assert result.gt_corner_error_px.item() < 0.05


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64])
def test_every_depth_gives_the_same_matrix(make_pair, dtype):
    src, dst, truth = make_pair()
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    pair = (as_batch(image).mul(scale).round_() if scale > 1 else as_batch(image) for image in (src, dst))
    result = align(*(image.to(dtype) for image in pair))
    # 8-bit rounding moves a corner by about 0.002 px.
    assert corner_error(result, truth, src.shape).item() < 0.04


def test_floats_beyond_one_are_scaled_by_their_range(make_pair):
    src, dst, truth = make_pair()
    result = align(1000 * src - 300, dst, gt=truth)
    assert result.gt_corner_error_px.item() < 0.06  # cubic interpolation of a sharp photograph leaves up to 0.04
    assert 0 <= result.photometric_l1.item() < 0.1


def test_sizes_and_channels_of_a_pair_may_differ(make_pair):
    src, dst, truth = make_pair("coffee", gray=False)
    cropped = dst[:100, :140, :]
    gray = cropped @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    start = torch.eye(3, dtype=torch.float64)
    result = align(src, gray, init=start, gt=truth)
    assert result.gt_corner_error_px.item() < 0.05
    assert result.initialisation == ["prior"]


def test_a_prior_is_where_it_starts(make_pair):
    src, dst, _ = make_pair(size=(200, 240))
    far = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    far[0, 2] = 90.0
    moved = torch.from_numpy(np.roll(dst, 90, axis=1))
    moved[:, :90] = 0.5
    with_prior = align(as_batch(src), moved[None, None], init=far[None])
    assert with_prior.initialisation == ["prior"]
    assert with_prior.status == [Status.OK]
    shift = with_prior.dst_homo_src[0] @ torch.tensor([100.0, 100, 1], dtype=torch.float64)
    assert (shift[0] / shift[2]).item() == pytest.approx(190, abs=12)


def make_mixed_batch(make_pair, rng):
    """32 pairs of one size: 20 that align and 12 that fail, each in its own way."""
    names = ("astronaut", "brick", "camera", "coffee", "chelsea")
    good = [make_pair(names[i % 5]) for i in range(20)]
    noise = [
        (torch.rand(120, 160, generator=rng).numpy(), torch.rand(120, 160, generator=rng).numpy()) for _ in range(3)
    ]
    flat = [(np.full((120, 160), 0.5, np.float32), good[i][1]) for i in range(3)]
    unrelated = [(good[i][0], good[i + 1][1]) for i in range(3)]
    missing = [(np.full((120, 160), np.nan, np.float32), good[i][1]) for i in range(3)]
    pairs = [(src, dst) for src, dst, _ in good]
    order = torch.randperm(32, generator=rng).tolist()
    mixed = [*pairs, *noise, *flat, *unrelated, *missing]
    return as_batch(*(mixed[i][0] for i in order)), as_batch(*(mixed[i][1] for i in order))


def test_alone_together_and_in_another_order_a_pair_ends_alike(make_pair, rng):
    src, dst = make_mixed_batch(make_pair, rng)
    config = AlignConfig(search_max_rotation_deg=20, search_max_scale=1.3)  # a wider search of those that fail is slow
    together = align(src, dst, config=config)
    order = torch.randperm(32, generator=rng)
    shuffled = align(src[order], dst[order], config=config)
    back = torch.argsort(order).tolist()
    assert sum(status is Status.OK for status in together.status) == 20
    for i in range(32):
        alone = align(src[i : i + 1], dst[i : i + 1], config=config)
        assert together.status[i] == alone.status[0] == shuffled.status[back[i]]
        if together.dst_homo_src[i].isnan().any():
            continue
        truth = together.dst_homo_src[i : i + 1]
        # Also pairs that fail, and wander: nothing in a batch may round otherwise for one pair than for many.
        assert corner_error(alone, truth, (120, 160)).item() < 1e-3
        other = homoalign.homography.corner_errors(shuffled.dst_homo_src[back[i] : back[i] + 1], truth, 120, 160)
        assert other.max().item() < 1e-3
        for name in FLOATS:
            expected = pytest.approx(getattr(together, name)[i].item(), abs=1e-3, nan_ok=True)  # where nothing overlaps
            assert getattr(alone, name)[0].item() == expected, name


@pytest.mark.parametrize(
    ("make", "status", "detail"),
    [
        (lambda a, b: (0 * a + 0.5, b), Status.LOW_TEXTURE, "src has a standard deviation of 0.00000"),
        (lambda a, b: (a, np.zeros_like(b)), Status.LOW_TEXTURE, "dst has a standard deviation of 0.00000"),
        (lambda a, b: (a[:1, :1], b), Status.TOO_SMALL, "src is 1 x 1 pixels, min_side_px=16"),
        (lambda a, b: (a, b[:, :9]), Status.TOO_SMALL, "dst is 9 x 120 pixels"),
        (lambda a, b: (np.full_like(a, np.nan), b), Status.NO_OVERLAP, "a flat surround, leaves 0.000 of src"),
        (lambda a, b: (np.full_like(a, np.inf), b), Status.NO_OVERLAP, "a flat surround, leaves 0.000 of src"),
        (lambda a, b: (np.random.default_rng(1).random(a.shape, np.float32), b), None, "0."),
        (lambda a, b: (0 * a + np.eye(120, 160, dtype=np.float32), b), None, ""),
        (lambda a, b: (np.broadcast_to(np.linspace(0, 1, 160, dtype=np.float32), a.shape), b), None, ""),
    ],
)  # fmt: skip
def test_degenerate_pairs_get_a_status_with_values(make_pair, make, status, detail):
    src, dst, _ = make_pair()
    result = align(*make(src, dst))
    assert result.status[0] is not Status.OK
    assert status in (None, result.status[0])
    assert detail in result.status_detail[0]
    if status is not None:
        assert result.dst_homo_src.isnan().all()
        assert result.confidence.item() == 0


def test_unrelated_photographs_are_not_ok(make_pair):
    images = [make_pair(name)[0] for name in ("astronaut", "brick", "camera", "coffee", "grass", "gravel", "page")]
    for i, src in enumerate(images):
        result = align(src, images[(i + 1) % len(images)])
        assert result.status[0] is not Status.OK
        assert result.confidence.item() < 0.5


@pytest.mark.parametrize(
    ("prior", "detail"),
    [
        ([[1, 0, math.nan], [0, 1, 0], [0, 0, 1]], "dst_homo_src_init is not finite"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 1]], "dst_homo_src_init is singular"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], "[2, 2] = 0"),
    ],
)
def test_a_prior_that_cannot_be_started_from_is_an_invalid_row(make_pair, prior, detail):
    src, dst, _ = make_pair()
    result = align(src, dst, init=np.array(prior, dtype=float))
    assert result.status == [Status.INVALID_ROW]
    assert detail in result.status_detail[0]


def test_a_prior_of_nan_alone_means_none(make_pair):
    src, dst, _ = make_pair()
    result = align(src, dst, init=np.full((3, 3), np.nan))
    assert result.initialisation == ["identity"]
    assert result.status == [Status.OK]


def test_masked_and_nan_pixels_do_not_count(make_pair):
    src, dst, truth = make_pair()
    mask = np.ones(src.shape, dtype=bool)
    mask[30:90, 40:110] = False
    stained = np.where(mask, dst, 1.0).astype(np.float32)
    by_mask = align(src, stained, dst_mask=mask, gt=truth)
    by_nan = align(src, np.where(mask, dst, np.nan).astype(np.float32), gt=truth)
    assert by_mask.gt_corner_error_px.item() < 0.05
    assert by_mask.zncc.item() > 0.99
    assert corner_error(by_nan, by_mask.dst_homo_src, src.shape).item() < 1e-3
    assert align(src, stained).zncc.item() < 0.9


def test_a_mask_that_leaves_nothing_is_no_overlap(make_pair):
    src, dst, _ = make_pair()
    result = align(src, dst, src_mask=np.zeros(src.shape, dtype=np.uint8))
    assert result.status == [Status.NO_OVERLAP]


def test_the_trace_tells_of_every_level_coarse_to_fine(make_pair):
    src, dst, truth = make_pair()
    result = align(src, dst, gt=truth, trace=True)
    (levels,) = result.levels
    assert [level.level for level in levels] == [4, 3, 2, 1, 0]
    assert [(level.height, level.width) for level in levels] == [(8, 10), (15, 20), (30, 40), (60, 80), (120, 160)]
    assert sum(level.num_iterations for level in levels) == result.num_iterations.item()
    assert levels[-1].photometric_l1 == pytest.approx(result.photometric_l1.item(), rel=1e-5)
    assert levels[-1].gt_reprojection_l1 == pytest.approx(result.gt_reprojection_l1.item())
    assert align(src, dst).levels == [[]]


def test_the_tutorial_aligns_by_adam(make_pair):
    src, dst, truth = make_pair(size=(64, 80), max_offset_px=3.0)
    config = AlignConfig(solver="adam", adam_levels=3)
    result = align(src, dst, gt=truth, config=config, trace=True)
    assert result.gt_corner_error_px.item() < 0.3
    assert result.status == [Status.OK]  # it predicts no precision, and is not held to any
    assert [level.num_iterations for level in result.levels[0]] == [100, 100, 100]
    errors = [level.gt_reprojection_l1 for level in result.levels[0]]
    assert errors[-1] < 0.02
    assert result.num_iterations.item() == 300


@pytest.mark.parametrize("step", ["take_stripes_away", "smooth_quantised", "stabilise"])
def test_the_tutorial_takes_images_as_they_are(make_pair, monkeypatch, step):
    def changes(*_):
        raise AssertionError(step)

    monkeypatch.setattr(cleaning, step, changes)
    src, dst, _ = make_pair()
    with pytest.raises(AssertionError, match=step):
        align(src, dst)
    align(src, dst, config=AlignConfig(solver="adam", adam_steps=1))


def test_adam_keeps_pairs_apart(make_pair):
    src, dst, _ = make_pair(size=(64, 80), max_offset_px=3.0)
    config = AlignConfig(solver="adam", adam_levels=2, adam_steps=20)
    alone = align(as_batch(src), as_batch(dst), config=config)
    beside_nan = align(as_batch(src, np.full_like(src, np.nan)), as_batch(dst, dst), config=config)
    assert torch.allclose(alone.dst_homo_src[0], beside_nan.dst_homo_src[0], atol=1e-6)
    assert beside_nan.status[1] is Status.NO_OVERLAP


def test_the_predicted_precision_is_about_the_error(make_pair, numpy_rng):
    ratios = []
    for name in ("astronaut", "camera", "coffee", "chelsea", "brick", "gravel"):
        src, dst, truth = make_pair(name)
        noisy = (image + 0.03 * numpy_rng.standard_normal(image.shape).astype(np.float32) for image in (src, dst))
        result = align(*noisy, gt=truth)
        ratios.append(result.gt_corner_error_px.item() / result.corner_std_px.item())
        trace = result.corner_covariance.diagonal(dim1=-2, dim2=-1).sum(-1).mean().item()
        assert result.corner_std_px.item() ** 2 == pytest.approx(trace)
    # Calibration is a later matter; an order of magnitude off is not.
    assert 0.3 < np.median(ratios) < 3


def test_what_is_more_than_noise_widens_the_prediction_by_what_the_blocks_leave_open(make_pair, numpy_rng):
    src, dst, _ = make_pair("astronaut")
    noisy = [image + 0.03 * numpy_rng.standard_normal(image.shape).astype(np.float32) for image in (src, dst)]
    shares = []
    for pair in (noisy, (src, add_relief(dst, shift_px=3.0, rng=numpy_rng))):
        result = align(*pair)
        solver_px = result.evidence[0, EVIDENCE.index("corner_std_480")].item() * min(dst.shape) / 480
        shares.append(result.corner_std_px.item() / solver_px)
    assert shares[0] < 1.1
    assert shares[1] > 1.5


def test_where_the_blocks_would_have_the_corners_counts_as_a_bias_of_what_is_more_than_noise(
    make_pair, numpy_rng, monkeypatch
):
    monkeypatch.setattr("homoalign.cascade.attempt.solve_unlike_sharpness", lambda _, solved: solved)
    src, dst, _ = make_pair("astronaut")
    noisy = [image + 0.03 * numpy_rng.standard_normal(image.shape).astype(np.float32) for image in (src, dst)]
    pairs, drift_px = {"noise": noisy, "blur": (src, add_blur(dst, sigma_px=2.5))}, 2.0
    before = {name: align(*pair).corner_std_px.item() for name, pair in pairs.items()}
    drift_480 = torch.full((1,), drift_px * 480 / min(dst.shape), dtype=torch.float64)
    monkeypatch.setattr(attempt, "measure_parts", lambda *levels: replace(measure_parts(*levels), drift_480=drift_480))
    after = {name: align(*pair).corner_std_px.item() for name, pair in pairs.items()}
    assert after["noise"] < 1.1 * before["noise"] + 0.1 * drift_px
    assert 0.9 * drift_px < after["blur"] < 1.1 * math.hypot(drift_px, before["blur"])


def test_an_empty_batch_has_no_results():
    empty = torch.zeros(0, 1, 32, 32)
    assert align(empty, empty).status == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"src": torch.zeros(2, 1, 32, 32)}, ValueError, "src has 2 pairs and dst has 1"),
        ({"src": torch.zeros(32, 32)}, ValueError, r"src should have shape \(B, C, H, W\), got \(32, 32\)"),
        ({"src": [[1.0]]}, TypeError, "src should be a torch tensor or a numpy array, got list"),
        ({"src": torch.zeros(1, 1, 32, 32, dtype=torch.int32)}, TypeError, "image dtype int32 is neither"),
        ({"src_mask": torch.ones(1, 8, 8)}, ValueError, r"src_mask should have shape \(1, 32, 32\), got \(1, 8, 8\)"),
        ({"init": torch.zeros(2, 2)}, ValueError, r"init should have shape \(1, 3, 3\), got \(2, 2\)"),
        ({"gt": torch.zeros(3, 3, 3)}, ValueError, r"gt should have shape \(1, 3, 3\), got \(3, 3, 3\)"),
    ],
)
def test_a_wrong_call_raises_with_values(arguments, error, message):
    call = {"src": torch.zeros(1, 1, 32, 32), "dst": torch.zeros(1, 1, 32, 32)} | arguments
    with pytest.raises(error, match=message):
        align(call.pop("src"), call.pop("dst"), **call)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu(make_pair):
    pairs = [make_pair(name) for name in ("astronaut", "camera", "coffee")]
    src, dst = as_batch(*(pair[0] for pair in pairs)), as_batch(*(pair[1] for pair in pairs))
    on_cpu, on_gpu = align(src, dst), align(src.cuda(), dst.cuda())
    assert on_gpu.status == on_cpu.status
    assert corner_error(on_gpu, on_cpu.dst_homo_src, (120, 160)).max().item() < 1e-2


def test_what_comes_back_can_be_refined_by_gradients(make_pair):
    src, dst, _ = make_pair()
    images = as_batch(src, np.zeros_like(src))
    result = align(images, as_batch(dst, dst))
    tensors = [getattr(result, field.name) for field in fields(result)]
    assert not any(value.is_inference() for value in tensors if isinstance(value, torch.Tensor))
    matrix = result.dst_homo_src[:1].requires_grad_()
    homoalign.warp(images[:1], matrix, dst.shape).sum().backward()
    assert matrix.grad.isfinite().all()


def test_an_image_without_pixels_is_too_small():
    result = align(np.zeros((0, 5), np.uint8), np.zeros((50, 50), np.uint8))
    assert result.status == [Status.TOO_SMALL]
    assert result.status_detail == ["src is 5 x 0 pixels, min_side_px=16"]


def test_a_callers_autocast_does_not_move_the_answer(make_pair):
    src, dst, _ = make_pair()
    with torch.autocast("cpu", torch.bfloat16):
        within = align(src, dst)
    assert torch.equal(within.dst_homo_src, align(src, dst).dst_homo_src)


NOISY_PHOTOGRAPHS = ("astronaut", "camera", "coffee", "brick", "chelsea", "coins")


@pytest.mark.parametrize(("sigma", "most_px"), [(0.0, 0.008), (0.02, 0.03), (0.08, 0.12)])
def test_noise_costs_about_what_it_must(make_pair, numpy_rng, sigma, most_px):
    errors = []
    for name in NOISY_PHOTOGRAPHS:
        src, dst, truth = make_pair(name, size=(200, 200))
        noisy = (image + sigma * numpy_rng.standard_normal(image.shape).astype(np.float32) for image in (src, dst))
        errors.append(align(*noisy, gt=truth).gt_corner_error_px.item())
    # About 1.3 times the Cramer-Rao bound of these photographs, or the error of the spline.
    assert np.median(errors) < most_px, errors


def test_masks_that_leave_next_to_nothing_of_both_are_no_overlap(make_pair):
    src, dst, _ = make_pair()
    mask = np.zeros(src.shape, dtype=bool)
    mask[:, :6] = True  # however they are laid on each other, less than `min_overlap` is shared
    result = align(src, dst, src_mask=mask, dst_mask=mask[:, ::-1])
    assert result.status == [Status.NO_OVERLAP]

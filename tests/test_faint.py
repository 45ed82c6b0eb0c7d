"""Pairs whose little texture drowns in noise: the image behind both is solved for as well."""

import dataclasses

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.descent import full_size, last_steps
from homoalign.differences import faint
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import build_problem
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair
from jobs.bench.photographs import PHOTOGRAPHS
from jobs.bench.photometric import photometric_pairs
from jobs.bench.precision import precision_pairs

STAY = AlignConfig(use_search=False, use_features=False)


def noisy_pairs(name, count, *, sigma_8bit):
    render = RenderOptions(pairs=count, seed=11, photographs=(name,))
    return list(precision_pairs(render, 256, 10.0, (sigma_8bit,)))


def lit_pairs(case, count, *, name="clock_motion"):
    render = RenderOptions(pairs=count, seed=11, photographs=(name,))
    return [pair for pair in photometric_pairs(render, 256, 10.0, 5.0) if pair.case == case]


def aligned(pairs, config=STAY):
    src, dst = (torch.from_numpy(np.stack([getattr(pair, side) for pair in pairs]))[:, None] for side in ("src", "dst"))
    return align(src, dst, gt=torch.from_numpy(np.stack([pair.dst_homo_src for pair in pairs])), config=config)


@pytest.fixture
def solved(monkeypatch):
    """What `solve_faint` gave, call by call."""
    found = []

    def solve(*arguments):
        found.append(faint.solve_faint(*arguments))
        return found[-1]

    monkeypatch.setattr(last_steps, "solve_faint", solve)
    return found


def test_a_field_of_light_does_not_pass_for_motion_where_texture_is_faint(solved):
    errors = aligned(lit_pairs("vignetting", 6)).gt_corner_error_px
    assert len(solved) > 0
    assert errors.max() < 1.2  # up to 4 px otherwise; .4 is what noise allows


def test_a_tone_curve_that_residuals_hardly_show_is_told(solved):
    errors = aligned(lit_pairs("gamma", 6)).gt_corner_error_px
    assert torch.cat([found.is_rich for found in solved]).sum() >= 4
    assert errors.max() < 1.5  # up to 6 px otherwise


def test_the_same_light_is_not_taken_for_another(solved):
    result = aligned(lit_pairs("unchanged", 6))
    assert torch.cat([found.is_rich for found in solved]).sum() <= 1
    assert result.gt_corner_error_px.max() < 1
    assert (result.confidence > 0.65).sum() >= 5


def test_what_is_said_of_their_precision_holds(solved):
    result = aligned(noisy_pairs("cell", 8, sigma_8bit=10.0))
    assert len(solved) > 0
    share = result.gt_corner_error_px / result.corner_std_px
    assert 0.4 < share.median() < 1.1
    assert share.max() < 2


def test_turns_do_not_lead_away(solved):
    errors = aligned(noisy_pairs("retina", 2, sigma_8bit=5.0)).gt_corner_error_px  # 1.6 px by steps that grow
    assert len(solved) > 0
    assert errors.max() < 0.3


def test_texture_that_holds_a_pair_needs_none_of_it(solved):
    result = aligned(noisy_pairs("astronaut", 2, sigma_8bit=20.0))
    assert list(result.status) == [Status.OK] * 2
    assert solved == []


def test_a_pair_ends_the_same_beside_others(solved):
    pairs = [*noisy_pairs("cell", 1, sigma_8bit=10.0), *lit_pairs("vignetting", 2), *lit_pairs("unchanged", 1)]
    together = aligned(pairs).dst_homo_src
    assert max(len(found.is_better) for found in solved) >= 3
    for i, pair in enumerate(pairs):
        assert torch.equal(aligned([pair]).dst_homo_src[0], together[i])


@pytest.mark.parametrize("case", ["unchanged", "vignetting"])
def test_torch_ends_where_the_kernels_end(case, by_torch, solved):
    pair = lit_pairs(case, 1)
    there, here = aligned(pair), by_torch(lambda: aligned(pair))
    moved = (there.gt_corner_error_px - here.gt_corner_error_px).abs()
    assert len(solved) > 1
    assert moved < 0.3 * there.corner_std_px


@pytest.mark.parametrize("photometric", ["none", "gain_bias"])
def test_light_that_is_not_asked_for_stays_out(photometric, solved):
    result = aligned(lit_pairs("unchanged", 1), dataclasses.replace(STAY, photometric=photometric))
    assert len(solved) > 0
    assert not solved[0].is_rich.any()
    assert result.gt_corner_error_px < 1.5
    if photometric == "none":
        assert result.gain == 1
        assert result.bias == 0


@pytest.mark.parametrize("model", ["similarity", "affine"])
def test_the_model_of_motion_stays_as_it_is_asked_for(model, solved):
    config = dataclasses.replace(STAY, model=model)
    matrix = aligned(noisy_pairs("clock_motion", 1, sigma_8bit=20.0), config).dst_homo_src[0]
    assert len(solved) > 0
    assert torch.allclose(matrix[2], torch.tensor([0.0, 0.0, 1.0], dtype=matrix.dtype), atol=1e-9)


def test_a_pair_is_faint_by_the_motion_that_is_asked_for(solved):
    pairs = noisy_pairs("cell", 2, sigma_8bit=10.0)
    aligned(pairs, dataclasses.replace(STAY, model="translation"))
    assert solved == []
    aligned(pairs)
    assert len(solved) > 0


def test_no_more_turns_are_taken_than_steps_are_allowed(solved):
    aligned(lit_pairs("vignetting", 1), dataclasses.replace(STAY, max_iterations=2))
    assert [found.num_iterations.item() for found in solved] == [2]


def test_what_a_codec_lost_does_not_pass_for_light(solved):
    aligned(lit_pairs("JPEG", 6))
    assert solved == []


def test_a_negative_is_left_as_it_was(solved):
    pairs = [dataclasses.replace(pair, dst=255 - pair.dst) for pair in noisy_pairs("cell", 2, sigma_8bit=10.0)]
    result = aligned(pairs, dataclasses.replace(STAY, signal="intensity"))
    assert solved == []
    assert result.corner_std_px.isfinite().all()


def test_pairs_that_end_worse_keep_their_start(monkeypatch):
    """As those do that walk out of the frame, or turn about without an end."""
    pairs = lit_pairs("unchanged", 2)
    monkeypatch.setattr(faint, "MAX_ROUNDS", 0)
    stays = aligned(pairs)
    monkeypatch.undo()
    monkeypatch.setattr(faint, "_step", lambda whole, *_: (whole[:, 0] * 0 + 0.5, whole[:, 0, 0] * 0 + 1e6))
    assert torch.equal(aligned(pairs).dst_homo_src, stays.dst_homo_src)


def test_a_mask_keeps_what_it_leaves_out_out(solved):
    pair = lit_pairs("vignetting", 1)[0]
    src, dst = (torch.from_numpy(image)[None, None] for image in (pair.src, pair.dst))
    mask = torch.ones(1, 256, 256, dtype=torch.bool)
    mask[:, :60, :60] = False
    truth = torch.from_numpy(pair.dst_homo_src)[None]
    other = dst.clone()
    other[:, :, :40, :40] = 255
    plain, spoiled = (
        align(src, image, src_mask=mask, dst_mask=mask, gt=truth, config=STAY).gt_corner_error_px
        for image in (dst, other)
    )
    assert len(solved) > 1
    assert plain < 1.2
    assert spoiled < 1.2


LARGE = (320, 400)
"""Of more pixels than points."""


def large_pairs(name, count, *, sigma_8bit, contrast=0.6):
    render = RenderOptions(pairs=count, seed=5, photographs=(name,))
    pairs = []
    for number in range(count):
        views = draw_pair(render, number, size=LARGE, offset_px=12.0)
        src, dst = views.noisy(sigma_8bit, src=_faded(views.views.src, contrast), dst=_faded(views.views.dst, contrast))
        pairs.append(views.as_pair("", (src, dst), np.nan))
    return pairs


def _faded(image, contrast):
    return 0.5 + contrast * (image - 0.5)


def test_pairs_of_more_pixels_than_points_are_solved_on_all_of_them(solved):
    pairs = [*large_pairs("brick", 4, sigma_8bit=40.0), *large_pairs("gravel", 4, sigma_8bit=40.0)]
    now = aligned(pairs)
    assert len(solved) > 0
    assert torch.cat([found.is_better for found in solved]).all()
    assert (now.gain - 1).abs().max() < 0.15  # .4 as the steepest pixels tell it, which are steep by their noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faint, "MOST_PIXELS", 0)
        before = aligned(pairs)
    assert (now.gt_corner_error_px / before.gt_corner_error_px).log().mean().exp() < 0.8
    assert (now.gt_corner_error_px < 2.5 * now.corner_std_px).all()
    all_points = aligned(pairs, dataclasses.replace(STAY, final_points=LARGE[0] * LARGE[1]))
    assert (now.corner_std_px < 1.25 * all_points.corner_std_px).all()  # twice as large from the points alone


def test_what_dst_cannot_show_as_dark_is_left_out_of_all_pixels(monkeypatch):
    pair = large_pairs("coins", 1, sigma_8bit=40.0)[0]
    darker = dataclasses.replace(pair, dst=np.clip(pair.dst.astype(int) - 40, 0, 255).astype(np.uint8))
    shares = []

    def solve(raw, *arguments):
        shares.append(raw.template.usable.double().mean().item())
        return faint.solve_faint(raw, *arguments)

    monkeypatch.setattr(last_steps, "solve_faint", solve)
    aligned([pair])
    aligned([darker])
    assert len(shares) == 2
    assert shares[0] > 0.95
    assert shares[1] < 0.9 * shares[0]


def test_pixels_between_points_that_something_hides_are_not_known():
    problem = build_problem(
        *[Level(torch.rand(2, 1, 64, 80), None)] * 2, level=0, max_points=1000, fit_photometric=True
    )
    usable = torch.ones_like(problem.template.usable)
    left = usable.clone()
    left[1, : left.shape[1] // 5] = False
    of_points = dataclasses.replace(problem, template=dataclasses.replace(problem.template, usable=left))
    assert full_size._are_known(of_points, usable).tolist() == [True, False]
    everything = dataclasses.replace(of_points, template=dataclasses.replace(of_points.template, is_whole=True))
    assert full_size._are_known(everything, usable).tolist() == [True, True]


def test_light_that_is_not_asked_for_stays_out_on_all_pixels(solved):
    result = aligned(large_pairs("brick", 1, sigma_8bit=40.0), dataclasses.replace(STAY, photometric="none"))
    assert len(solved) > 0
    assert result.gain == 1
    assert result.bias == 0


def test_a_large_pair_ends_the_same_beside_others(solved):
    pairs = [*large_pairs("brick", 1, sigma_8bit=40.0), *large_pairs("page", 1, sigma_8bit=4.0, contrast=1.0)]
    together = aligned(pairs)
    assert len(solved) > 0
    for i, pair in enumerate(pairs):
        alone = aligned([pair])
        assert torch.equal(alone.dst_homo_src[0], together.dst_homo_src[i])
        assert torch.equal(alone.corner_covariance[0], together.corner_covariance[i])


def test_turns_that_would_go_to_and_fro_settle(solved):
    render = RenderOptions(pairs=19, seed=5, photographs=tuple(PHOTOGRAPHS))
    drawn = draw_pair(render, tuple(PHOTOGRAPHS).index("page"), size=(480, 480), offset_px=18.75)
    rng = np.random.default_rng([5, drawn.number])
    images = [_faded(view, 0.6) + rng.normal(0, 40 / 255, view.shape) for view in (drawn.views.src, drawn.views.dst)]
    aligned([drawn.as_pair("", images, np.nan)])
    assert [found.is_better.item() for found in solved] == [True]
    assert solved[0].num_iterations.item() <= 6  # 12 and no end otherwise

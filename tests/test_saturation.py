"""Points that dst shows cut off tell no gain."""

from __future__ import annotations

import pytest
import torch

from homoalign import align
from homoalign.differences.saturation import find_saturation
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from jobs.bench.options import RenderOptions
from jobs.bench.photometric import photometric_pairs

SIZE = (40, 200)


@pytest.fixture(params=["kernels", "torch"])
def points(request, by_torch):
    return shown_points if request.param == "kernels" else lambda *light: by_torch(lambda: shown_points(*light))


def shown_points(gain: float, bias: float, *, sigma: float = 0.01) -> torch.Tensor:
    """Return (200,) bool, for the middle row of a ramp from 0.1 to 0.9 that dst shows in another light."""
    rng = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.1, 0.9, SIZE[1]).expand(2, 1, *SIZE)
    src, dst = (image + sigma * torch.randn(ramp.shape, generator=rng) for image in (ramp, gain * ramp + bias))
    dst[1] = 0.5  # a neighbour that nothing is cut off of
    levels = Level(src, None), Level(dst.clamp(0, 1), None)
    template = build_problem(*levels, level=0, max_points=10_000, fit_photometric=True).template
    state = Alignment(
        torch.eye(3).double().expand(2, 3, 3), torch.full((2,), gain).double(), torch.full((2,), bias).double()
    )
    saturation = find_saturation(template, *levels)
    if saturation is None:
        return torch.ones(SIZE[1], dtype=torch.bool)
    shown = saturation.shows(template.usable, state)
    assert shown[1].all()
    return shown[0].view(SIZE)[20]


def test_what_is_brighter_than_white_is_left_out_and_so_is_what_noise_would_be_cut_off_of(points):
    ramp = 1.5 * torch.linspace(0.1, 0.9, SIZE[1])
    shown = points(1.5, 0.0)
    assert shown[ramp < 1 - 0.035].all()
    assert not shown[ramp > 1 - 0.005].any()


def test_likewise_what_is_darker_than_black(points):
    ramp = torch.linspace(0.1, 0.9, SIZE[1]) - 0.3
    shown = points(1.0, -0.3)
    assert shown[ramp > 0.035].all()
    assert not shown[ramp < 0.005].any()


@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.0), (0.5, 0.2), (8.0, 0.0)])
def test_all_stay_where_nothing_is_cut_off_or_too_little_is_left(points, gain, bias):
    assert points(gain, bias).all()


def test_what_both_show_cut_off_stays():
    rng = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-0.2, 1.2, SIZE[1]).expand(1, 1, *SIZE)
    src, dst = (Level((ramp + 0.01 * torch.randn(ramp.shape, generator=rng)).clamp(0, 1), None) for _ in range(2))
    template = build_problem(src, dst, level=0, max_points=10_000, fit_photometric=True).template
    one = torch.ones(1, dtype=torch.float64)
    saturation = find_saturation(template, src, dst)
    assert saturation is not None
    same, brighter = (
        saturation.shows(template.usable, Alignment(torch.eye(3).double()[None], gain, 0 * one))
        for gain in (one, 1.3 * one)
    )
    assert same.all()
    assert not brighter.all()


def test_a_faint_scene_before_a_bright_wall_that_saturates_is_solved():
    pytest.importorskip("skimage", reason="its wheel holds the photograph")
    render = RenderOptions(pairs=1, seed=0, photographs=("clock_motion",))
    (pair,) = (pair for pair in photometric_pairs(render, 256, 10.0, 5.0) if pair.case == "gain and bias")
    assert (pair.dst == 255).mean() > 0.005
    result = align(pair.src, pair.dst, gt=pair.dst_homo_src)
    assert result.status == ["ok"]
    assert float(result.gt_corner_error_px[0]) < 1  # 5.6 px where the wall tells the gain

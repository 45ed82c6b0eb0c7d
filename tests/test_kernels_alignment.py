"""Whole alignments, and what is measured of them, end on the processor where torch ends them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.cascade import rivals
from homoalign.homography import corner_errors, motion_of_step, normalise, pixels_from_centred
from homoalign.kernels.solver import solve_direct
from homoalign.levels import metrics
from homoalign.levels.noise import smooth
from homoalign.levels.patterns import local_correlation, local_patterns
from homoalign.levels.pyramid import Level
from homoalign.levels.structure import Structure
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.solver import Slack, solve
from homoalign.trust import parts
from homoalign.trust.parts import measure_parts
from jobs.rendering.synthetic import load_scene, render_pair


def moved_pair(photograph, parameters):
    """A pair whose motion is made of the first parameters of the basis alone."""
    step = torch.zeros(1, 8, dtype=torch.float64)
    step[0, :parameters] = torch.tensor([0.02, -0.015, 0.01, 0.008, 0.01, -0.01, 0.01, 0.02])[:parameters]
    to_pixels = pixels_from_centred(120, 160)
    dst_homo_src = normalise(to_pixels @ motion_of_step(step)[0] @ torch.linalg.inv(to_pixels))
    pair = render_pair(
        load_scene(photograph, gray=True), dst_homo_src.numpy(), (120, 160), rng=np.random.default_rng(7)
    )
    return torch.from_numpy(pair.src)[None].float(), torch.from_numpy(pair.dst)[None].float()


@pytest.mark.parametrize(("parameters", "clean_loss_width"), [(2, None), (3, None), (4, None), (6, 5.0), (8, 5.0)])
def test_the_solver_takes_the_same_steps(parameters, clean_loss_width):
    pairs = [moved_pair(name, parameters) for name in ("camera", "coins", "page")]
    src, dst = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
    dst[2] = torch.rand(dst[2].shape, generator=torch.Generator().manual_seed(0))
    problem = build_problem(Level(src, None), Level(dst, None), level=0, max_points=5000, fit_photometric=True)
    problem = problem.restrict(1, parameters)
    one = torch.ones(3, dtype=torch.float64)
    start = Alignment(torch.eye(3, dtype=torch.float64).repeat(3, 1, 1), one, 0 * one)
    settings = {"max_iterations": 12, "step_tol_px": 1e-3, "loss_width": 2.385, "min_seen": 20 * one, "slack": Slack()}
    settings |= {"clean_loss_width": clean_loss_width}
    ours, expected = solve_direct(problem, start, **settings), solve(problem, start, **settings)
    assert torch.equal(ours.num_iterations[:2], expected.num_iterations[:2])
    assert torch.equal(ours.stop, expected.stop)
    off = corner_errors(ours.state.dst_homo_src[:2], expected.state.dst_homo_src[:2], 120, 160)
    assert off.max() < 1e-3
    torch.testing.assert_close(ours.state.gain[:2], expected.state.gain[:2], atol=1e-4, rtol=0)
    assert start.gain.tolist() == [1, 1, 1]  # what went in stays as it was


def test_a_pair_that_sees_too_little_stays_where_it_is(make_pair):
    src, dst, _ = (torch.from_numpy(part)[None, None].float() for part in make_pair())
    problem = build_problem(Level(src, None), Level(dst, None), level=0, max_points=5000, fit_photometric=True)
    off = torch.eye(3, dtype=torch.float64)[None].repeat(1, 1, 1)
    off[:, 0, 2] = 1e4
    one = torch.ones(1, dtype=torch.float64)
    for matrix in (off, torch.full_like(off, torch.nan)):
        start = Alignment(matrix, one, 0 * one)
        settings = {"max_iterations": 5, "step_tol_px": 0.01, "loss_width": 2.0, "min_seen": 20 * one}
        ours, expected = (run(problem, start, slack=Slack(), **settings) for run in (solve_direct, solve))
        assert ours.stop.tolist() == expected.stop.tolist() == [3]
        assert ours.num_iterations.tolist() == expected.num_iterations.tolist() == [0]


def changed(src, dst, change):
    """A pair under noise, uneven light, a mask, or as it is."""
    if change == "noise":
        noise = torch.Generator().manual_seed(1)
        return {"src": src + 0.05 * torch.randn(src.shape, generator=noise), "dst": dst}
    if change == "light":
        ramp = torch.linspace(0.5, 1, dst.shape[-1])
        return {"src": src, "dst": dst**0.8 * ramp}
    if change == "mask":
        mask = torch.ones(1, *dst.shape[-2:])
        mask[:, 30:80, 50:110] = 0
        return {"src": src, "dst": torch.where(mask[:, None] > 0, dst, 0.3), "dst_mask": mask}
    return {"src": src, "dst": dst}


@pytest.mark.parametrize("change", ["none", "noise", "light", "mask"])
@pytest.mark.parametrize("model", ["homography", "affine"])
def test_alignments_are_those_of_torch(make_pair, by_torch, change, model):
    src, dst, truth = make_pair("astronaut", size=(160, 200), max_offset_px=5.0)
    images = changed(torch.from_numpy(src)[None, None], torch.from_numpy(dst)[None, None], change)
    config = AlignConfig(model=model, use_search=False, use_features=False)
    ours, expected = (call(lambda: align(**images, config=config)) for call in (lambda f: f(), by_torch))
    assert ours.status == expected.status
    off = corner_errors(ours.dst_homo_src, expected.dst_homo_src, 160, 200).max()
    assert off < 1e-2, off
    assert abs(ours.confidence - expected.confidence).max() < 0.02
    torch.testing.assert_close(ours.corner_std_px, expected.corner_std_px, rtol=0.05, atol=0)
    if model == "homography":
        assert corner_errors(ours.dst_homo_src, torch.from_numpy(truth)[None], 160, 200).max() < 0.6


def test_the_verdict_reads_the_same_correlation(make_pair, by_torch):
    src, dst, _ = (torch.from_numpy(part)[None, None].float() for part in make_pair())
    identity = torch.eye(3, dtype=torch.float64)[None]

    def correlate():
        return local_correlation(local_patterns(Level(src, None), Level(dst, None), identity))[0]

    torch.testing.assert_close(correlate(), by_torch(correlate), atol=1e-5, rtol=0)


@pytest.mark.parametrize("photograph", ["brick", "page", "camera"])
def test_rivals_are_those_of_torch(make_pair, by_torch, photograph):
    src, dst, truth = (torch.from_numpy(part)[None] for part in make_pair(photograph))
    patterns = local_patterns(Level(src[None].float(), None), Level(dst[None].float(), None), truth)
    rival = rivals.rival_correlation(patterns)
    assert rival.item() > 0.05
    torch.testing.assert_close(rival, by_torch(lambda: rivals.rival_correlation(patterns)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((96, 128), (0, 0, 96, 128)),
        ((40, 50), (0, 0, 40, 50)),
        ((17, 90), (0, 0, 17, 90)),
        ((96, 128), (9, 40, 90, 90)),
    ],
)
def test_blocks_are_found_where_torch_finds_them(rng, size, box):
    channels, filled = torch.randn(3, 4, *size, generator=rng), (torch.rand(3, 1, *size, generator=rng) > 0.1).float()
    filled[0] = 1
    filled[1, :, :, : size[1] // 2] = 0
    src = Structure(channels * filled, filled)
    other = channels.roll((2, -1), (-2, -1)) + 0.3 * torch.randn(3, 4, *size, generator=rng)
    grid, reach = parts.lay_grid(parts.Box(*box), min(max(8, min(size) // 6), 15)), max(4, min(size) // 18)
    dst = Structure(other, torch.ones_like(filled))
    (counts, place), (ours, our_place) = parts._seek(src, dst, grid, reach), parts._seek_compiled(src, dst, grid, reach)
    assert torch.equal(ours, counts)
    assert counts[1].any()
    assert not counts[1].all()
    torch.testing.assert_close(our_place[counts], place[counts], atol=1e-4, rtol=0)


def test_blocks_agree_on_the_motion_that_torch_finds(rng, by_torch):
    image = torch.rand(3, 1, 96, 120, generator=rng)
    src, dst = Level(smooth(image, 1), None), Level(smooth(image.roll((1, 2), (-2, -1)), 1), None)
    matrix = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    matrix[1, 0, 2] = 2  # one that lies right, one that does not, one of which half is not there
    matrix[1, 1, 2], matrix[2, 0, 2] = 1, 60
    ours, expected = (
        run()
        for run in (lambda: measure_parts(src, dst, matrix), lambda: by_torch(lambda: measure_parts(src, dst, matrix)))
    )
    for name in ("here", "drift_480", "drift_std_480", "corner_covariance_480"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=1e-2, rtol=1e-3)
    assert ours.drift_480[1] < 0.5 < ours.drift_480[0]


def test_reprojections_differ_as_torch_says(rng, by_torch):
    src = torch.rand(3, 3, 60, 80, generator=rng)
    truth = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    truth[:, 0, 2], truth[:, 2, 0] = 3.3, 1e-3
    found = truth.clone()
    found[0, 1, 2], found[1, 0, 0], found[2] = 0.7, 1.05, torch.nan
    ours, expected = (
        run()
        for run in (
            lambda: metrics.reprojection_l1(src, found, truth, (50, 90)),
            lambda: by_torch(lambda: metrics.reprojection_l1(src, found, truth, (50, 90))),
        )
    )
    assert expected[0] > 0.01
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0, equal_nan=True)

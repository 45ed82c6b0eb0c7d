"""What is compiled for the processor says what torch says, which serves GPUs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from homoalign import AlignConfig, align, aligner, kernels, metrics, parts, photometry, pyramid
from homoalign.homography import corner_errors, motion_of_step, normalise, pixels_from_centred
from homoalign.intensity import to_gray
from homoalign.kernels import compiler
from homoalign.kernels.solver import solve_direct
from homoalign.metrics import local_correlation, local_patterns
from homoalign.noise import smooth
from homoalign.pyramid import Level
from homoalign.residual import Alignment, build_problem
from homoalign.sampling import sample_unit, unit_from_pixels
from homoalign.solver import Slack, robust_scale, solve
from homoalign.spline import spline_coefficients
from homoalign.structure import Structure, describe
from homoalign.template import build_template, jacobian_of
from jobs import child
from jobs.synthetic import load_scene, render_pair


@pytest.fixture
def by_torch(monkeypatch):
    """Call with torch in place of the kernels."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "serves", lambda *_: False)
            return function()

    return call


def points(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x.flatten() / width - 0.5, y.flatten() / width - 0.4]).float()[None].expand(2, -1, -1)


@pytest.mark.parametrize("interpolation", ["bilinear", "spline"])
@pytest.mark.parametrize("size", [(60, 83), (3, 40), (2, 2)])
def test_images_are_read_as_torch_reads_them(rng, interpolation, size):
    image = torch.rand(2, 1, *size, generator=rng)
    u = points(31, 45)
    matrix = torch.tensor(
        [[[1.1 * size[1], 3, size[1] / 2], [-2, 1.2 * size[0], size[0] / 2], [0.1, 0.05, 1]]], dtype=torch.float64
    ).expand(2, -1, -1)
    xyw = matrix @ torch.cat([u, torch.ones_like(u[:, :1])], dim=1).double()
    xy = xyw[:, :2] / xyw[:, 2:]
    unit = unit_from_pixels(*size, device=u.device) @ torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)
    source = spline_coefficients(image) if interpolation == "spline" else image
    usable = torch.rand(2, u.shape[-1], generator=rng) < 0.9
    value, seen = kernels.read(source, None, matrix, u, usable, 0.5, is_spline=interpolation == "spline")
    inside = (xy >= 0.5).all(1) & (xy[:, 0] <= size[1] - 1.5) & (xy[:, 1] <= size[0] - 1.5) & usable
    assert torch.equal(seen, inside)
    expected = sample_unit(source, unit[:, :2].float(), interpolation)[:, 0]
    torch.testing.assert_close(value[seen], expected[seen], atol=2e-5, rtol=0)
    assert value.isfinite().all()


def test_masked_neighbours_are_not_seen():
    mask = torch.ones(2, 1, 8, 9)
    mask[0, 0, 4, 5] = 0
    matrix = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    u = torch.tensor([[[4.5, 5.0, 4.0, 6.0, 6.5], [3.5, 3.0, 3.5, 4.0, 4.5]]]).expand(2, -1, -1)
    usable = torch.ones(2, 5, dtype=torch.bool)
    for image, is_spline in ((mask, False), (spline_coefficients(mask), True)):
        _, seen = kernels.read(image, mask, matrix, u, usable, 1.0, is_spline=is_spline)
        assert seen.tolist() == [[False, True, True, True, True], [True] * 5]


def test_a_wreck_of_a_matrix_sees_nothing_and_reads_no_foreign_memory():
    image = torch.rand(2, 1, 8, 9)
    wreck = torch.full((2, 3, 3), torch.nan, dtype=torch.float64)
    wreck[1] = torch.tensor([[1e30, 1, 1e30], [1, 1e30, 1e30], [0, 0, 1e-20]])
    for matrix in (wreck, -wreck):
        value, seen = kernels.read(
            image, None, matrix, points(5, 6), torch.ones(2, 30, dtype=torch.bool), 1.0, is_spline=False
        )
        assert not seen.any()
        assert ((value >= 0) & (value <= 1)).all()


def test_sums_over_points_are_those_of_the_jacobian(rng):
    u = points(37, 50).contiguous()
    slope, brightness = torch.randn(2, 2, u.shape[-1], generator=rng), torch.randn(2, u.shape[-1], generator=rng)
    residual, weight = torch.randn(2, u.shape[-1], generator=rng), torch.rand(2, u.shape[-1], generator=rng)
    J = jacobian_of(slope, brightness, u).double()
    product, score = kernels.normal_equations(slope, brightness, u, residual, weight)
    torch.testing.assert_close(product, (J * weight[:, None]) @ J.mT, atol=0.02, rtol=1e-4)
    torch.testing.assert_close(score, (J * (weight * residual)[:, None]).sum(-1), atol=0.02, rtol=1e-4)


@pytest.mark.parametrize("size", [(700, 37), (60, 1300), (9, 9000), (300, 400)])
@pytest.mark.parametrize("max_points", [10**6, 2**14])
def test_precision_is_summed_as_torch_sums_it(rng, by_torch, size, max_points):
    # Some rows are longer than what is summed at a time, and some blocks too.
    height, width = size
    texture = torch.rand(2, 1, height, width, generator=rng)
    src, dst = Level(smooth(texture, 1), None), Level(smooth(texture.roll(1, -1), 1), None)
    problem = build_problem(src, dst, level=0, max_points=max_points, fit_photometric=True)
    assert problem.template.is_whole == (max_points > height * width)
    matrix = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    matrix[:, :2, 2] = torch.tensor([[1.3, 0.2], [0.7, -0.4]])  # no pixel comes to lie on the border
    state = Alignment(matrix, torch.tensor([1.0, 0.8]).double(), torch.tensor([0.0, 0.1]).double())
    ours = problem.precision_sums(state, 2.385, 12)
    expected = by_torch(lambda: problem.precision_sums(state, 2.385, 12))
    for name, mine, theirs in zip(ours._fields, ours, expected, strict=True):
        size_of_all = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, atol=3e-3 * size_of_all, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [(40, 57), (5, 8), (3, 3), (33, 1030)])
def test_levels_are_halved_as_torch_halves_them(rng, by_torch, size):
    image = torch.rand(2, 1, *size, generator=rng)
    torch.testing.assert_close(pyramid.halve(image), by_torch(lambda: pyramid.halve(image)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(40, 57), (5, 8), (3, 3), (2, 9)])
def test_slopes_are_those_of_torch(rng, by_torch, size):
    image = torch.rand(2, 1, *size, generator=rng)
    expected = by_torch(lambda: Level(image, None).slope)
    torch.testing.assert_close(Level(image, None).slope, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(40, 57), (5, 8), (1, 30), (2, 2)])
def test_spline_coefficients_are_those_of_torch(rng, by_torch, size):
    image = torch.rand(2, 1, *size, generator=rng)
    ours, expected = spline_coefficients(image), by_torch(lambda: spline_coefficients(image))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [3, 4])
def test_bytes_are_grayed_as_torch_grays_them(rng, by_torch, channels):
    image = torch.randint(0, 256, (2, 5, 7, channels), dtype=torch.uint8, generator=rng)
    for layout in (image.permute(0, 3, 1, 2), image.permute(0, 3, 1, 2).contiguous()):
        gray, _ = to_gray(layout)
        assert gray.shape == (2, 1, 5, 7)
        torch.testing.assert_close(gray, by_torch(lambda layout=layout: to_gray(layout)[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("hole", [1, 2, 4])
@pytest.mark.parametrize("size", [(40, 57), (9, 640)])
def test_images_are_smoothed_as_torch_smooths_them(rng, by_torch, size, hole):
    image = torch.rand(2, 1, *size, generator=rng)
    torch.testing.assert_close(smooth(image, hole), by_torch(lambda: smooth(image, hole)), atol=1e-6, rtol=0)


def test_contrast_is_the_standard_deviation_whatever_the_mean(rng, by_torch):
    image = torch.rand(2, 1, 70, 91, generator=rng)
    image[1] = 0.9 + 1e-3 * image[1]
    assert Level(image, None).contrast.tolist() == pytest.approx(
        by_torch(lambda: Level(image, None).contrast).tolist(), rel=1e-3
    )


@pytest.mark.parametrize("masked", [False, True])
def test_the_steepest_pixel_of_each_cell_is_that_of_torch(rng, by_torch, masked):
    image = torch.rand(2, 1, 50, 71, generator=rng)
    image[:, :, :9] = 0.5  # flat cells
    mask = (torch.rand(2, 1, 50, 71, generator=rng) < 0.97).float() if masked else None
    level = Level(image, mask)
    ours = build_template(level, 500)
    expected = by_torch(lambda: build_template(Level(image, mask), 500))
    alike = ours.chosen == expected.chosen
    flat = expected.slope.square().sum(1) == 0
    assert (alike | flat).all()  # of flat cells any usable pixel will do
    assert torch.equal(ours.usable[alike], expected.usable[alike])
    torch.testing.assert_close(ours.slope.mT[alike & ours.usable], expected.slope.mT[alike & ours.usable])
    assert torch.equal(ours.value[alike], expected.value[alike])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("matrix", ["near", "horizon", "singular", "far"])
def test_the_fit_is_that_of_torch(rng, by_torch, matrix, masked):
    src, dst = torch.rand(2, 1, 45, 60, generator=rng), torch.rand(2, 1, 40, 700, generator=rng)
    dst[:, :, :, :60] = 0.3 * dst[:, :, :, :60] + 0.6 * src[:, :, :40]
    masks = [(torch.rand(2, 1, *image.shape[-2:], generator=rng) < 0.9).float() for image in (src, dst)]
    levels = [Level(image, mask if masked else None) for image, mask in zip((src, dst), masks, strict=True)]
    found = {
        "near": [[1.1, 0.02, -2], [0.01, 0.9, 3], [1e-4, 2e-4, 1]],
        "horizon": [[1, 0, 0], [0, 1, 0], [-0.03, 0, 1]],
        "singular": [[1, 0, 0], [2, 0, 0], [0, 0, 1]],
        "far": [[1, 0, 5000], [0, 1, 0], [0, 0, 1]],
    }[matrix]
    one = torch.ones(2, dtype=torch.float64)

    def measure():
        dst_homo_src = torch.tensor([found, found], dtype=torch.float64)
        return metrics.measure_fit(*levels, dst_homo_src, gain=1.1 * one, bias=0.01 * one, loss_width=0.2 * one)

    for name in ("photometric_l1", "zncc", "overlap", "inlier_ratio"):
        ours, expected = getattr(measure(), name), getattr(by_torch(measure), name)
        torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0, equal_nan=True)


@pytest.mark.parametrize("num_functions", [photometry.LINEAR, photometry.NUM_FUNCTIONS])
def test_light_is_regressed_as_torch_regresses_it(make_pair, by_torch, num_functions):
    src, dst, _ = (torch.from_numpy(part)[None, None].float() for part in make_pair())
    problem = build_problem(Level(src, None), Level(dst, None), level=0, max_points=5000, fit_photometric=True)
    value, seen = problem.read_dst(torch.eye(3, dtype=torch.float64)[None])

    def regress():
        return photometry.regress(problem, num_functions, value, seen, 2.385)

    (weights, scale), (expected, expected_scale) = regress(), by_torch(regress)
    torch.testing.assert_close(weights, expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(scale, expected_scale, atol=0, rtol=2e-3)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 30_000])
def test_the_robust_scale_is_that_of_the_median(rng, by_torch, count):
    residual = torch.randn(2, count, generator=rng)
    seen = (torch.rand(2, count, generator=rng) < 0.7).float()
    seen[1] = 0
    floor = torch.full((2,), 1e-3, dtype=torch.float64)
    ours, expected = robust_scale(residual, seen, floor), by_torch(lambda: robust_scale(residual, seen, floor))
    torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("size", [(40, 57), (5, 6)])
def test_window_means_are_those_of_pooling(rng, size):
    values = torch.rand(2, *size, generator=rng)
    expected = avg_pool2d(values[:, None], 9, stride=1, padding=4)[:, 0]
    torch.testing.assert_close(kernels.window_mean(values, 9), expected)


def test_light_is_predicted_as_torch_predicts_it(rng, by_torch):
    weights = 0.3 * torch.randn(2, photometry.NUM_FUNCTIONS, generator=rng)
    intensity, u = torch.rand(2, 500, generator=rng), torch.rand(2, 2, 500, generator=rng)
    for ours, expected in zip(
        photometry.predict(weights, intensity, u),
        by_torch(lambda: photometry.predict(weights, intensity, u)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


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


@pytest.mark.parametrize("parameters", [2, 3, 4, 6, 8])
def test_the_solver_takes_the_same_steps(parameters):
    pairs = [moved_pair(name, parameters) for name in ("camera", "coins", "page")]
    src, dst = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
    dst[2] = torch.rand(dst[2].shape, generator=torch.Generator().manual_seed(0))
    problem = build_problem(Level(src, None), Level(dst, None), level=0, max_points=5000, fit_photometric=True)
    problem = problem.restrict(1, parameters)
    one = torch.ones(3, dtype=torch.float64)
    start = Alignment(torch.eye(3, dtype=torch.float64).repeat(3, 1, 1), one, 0 * one)
    settings = {"max_iterations": 12, "step_tol_px": 1e-3, "loss_width": 2.385, "min_seen": 20 * one, "slack": Slack()}
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(40, 57), (5, 8), (64, 640)])
def test_structure_is_that_of_torch(rng, by_torch, size, masked):
    image = torch.rand(2, 1, *size, generator=rng)
    image[0, 0, :, : size[1] // 2] = 0.5
    mask = (torch.rand(2, 1, *size, generator=rng) < 0.95).float() if masked else None
    ours, expected = describe(Level(image, mask)), by_torch(lambda: describe(Level(image, mask)))
    assert torch.equal(ours.usable, expected.usable)
    torch.testing.assert_close(ours.channels, expected.channels, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("photograph", ["brick", "page", "camera"])
def test_rivals_are_those_of_torch(make_pair, by_torch, photograph):
    src, dst, truth = (torch.from_numpy(part)[None] for part in make_pair(photograph))
    patterns = local_patterns(Level(src[None].float(), None), Level(dst[None].float(), None), truth)
    rival = metrics.rival_correlation(patterns)
    assert rival.item() > 0.05
    torch.testing.assert_close(rival, by_torch(lambda: metrics.rival_correlation(patterns)), atol=1e-4, rtol=0)


def test_where_nothing_can_be_kept_the_kernels_are_compiled_anew(monkeypatch):
    calls = []

    def njit(**settings):
        calls.append(settings.get("cache", False))
        if settings.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return lambda function: function

    monkeypatch.setattr(compiler.numba, "njit", njit)
    assert compiler.compiled(lambda x: 2 * x)(4) == 8
    assert calls == [True, False]


WARM = """
import numpy as np
from numba.core import event
from homoalign.aligner import align, warm_up
warm_up()

class Listener(event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__name__)

    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
rng = np.random.default_rng(0)
gray, colours = rng.random((70, 90), np.float32), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
mask = rng.random((70, 90)) < 0.9
align(gray, gray, src_mask=mask, dst_mask=mask)
align(colours, np.roll(colours, 3, axis=1))
align(gray, gray ** 2)
print("aligned")
"""


def test_warming_up_leaves_nothing_to_compile():
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True, timeout=250)
    assert done.stdout == "aligned\n"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_compiles_before_its_rows_are_timed(monkeypatch, device):
    calls = []
    monkeypatch.setattr(aligner, "warm_up", lambda: calls.append("warm"))
    child.prepare_process(1, device)
    assert calls == (["warm"] if device == "cpu" else [])


@pytest.mark.parametrize("size", [(96, 128), (40, 50), (17, 90)])
def test_blocks_are_found_where_torch_finds_them(rng, size):
    channels, filled = torch.randn(3, 4, *size, generator=rng), (torch.rand(3, 1, *size, generator=rng) > 0.1).float()
    filled[0] = 1
    filled[1, :, :, : size[1] // 2] = 0
    src = Structure(channels * filled, filled)
    other = channels.roll((2, -1), (-2, -1)) + 0.3 * torch.randn(3, 4, *size, generator=rng)
    side, reach = max(8, min(size) // 6), max(4, min(size) // 18)
    dst = Structure(other, torch.ones_like(filled))
    (counts, place), (ours, our_place) = parts._seek(src, dst, side, reach), parts._seek_compiled(src, dst, side, reach)
    assert torch.equal(ours, counts)
    assert counts[1].any()
    assert not counts[1].all()
    torch.testing.assert_close(our_place[counts], place[counts], atol=1e-4, rtol=0)

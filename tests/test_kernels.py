"""Each compiled pass says what torch says, which serves GPUs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from homoalign import kernels
from homoalign.differences import cover, photometry
from homoalign.differences.refinement import clean_source
from homoalign.levels import metrics, pyramid
from homoalign.levels.box import box
from homoalign.levels.intensity import to_gray
from homoalign.levels.noise import denoise, noise_level, smooth
from homoalign.levels.pyramid import Level, soften
from homoalign.levels.sampling import sample_unit, unit_from_pixels
from homoalign.levels.spline import spline_coefficients
from homoalign.levels.structure import describe
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.solver import robust_scale
from homoalign.optimisation.template import build_template, jacobian_of, usable_pixels
from homoalign.starts import shifts


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


def test_bytes_become_the_intensities_that_torch_makes_of_them_to_the_bit(by_torch):
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_gray(image)[0], by_torch(lambda: to_gray(image)[0]))
    assert to_gray(image)[0].max() == 1


@pytest.mark.parametrize("hole", [1, 2, 4])
@pytest.mark.parametrize("size", [(40, 57), (9, 640)])
def test_images_are_smoothed_as_torch_smooths_them(rng, by_torch, size, hole):
    image = torch.rand(2, 1, *size, generator=rng)
    torch.testing.assert_close(smooth(image, hole), by_torch(lambda: smooth(image, hole)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(40, 57), (3, 4), (2, 2)])
def test_images_are_softened_as_torch_softens_them(rng, by_torch, size):
    image = torch.rand(2, 1, *size, generator=rng)
    torch.testing.assert_close(soften(image), by_torch(lambda: soften(image)), atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("masked", [False, True])
def test_levels_are_warped_as_torch_warps_them(rng, by_torch, masked):
    src, dst = torch.rand(3, 1, 45, 60, generator=rng), torch.rand(3, 1, 45, 600, generator=rng)
    masks = [(torch.rand(3, 1, *image.shape[-2:], generator=rng) < 0.9).float() for image in (src, dst)]
    levels = [Level(image, mask if masked else None) for image, mask in zip((src, dst), masks, strict=True)]
    near = torch.tensor([[1.1, 0.02, -2], [0.01, 0.9, 3], [1e-4, 2e-4, 1]], dtype=torch.float64)
    # All pixels' centres on others', the outermost ones a rounding off the image.
    turned = torch.tensor([[-1, 0, 59 + 5e-6], [0, -1, 44 - 5e-6], [0, 0, 1]], dtype=torch.float64)
    matrices = torch.stack([near, turned, torch.full_like(near, torch.nan)])
    warped, covered = metrics.warp_level(*levels, matrices)
    expected, expected_covered = by_torch(lambda: metrics.warp_level(*levels, matrices))
    assert torch.equal(covered, expected_covered)
    torch.testing.assert_close(warped, expected, atol=1e-4, rtol=0)
    assert covered[1].sum() == 45 * 60 if not masked else covered[1].sum() < 0.95 * 45 * 60
    assert not covered[2].any()


def test_noise_has_the_share_of_the_slopes_that_torch_finds(rng, by_torch):
    image = torch.rand(2, 1, 150, 200, generator=rng)
    template = build_template(Level(image, None), 10**6)

    def share():
        return clean_source(template, Level(image, None)).noise_share

    ours, expected = share(), by_torch(share)
    torch.testing.assert_close(ours, expected, atol=0, rtol=1e-4)


@pytest.mark.parametrize("num_functions", [photometry.LINEAR, photometry.NUM_FUNCTIONS])
def test_light_is_regressed_as_torch_regresses_it(make_pair, by_torch, num_functions):
    src, dst, _ = (torch.from_numpy(part)[None, None].float() for part in make_pair())
    problem = build_problem(Level(src, None), Level(dst, None), level=0, max_points=5000, fit_photometric=True)
    value, seen = problem.read_dst(torch.eye(3, dtype=torch.float64)[None])
    noise = torch.full((1,), 0.03, dtype=torch.float64)

    def regress():
        return photometry.regress(problem, num_functions, value, seen, noise, 2.385)

    (weights, scale), (expected, expected_scale) = regress(), by_torch(regress)
    torch.testing.assert_close(weights, expected, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(scale, expected_scale, atol=0, rtol=2e-3)


def test_the_line_of_the_better_half_is_that_of_torch(rng, by_torch):
    x = torch.rand(3, 501, generator=rng)
    y = 1.3 * x + 0.1 + 0.01 * torch.randn(x.shape, generator=rng)
    y[:, :200] = torch.rand(3, 200, generator=rng)
    seen = torch.rand(x.shape, generator=rng) < 0.8
    seen[2] = False
    state = Alignment(torch.eye(3).double().expand(3, 3, 3), *torch.tensor([[1.1, 0.7, 1.0], [0.0, 0.1, 0.0]]).double())
    ours, expected = (run(lambda: cover._light_of_most(x, y, seen, state)) for run in (lambda call: call(), by_torch))
    torch.testing.assert_close(ours.gain, expected.gain, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.bias, expected.bias, atol=1e-6, rtol=0)
    assert ours.gain[:2] == pytest.approx([1.3, 1.3], abs=0.02)
    assert ours.gain[2] == 1


@pytest.mark.parametrize("count", [1, 2, 7, 100, 30_000])
def test_the_robust_scale_is_that_of_the_median(rng, by_torch, count):
    residual = torch.randn(2, count, generator=rng)
    seen = (torch.rand(2, count, generator=rng) < 0.7).float()
    seen[1] = 0
    floor = torch.full((2,), 1e-3, dtype=torch.float64)
    ours, expected = robust_scale(residual, seen, floor), by_torch(lambda: robust_scale(residual, seen, floor))
    torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("size", [(40, 57), (5, 6)])
def test_window_means_are_those_of_pooling(rng, by_torch, size):
    values = torch.rand(2, 1, *size, generator=rng)
    expected = avg_pool2d(values, 9, stride=1, padding=4)
    torch.testing.assert_close(box(values, 4), expected)
    torch.testing.assert_close(by_torch(lambda: box(values, 4)), expected)


def test_templates_are_lit_as_torch_lights_them(make_pair, by_torch):
    src = Level(torch.from_numpy(np.stack([make_pair(name)[0] for name in ("camera", "coins")]))[:, None].float(), None)
    template = build_template(src, 10**6)
    template = dataclasses.replace(template, brightness=0.9 * template.value)
    weights = torch.zeros(2, photometry.NUM_FUNCTIONS)
    weights[:, 0], weights[:, 1] = 0.5, 0.6
    weights[:, 2:] = 0.1
    is_rich = torch.tensor([False, True])
    light = photometry.Light(weights, is_rich, is_rich)
    ours, expected = photometry.apply_light(template, light), by_torch(lambda: photometry.apply_light(template, light))
    for name in ("value", "slope", "brightness"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=1e-4, rtol=1e-4)
        assert torch.equal(getattr(ours, name)[0], getattr(template, name)[0])
        assert not torch.allclose(getattr(ours, name)[1], getattr(template, name)[1], atol=1e-2)


@pytest.mark.parametrize("size", [(40, 57), (9, 12)])
def test_noise_is_measured_and_taken_away_as_torch_does_it(rng, by_torch, size):
    image, guide = torch.rand(2, 1, *size, generator=rng), torch.rand(2, 1, *size, generator=rng)
    sigma = torch.tensor([0.1, 0.2], dtype=torch.float64)
    for run in (lambda: noise_level(image), lambda: denoise(image, image, sigma), lambda: denoise(image, guide, sigma)):
        torch.testing.assert_close(run(), by_torch(run), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_points", [10**6, 200])
def test_slopes_of_another_image_are_those_of_torch(rng, by_torch, max_points):
    src, other = (torch.rand(2, 1, 33, 47, generator=rng) for _ in range(2))
    template = build_template(Level(src, None), max_points)
    index = torch.tensor([1])
    ours, expected = (call(lambda: template.with_slopes_of(other[1:], index)) for call in (lambda run: run(), by_torch))
    torch.testing.assert_close(ours.slope, expected.slope)
    torch.testing.assert_close(ours.brightness, expected.brightness)
    assert torch.equal(ours.slope[0], template.slope[0])


def test_what_is_usable_is_what_torch_finds_usable(rng, by_torch):
    mask = (torch.rand(2, 1, 31, 45, generator=rng) > 0.1).float()
    ours = usable_pixels(mask, mask)
    assert torch.equal(ours, by_torch(lambda: usable_pixels(mask, mask)))
    assert 0.1 < ours.float().mean() < 0.9


@pytest.mark.parametrize("shift", [(0.0, 0.0), (20.5, -7.25), (900.0, 0.0)])
def test_what_of_src_is_seen_is_what_torch_sees(by_torch, shift):
    src, dst = (Level(torch.zeros(2, 1, *size), torch.ones(2, 1, *size)) for size in ((40, 60), (50, 45)))
    matrix = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    matrix[0, :2, 2] = torch.tensor(shift)
    matrix[1] = torch.tensor([[1.1, 0.05, -3], [0.02, 0.9, 4], [0.03, -0.02, 1]])  # a part lies behind the horizon
    overlap = torch.tensor([0.1, 0.2], dtype=torch.float64)
    seen = metrics.share_of_src_seen(src, dst, matrix, overlap)
    again = by_torch(lambda: metrics.share_of_src_seen(src, dst, matrix, overlap))
    torch.testing.assert_close(seen, again, atol=1e-9, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(40, 57), (5, 8), (64, 640)])
def test_structure_is_that_of_torch(rng, by_torch, size, masked):
    image = torch.rand(2, 1, *size, generator=rng)
    image[0, 0, :, : size[1] // 2] = 0.5
    mask = (torch.rand(2, 1, *size, generator=rng) < 0.95).float() if masked else None
    ours, expected = describe(Level(image, mask)), by_torch(lambda: describe(Level(image, mask)))
    assert torch.equal(ours.usable, expected.usable)
    torch.testing.assert_close(ours.channels, expected.channels, atol=2e-5, rtol=1e-4)


def complexes(rng, *size):
    return torch.complex(torch.randn(size, generator=rng), torch.randn(size, generator=rng))


@pytest.mark.parametrize("with_half_turns", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (5, 9), (4, 5), (1, 7)])
def test_spectra_of_correlations_are_those_of_torch(rng, by_torch, size, with_half_turns):
    channels = complexes(rng, 2, 3, 2, *size), complexes(rng, 2, 2, *size)
    windows = complexes(rng, 2, 3, *size), complexes(rng, 2, *size)

    def spectra():
        return (
            shifts.cross_spectra(*channels, with_half_turns=with_half_turns),
            *shifts.window_spectra(*windows, with_half_turns=with_half_turns),
        )

    for ours, expected in zip(spectra(), by_torch(spectra), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("half_turns", [1, 2])
@pytest.mark.parametrize("min_overlap", [20.0, 1e9])
def test_the_best_shifts_are_the_highest_peaks_of_their_neighbourhoods(rng, by_torch, min_overlap, half_turns):
    def hilly(rotations=3):  # the neighbours of a peak are higher than other peaks
        hills = [torch.randn(1, rotations, 30, 24, generator=rng) for _ in range(2)]
        return torch.complex(*(avg_pool2d(each, 5, stride=1, padding=2) for each in hills))

    agreement, overlap, energies = hilly(), 60 * (1 + 1j) + 100 * hilly(), 1 + 1j + hilly(3 * half_turns)

    def best():
        return shifts.best_of_maps(agreement, overlap, energies, min_overlap=min_overlap, count=3)

    (score, at), (expected, expected_at) = best(), by_torch(best)
    assert score.shape == (1, 3 * half_turns, 3)
    torch.testing.assert_close(score, expected)
    found = score > -1
    assert torch.equal(at[found], expected_at[found])
    assert found.all() == (min_overlap < 1e9)


@pytest.mark.parametrize("count", [1, 2, 7, 30_000])
def test_the_lower_quartile_is_that_of_what_is_seen(rng, count):
    residual = torch.randn(2, count, generator=rng)
    seen = torch.rand(2, count, generator=rng) < 0.7
    seen[1] = False
    quartile = kernels.magnitude_quantile(residual, seen, 10**6, part=4)
    if seen[0].any():
        expected = residual[0][seen[0]].abs().quantile(0.25, interpolation="lower").double()
        torch.testing.assert_close(quartile[0], expected)
    assert quartile[1].isnan()

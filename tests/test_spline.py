import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from homoalign.levels.spline import read_spline, spline_coefficients


def unit_of(xy, size):
    height, width = size
    return torch.from_numpy(2 * xy / np.array([width - 1, height - 1]) - 1).mT[None]


@pytest.mark.parametrize("size", [(40, 61), (9, 7), (3, 5), (2, 30)])
def test_the_spline_is_that_of_scipy(size, rng, numpy_rng):
    image = torch.rand(1, 1, *size, generator=rng, dtype=torch.float64)
    xy = numpy_rng.uniform(0, 1, (500, 2)) * (size[1] - 1, size[0] - 1)
    xy[:2] = [[0, 0], [size[1] - 1, size[0] - 1]]
    theirs = map_coordinates(image[0, 0].numpy(), xy.T[::-1], order=3, mode="mirror")
    ours = read_spline(spline_coefficients(image), unit_of(xy, size))
    # White noise is the worst of images for a filter that is cut after eight terms.
    np.testing.assert_allclose(ours[0, 0].numpy(), theirs, rtol=0, atol=3e-4)


def test_pairs_and_channels_do_not_mix(rng):
    image = torch.rand(2, 3, 12, 15, generator=rng)
    unit = 2 * torch.rand(2, 2, 40, generator=rng) - 1
    together = read_spline(spline_coefficients(image), unit)
    alone = read_spline(spline_coefficients(image[1:, 2:]), unit[1:])
    assert torch.equal(together[1, 2], alone[0, 0])


def test_a_wave_near_the_sampling_limit_is_read_between_pixels():
    # Three pixels a wave: bilinear reading halves it midway, a cubic spline keeps seven eighths.
    x = torch.arange(60, dtype=torch.float64)
    image = torch.cos(2 * torch.pi * x / 3).expand(1, 1, 8, 60)
    xy = np.stack([np.arange(20, 40) + 0.5, np.full(20, 3.5)], axis=1)
    read = read_spline(spline_coefficients(image), unit_of(xy, (8, 60)))[0, 0]
    truth = torch.cos(2 * torch.pi * torch.from_numpy(xy[:, 0]) / 3)
    assert (read - truth).abs().max() < 0.13 * truth.abs().max()

"""The covariance of a solution: against the errors that come when noise is drawn many times."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from homoalign import align
from homoalign.optimisation.precision import BLOCKS, measure_precision, sum_scores
from homoalign.trust.evidence import EVIDENCE
from jobs.rendering.degrade import add_vignette, adjust_exposure, to_uint8
from jobs.rendering.synthetic import corner_points, load_scene, random_homography, render_pair, warp_points

N = 40 * BLOCKS


@dataclass(frozen=True)
class Lines:
    """Residuals A @ xy - b in a row of equal blocks; another image says `slopes` of A."""

    A: Tensor  # (1, N, 2)
    b: Tensor  # (1, N)
    slopes: Tensor

    @property
    def scale_floor(self):
        return torch.full((1,), 1e-6, dtype=torch.float64)

    def evaluate(self, state):
        return (self.A @ state[..., None])[..., 0] - self.b, torch.ones_like(self.b)

    def normal_equations(self, state, residual, weight):  # noqa: ARG002
        return self.A.mT @ (weight[..., None] * self.A), None

    def precision_sums(self, state, loss_width, blocks):
        return sum_scores(self, state, loss_width, blocks)

    def block_scores(self, state, weighted, blocks):  # noqa: ARG002
        return (self.A * weighted[..., None]).unflatten(1, (blocks, -1)).sum(2).mT

    def sensitivity(self, state, weight):  # noqa: ARG002
        return self.A.mT @ (weight[..., None] * self.slopes)


def mean_distance(draw, *, repeats=200):
    """Average e^T C^-1 e of what solves the scores: of two parameters about 2 where C is right."""
    distances = []
    for _ in range(repeats):
        A, b, slopes, truth = draw()
        problem = Lines(A[None], b[None], slopes[None])
        found = torch.linalg.solve(A.mT @ slopes, A.mT @ b)  # where A^T r is zero in the mean
        _, covariance = measure_precision(problem, found[None], 2.385)
        error = found - truth
        distances.append(float(error @ torch.linalg.inv(covariance[0]) @ error))
    return sum(distances) / repeats


@pytest.fixture
def normal(rng):
    return lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_the_covariance_is_that_of_independent_noise(normal):
    def draw():
        A, truth = normal(N, 2), normal(2)
        return A, A @ truth + 0.1 * normal(N), A, truth

    assert 1.6 < mean_distance(draw) < 2.6


def test_residuals_that_go_together_in_a_block_widen_it(normal):
    def draw():
        A, truth = 1 + 0.3 * normal(N, 2), normal(2)
        A[:, 1] *= torch.linspace(-1, 1, N, dtype=torch.float64)
        together = normal(BLOCKS).repeat_interleave(N // BLOCKS)
        return A, A @ truth + 0.1 * together + 0.01 * normal(N), A, truth

    assert 1.2 < mean_distance(draw) < 4  # with every residual on its own: 100


@pytest.mark.parametrize("sigma_8bit", [2.5, 10])
def test_the_predicted_ellipses_hold_the_errors_of_corners(sigma_8bit):
    size, inside = (160, 200), []
    for number, name in enumerate(("astronaut", "camera", "coffee", "chelsea", "motorcycle_left", "page") * 2):
        rng = np.random.default_rng(number)
        pair = render_pair(load_scene(name, gray=True), random_homography(rng, size, 6.0), size, rng=rng)
        src, dst = (
            (image + sigma_8bit / 255 * rng.standard_normal(image.shape)).clip(0, 1).astype(np.float32)
            for image in (pair.src, pair.dst)
        )
        result = align(src, dst)
        corners = corner_points(size)
        error = warp_points(result.dst_homo_src[0].numpy(), corners) - warp_points(pair.dst_homo_src, corners)
        distance = np.einsum("ni,nij,nj->n", error, np.linalg.inv(result.corner_covariance[0].numpy()), error)
        inside += (distance < 5.991).tolist()
    assert 0.85 < np.mean(inside) <= 1
    assert np.mean(inside) < 1 or len(inside) < 100


def test_residuals_smaller_than_rounding_do_not_promise_too_much():
    """Of paper, and of what is in the shade, most pixels are rounded alike in both images."""
    size, inside, smaller = (160, 200), [], []
    for number, name in enumerate(("page", "text", "grass") * 8):
        rng = np.random.default_rng(number)
        pair = render_pair(load_scene(name, gray=True), random_homography(rng, size, 6.0), size, rng=rng)
        dst = add_vignette(adjust_exposure(pair.dst, gamma=1.4), strength=0.4)
        result = align(to_uint8(pair.src), to_uint8(dst))
        corners = corner_points(size)
        error = warp_points(result.dst_homo_src[0].numpy(), corners) - warp_points(pair.dst_homo_src, corners)
        distance = np.einsum("ni,nij,nj->n", error, np.linalg.inv(result.corner_covariance[0].numpy()), error)
        inside += (distance < 5.991).tolist()
        smaller.append(result.evidence[0, EVIDENCE.index("unexplained")].item() < 1)
    assert np.mean(smaller) > 0.8
    assert np.mean(inside) > 0.97

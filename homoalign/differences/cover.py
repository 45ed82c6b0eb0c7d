"""What lies in the way: pixels that neither noise nor a fraction of a pixel's motion explains, nor those around them.

A robust loss judges each pixel alone. What covers a part of one image still pulls there wherever it happens to look
alike, and widens the scale that everything is judged by: a third of the frame covered costs several times the
precision. But what covers is larger than a pixel, and the mean square of a neighbourhood's residuals tells it from
noise almost surely.

B pairs, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import kernels
from homoalign.levels.noise import smooth
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import SCALE_SAMPLES

LEAST_SIDE = 9
"""Points a side, below which a frame has no neighbourhoods."""

SLACK_PX = 0.5
"""So much motion is taken to explain a slope's residual."""

QUARTILE = 0.3186
"""Of |r| of a standard normal r: a quarter is smaller."""

ROUNDS = 2
"""The scale is read again from what is left."""

UNLIKELY = 3.0
"""Mean square of a neighbourhood, in that of noise and slack, from which something is in the way: the noise of a dozen
pixels shows as much once in a million."""

GROSS = 5.0
"""What covers leaves more than this, in the same measure, at every other pixel; of the parallax, blur and light of real
photographs less than every third pixel does."""

CONCENTRATIONS = 8
GAINS = (0.1, 10.0)

CLEARLY_MORE = 0.1
"""Share of the frame by which one light must leave more clear than another: it may be that of what covers."""

FAR = 4.0
"""Residuals of so many standard deviations are not normal ones..."""

MOST_FAR = 0.02
"""... of which an edge here and there may leave this share."""

LARGE = 2.0
"""Residuals so many times the noise may hide what is not normal."""

HINT_POINTS = 4096


def is_hindered(problem: DirectProblem, state: Alignment, noise: Tensor) -> Tensor:
    """Return (B,) bool, where it is worth looking for something in the way.

    Args:
        problem: the pairs.
        state: alignments that are good to about `SLACK_PX`.
        noise: (B,) of the residual, see `noise.residual_noise`.
    """
    stride = max(1, problem.template.u.shape[-1] // HINT_POINTS) | 1
    part = problem.restrict(stride, 8)
    residual, seen = part.evaluate(state)
    seen = seen > 0
    scale = _scale(residual, seen).clamp_min(problem.scale_floor / 2)
    limit = FAR**2 * (_column(scale.square(), residual) + _slack(part, state))
    far = (seen & (residual.square() > limit)).sum(-1) > MOST_FAR * seen.sum(-1)
    return far | (scale > LARGE * noise)


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Pairs without what is in the way.

    Attributes:
        problem: without these points.
        state: with the light of the others.
        share: (B,) float64, of what both images show, how much is clear.
        scale: (B,) float64, standard deviation of the residual where it is.
        is_cover: (B,) bool, whether most of what was left out is so unlike that something is in the way; else it is
            depth, blur or another light that the model does not know, and better kept than left out.
    """

    problem: DirectProblem
    state: Alignment
    share: Tensor
    scale: Tensor
    is_cover: Tensor


def explains_more(problem: DirectProblem, state: Alignment, other: DirectProblem, other_state: Alignment) -> Tensor:
    """Return (B,) bool, where a problem's light leaves clear, by `CLEARLY_MORE`, what another's does not.

    Both are judged by the smaller residual: a light bent towards what covers leaves a larger one everywhere.
    """
    found, other_found = uncover(problem, state), uncover(other, other_state)
    scale = torch.fmin(found.scale, other_found.scale)
    share = uncover(problem, found.state, scale).share
    return share > uncover(other, other_found.state, scale).share + CLEARLY_MORE


def uncover(problem: DirectProblem, state: Alignment, scale: Tensor | None = None) -> Uncovered:
    """Leave out the points where something is in the way.

    Args:
        problem: the pairs.
        state: alignments that are good to about `SLACK_PX`; their light may be that of what covers.
        scale: (B,) of the residual where nothing is in the way; None: what the residuals say.
    """
    template = problem.template
    if template.grid is None or min(template.grid) < LEAST_SIDE:
        one = torch.ones_like(state.gain)
        return Uncovered(problem, state, one, torch.nan * one, one < 0)
    rows, columns = template.grid
    value, seen = problem.read_dst(state.dst_homo_src)
    if scale is None and problem.freedom.light:
        state = _light_of_most(template.value, value, seen, state)
    residual = value - _column(state.gain, value) * template.value - _column(state.bias, value)
    residual = torch.where(seen, residual, 0.0)

    def neighbourhood(values: Tensor) -> Tensor:
        return smooth(smooth(values.view(-1, 1, rows, columns), 1), 2).view_as(values)

    share = neighbourhood(seen.to(value)).clamp_min_(1e-3)
    energy = neighbourhood(residual.square()).div_(share)
    at_point = _slack(problem, state)
    slack = neighbourhood(at_point * seen).div_(share)
    clear, told = seen, torch.zeros_like(state.gain)
    for _ in range(ROUNDS if scale is None else 1):
        told = _scale(residual, clear).clamp_min(problem.scale_floor / 2) if scale is None else scale
        clear = seen & (energy < UNLIKELY * (_column(told.square(), value) + slack))
    left = replace(problem, template=replace(template, usable=template.usable & (clear | ~seen)))
    gone = seen & ~clear
    gross = gone & (residual.square() > GROSS * (_column(told.square(), value) + at_point))
    is_cover = (gross.sum(-1) > 0.5 * gone.sum(-1)) & gone.any(-1)
    return Uncovered(left, state, clear.sum(-1) / seen.sum(-1).clamp_min(1).double(), told, is_cover)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values[:, None].to(like)


def _slack(problem: DirectProblem, state: Alignment) -> Tensor:
    """Return (B, N) the variance that a motion of `SLACK_PX` in any direction gives the residuals."""
    reach = SLACK_PX / problem.template.half_side
    slope = problem.template.slope
    return slope.square().sum(1) * (0.5 * reach**2) * _column(state.gain.square(), slope)


def _light_of_most(src: Tensor, dst: Tensor, seen: Tensor, state: Alignment) -> Alignment:
    """Return the state with the gain and bias that explain the better half of the pixels best.

    Least trimmed squares, by concentration steps from the light that is known and from none (Rousseeuw and Van
    Driessen, "Computing LTS regression for large data sets", Data Mining and Knowledge Discovery 2006).
    """
    stride = max(1, src.shape[-1] // SCALE_SAMPLES) | 1
    x, y, counted = src[:, ::stride], dst[:, ::stride], seen[:, ::stride]
    one = torch.ones_like(state.gain)
    best, chosen = torch.full_like(one, torch.inf), (state.gain, state.bias)
    for start in ((state.gain, state.bias), (one, torch.zeros_like(one))):
        gain, bias, half = _trimmed_line(x, y, counted, *start)
        better = half < best
        best = torch.where(better, half, best)
        chosen = torch.where(better, gain, chosen[0]), torch.where(better, bias, chosen[1])
    return Alignment(state.dst_homo_src, *chosen)


def _trimmed_line(x: Tensor, y: Tensor, counted: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, bias and the median size of the residuals, (B,) each, by concentration steps from gain and bias."""
    if kernels.serves(x):
        line = torch.stack([gain, bias], dim=-1)
        found = kernels.trimmed_line(x, y, counted, line, rounds=CONCENTRATIONS, bounds=GAINS)
        gain, bias, half = found.unbind(-1)
        return gain, bias, half
    x, y = x.double(), y.double()
    half = torch.full_like(gain, torch.nan)
    for _ in range(CONCENTRATIONS):
        magnitude = torch.where(counted, (y - gain[:, None] * x - bias[:, None]).abs(), torch.nan)
        half = torch.nanmedian(magnitude, dim=-1).values
        kept = (magnitude <= half[:, None]).double()
        count = kept.sum(-1, keepdim=True).clamp_min(2)
        mean_x, mean_y = ((kept * v).sum(-1, keepdim=True) / count for v in (x, y))
        a, b = kept * (x - mean_x), y - mean_y
        gain = ((a * b).sum(-1) / (a * a).sum(-1).clamp_min(1e-9)).clamp(*GAINS)
        bias = mean_y[:, 0] - gain * mean_x[:, 0]
    return gain, bias, half


def _scale(residual: Tensor, counted: Tensor) -> Tensor:
    """Return (B,) the standard deviation of normal residuals that have this lower quartile: outliers hardly move it."""
    if kernels.serves(residual):
        return kernels.magnitude_quantile(residual, counted, SCALE_SAMPLES, part=4) / QUARTILE
    stride = max(1, residual.shape[-1] // SCALE_SAMPLES) | 1
    magnitude = torch.where(counted[:, ::stride], residual[:, ::stride].abs(), torch.nan)
    return torch.nanquantile(magnitude, 0.25, dim=-1, interpolation="lower").double() / QUARTILE

"""Motion and light in one least-squares problem, for the last steps of pairs whose light a gain and a bias miss.

Solved in turns, as on the way there, each takes up what the other leaves: a slow field of light looks like a motion of
slow intensities, and where texture is faint the turns end far from where both fit best. Together they cost a textured
pair about a hundredth of its precision (after Bartoli, "Groupwise geometric and photometric direct image
registration", PAMI 2008). What is quadratic in dst's coordinates, as a vignette is, is nearly cubic in those of src:
the fields here go one order further than those of `photometry.py`.

B pairs, N points, K basis functions, P = 8 + K parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign import kernels
from homoalign.differences.photometry import Light
from homoalign.optimisation.residual import Alignment, DirectProblem, products
from homoalign.optimisation.solver import Slack, cauchy_weight, robust_scale, solve
from homoalign.optimisation.template import Template, jacobian_of

MAX_ITERATIONS = 10

STRIDE = 5
"""Odd, so as not to fall in step with the rows of an image."""

ORDER = 3
"""Of the fields of gain and bias."""

TONE, CUBIC = 6, 4
"""Coefficients of the tone curve, from the constant one on, here and in `photometry.py`."""

FIELDS = tuple((i - j, j) for i in range(1, ORDER + 1) for j in range(i + 1))
"""Powers of x and y, in rising order: those of `photometry.py` first."""

NUM_FUNCTIONS = TONE + 2 * len(FIELDS)
"""K, see `basis_of`."""


@dataclass(frozen=True, slots=True)
class LitAlignment:
    """What is solved for; a `solver.BatchState`.

    Attributes:
        dst_homo_src: (B, 3, 3) float64, of the full-size images.
        weights: (B, K) float64, of the functions of `basis_of`.
    """

    dst_homo_src: Tensor
    weights: Tensor

    def where(self, chosen: Tensor, other: LitAlignment) -> LitAlignment:
        """Return this state for the pairs where `chosen` (B,) holds, `other` elsewhere."""
        return LitAlignment(
            torch.where(chosen[:, None, None], self.dst_homo_src, other.dst_homo_src),
            torch.where(chosen[:, None], self.weights, other.weights),
        )

    def select(self, index: Tensor) -> LitAlignment:
        """Return the pairs that `index` (int64) names."""
        return LitAlignment(self.dst_homo_src[index], self.weights[index])

    def put(self, index: Tensor, part: LitAlignment) -> LitAlignment:
        """Return this state with the pairs that `index` names replaced by `part`."""
        return LitAlignment(
            self.dst_homo_src.index_copy(0, index, part.dst_homo_src),
            self.weights.index_copy(0, index, part.weights),
        )


@dataclass(frozen=True, slots=True)
class LitProblem:
    """Pairs of rich light; a `solver.Problem` whose state is a `LitAlignment`.

    Attributes:
        direct: of the full-size images, with src's own intensities as its template.
        lit: its template as it looked in dst at the start.
        fields: (B, F, N) float32, powers of the position as `FIELDS` names them.
        JtJ: (B, P, P) float64, as at the start and on some of the points: a step's direction need not be exact, and it
            would be most of the work.
    """

    direct: DirectProblem
    lit: Template
    fields: Tensor
    JtJ: Tensor

    @property
    def scale_floor(self) -> Tensor:
        """(B,) float64."""
        return self.direct.scale_floor

    def select(self, index: Tensor) -> LitProblem:
        """Return the pairs that `index` (int64) names."""
        return LitProblem(self.direct.select(index), self.lit.select(index), self.fields[index], self.JtJ[index])

    def evaluate(self, state: LitAlignment) -> tuple[Tensor, Tensor]:
        """Return residual (B, N), and seen (B, N): 1 where both images have that pixel, else 0."""
        value, seen = self.direct.read_dst(state.dst_homo_src)
        model, _ = light_up(state.weights, self.direct.template.value, self.fields)
        return torch.where(seen, value - model, 0.0), seen.to(value)

    def normal_equations(self, state: LitAlignment, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return JtJ (B, P, P) and Jtr (B, P), float64; the residual's Jacobian is minus the template's."""
        scores = scores_of(self.lit, self.direct.template, self.fields, residual, weight)
        scores[:, :8] *= self.direct.freedom.free[:8]
        return self.JtJ, -scores

    def step(self, state: LitAlignment, step: Tensor) -> LitAlignment:
        """Return the state after `step` (B, P)."""
        return LitAlignment(self.direct.frame.move(state.dst_homo_src, step[:, :8]), state.weights + step[:, 8:])

    def length_px(self, step: Tensor) -> Tensor:
        """Return (...) how far `step` (..., P) moves src's furthest corner, to first order, pixels."""
        return self.direct.length_px(step)


def solve_jointly(
    direct: DirectProblem,
    light: Light,
    state: Alignment,
    *,
    max_iterations: int,
    loss_width: float,
    step_tol_px: float,
    slack: Slack,
) -> tuple[Template, Alignment, Tensor]:
    """Solve motion and light together.

    Args:
        direct: of the full-size images, with src's own intensities and the slopes to go by as its template.
        light: how dst follows from src, rich.
        state: alignments, gain and bias on top of `light`.
        max_iterations: most steps tried, up to `MAX_ITERATIONS`.
        loss_width: of the robust loss, in standard deviations of the residual.
        step_tol_px: a pair has converged when a step moves no corner further than this.
        slack: how far the cost may rise.

    Returns:
        template: as it should look in dst.
        state: with a gain of one and a bias of zero on top.
        num_iterations: (B,) int32.
    """
    template = direct.template
    fields = fields_of(template.u)
    start = LitAlignment(state.dst_homo_src, start_weights(light, state))
    lit = light_template(template, start.weights, fields)
    problem = LitProblem(direct, lit, fields, fields.new_empty(len(fields), 0, 0))
    residual, seen = problem.evaluate(start)
    weight = cauchy_weight(residual, loss_width * robust_scale(residual, seen, problem.scale_floor))
    JtJ = _curvature(lit.every(STRIDE), template.every(STRIDE), weight.mul_(seen)[:, ::STRIDE], direct)
    solution = solve(
        replace(problem, JtJ=JtJ),
        start,
        max_iterations=min(max_iterations, MAX_ITERATIONS),
        step_tol_px=step_tol_px,
        loss_width=loss_width,
        min_seen=0.5 * template.usable.sum(-1),
        slack=slack,
    )
    one = torch.ones_like(state.gain)
    found = Alignment(solution.state.dst_homo_src, one, torch.zeros_like(one))
    return light_template(template, solution.state.weights, fields), found, solution.num_iterations


def scores_of(lit: Template, recorded: Template, fields: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Return (B, P) float64, J W r of the motion and the light.

    Args:
        lit: the template as it looks in dst.
        recorded: with src's own intensities.
        fields: (B, F, N) float32.
        residual: (B, N), r.
        weight: (B, N), the diagonal of W.
    """
    if kernels.serves(residual):
        return kernels.joint_scores(
            lit.slope, recorded.u, recorded.brightness, fields, residual, weight, num_tones=TONE
        )
    motion = products(lit, residual, weight)[1][:, :8]
    weighted = (weight * residual)[:, None]
    z = (2 * recorded.brightness - 1)[:, None]
    tones = [weighted]
    while len(tones) < TONE:
        tones.append(tones[-1] * z)
    tone = torch.cat(tones, dim=1).sum(-1, dtype=torch.float64)
    slow = fields @ torch.cat(tones[:2], dim=1).mT  # (B, F, 2): of bias, of gain
    return torch.cat([motion, tone, slow.mT.flatten(1).double()], dim=1)


def _curvature(lit: Template, template: Template, weight: Tensor, direct: DirectProblem) -> Tensor:
    """Return (B, P, P) float64 of some of the points, weighted by `weight` (B, n), as of all."""
    motion = jacobian_of(lit.slope, lit.value, lit.u)[:, :8] * direct.freedom.free[:8, None].to(weight)
    jacobian = torch.cat([motion, basis_of(template.brightness, fields_of(lit.u))], dim=1)
    JtJ = STRIDE * ((jacobian * weight[:, None]) @ jacobian.mT).double()
    JtJ[:, :8, :8] += direct.freedom.fixed[:8, :8]
    return JtJ


def light_up(weights: Tensor, intensity: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Return intensities in dst, (B, N), and their slope over src's; flat where they saturate.

    Args:
        weights: (B, K) float64.
        intensity: (B, N) float32, of src.
        fields: (B, F, N) float32.
    """
    tone, slow = weights[:, :TONE].to(fields), weights[:, TONE:].to(fields).view(len(fields), 2, -1)
    if kernels.serves(intensity):
        return kernels.light_up(tone, slow, intensity, fields)
    z = 2 * intensity - 1
    bias, gain = (slow @ fields).unbind(1)
    curve, steepness = torch.zeros_like(z), torch.zeros_like(z)
    for w in reversed(tone[..., None].unbind(1)):  # Horner's scheme: TONE of (B, 1)
        steepness = torch.addcmul(curve, steepness, z)
        curve = torch.addcmul(w, curve, z)
    value = curve + torch.addcmul(bias, gain, z)
    inside = (value > 0) & (value < 1)
    return value.clamp(0, 1), torch.where(inside, 2 * (steepness + gain), 0.0)


def light_template(template: Template, weights: Tensor, fields: Tensor) -> Template:
    """Return the template as it should look in dst under (B, K) `weights`."""
    value, slope = light_up(weights, template.value, fields)
    is_recorded = template.brightness is template.value
    brightness = value if is_recorded else light_up(weights, template.brightness, fields)[0]
    return replace(template, value=value, slope=template.slope * slope[:, None], brightness=brightness)


def start_weights(light: Light, state: Alignment) -> Tensor:
    """Return (B, K) float64, of `light` with the state's gain and bias on top; no cubic fields yet."""
    known = light.weights.double() * state.gain[:, None]
    known[:, 0] += state.bias
    tone, slow = known[:, :CUBIC], known[:, CUBIC:].view(len(known), 2, -1)
    tone, slow = pad(tone, (0, TONE - CUBIC)), pad(slow, (0, len(FIELDS) - slow.shape[-1]))
    return torch.cat([tone, slow.flatten(1)], dim=1)


def fields_of(u: Tensor) -> Tensor:
    """Return (B, F, N) powers of centred coordinates (B, 2, N)."""
    return torch.stack([u[:, 0] ** i * u[:, 1] ** j for i, j in FIELDS], dim=1)


def basis_of(intensity: Tensor, fields: Tensor) -> Tensor:
    """Return (B, K, N): the powers of z below `TONE`, the fields, and z times the fields; z is from -1 to 1."""
    z = (2 * intensity - 1)[:, None]
    return torch.cat([*(z**k for k in range(TONE)), fields, z * fields], dim=1)

"""The last steps of pairs whose texture drowns in noise: the image behind both is told anew as they come together.

Slopes that hold as much noise as texture waste most of what the residual says. The image without noise is told from
both images where they are aligned, the alignment from that image's slopes: each gets better with the other, and they
are solved in turns, as the unknown image and the motion of one likelihood are (Tom and Katsaggelos, "Reconstruction of
a high-resolution image by simultaneous registration, restoration, and interpolation of low-resolution images", ICIP
1995). The slopes of one turn hold dst's noise where it lay then, which holds the alignment there for that turn: a step
is too short by the noise's share of their energy, and the next turn makes up for it.

Of so little texture a slow field of light looks like a motion long before residuals show it: light is as rich as a
score test says (Rao, "Large sample tests of statistical hypotheses concerning several parameters", Proceedings of the
Cambridge Philosophical Society 1948), and solved together with the motion, as in `joint.py`.

B pairs, N points, K basis functions of light, P = 8 + K parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.differences import joint
from homoalign.differences.behind import LEAST_STEEPNESS, PLAIN, Behind, View, plain_light
from homoalign.differences.joint import LitAlignment
from homoalign.differences.photometry import Light
from homoalign.differences.refinement import DROWNED
from homoalign.homography import image_size
from homoalign.levels.noise import QUANTISATION, UNEXPLAINED, residual_noise
from homoalign.optimisation.precision import corner_covariance, corner_std
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.schedule import CLEAN_LOSS_WIDTH, MOTION_PARAMETERS
from homoalign.optimisation.solver import Memory, cauchy, loss_widths, robust_scale
from homoalign.optimisation.template import Template
from homoalign.optimisation.track import Track

FAINT_480 = 0.2
"""Error of the corners, pixels at a shorter side of 480, by the normal equations alone, from which this pays."""

LOST_480 = 4.0
"""Likewise up to which a step is anything like linear."""

MAX_ROUNDS = 12

LEAST_SEEN = 0.5
"""Of what was seen at the start; pairs that see less have walked out of the frame."""

SETTLED = 0.03
"""Chi-squared of a step, with 8 degrees of freedom, below which a pair is done: what is left is lost in its error."""

NEARLY = 1.0
"""Likewise after the last round: closer than that it may still turn about in its error, and has arrived."""

SLACK = 0.1
"""Share by which the cost may rise: between pixels interpolation smooths that much noise away."""

LONGEST_STEP = 1 / 64
"""Of the shorter side: further than that nothing is linear."""

NOT_BY_CHANCE = 60.0
"""Of the score test, chi-squared with 22 degrees of freedom: chance exceeds it once in 50,000."""

DAMPING = 1e-5

MOST_PIXELS = 1_500_000
"""Of src: all of them are looked at in every turn."""

CURVATURE_POINTS = 65_536
"""About how many of them tell the curvature, which would be most of the work where light is rich..."""

TESTED_SHARE = 5
"""... and of these every fifth that of the test."""


@dataclass(frozen=True, slots=True)
class Faint:
    """What pairs ended with.

    Attributes:
        lit: the template as it should look in dst, with the slopes to go by.
        state: alignments on top of it.
        is_rich: (B,) bool, whether `lit` is more than src itself.
        is_better: (B,) bool, whether the pair settled, and not where it fits worse; else the start is as good.
        num_iterations: (B,) int32.
    """

    lit: Template
    state: Alignment
    is_rich: Tensor
    is_better: Tensor
    num_iterations: Tensor

    def select(self, index: Tensor) -> Faint:
        """Return the pairs that `index` (int64) names."""
        return Faint(
            self.lit.select(index),
            self.state.select(index),
            self.is_rich[index],
            self.is_better[index],
            self.num_iterations[index],
        )

    def put(self, index: Tensor, part: Faint) -> Faint:
        """Return this with the pairs that `index` (int64) names replaced by `part`."""
        return Faint(
            self.lit.put(index, part.lit),
            self.state.put(index, part.state),
            self.is_rich.index_copy(0, index, part.is_rich),
            self.is_better.index_copy(0, index, part.is_better),
            self.num_iterations.index_copy(0, index, part.num_iterations),
        )


def find_faint(among: Tensor, problem: DirectProblem, state: Alignment, share: Tensor, track: Track) -> Tensor:
    """Return the pairs to be solved so, (b,) int64: noise drowns their little texture, and is all that is left.

    Args:
        among: (B,) bool, the pairs that may be.
        problem: of the full-size images, the template as it should look in dst.
        state: alignments that are good to a few pixels.
        share: (B,) of noise in the energy of src's slopes.
        track: the pairs.
    """
    index = torch.nonzero(among & (share > DROWNED) & (state.gain > LEAST_STEEPNESS))[:, 0]
    if math.prod(problem.src_size) > MOST_PIXELS or len(index) == 0:
        return index[:0]
    part, there = problem.restrict(1, MOTION_PARAMETERS[track.config.model]).select(index), state.select(index)
    residual, seen = part.evaluate(there)
    scale = robust_scale(residual, seen, part.scale_floor)
    noise = residual_noise(track.src[0].noise[index], track.dst[0].noise[index], there.gain)
    free = part.freedom.free
    JtJ, _ = part.normal_equations(there, residual, seen)
    inverse, info = torch.linalg.inv_ex(JtJ)
    covariance = scale.square()[:, None, None] * (inverse * free[:, None] * free)
    corners = corner_covariance(covariance, there.dst_homo_src, *image_size(track.src[0].image))
    error_480 = 480 / min(image_size(track.dst[0].image)) * corner_std(corners)
    is_faint = (info == 0) & (error_480 > FAINT_480) & (error_480 < LOST_480)
    return index[is_faint & (scale < UNEXPLAINED * noise)]


def solve_faint(
    raw: DirectProblem, light: Light, state: Alignment, share: Tensor, is_clear: Tensor, track: Track
) -> Faint:
    """Tell the images and their alignment in turns until they settle.

    Args:
        raw: of the full-size images, all of their pixels, dst read by a spline, src's own intensities as template.
        light: how dst follows from src, so far.
        state: alignments on top of it.
        share: (B,) of noise in the energy of src's slopes.
        is_clear: (B,) bool, whether src has contrast enough for more than a gain and a bias to be told.
        track: the pairs.
    """
    pairs = Behind(
        raw=raw,
        image=track.src[0].image,
        noise=track.noise.clamp_min(QUANTISATION),
        share=share,
        fields=None,
        in_scales=torch.full_like(state.gain, track.config.loss_width),
        free=MOTION_PARAMETERS[track.config.model],
        is_lit=track.config.photometric != "none",
    )
    start = LitAlignment(state.dst_homo_src, joint.start_weights(_as_weights(light), state))
    max_rounds = min(MAX_ROUNDS, track.config.max_iterations)
    found = Faint(raw.template, state, light.is_rich, torch.zeros_like(is_clear), torch.zeros_like(is_clear).int())
    rich = torch.nonzero(light.is_rich)[:, 0]
    plain = torch.nonzero(~light.is_rich)[:, 0]
    if len(plain) > 0:
        turn = _first_turn(pairs.select(plain), start.select(plain), track.config.loss_width)
        if track.config.photometric == "auto":
            is_otherwise = is_clear[plain] & _is_lit_otherwise(turn)
            rest = torch.nonzero(~is_otherwise)[:, 0]
            rich, plain, turn = torch.cat([rich, plain[is_otherwise]]), plain[rest], turn.select(rest)
        if len(plain) > 0:
            found = found.put(plain, _settle(turn, max_rounds))
    if len(rich) > 0:
        lit = replace(pairs.select(rich), fields=_fields_of(raw.template.u[rich]))
        found = found.put(rich, _settle(_first_turn(lit, start.select(rich), track.config.loss_width), max_rounds))
    return found


@dataclass(frozen=True, slots=True)
class _Turn:
    """Pairs, where they are, how they look there, and src with the slopes of the image behind both."""

    pairs: Behind
    state: LitAlignment
    view: View
    template: Template

    def select(self, index: Tensor) -> _Turn:
        """Return the pairs that `index` (int64) names."""
        if len(index) == len(self.state.weights):
            return self
        return _Turn(
            self.pairs.select(index), self.state.select(index), self.view.select(index), self.template.select(index)
        )


def _first_turn(pairs: Behind, state: LitAlignment, loss_width: float) -> _Turn:
    """Return where pairs start, with a loss as wide as their residuals ask for."""
    view, floor = pairs.look(state), pairs.raw.scale_floor
    widths = loss_widths(view.residual, view.seen, floor, loss_width, max(loss_width, CLEAN_LOSS_WIDTH))
    pairs = replace(pairs, in_scales=widths)
    return _turn(pairs, state, pairs.weigh(view))


def _turn(pairs: Behind, state: LitAlignment, view: View) -> _Turn:
    guide, noise = pairs.merge(view)
    return _Turn(pairs, state, view, pairs.template_of(view, guide, guide, noise))


def _fields_of(u: Tensor) -> Tensor:
    """Return `joint.fields_of` of pairs that are all on the same grid."""
    return joint.fields_of(u[:1]).expand(len(u), -1, -1).contiguous()


def _as_weights(light: Light) -> Light:
    """Return the light with weights that say so where it is plain: dst is src."""
    same = torch.zeros_like(light.weights)
    same[:, :PLAIN] = 0.5
    return replace(light, weights=torch.where(light.is_rich[:, None], light.weights, same))


def _is_lit_otherwise(turn: _Turn) -> Tensor:
    """Return (B,) bool, whether the residual speaks against a gain and a bias by more than chance."""
    pairs, view = turn.pairs, turn.view
    everything = replace(pairs, fields=_fields_of(pairs.raw.template.u))
    curvature, scores = everything.normal_equations(turn.template, view, _stride(view) * TESTED_SHARE)
    plain = torch.cat([torch.arange(8) < pairs.free, torch.arange(joint.NUM_FUNCTIONS) < PLAIN]).to(scores.device)
    rich = ~plain & (torch.arange(len(plain), device=scores.device) >= 8)
    a, b, c = curvature[:, plain][..., plain], curvature[:, plain][..., rich], curvature[:, rich][..., rich]
    known = torch.linalg.solve_ex(a, torch.cat([b, scores[:, plain, None]], dim=-1)).result
    left = scores[:, rich] - (b.mT @ known[..., -1:])[..., 0]
    information = c - b.mT @ known[..., :-1] + _damping(c)
    distance = (left * torch.linalg.solve_ex(information, left).result).sum(-1)
    is_otherwise: Tensor = distance > NOT_BY_CHANCE * view.variance()
    return is_otherwise


def _stride(view: View) -> int:
    """Return every how many-th point tells the curvature; odd, so as not to fall in step with an image's rows."""
    return max(1, view.weight.shape[-1] // CURVATURE_POINTS) | 1


def _settle(first: _Turn, max_rounds: int) -> Faint:
    """Take turns until every pair has settled, or is lost; they have one kind of light."""
    index = torch.arange(len(first.state.weights), device=first.state.weights.device)
    turn, found, pairs = first, first.state, first.pairs
    last = torch.full_like(found.weights[:, 0], torch.nan)
    taken = torch.zeros_like(index, dtype=torch.int32)
    memory: Memory | None = None
    longest = LONGEST_STEP * min(image_size(pairs.image))
    least_seen = LEAST_SEEN * first.view.seen.sum(-1)
    for _ in range(max_rounds):
        part, view = turn.pairs, turn.view
        curvature, scores = part.normal_equations(turn.template, view, _stride(view))
        step, size = _step(curvature, scores, part.is_free())
        plain, of_light, of_motion = step[:, :8], step[:, 8:], curvature[:, :8, :8]
        motion = memory.extrapolate(plain, of_motion) if memory else plain
        distance, length = size / view.variance(), part.raw.length_px(motion)
        motion, of_light = (some * (longest / length).clamp_max(1)[:, None] for some in (motion, of_light))
        memory = Memory(plain, motion, torch.ones_like(length, dtype=torch.bool), of_motion, length)
        state = LitAlignment(part.raw.frame.move(turn.state.dst_homo_src, motion), turn.state.weights + of_light)
        found, last = found.put(index, state), last.index_copy(0, index, distance)
        taken[index] += 1
        goes_on = torch.nonzero((distance > SETTLED) & (view.seen.sum(-1) >= least_seen[index]))[:, 0]
        if len(goes_on) == 0:
            break
        if len(goes_on) < len(index):
            index, part, state = index[goes_on], part.select(goes_on), state.select(goes_on)
            memory = memory.select(goes_on)
        turn = _turn(part, state, part.look(state))
    there = pairs.look(found)
    is_better = (last <= NEARLY) & (there.seen.sum(-1) >= least_seen) & ~(_rise(pairs, first.view, there) > SLACK)
    return _conclude(pairs, found, there, is_better, taken)


def _rise(pairs: Behind, first: View, there: View) -> Tensor:
    """Return (B,) by which share the cost has risen since the start, over what both see."""
    width = pairs.in_scales * first.scale
    both = first.seen * there.seen
    before, now = ((cauchy(view.residual, width)[0] * both).sum(-1, dtype=torch.float64) for view in (first, there))
    rise: Tensor = now / before - 1
    return rise


def _step(curvature: Tensor, scores: Tensor, is_free: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, P), the step, zero where it is not determined, and (B,) its motion's squared length, else NaN.

    Args:
        curvature: (B, P, P), by which that length is told, whatever the light.
        scores: (B, P).
        is_free: (P,) bool, which parameters are solved for.
    """
    free = is_free.to(curvature)
    scores = scores * free
    curvature = curvature * free[:, None] * free + torch.diag(1 - free)
    curvature = curvature + _damping(curvature)
    motion, mixed, light = curvature[:, :8, :8], curvature[:, :8, 8:], curvature[:, 8:, 8:]
    known = torch.linalg.solve_ex(light, torch.cat([mixed.mT, scores[:, 8:, None]], dim=-1)).result
    by_light, of_light = known[..., :8], known[..., 8:]
    factor, info = torch.linalg.cholesky_ex(motion - mixed @ by_light)  # Schur's complement
    left = scores[:, :8, None] - mixed @ of_light
    moved = torch.cholesky_solve(left, factor)
    step = torch.cat([moved, of_light - by_light @ moved], dim=1)[..., 0] * free
    is_known = (info == 0) & step.isfinite().all(-1)
    return torch.where(is_known[:, None], step, 0.0), torch.where(is_known, (moved * left).sum((-2, -1)), torch.nan)


def _damping(curvature: Tensor) -> Tensor:
    """Return (B, P, P), a little of the diagonal: powers of much the same intensity tell each other's coefficients."""
    return torch.diag_embed(DAMPING * curvature.diagonal(dim1=-2, dim2=-1))


def _conclude(pairs: Behind, state: LitAlignment, view: View, is_better: Tensor, taken: Tensor) -> Faint:
    """Return gain and bias on top of src itself where these are all, and on top of src as it is lit elsewhere.

    The slopes are those of src alone again: what is said of precision compares them with dst's own.
    """
    guide, noise = pairs.merge(view)
    template = pairs.template_of(view, pairs.image, guide, noise)
    one = torch.ones_like(pairs.share)
    if pairs.fields is None:
        slope = template.slope / view.steepness.clamp_min(LEAST_STEEPNESS)[:, None]
        under = Alignment(state.dst_homo_src, *plain_light(state.weights))
        return Faint(replace(template, slope=slope), under, torch.zeros_like(is_better), is_better, taken)
    value, _ = pairs.light_up(state.weights)
    brightness, _ = joint.light_up(state.weights, template.brightness, pairs.fields)
    under = Alignment(state.dst_homo_src, one, torch.zeros_like(one))
    return Faint(
        replace(template, value=value, brightness=brightness), under, torch.ones_like(is_better), is_better, taken
    )

"""What the full size was solved to, how precise that is, and which freedom it has earned.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.descent.earned import give_up_freedom, is_unsupported
from homoalign.descent.last_steps import End
from homoalign.differences.blur import compare_sharpness
from homoalign.differences.leftover import hear
from homoalign.differences.photometry import to_plain
from homoalign.levels.noise import UNEXPLAINED, residual_noise
from homoalign.optimisation.precision import measure_precision
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.schedule import MOTION_PARAMETERS
from homoalign.optimisation.solver import REASONS, SCALE_SAMPLES, robust_scale
from homoalign.optimisation.track import Descent, Solved, Track, append_trace
from homoalign.status import StopReason


def conclude(end: End, raw: DirectProblem, descent: Descent, track: Track) -> Solved:
    """Say what the pairs were solved to, and how precisely.

    Args:
        end: of the full size.
        raw: its problem, with src's own intensities.
        descent: of the levels before.
        track: the pairs.
    """
    of_level = Descent(end.state, descent.num_iterations + end.num_iterations, descent.needs_light, descent.levels)
    stop = [REASONS[reason] for reason in end.stop.tolist()]
    solved = _measure(track, of_level, replace(raw, template=end.lit), stop, end)
    state, plain_scale = to_plain(end.light.is_rich, end.lit.value, raw, solved.alignment)
    append_trace(solved.levels, track, 0, state, end.num_iterations)
    scale = torch.where(end.light.is_rich, plain_scale, solved.fitted_scale)
    blurrier = compare_sharpness(raw, track.src[0], end.light, solved.alignment, state.gain)
    # Where noise drowns the texture, another light may look like another sharpness.
    blurrier = torch.where(end.is_faint, 0, blurrier)
    return replace(solved, alignment=state, scale=scale, blurrier=blurrier)


def _measure(
    track: Track,
    descent: Descent,
    problem: DirectProblem,
    stop: list[StopReason],
    end: End,
) -> Solved:
    """Say how precise the solution of the full size is, and give up the freedom that is not earned.

    Args:
        track: the pairs.
        descent: where they are.
        problem: of the full-size images.
        stop: why each pair stopped.
        end: which of them were solved on other problems in the end.
    """
    config, state, src, dst = track.config, descent.state, track.src[0], track.dst[0]
    fitted_scale, covariance = _precision(problem, end, state, config)
    # What the model does not move is known.
    covariance[:, MOTION_PARAMETERS[config.model] : 8] = 0
    covariance[:, :, MOTION_PARAMETERS[config.model] : 8] = 0
    explained = fitted_scale < UNEXPLAINED * residual_noise(src.noise, dst.noise, state.gain)
    weak = torch.nonzero(explained & is_unsupported(covariance, state.dst_homo_src, src, dst))[:, 0]
    if len(weak):
        state = give_up_freedom(
            problem,
            state,
            covariance,
            weak,
            model=config.model,
            loss_width=config.loss_width,
            step_tol_px=config.step_tol_px,
        )
    noise = hear(track, problem, state, ~explained, end.light.is_rich).noise
    return Solved(
        alignment=state,
        stop_reason=stop,
        num_iterations=descent.num_iterations,
        scale=fitted_scale,
        fitted_scale=fitted_scale,
        covariance=covariance,
        levels=descent.levels,
        noise=noise,
        blurrier=torch.zeros(len(state.gain), dtype=torch.int64, device=state.gain.device),
    )


def _precision(problem: DirectProblem, end: End, state: Alignment, config: AlignConfig) -> tuple[Tensor, Tensor]:
    """Return (B,) the residual's scale, of the images as they are, and (B, P, P) the parameters' covariance."""

    def measure(some: DirectProblem, there: Alignment) -> tuple[Tensor, Tensor]:
        return measure_precision(some.restrict(1, MOTION_PARAMETERS[config.model]), there, config.loss_width)

    soft = end.soft
    if soft is None:
        scale, covariance = measure(problem, state)
    else:
        there, sharp = state.select(soft.index), problem.select(soft.index)
        # The loss may have had a larger scale; the floor of precision is that of interpolation.
        _, covariance = measure(replace(soft.problem, scale_floor=sharp.scale_floor), there)
        scale = _scale(sharp, there)
        if len(soft.rest) > 0:
            rest_scale, of_rest = measure(problem.select(soft.rest), state.select(soft.rest))
            scale, covariance = soft.with_rest(scale, rest_scale), soft.with_rest(covariance, of_rest)
    if end.whole is not None:
        index, whole = end.whole
        covariance = covariance.index_copy(0, index, measure(whole, state.select(index))[1])
    return scale, covariance


def is_explained(problem: DirectProblem, state: Alignment, track: Track) -> Tensor:
    """Return (B,) bool, whether the residual is no more than noise."""
    noise = residual_noise(track.src[0].noise, track.dst[0].noise, state.gain)
    return _scale(problem, state) < UNEXPLAINED * noise


def _scale(problem: DirectProblem, state: Alignment) -> Tensor:
    """Return (B,) the residual's scale, of as many points as it takes."""
    stride = max(1, problem.template.u.shape[-1] // (2 * SCALE_SAMPLES)) | 1
    some = problem.restrict(stride, problem.freedom.motion_parameters)
    return robust_scale(*some.evaluate(state), some.scale_floor)

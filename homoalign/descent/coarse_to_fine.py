"""The solver's way down a pyramid, from a start to an alignment, on intensities.

B pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign import homography
from homoalign.descent.full_size import finish
from homoalign.differences.photometry import normalise_locally
from homoalign.homography import image_size
from homoalign.levels.patterns import local_correlation, local_patterns
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.schedule import plan_runs, solve_run
from homoalign.optimisation.trace import LevelTrace
from homoalign.optimisation.track import Descent, Solved, Track, append_trace

DOUBTFUL_CORRELATION = 0.7
"""Pairs that are less alike before the full size, by local correlation and what they share, get a second look."""

DOUBT_SIDE_PX = 100
"""That correlation is measured on the finest level whose shorter side is no longer."""

LEAST_NORMALISED_SIDE_PX = 24
"""Smaller levels have hardly any neighbourhoods to be normalised by."""

LEAST_SHARED = 0.3
"""Share of dst below which a correlation counts for less: what was led nearly out of the frame is alike by chance."""

CLEARLY_BETTER = 0.02
"""By so much the second look must correlate better."""


def solve_gauss_newton(track: Track) -> Solved:
    """Solve level by level on gray intensities, coarse to fine."""
    descent = _descend(track, track.start, normalised=False)
    if track.config.photometric == "auto" and len(track.src) > 1:
        descent = _look_again(track, descent)
    return finish(track, descent)


def _descend(track: Track, start: Alignment, *, normalised: bool) -> Descent:
    """Solve every level but the full size, on intensities or on locally normalised ones."""
    config, state, first = track.config, start, track.coarsest
    total = torch.zeros(len(state.gain), dtype=torch.int32, device=state.gain.device)
    levels: list[list[LevelTrace]] = [[] for _ in range(len(total))]
    for level in range(first, 0, -1):
        src, dst = track.src[level], track.dst[level]
        if normalised:
            src, dst = normalise_locally(src), normalise_locally(dst)
        fit = config.photometric != "none"
        problem = build_problem(src, dst, level=level, max_points=config.points_per_level, fit_photometric=fit)
        if level == first and fit:
            state = Alignment(state.dst_homo_src, *problem.matched_moments(state.dst_homo_src))
        taken = torch.zeros_like(total)
        for run in plan_runs(level, first + 1, problem.template.u.shape[-1], config, is_near=track.is_near):
            solution = solve_run(problem, state, run, config)
            state = solution.state
            taken += solution.num_iterations
        total += taken
        append_trace(levels, track, level, state, taken)
    return Descent(state, total, torch.full_like(total, normalised, dtype=torch.bool), levels)


def _look_again(track: Track, descent: Descent) -> Descent:
    """Give the pairs that do not fit yet a second descent, on locally normalised images; keep what fits better.

    Where the light falls unlike in the two images, intensities lead astray; where it does not, they reach further.
    """
    sides = [min(*image_size(src.image), *image_size(dst.image)) for src, dst in zip(track.src, track.dst, strict=True)]
    level = next((i for i, side in enumerate(sides) if i and side <= DOUBT_SIDE_PX), len(sides) - 1)

    def likeness(some: Track, state: Alignment) -> Tensor:
        matrix = homography.rescale(state.dst_homo_src, level)
        patterns = local_patterns(some.src[level], some.dst[level], matrix)
        shared = patterns.counted.flatten(1).double().mean(-1)
        correlation = local_correlation(patterns)[0].nan_to_num(-1.0)
        # A negative that is seen whole is no worse than what is hardly seen.
        return torch.minimum(correlation, correlation * (shared / LEAST_SHARED).clamp_max(1))

    first = likeness(track, descent.state)
    doubtful = torch.nonzero(first < DOUBTFUL_CORRELATION)[:, 0]
    if len(doubtful) == 0:
        return descent
    some = track.select(doubtful).shallow(LEAST_NORMALISED_SIDE_PX)
    again = _descend(some, some.start, normalised=True)
    better = torch.nonzero(likeness(some, again.state) > first[doubtful] + CLEARLY_BETTER)[:, 0]
    chosen = Descent(
        again.state.select(better),
        again.num_iterations[better],
        again.needs_light[better],
        [again.levels[i] for i in better.tolist()],
    )
    return descent.put(doubtful[better], chosen)

"""Which runs of the solver make up a level, and how one is run.

B pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from homoalign import gpu, kernels
from homoalign.config import AlignConfig
from homoalign.kernels.solver import solve_direct
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import Slack, Solution, solve

MOTION_PARAMETERS = {"translation": 2, "euclidean": 3, "similarity": 4, "affine": 6, "homography": 8}
"""How many of `homography.SL3_BASIS` each model of motion is made of, from the first on."""

TRANSLATION, SIMILARITY, AFFINE, HOMOGRAPHY = (
    MOTION_PARAMETERS[name] for name in ("translation", "similarity", "affine", "homography")
)

SMALLEST_PROBLEM = 20
"""Twice the unknowns: with fewer residuals a robust fit says nothing."""

CLEAN_LOSS_WIDTH = 5.0
"""Of the loss in a refined run, in standard deviations of residuals that are noise; keeps 99.4 % efficiency."""

REFINED_SLACK = Slack(step_px=1.0, cost=0.01)
"""What remains is a fraction of a pixel, and of flat, noisy pairs the cost does not tell where it ends."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the solver: on every `stride`-th point, for how many parameters of motion, how precisely.

    A refined run is that of `refinement.py`.
    """

    stride: int
    motion_parameters: int
    step_tol_px: float
    is_refined: bool = False


def plan_runs(level: int, count: int, num_points: int, config: AlignConfig, *, is_near: bool = False) -> list[Run]:
    """Return the runs of a level.

    From far away the coarsest level, a hundred pixels or two, is solved for a similarity alone, and the next one for
    a similarity first: eight parameters from that few pixels go astray. The full-size image is solved on few
    points first where it has many; the last run, on all of them, starts a hair from its end and is refined.

    Args:
        level: 0 is full size.
        count: of levels to solve.
        num_points: points chosen at this level.
        config: what changes the answer.
        is_near: whether the start was refined already.
    """
    rough = config.coarse_step_tol_px
    full = MOTION_PARAMETERS[config.model]
    simple = min(full, MOTION_PARAMETERS["similarity"])
    if not is_near and level == count - 1 and level >= 2:
        return [Run(1, simple, rough)]
    runs = [Run(1, full, rough)]
    if not is_near and (0 < level == count - 2 or 1 == level == count - 1):
        runs.insert(0, Run(1, simple, rough))
    if level == 0:
        # An odd stride does not fall in step with the rows of an image.
        stride = max(1, num_points // config.points_per_level) // 2 * 2 + 1
        runs = [*runs[:-1], Run(stride, full, rough), Run(1, full, config.step_tol_px, is_refined=True)]
    return runs


def solve_run(problem: DirectProblem, state: Alignment, run: Run, config: AlignConfig) -> Solution[Alignment]:
    """Do a run of a level, from `state`."""
    part = problem.restrict(run.stride, run.motion_parameters)
    return solver_for(part.template.u)(
        part,
        state,
        max_iterations=config.max_iterations,
        step_tol_px=run.step_tol_px,
        loss_width=config.loss_width,
        # A fifth of what `min_overlap` asks for in the end: on the way a pair may see less.
        min_seen=(0.2 * config.min_overlap * part.template.usable.count_nonzero(dim=-1)).clamp_min(SMALLEST_PROBLEM),
        slack=REFINED_SLACK if run.is_refined else Slack(),
        clean_loss_width=max(config.loss_width, CLEAN_LOSS_WIDTH) if run.is_refined else None,
    )


def solver_for(points: Tensor) -> Callable[..., Solution[Alignment]]:
    """Return what solves where these points lie: one algorithm, for the processor, in Triton, and for any device."""
    if kernels.serves(points):
        return solve_direct
    if gpu.serves(points):
        from homoalign.gpu.solver import solve_on_device

        return solve_on_device
    return solve

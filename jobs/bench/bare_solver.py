"""The library's solver without all that `homoalign.align` does around it: what of a pair's cost is its steps.

No noise is told or taken away, no light but a gain and a bias, nothing left out, no second start, no precision and no
verdict: were all of these free, a pair would cost as much as here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from homoalign.config import AlignConfig
from homoalign.differences.refinement import spline_level
from homoalign.homography import image_size
from homoalign.levels.intensity import to_gray
from homoalign.levels.pyramid import Level, build_pyramid, num_levels
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.schedule import plan_runs, solve_run
from jobs.rendering.synthetic import Matrix


@torch.inference_mode()
def solve_bare(src: torch.Tensor, dst: torch.Tensor, config: AlignConfig) -> list[Matrix | None]:
    """Align pairs from the identity, level by level, the full size on all points with dst as a spline.

    Args:
        src: (B, 1, H, W) uint8.
        dst: likewise, of the same size.
        config: of the solver.

    Returns:
        (3, 3) `dst_homo_src` of each pair.
    """
    fit = config.photometric != "none"
    levels = [Level(to_gray(image)[0], None) for image in (src, dst)]
    sizes = [image_size(level.image) for level in levels]
    count = num_levels(sizes, min_side_px=config.min_level_side_px, max_levels=config.max_levels)
    from_src, onto_dst = (build_pyramid(level, count) for level in levels)
    one = torch.ones(len(src), dtype=torch.float64, device=src.device)
    state = Alignment(torch.eye(3, dtype=torch.float64, device=src.device).repeat(len(src), 1, 1), one, one - one)
    for level in range(count - 1, -1, -1):
        points = config.points_per_level if level else config.final_points
        problem = build_problem(from_src[level], onto_dst[level], level=level, max_points=points, fit_photometric=fit)
        if fit and level == count - 1:
            state = Alignment(state.dst_homo_src, *problem.matched_moments(state.dst_homo_src))
        for run in plan_runs(level, count, problem.template.u.shape[-1], config):
            if run.is_refined:
                problem = replace(problem, dst=spline_level(onto_dst[level]), interpolation="spline")
            state = solve_run(problem, state, run, config).state
    found = state.dst_homo_src.cpu().numpy()
    return [matrix if np.isfinite(matrix).all() else None for matrix in found]

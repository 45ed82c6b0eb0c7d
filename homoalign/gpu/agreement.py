"""Whether a device solves in Triton what it solves in torch: asked once, before anything depends on it.

The kernels lean on much that no test without that very device sees: its driver, its compiler, the order of its threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from homoalign import homography
from homoalign.gpu.compiler import told_as_runtime_errors
from homoalign.gpu.solver import solve_on_device
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, build_problem
from homoalign.optimisation.solver import Slack, Solution, solve

SIZE = (48, 64)
LARGEST_DIFFERENCE_PX = 0.01


def check_agreement(device: torch.device) -> None:
    """Solve a small pair both ways.

    Raises:
        RuntimeError: a corner differs by more than `LARGEST_DIFFERENCE_PX`, or Triton does not get that far.
    """
    generator = torch.Generator().manual_seed(0)
    src = avg_pool2d(torch.rand(1, 1, *SIZE, generator=generator, dtype=torch.float32), 5, stride=1, padding=2)
    dst = 0.9 * src.roll(1, dims=-1) + 0.01 * torch.randn(src.shape, generator=generator, dtype=torch.float32)
    levels = (Level(image.to(device), None) for image in (src, dst))
    problem = build_problem(*levels, level=0, max_points=src.numel(), fit_photometric=True)
    one = torch.ones(1, dtype=torch.float64, device=device)
    start = torch.eye(3, dtype=torch.float64, device=device)[None].clone()
    start[:, :2, 2] = 0.2

    def found_by(solver: Callable[..., Solution[Alignment]]) -> Tensor:
        state = Alignment(start, one, 0 * one)
        limits = {"max_iterations": 30, "step_tol_px": 1e-3, "loss_width": 2.4, "min_seen": 20 * one, "slack": Slack()}
        return solver(problem, state, **limits).state.dst_homo_src

    with told_as_runtime_errors():
        in_triton = found_by(solve_on_device)
    in_torch = found_by(solve)
    difference_px = homography.corner_errors(in_triton, in_torch, *SIZE).max().item()
    if not difference_px < LARGEST_DIFFERENCE_PX:
        raise RuntimeError(f"a small pair's corners are {difference_px:.3g} px from where torch has them")

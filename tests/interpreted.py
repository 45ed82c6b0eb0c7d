"""The kernels of `homoalign.gpu` on the processor: a program of its own, for Triton has to be told before its import.

    TRITON_INTERPRET=1 python tests/interpreted.py CALLS RESULTS

CALLS holds (name, arguments, keyword arguments) of functions of this file, as `torch.save` writes them; RESULTS gets
what they return.
"""

import sys

import numpy as np
import torch
import triton
import triton.language as tl

from homoalign.gpu import agreement as agreement_module
from homoalign.gpu.robust import robust_scale_of, tail_share_of
from homoalign.gpu.solver import solve_on_device
from homoalign.gpu.steps import damped_step
from homoalign.optimisation.solver import Solution


def solution(problem, start, settings):
    return solve_on_device(problem, start, **settings)


def agreement(name):
    """What `check_agreement` says of the solver, of one that stays where it starts, and of one that Triton refuses."""
    if name == "is refused":
        agreement_module.solve_on_device = refuse
    if name == "stays":
        agreement_module.solve_on_device = lambda _, start, **__: Solution(start, None, None)
    try:
        agreement_module.check_agreement(torch.device("cpu"))
    except RuntimeError as error:
        return str(error)
    return "agrees"


def refuse(*_, **__):
    raise triton.errors.TritonError("out of resource: registers")


def scales(residual, stride, slots):
    """1.4826 times the median of (N,) residuals, infinite ones of which are not seen."""
    found = torch.zeros(1, dtype=torch.float64)
    _scale[(1,)](residual, found, len(residual), stride, SLOTS=slots)
    return found.item()


@triton.jit
def _scale(residual, found, num_points, stride, SLOTS: tl.constexpr):
    tl.store(found, robust_scale_of(residual, num_points, stride, SLOTS))


def tail_share(residual, limit):
    found = torch.zeros(1, dtype=torch.float64)
    _tail[(1,)](residual, found, len(residual), limit)
    return found.item()


@triton.jit
def _tail(residual, found, num_points, limit):
    tl.store(found, tail_share_of(residual, num_points, limit, 64))


def damped(JtJ, Jtr, damping):
    """The step (10,), and whether it was solved."""
    matrix, vector = torch.eye(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    matrix[:10, :10], vector[:10] = JtJ, Jtr
    step, solved = torch.full_like(vector, torch.nan), torch.zeros(1, dtype=torch.int32)
    _damped[(1,)](matrix, vector, torch.tensor([damping], dtype=torch.float64), step, solved)
    return step[:10], bool(solved)


@triton.jit
def _damped(JtJ, Jtr, damping, step, solved):
    index = tl.arange(0, 16)
    matrix = tl.load(JtJ + 16 * index[:, None] + index[None, :])
    found, is_solved = damped_step(matrix, tl.load(Jtr + index), tl.load(damping))
    tl.store(step + index, found)
    tl.store(solved, is_solved.to(tl.int32))


if __name__ == "__main__":
    torch.set_num_threads(1)
    calls = torch.load(sys.argv[1], weights_only=False)
    with np.errstate(all="ignore"):  # numpy minds what the device does not
        torch.save([globals()[name](*arguments) for name, arguments in calls], sys.argv[2])

"""Where a pair starts: its prior, else the identity.

B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homoalign import homography
from homoalign.config import Model
from homoalign.status import Initialisation


@dataclass(frozen=True, slots=True)
class Start:
    """Starting matrices.

    Attributes:
        dst_homo_src: (B, 3, 3) float64, [2, 2] = 1.
        initialisation: where each came from.
        fault: what is wrong with a prior that cannot be started from, None where all is well.
    """

    dst_homo_src: Tensor
    initialisation: list[Initialisation]
    fault: list[str | None]


def find_start(
    init: Tensor | None, batch: int, src_size: tuple[int, int], dst_size: tuple[int, int], *, model: Model
) -> Start:
    """Take the priors where there are any.

    Args:
        init: (B, 3, 3) priors, all NaN where a pair has none; or None.
        batch: B.
        src_size: (height, width), pixels.
        dst_size: (height, width), pixels.
        model: of motion; the identity is one of its kind.
    """
    identity = _identity(src_size, dst_size, model).expand(batch, 3, 3)
    if init is None:
        return Start(identity, [Initialisation.IDENTITY] * batch, [None] * batch)
    has_prior = ~init.isnan().flatten(1).all(-1)
    fault = [prior_fault(prior) if given else None for prior, given in zip(init, has_prior, strict=True)]
    sound = has_prior & torch.tensor([text is None for text in fault])
    start = torch.where(sound[:, None, None], homography.normalise(init), identity)
    names = [Initialisation.PRIOR if given else Initialisation.IDENTITY for given in has_prior]
    return Start(start, names, fault)


def _identity(src_size: tuple[int, int], dst_size: tuple[int, int], model: Model) -> Tensor:
    """Return (3, 3) float64: frame onto frame as far as the model may scale, centre onto centre where it may not."""
    matrix = homography.frame_to_frame(src_size, dst_size)
    if model in ("affine", "homography"):
        return matrix
    scale = math.sqrt(math.prod(dst_size) / math.prod(src_size)) if model == "similarity" else 1.0
    matrix[0, 0] = matrix[1, 1] = scale
    for axis in (0, 1):
        src_centre, dst_centre = ((size[1 - axis] - 1) / 2 for size in (src_size, dst_size))
        matrix[axis, 2] = dst_centre - scale * src_centre
    return matrix


def prior_fault(dst_homo_src_init: Tensor) -> str | None:
    """Say why a (3, 3) prior cannot be started from: not finite, [2, 2] = 0, or singular. None where it can."""
    if not dst_homo_src_init.isfinite().all():
        return f"dst_homo_src_init is not finite: {dst_homo_src_init.flatten().tolist()}"
    if dst_homo_src_init[2, 2] == 0:
        return "dst_homo_src_init[2, 2] = 0: the source's origin lies on the horizon"
    condition = float(torch.linalg.cond(homography.normalise(dst_homo_src_init)))
    # Shifts of 1e5 pixels have a condition of 1e10; beyond 1e14 float64 holds no third dimension.
    if not condition < 1e14:
        return f"dst_homo_src_init is singular: condition number {condition:.3g}"
    return None

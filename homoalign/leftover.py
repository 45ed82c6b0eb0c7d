"""Whether what an alignment leaves is noise, or has something of the image in it.

Lossy compression, sensors and their cameras' filters leave more than white noise does, and the finest scale, from which
the noise of an image is told, shows it least. But unlike what blur, depth or another sensor leaves, it does not follow
from the image: in no block of the frame is it a combination of src's intensities (another light or sensor), its slopes
(a motion that the model lacks) and its details (another sharpness).

B pairs, N points, K blocks, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.noise import smooth
from homoalign.residual import Alignment, DirectProblem
from homoalign.solver import cauchy, robust_scale
from homoalign.template import block_sums

BLOCKS = 12
"""Along the longer side of the frame."""

FEATURES = {"intensities": (0, 1), "slopes": (0, 1, 2, 3), "details": (0, 1, 4)}
MOST = {"intensities": 0.13, "slopes": 0.04, "details": 0.2}
"""Of the residual's energy, as a share: what they tell of noise, some of which is in the features too. For slopes and
details it is what they tell beyond intensities."""

MOST_ENERGY = 0.25
"""Of dst's variance: where more is left, the images are hardly alike."""

RIDGE = 1e-6


def is_noise(problem: DirectProblem, state: Alignment, contrast: Tensor, loss_width: float) -> Tensor:
    """Return (B,) bool, where the residual has nothing of the image in it.

    Args:
        problem: of the full-size images, on a grid of points.
        state: its solution.
        contrast: (B,) standard deviation of dst's intensities.
        loss_width: of the robust loss, in standard deviations of the residual.
    """
    template = problem.template
    if template.grid is None:
        return torch.zeros_like(state.gain, dtype=torch.bool)
    rows, columns = template.grid
    residual, seen = problem.evaluate(state)
    scale = robust_scale(residual, seen, problem.scale_floor)
    weight = cauchy(residual, loss_width * scale)[1] * seen
    value = template.value
    details = value - smooth(value.view(-1, 1, rows, columns), 1).view_as(value)
    slope = template.slope / template.half_side
    basis = torch.stack([torch.ones_like(value), value, slope[:, 0], slope[:, 1], details, residual], dim=1)
    count = basis.shape[1]
    products = (basis[:, :, None] * (basis * weight[:, None])[:, None]).flatten(1, 2)  # (B, (F + 1)^2, N)
    sums = block_sums(products.view(len(value), -1, rows, columns), BLOCKS).double()
    sums = sums.view(len(value), count, count, -1).permute(0, 3, 1, 2)  # (B, K, F + 1, F + 1)
    told = {name: _told(sums, features) for name, features in FEATURES.items()}
    alike = scale.square() < MOST_ENERGY * contrast.square()
    found: Tensor = (
        alike
        & (told["intensities"] < MOST["intensities"])
        & (told["slopes"] - told["intensities"] < MOST["slopes"])
        & (told["details"] - told["intensities"] < MOST["details"])
    )
    return found


def _told(sums: Tensor, features: tuple[int, ...]) -> Tensor:
    """Return (B,) the share of the residual's energy that regression on some features takes, block by block."""
    chosen = list(features)
    normal = sums[..., chosen, :][..., chosen]
    target = sums[..., chosen, -1]
    normal = normal + torch.diag_embed(RIDGE * normal.diagonal(dim1=-2, dim2=-1) + 1e-12)
    taken = (target * torch.linalg.solve_ex(normal, target[..., None]).result[..., 0]).sum(-1)
    share: Tensor = taken.sum(-1) / sums[..., -1, -1].sum(-1)
    return share

"""How far the two directions of a pair disagree: dst is aligned onto src as well, from where the answer has it.

Either direction takes its gradients from another image, smooths another one between its pixels, and weights other
residuals; where the pair holds its answer, both end alike (after the forward-backward error of Kalal, Mikolajczyk and
Matas, ICPR 2010). A wrong answer that both images hold is not found out this way.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from homoalign import homography
from homoalign.arguments import Pairs
from homoalign.cascade.attempt import Batch, attempt
from homoalign.homography import image_size
from homoalign.levels.sampling import inverse
from homoalign.result import AlignResult
from homoalign.status import Initialisation


def measure_backward(batch: Batch, result: AlignResult) -> Tensor:
    """Return (B,) float64, the mean distance of src's corners under the answer and under the other direction's.

    In destination pixels; NaN where either direction has no answer.

    Args:
        batch: the pairs.
        result: their answers.
    """
    disagreement = torch.full_like(result.zncc, torch.nan)
    start = inverse(result.dst_homo_src)
    known = torch.nonzero(start.isfinite().flatten(1).all(-1) & (start[:, 2, 2] != 0))[:, 0]
    if len(known) == 0:
        return disagreement
    part = batch.select(known)
    back = attempt(
        _turned(part),
        homography.normalise(start[known]).to(part.src[0].image.device),
        [result.initialisation[i] or Initialisation.IDENTITY for i in known.tolist()],
        is_near=True,
        signal="structure" if batch.config.signal == "structure" else "intensity",
    )
    errors = homography.corner_errors(
        result.dst_homo_src[known], inverse(back.dst_homo_src), *image_size(part.src[0].image)
    )
    return disagreement.index_copy(0, known, errors.mean(-1))


def _turned(batch: Batch) -> Batch:
    """Return the pairs with src and dst in each other's place, and without the truth."""
    pairs = batch.pairs
    turned = Pairs(src=pairs.dst, dst=pairs.src, src_mask=pairs.dst_mask, dst_mask=pairs.src_mask, init=None, gt=None)
    return replace(batch, pairs=turned, src=batch.dst, dst=batch.src, trace=False)

"""Which answers are good enough to look for no other, and where they started.

B pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.config import AlignConfig
from homoalign.result import AlignResult
from homoalign.status import Initialisation
from homoalign.trust.evidence import Evidence
from homoalign.trust.goodness import GOOD_ENOUGH, goodness
from homoalign.trust.verdict import can_judge

WRECK = 0.01
"""Answers below this goodness give way to any that is good enough."""


def goodness_of(result: AlignResult) -> Tensor:
    """Return (B,) float64 in [0, 1]; 0 where there is no matrix."""
    is_finite = result.dst_homo_src.isfinite().flatten(1).all(-1)
    return torch.where(is_finite, goodness(Evidence.of_table(result.evidence)), 0.0)


def is_settled(result: AlignResult, config: AlignConfig) -> Tensor:
    """Return (B,) bool, whether answers are good enough."""
    return (goodness_of(result) >= GOOD_ENOUGH) & can_judge(Evidence.of_table(result.evidence), config)


def names_of(result: AlignResult, index: Tensor) -> list[Initialisation]:
    """Return where the answers that `index` names started."""
    return [result.initialisation[i] or Initialisation.IDENTITY for i in index.tolist()]

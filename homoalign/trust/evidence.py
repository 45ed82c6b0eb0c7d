"""What the verdict on a pair is drawn from.

B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign.trust.parts import Parts

EVIDENCE = (
    "local_correlation",
    "weak_correlation",
    "overlap",
    "src_overlap",
    "rival",
    "unexplained",
    "corner_std_480",
    "structure",
    "parts_here",
    "drift_480",
    "drift_std_480",
)
"""What `confidence` is a function of."""


UNDETERMINED_480 = 1e3
"""Stands for any larger predicted error."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the verdict is drawn from, (B,) float64 each.

    Attributes:
        local_correlation: `whole` of `patterns.local_correlation`; NaN counts as none.
        weak_correlation: `weak` of it, likewise.
        overlap: share of dst that is covered.
        src_overlap: share of src that lands on dst.
        rival: `rivals.rival_correlation`, or that of another start that was tried, or of the answer shifted and
            refined (`rivals.strongest_rival`).
        unexplained: the residual's scale, with the light fitted, over what noise alone gives it.
        corner_std_480: precision that the solver predicts, pixels of a dst whose shorter side is 480; NaN where it
            predicts none, `UNDETERMINED_480` where the data do not determine the motion.
        structure: `attempt.structure_score`; NaN where it was not asked for.
        parts_here: `here` of `parts.measure_parts`, or of whom `witnesses.ask_witnesses` believes; NaN where nobody was
            asked, see `witnesses.is_plain` and `is_plain_strip`.
        drift_480: likewise; 0 of a strip.
        drift_std_480: likewise; `corner_std_480` of a strip.
        is_finite: (B,) bool, whether there is a matrix at all.
    """

    local_correlation: Tensor
    weak_correlation: Tensor
    overlap: Tensor
    src_overlap: Tensor
    rival: Tensor
    unexplained: Tensor
    corner_std_480: Tensor
    structure: Tensor
    parts_here: Tensor
    drift_480: Tensor
    drift_std_480: Tensor
    is_finite: Tensor

    @property
    def correlation(self) -> Tensor:
        """(B,) float64, of whole or weaker blocks, whichever is lower; -1 where there is nothing to correlate."""
        whole, weak = self.local_correlation, self.weak_correlation
        # One sensor may see bright what the other sees dark. A minimum with NaN, of no textured block, is the other.
        return torch.fmax(torch.fmin(whole, weak), torch.fmin(-whole, -weak)).nan_to_num(-1.0)

    @classmethod
    def of_table(cls, table: Tensor) -> Evidence:
        """Return the evidence of a `table`; pairs of nothing but NaN had no matrix."""
        return cls(**dict(zip(EVIDENCE, table.unbind(1), strict=True)), is_finite=~table.isnan().all(1))

    def with_structure(self, index: Tensor, structure: Tensor) -> Evidence:
        """Return this evidence with the structure's of the pairs that `index` (int64) names."""
        return replace(self, structure=self.structure.index_copy(0, index, structure))

    def with_parts(self, index: Tensor, parts: Parts) -> Evidence:
        """Return this evidence with what the blocks say of the pairs that `index` (int64) names."""
        return replace(
            self,
            parts_here=self.parts_here.index_copy(0, index, parts.here.cpu()),
            drift_480=self.drift_480.index_copy(0, index, parts.drift_480.cpu()),
            drift_std_480=self.drift_std_480.index_copy(0, index, parts.drift_std_480.cpu()),
        )

    def with_precision(self, index: Tensor) -> Evidence:
        """Return this evidence with the solver's word for the blocks' of the pairs that `index` (int64) names."""
        return replace(
            self,
            drift_480=self.drift_480.index_fill(0, index, 0.0),
            drift_std_480=self.drift_std_480.index_copy(0, index, self.corner_std_480[index]),
        )

    def table(self) -> Tensor:
        """Return (B, 11) float64, columns as `EVIDENCE` names them."""
        return torch.stack([getattr(self, name) for name in EVIDENCE], dim=1)

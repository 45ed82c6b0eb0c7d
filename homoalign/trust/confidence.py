"""`confidence`: the calibrated probability that an answer is right.

    confidence = P(it holds) * P(no rival)

P(it holds) is a logistic function of three things: how many blocks of the overlap lie best where they are, how far a
homography through their shifts would move the corners, with what is not known of that, and how well the overlap
correlates. P(no rival) is one of how well src would lie elsewhere: where another shift does as well, as among bricks,
nothing else tells.

The coefficients stand in `confidence.json`, with what they were fitted on; `make confidence` fits them anew. Which
answer is found does not depend on them, see `goodness`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from homoalign.trust.evidence import Evidence

COEFFICIENTS = "confidence.json"

RIGHT_480 = 5.0
"""The contract's: mean corner error at 480 below which an answer is right."""

MOST_RIVAL = 1.01
"""Where src lies better than this elsewhere, how much better says no more: intensities may not be what is alike."""

LEAST_SHARE = 0.03
"""Shares nearer to 0 or 1 than about this say no more."""

LEAST_480 = 0.5
MOST_ERROR_480 = 40.0
"""Errors below about the one, or above the other, say no more: few blocks leave the corners open, right or wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The coefficients."""

    base: float
    """Log-odds where half of the blocks lie best where they are, half of the signal correlates, and the error that the
    blocks tell is as large as a right answer's may be."""
    parts_here: float
    """What they grow by with the log-odds of the share of blocks."""
    correlation: float
    """Likewise of the local correlation, of whole or weaker blocks, whichever is lower."""
    error: float
    """What they fall by with the logarithm of the error."""
    no_rival: float
    """Log-odds of P(no rival) at no rival."""
    rival: float
    """What one takes from them that does as well."""


@cache
def load_calibration() -> Calibration:
    """Return the coefficients that the package was published with."""
    return Calibration(**json.loads((files("homoalign.trust") / COEFFICIENTS).read_text())["coefficients"])


def confidence(evidence: Evidence, calibration: Calibration | None = None) -> Tensor:
    """Return (B,) float64 in [0, 1]; 0 where there is no matrix.

    Args:
        evidence: of the pairs.
        calibration: the package's own where None.
    """
    model = load_calibration() if calibration is None else calibration
    # Nobody asks the blocks where they would all say the same: that they lie where they are.
    here = evidence.parts_here.nan_to_num(1.0)
    error_480 = torch.hypot(evidence.drift_480, evidence.drift_std_480).nan_to_num(0.0)
    error_480 = error_480.clamp_max(MOST_ERROR_480)
    holds = (
        model.base
        + model.parts_here * _log_odds(here)
        + model.correlation * _log_odds(evidence.correlation)
        - model.error * ((error_480 + LEAST_480) / (RIGHT_480 + LEAST_480)).log()
    )
    rival = model.no_rival - model.rival * evidence.rival.nan_to_num(0.0).clamp(0, MOST_RIVAL)
    return torch.where(evidence.is_finite, torch.sigmoid(holds) * torch.sigmoid(rival), 0.0)


def _log_odds(share: Tensor) -> Tensor:
    share = share.nan_to_num(0.0).clamp(0, 1)
    return ((share + LEAST_SHARE) / (1 - share + LEAST_SHARE)).log()

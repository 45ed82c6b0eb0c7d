"""`confidence`: the calibrated probability that an answer is right.

Right is an answer that looks right, that has no rival, and that is precise enough, so

    confidence = P(looks right) * P(no rival) * P(precise)

P(looks right) is a logistic function of how well the overlap correlates, or of how well its structure agrees, whichever
says more. P(no rival) is one of how well src would lie elsewhere: where another shift does as well, as among bricks,
looks say nothing. P(precise) is that of an error whose size follows a Weibull distribution about the predicted one;
with power 2 it is Rayleigh's.

The coefficients stand in `confidence.json`, with what they were fitted on; `make confidence` fits them anew, those of
looks apart: drawn pairs go wrong in other ways than photographs of hills and harbours do, and a fit to them trusts
these too soon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from homoalign.evidence import UNDETERMINED_480, Evidence

COEFFICIENTS = "confidence.json"

RIGHT_480 = 5.0
"""The contract's: mean corner error at 480 below which an answer is right."""

MOST_RIVAL = 1.2
MOST_UNEXPLAINED = 30.0
LEAST_STD_480 = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The coefficients."""

    correlation_at_even_odds: float
    """Of the local correlation, of whole or weaker blocks, whichever is lower; of its size where both are negative."""
    correlation_slope: float
    small_overlap: float
    """How much more correlation it takes without overlap than where half of a frame is shared or more."""
    structure_at_even_odds: float
    structure_slope: float
    no_rival: float
    """Log-odds of P(no rival) at no rival."""
    rival: float
    """What they change by for a rival that does as well."""
    std_factor: float
    """Errors are so many times the predicted ones."""
    std_power: float
    """Of the Weibull distribution."""
    unexplained_power: float
    """Errors grow with this power of `Evidence.unexplained`: what is no noise goes together over the frame."""


@cache
def load_calibration() -> Calibration:
    """Return the coefficients that the package was published with."""
    return Calibration(**json.loads((files("homoalign") / COEFFICIENTS).read_text())["coefficients"])


def confidence(evidence: Evidence, calibration: Calibration | None = None) -> Tensor:
    """Return (B,) float64 in [0, 1]; 0 where there is no matrix.

    Args:
        evidence: of the pairs.
        calibration: the package's own where None.
    """
    model = load_calibration() if calibration is None else calibration
    rival = evidence.rival.nan_to_num(0.0).clamp(0, MOST_RIVAL)
    has_none = torch.sigmoid(model.no_rival + model.rival * rival)
    unexplained = evidence.unexplained.nan_to_num(1.0).clamp(1, MOST_UNEXPLAINED)
    std_480 = evidence.corner_std_480.clamp(LEAST_STD_480, UNDETERMINED_480)
    std_480 = model.std_factor * unexplained**model.unexplained_power * std_480
    # Without a prediction looks have to do.
    precise = -torch.expm1(-((RIGHT_480 / std_480) ** model.std_power)).nan_to_num(-1.0)
    # A small overlap has fewer independent windows to agree by chance.
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0)
    even = model.correlation_at_even_odds + 2 * model.small_overlap * (0.5 - overlap).clamp(0, 0.5)
    odds = torch.fmax(
        model.correlation_slope * (evidence.correlation - even),
        model.structure_slope * (evidence.structure - model.structure_at_even_odds),
    )
    return torch.where(evidence.is_finite, torch.sigmoid(odds) * has_none * precise, 0.0)

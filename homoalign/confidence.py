"""`confidence`: the calibrated probability that an answer is right.

Right is an answer that looks right, that has no rival, and that is precise enough, so

    confidence = P(looks right) * P(no rival) * P(precise)

P(looks right) is a logistic function of how well the overlap correlates, how well its structure agrees, and how large
it is. P(no rival) is one of how well src would lie elsewhere: where another shift does as well, as among bricks, looks
say nothing. P(precise) is that of an error whose size follows a Weibull distribution about the predicted one; with
power 2 it is Rayleigh's.

The coefficients stand in `confidence.json`, with what they were fitted on; `make confidence` fits them anew.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from homoalign.evidence import Evidence

COEFFICIENTS = "confidence.json"

RIGHT_480 = 5.0
"""The contract's: mean corner error at 480 below which an answer is right."""

CERTAIN = 0.99
"""Intensities that are so sure need no structure beside them."""

LEAST_CORRELATION = -0.5
MOST_RIVAL = 1.2
MOST_UNEXPLAINED = 30.0
STD_480 = (1e-3, 1e3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The coefficients, each of the log-odds unless said otherwise."""

    constant: float
    """Of P(looks right), as the next four."""
    correlation: float
    """Of the local correlation, of whole or weaker blocks, whichever is lower; of its size where both are negative."""
    structure: float
    correlation_and_structure: float
    """Of the product of both."""
    overlap: float
    """Of the larger share of one image that the other shows."""
    no_rival: float
    """Constant of P(no rival)."""
    rival: float
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
    std_480 = evidence.corner_std_480.nan_to_num(STD_480[1]).clamp(*STD_480)
    std_480 = model.std_factor * unexplained**model.unexplained_power * std_480
    precise = -torch.expm1(-((RIGHT_480 / std_480) ** model.std_power))
    looks_right = _looks_right(evidence, evidence.structure.nan_to_num(0.0).clamp_min(0), model)
    return torch.where(evidence.is_finite, looks_right * has_none * precise, 0.0)


def needs_structure(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where structure could still change the confidence."""
    without = _looks_right(evidence, torch.zeros_like(evidence.overlap), load_calibration())
    return ~(without > CERTAIN) & evidence.is_finite


def _looks_right(evidence: Evidence, structure: Tensor, model: Calibration) -> Tensor:
    whole, weak = evidence.local_correlation, evidence.weak_correlation
    # One sensor may see bright what the other sees dark. A minimum with NaN, of no textured block, is the other value.
    correlation = torch.fmax(torch.fmin(whole, weak), torch.fmin(-whole, -weak))
    correlation = correlation.nan_to_num(LEAST_CORRELATION).clamp_min(LEAST_CORRELATION)
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0).clamp_max(1)
    return torch.sigmoid(
        model.constant
        + model.correlation * correlation
        + model.structure * structure
        + model.correlation_and_structure * correlation * structure
        + model.overlap * overlap
    )


def values_of(calibration: Calibration) -> list[float]:
    """Return the coefficients in the order of the fields, as `calibration_of` takes them."""
    return list(dataclasses.astuple(calibration))


def calibration_of(values: list[float]) -> Calibration:
    """Return the calibration with these coefficients."""
    names = [field.name for field in dataclasses.fields(Calibration)]
    return Calibration(**dict(zip(names, values, strict=True)))

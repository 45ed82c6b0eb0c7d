"""`confidence`: the calibrated probability that an answer is right.

Right is an answer that looks right, that has no rival, and that is precise enough, so

    confidence = P(looks right) * P(no rival) * P(precise)
    P(looks right) = 1 - (1 - P(intensities say so)) * (1 - P(structure says so))

The two opinions are logistic functions of how well the overlap agrees and how large it is. P(no rival) is one of how
well src would lie elsewhere: where another shift does as well, as among bricks, looks say nothing. P(precise) is that
of an error whose size follows a Weibull distribution about the predicted one; with power 2 it is Rayleigh's.

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
"""Beyond it the other opinion is not asked for."""

MOST_RIVAL = 1.2
LEAST_CORRELATION = -0.5
MOST_UNEXPLAINED = 30.0
STD_480 = (1e-3, 1e3)


REST = ("rival_constant", "rival", "std_factor", "std_power", "unexplained")
"""Fields of `Calibration` that are numbers."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A logistic function: the log-odds are `constant` plus each coefficient times what it is named after."""

    constant: float
    agreement: float
    """Of the correlation, of intensities or of structure."""
    overlap: float
    """Of the larger share of one image that the other shows."""

    def probability(self, agreement: Tensor, overlap: Tensor) -> Tensor:
        """Return (B,) in [0, 1]."""
        return torch.sigmoid(self.constant + self.agreement * agreement + self.overlap * overlap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """All coefficients."""

    intensity: Opinion
    structure: Opinion
    rival_constant: float
    """P(no rival) has the log-odds `rival_constant` plus `rival` times what the best other shift correlates."""
    rival: float
    std_factor: float
    """Errors are so many times the predicted ones."""
    std_power: float
    """Of the Weibull distribution."""
    unexplained: float
    """Errors grow with this power of `Evidence.unexplained`: what is no noise goes together over the frame."""

    @classmethod
    def of_values(cls, values: list[float]) -> Calibration:
        """Return the calibration of the numbers, in the order of the fields."""
        return cls(
            intensity=Opinion(*values[:3]), structure=Opinion(*values[3:6]), **dict(zip(REST, values[6:], strict=True))
        )

    def values(self) -> list[float]:
        """Return them as `of_values` takes them."""
        opinions = (*dataclasses.astuple(self.intensity), *dataclasses.astuple(self.structure))
        return [*opinions, *(getattr(self, name) for name in REST)]


@cache
def load_calibration() -> Calibration:
    """Return the coefficients that the package was published with."""
    stored = json.loads((files("homoalign") / COEFFICIENTS).read_text())["coefficients"]
    intensity, structure = (Opinion(**stored.pop(name)) for name in ("intensity", "structure"))
    return Calibration(intensity=intensity, structure=structure, **stored)


def confidence(evidence: Evidence, calibration: Calibration | None = None) -> Tensor:
    """Return (B,) float64 in [0, 1]; 0 where there is no matrix.

    Args:
        evidence: of the pairs.
        calibration: the package's own where None.
    """
    model = load_calibration() if calibration is None else calibration
    rival = evidence.rival.nan_to_num(0.0).clamp(0, MOST_RIVAL)
    by_intensity = opinion_of_intensity(evidence, model)
    by_structure = model.structure.probability(evidence.structure.nan_to_num(-1.0), _overlap(evidence))
    looks_right = 1 - (1 - by_intensity) * (1 - by_structure)
    has_none = torch.sigmoid(model.rival_constant + model.rival * rival)
    unexplained = evidence.unexplained.nan_to_num(1.0).clamp(1, MOST_UNEXPLAINED)
    std_480 = evidence.corner_std_480.nan_to_num(STD_480[1]).clamp(*STD_480)
    std_480 = model.std_factor * unexplained**model.unexplained * std_480
    precise = -torch.expm1(-((RIGHT_480 / std_480) ** model.std_power))
    return torch.where(evidence.is_finite, looks_right * has_none * precise, 0.0)


def opinion_of_intensity(evidence: Evidence, calibration: Calibration) -> Tensor:
    """Return (B,) the probability that the pair looks right, by its intensities alone."""
    # A minimum with NaN, which no textured block leaves, is the other one.
    correlation = torch.fmin(evidence.local_correlation, evidence.weak_correlation)
    correlation = correlation.nan_to_num(LEAST_CORRELATION).clamp_min(LEAST_CORRELATION)
    return calibration.intensity.probability(correlation, _overlap(evidence))


def needs_structure(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where the opinion of structure would change the confidence."""
    return ~(opinion_of_intensity(evidence, load_calibration()) > CERTAIN) & evidence.is_finite


def _overlap(evidence: Evidence) -> Tensor:
    return torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0).clamp_max(1)

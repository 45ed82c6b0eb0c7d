"""`confidence`: the calibrated probability that an answer is right.

Right is an answer that lies in the right place and is precise enough there, so

    confidence = P(place) * P(precise)
    P(place) = 1 - (1 - P(intensities say so)) * (1 - P(structure says so))

The two opinions are logistic functions of how well the overlap correlates, how large it is, and of how well src would
lie elsewhere: where another shift does almost as well, as among bricks, neither can tell. P(precise) is that of an
error whose size follows a Weibull distribution about the predicted one; with power 2 it is Rayleigh's.

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

RIVAL = 0.8
"""Other shifts begin to count when they correlate this well, as a share of the answer's own correlation."""

MOST_RIVAL = 1.2
LEAST_CORRELATION = -0.5
STD_480 = (1e-3, 1e3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """A logistic function: the log-odds are `constant` plus each coefficient times what it is named after."""

    constant: float
    agreement: float
    """Of the correlation, of intensities or of structure."""
    rival: float
    """Of what another shift correlates beyond `RIVAL`."""
    overlap: float
    """Of the larger share of one image that the other shows."""

    def probability(self, agreement: Tensor, rival: Tensor, overlap: Tensor) -> Tensor:
        """Return (B,) in [0, 1]."""
        return torch.sigmoid(self.constant + self.agreement * agreement + self.rival * rival + self.overlap * overlap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """All coefficients."""

    intensity: Opinion
    structure: Opinion
    std_factor: float
    """Errors are so many times the predicted ones."""
    std_power: float
    """Of the Weibull distribution."""

    @classmethod
    def of_values(cls, values: list[float]) -> Calibration:
        """Return the calibration of ten numbers, in the order of the fields."""
        names = [field.name for field in dataclasses.fields(Opinion)]
        intensity, structure = (Opinion(**dict(zip(names, values[start : start + 4], strict=True))) for start in (0, 4))
        return cls(intensity=intensity, structure=structure, std_factor=values[8], std_power=values[9])

    def values(self) -> list[float]:
        """Return them as `of_values` takes them."""
        return [
            *dataclasses.astuple(self.intensity),
            *dataclasses.astuple(self.structure),
            self.std_factor,
            self.std_power,
        ]


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
    # A minimum with NaN, which no textured block leaves, is the other one.
    correlation = torch.fmin(evidence.local_correlation, evidence.weak_correlation)
    correlation = correlation.nan_to_num(LEAST_CORRELATION).clamp_min(LEAST_CORRELATION)
    rival = (evidence.rival.nan_to_num(0.0).clamp_max(MOST_RIVAL) - RIVAL).clamp_min(0)
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0).clamp_max(1)
    structure = evidence.structure.nan_to_num(-1.0)
    doubt = (1 - model.intensity.probability(correlation, rival, overlap)) * (
        1 - model.structure.probability(structure, rival, overlap)
    )
    std_480 = model.std_factor * evidence.corner_std_480.nan_to_num(STD_480[1]).clamp(*STD_480)
    precise = -torch.expm1(-((RIGHT_480 / std_480) ** model.std_power))
    return torch.where(evidence.is_finite, (1 - doubt) * precise, 0.0)

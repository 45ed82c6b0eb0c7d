"""Whether an answer is good enough to look for no other one.

What ends the search is another question than how probable an answer is: what is taken too soon stays wrong, what is
doubted without need costs a search. So this stands apart from `confidence`, which may be fitted anew without a pair
ending elsewhere. It asks for four things,

    goodness = looks * no rival * precise * agrees

each a probability by its form alone. The figures of looks and agrees are set by hand to what separates right from wrong
on photographs and across sensors, the others were fitted to drawn pairs once; all of them stay as they are.

B pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homoalign.trust.evidence import UNDETERMINED_480, Evidence

GOOD_ENOUGH = 0.5
"""An answer of this goodness ends the search."""

CERTAIN = 0.99
"""Intensities that are so sure need no structure beside them."""

EVEN_CORRELATION = 0.45
CORRELATION_SLOPE = 25.0
SMALL_OVERLAP = 0.1
"""How much more correlation it takes without overlap than where half of a frame is shared or more."""

EVEN_STRUCTURE = 0.36
STRUCTURE_SLOPE = 30.0

EVEN_PARTS = 0.65
PARTS_SLOPE = 25.0
EVEN_ERROR_480 = 4.0
ERROR_POWER = 6.0
"""Blocks of which so many lie where they are, and that leave the corners open by less than this, look right too."""

LEAST_HERE = 0.42
HERE_SLOPE = 25.0
"""Fewer blocks than so many that lie where they are contradict an answer: bricks look alike wherever they lie."""

DRIFT_480 = 8.0
DRIFT_POWER = 4.0
"""Blocks that would all move the corners as far as this contradict an answer, however alike the images look."""

NO_RIVAL = 14.03
RIVAL = 14.99
"""Log-odds without a rival, and what one takes from them that does as well."""

REPEATS = 4.0
"""What an imperfect answer adds to its rival, at most, where both correlate fully."""

LEAST_OWN = 0.3
"""Where images correlate less, rivals were compared with this."""

MOST_RIVAL = 1.2
RIGHT_480 = 5.0
LEAST_STD_480 = 1e-3
STD_POWER = 1.03
"""Of the Weibull distribution that errors follow."""

STD_FACTOR = 0.797
"""Errors are so many times the predicted ones..."""
UNEXPLAINED_POWER = 0.312
"""... and grow with this power of `Evidence.unexplained`."""

MOST_UNEXPLAINED = 30.0


def goodness(evidence: Evidence) -> Tensor:
    """Return (B,) float64 in [0, 1]; 0 where there is no matrix.

    Args:
        evidence: of the pairs.
    """
    has_none = torch.sigmoid(NO_RIVAL - RIVAL * rivalry(evidence).clamp(0, MOST_RIVAL))
    unexplained = evidence.unexplained.nan_to_num(1.0).clamp(1, MOST_UNEXPLAINED)
    std_480 = evidence.corner_std_480.clamp(LEAST_STD_480, UNDETERMINED_480)
    std_480 = STD_FACTOR * unexplained**UNEXPLAINED_POWER * std_480
    precise = -torch.expm1(-((RIGHT_480 / std_480) ** STD_POWER)).nan_to_num(
        -1.0
    )  # without a prediction looks have to do
    odds = torch.fmax(_odds_of_intensity(evidence), STRUCTURE_SLOPE * (evidence.structure - EVEN_STRUCTURE))
    odds = torch.fmax(odds, _odds_of_parts(evidence))
    return torch.where(evidence.is_finite, torch.sigmoid(odds) * has_none * precise * _agrees(evidence), 0.0)


def rivalry(evidence: Evidence) -> Tensor:
    """Return (B,) how strong the best rival is; more where another, better one is likely.

    Texture that lies nearly as well elsewhere repeats. What lies where it belongs is alike in full, what lies on a
    repeat in part only: the rival weighs more, the less of the way from the rival's correlation to 1 the answer has
    come.
    """
    rival, correlation = evidence.rival.nan_to_num(0.0), evidence.correlation.clamp(0, 1)
    elsewhere = rival * correlation.clamp_min(LEAST_OWN)
    missing = ((1 - correlation) / (1 - elsewhere).clamp_min(1e-3)).clamp(0, 1)
    return rival + REPEATS * elsewhere.square() * missing


def _odds_of_parts(evidence: Evidence) -> Tensor:
    """Return (B,) log-odds; NaN where the blocks were not asked."""
    of_share = PARTS_SLOPE * (evidence.parts_here - EVEN_PARTS)
    error_480 = torch.hypot(evidence.drift_480, evidence.drift_std_480)
    return torch.minimum(of_share, ERROR_POWER * (EVEN_ERROR_480 / error_480).log())


def _agrees(evidence: Evidence) -> Tensor:
    """Return (B,) how little the blocks contradict; 1 where they were not asked."""
    drift_480 = (evidence.drift_480.square() - evidence.drift_std_480.square()).clamp_min(0).sqrt().nan_to_num(0.0)
    # Nobody asks the blocks where they would all say the same.
    stays = torch.sigmoid(HERE_SLOPE * (evidence.parts_here.nan_to_num(1.0) - LEAST_HERE))
    return stays / (1 + (drift_480 / DRIFT_480) ** DRIFT_POWER)


def needs_structure(evidence: Evidence) -> Tensor:
    """Return (B,) bool, where structure could still change the goodness."""
    return ~(torch.sigmoid(_odds_of_intensity(evidence)) > CERTAIN) & evidence.is_finite


def _odds_of_intensity(evidence: Evidence) -> Tensor:
    # A small overlap has fewer independent windows to agree by chance.
    overlap = torch.fmax(evidence.overlap, evidence.src_overlap).nan_to_num(0.0)
    even = EVEN_CORRELATION + 2 * SMALL_OVERLAP * (0.5 - overlap).clamp(0, 0.5)
    return CORRELATION_SLOPE * (evidence.correlation - even)

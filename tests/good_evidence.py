"""The evidence of a good fit, which tests change for the worse."""

from __future__ import annotations

import numpy as np
import torch

from homoalign.trust.evidence import EVIDENCE, Evidence

LOOKS_GOOD = dict.fromkeys(EVIDENCE, np.nan) | {
    "local_correlation": 0.9,
    "weak_correlation": 0.85,
    "overlap": 0.8,
    "src_overlap": 0.7,
    "rival": 0.3,
    "unexplained": 1.2,
    "corner_std_480": 0.2,
    "structure": 0.4,
}
"""Nobody has asked the blocks yet."""
GOOD = LOOKS_GOOD | {"parts_here": 0.9, "drift_480": 0.5, "drift_std_480": 0.7}
"""The blocks were asked, and agree."""


def of_pair(**values: float) -> Evidence:
    """Return the evidence of one pair."""
    return Evidence.of_table(torch.tensor([[values[name] for name in EVIDENCE]], dtype=torch.float64))

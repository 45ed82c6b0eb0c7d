"""What all fast Fourier transforms here share."""

from __future__ import annotations

import math


def fast_length(least: int, *, step: int = 1) -> int:
    """Return the next multiple of `step` that has no prime factor above 5."""
    length = -(-least // step) * step
    while math.gcd(length, 60**8) != length:
        length += step
    return length

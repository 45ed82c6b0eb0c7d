"""Light that follows a tone curve and slow fields, as `joint.py` solves it together with the motion.

B pairs, N points, F fields, T coefficients of the tone curve.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import BLOCK, Doubles, Floats, arrays, compiled, dot_two, multiply
from homoalign.kernels.sums import accumulate_score


def light_up(tone: Tensor, slow: Tensor, intensity: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `joint.light_up` does.

    Args:
        tone: (B, T) float32, from the constant one on.
        slow: (B, 2, F) float32, of bias and of gain.
        intensity: (B, N) float32.
        fields: (B, F, N) float32.

    Returns:
        (B, N) float32 each.
    """
    value, steepness = torch.empty_like(intensity), torch.empty_like(intensity)
    _light_up(*arrays(tone, slow, intensity, fields, value, steepness))
    return value, steepness


def joint_scores(
    slope: Tensor, u: Tensor, intensity: Tensor, fields: Tensor, residual: Tensor, weight: Tensor, num_tones: int
) -> Tensor:
    """Return (B, 8 + T + 2 F) float64, J W r of motion, of the tone curve, and of the fields of bias and of gain.

    Args:
        slope: (B, 2, N) float32, of the image as it is lit.
        u: (B, 2, N) float32.
        intensity: (B, N) float32, of the image as it is.
        fields: (B, F, N) float32.
        residual: (B, N) float32, r.
        weight: (B, N) float32, the diagonal of W.
        num_tones: T.
    """
    scores = torch.zeros(len(u), 8 + num_tones + 2 * fields.shape[1], dtype=torch.float64)
    _joint_scores(num_tones, *arrays(slope, u, intensity, fields, residual, weight, scores))
    return scores


@compiled
def _light_up(tone: Floats, slow: Floats, intensity: Floats, fields: Floats, value: Floats, steepness: Floats) -> None:
    bias, gain = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for b in range(len(intensity)):
        for first in range(0, intensity.shape[1], BLOCK):
            last = min(intensity.shape[1], first + BLOCK)
            of_bias, of_gain = bias[: last - first], gain[: last - first]
            of_bias[:] = 0
            of_gain[:] = 0
            for f in range(fields.shape[1]):
                _add_times(slow[b, 0, f], slow[b, 1, f], fields[b, f, first:last], of_bias, of_gain)
            _apply_curve(
                tone[b], of_bias, of_gain, intensity[b, first:last], value[b, first:last], steepness[b, first:last]
            )  # fmt: skip


@compiled
def _add_times(first: np.float32, second: np.float32, values: Floats, of_first: Floats, of_second: Floats) -> None:
    for k in range(values.size):
        of_first[k] += first * values[k]
        of_second[k] += second * values[k]


@compiled
def _apply_curve(tone: Floats, bias: Floats, gain: Floats, intensity: Floats, value: Floats, steepness: Floats) -> None:
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    value[:] = 0
    steepness[:] = 0
    for t in range(tone.size - 1, -1, -1):  # Horner's scheme
        of_tone = tone[t]
        for k in range(value.size):
            z = two * intensity[k] - one
            steepness[k] = value[k] + steepness[k] * z
            value[k] = of_tone + value[k] * z
    for k in range(value.size):
        lit = value[k] + bias[k] + gain[k] * (two * intensity[k] - one)
        steepness[k] = two * (steepness[k] + gain[k]) if (lit > zero) & (lit < one) else zero
        value[k] = min(max(lit, zero), one)


@compiled
def _joint_scores(
    num_tones: int,
    slope: Floats,
    u: Floats,
    intensity: Floats,
    fields: Floats,
    residual: Floats,
    weight: Floats,
    scores: Doubles,
) -> None:
    num_points, num_fields = u.shape[2], fields.shape[1]
    rows, motion = np.empty((20, BLOCK), np.float32), np.empty(10)
    flat, of_value = np.zeros(num_points, np.float32), np.empty(BLOCK, np.float32)
    z, weighted = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for b in range(len(u)):
        motion[:] = 0
        of_pair = scores[b]
        for first in range(0, num_points, BLOCK):
            last = min(num_points, first + BLOCK)
            n = last - first
            of_block, of_weight = residual[b, first:last], weight[b, first:last]
            accumulate_score(slope[b], flat, u[b], of_block, of_weight, first, rows, motion)
            multiply(of_block, of_weight, weighted[:n])
            _to_unit(intensity[b, first:last], z[:n])
            multiply(weighted[:n], z[:n], of_value[:n])
            for f in range(num_fields):
                of_bias, of_gain = dot_two(fields[b, f, first:last], weighted[:n], of_value[:n])
                of_pair[8 + num_tones + f] += of_bias
                of_pair[8 + num_tones + num_fields + f] += of_gain
            for t in range(num_tones):
                of_pair[8 + t] += _total(weighted[:n])
                multiply(weighted[:n], z[:n], weighted[:n])
        of_pair[:8] = motion[:8]


@compiled
def _to_unit(intensity: Floats, z: Floats) -> None:
    """Write intensities from -1 to 1."""
    one, two = np.float32(1), np.float32(2)
    for k in range(z.size):
        z[k] = two * intensity[k] - one


@compiled
def _total(values: Floats) -> np.float32:
    total = np.float32(0)
    for k in range(values.size):
        total += values[k]
    return total

"""Light as `photometry.py` models it.

B pairs, N points, K basis functions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homoalign.kernels.compiler import (
    BLOCK,
    Bools,
    Doubles,
    Floats,
    arrays,
    compiled,
    dot,
    factorise,
    multiply,
    solve_factorised,
)
from homoalign.kernels.robust import robust_scale_of

REWEIGHTINGS = 3
RIDGE = 1e-3


def _noise_terms() -> NDArray[np.float64]:
    """Return rows (i, j, a, b, p, factor): of sums of products, in [i, j] noise makes factor * tau^(2 p) * [a, b].

    With noise of variance tau^2 in z, the first powers t of z as `_write_basis` has them are what z^k is without, on
    average, but their products are not: t_i t_j has k! (i over k) (j over k) tau^(2 k) t_(i+j-2k) for all k from one on
    (Cheng and Schneeweiss, "Polynomial regression with errors in the variables", J. R. Statist. Soc. B 1998). In this
    order a term's [a, b] is free of noise when it is asked for. i >= j and a >= b.
    """
    flat = {1: 0, **{9 + field: 4 + field for field in range(5)}}  # functions that have z once: the same without z
    terms = [(i, j, *sorted((flat[i], flat[j]), reverse=True), 1, 1) for i in flat for j in flat if i >= j]
    for power in (2, 3):
        for j, alone in flat.items():
            terms.append((max(power, j), min(power, j), max(power - 1, alone), min(power - 1, alone), 1, power))
    terms += [(2, 2, 2, 0, 1, 4), (2, 2, 0, 0, 2, 2)]
    terms += [(3, 2, 3, 0, 1, 6), (3, 2, 1, 0, 2, 6)]
    terms += [(3, 3, 3, 1, 1, 9), (3, 3, 2, 0, 2, 18), (3, 3, 0, 0, 3, 6)]
    return np.array(terms, np.float64)


NOISE_TERMS = _noise_terms()


def light_template(
    weights: Tensor, is_rich: Tensor, value: Tensor, slope: Tensor, brightness: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `value`, `slope` and `brightness` of a template in another light, as `photometry.apply_light` does.

    Args:
        weights: (B, K) float32.
        is_rich: (B,) bool, False for pairs that stay as they are.
        value: (B, N) float32.
        slope: (B, 2, N) float32.
        brightness: (B, N) float32.
        u: (B, 2, N) float32.
    """
    lit, steepness = torch.empty(value.shape, dtype=torch.float32), torch.empty(value.shape, dtype=torch.float32)
    lit_slope, lit_brightness = (
        torch.empty(slope.shape, dtype=torch.float32),
        torch.empty(value.shape, dtype=torch.float32),
    )
    given = arrays(weights, is_rich, value, slope, brightness, u)
    _light_template(*given, *arrays(lit, lit_slope, lit_brightness, steepness))
    return lit, lit_slope, lit_brightness


@compiled
def _light_template(
    weights: Floats,
    is_rich: Bools,
    value: Floats,
    slope: Floats,
    brightness: Floats,
    u: Floats,
    lit: Floats,
    lit_slope: Floats,
    lit_brightness: Floats,
    steepness: Floats,
) -> None:
    for b in range(len(weights)):
        if not is_rich[b]:
            lit[b], lit_slope[b], lit_brightness[b] = value[b], slope[b], brightness[b]
            continue
        one = slice(b, b + 1)
        _predict_light(weights[one], brightness[one], u[one], lit_brightness[one], steepness[one])
        _predict_light(weights[one], value[one], u[one], lit[one], steepness[one])
        for axis in range(2):
            multiply(slope[b, axis], steepness[b], lit_slope[b, axis])


@compiled
def _predict_light(weights: Floats, intensity: Floats, u: Floats, value: Floats, slope: Floats) -> None:
    zero, one, two, three = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
    for b in range(len(weights)):
        w = weights[b]
        x_, y_, of_pair, value_of_pair, slope_of_pair = u[b, 0], u[b, 1], intensity[b], value[b], slope[b]
        for k in range(of_pair.size):
            x, y, z = x_[k], y_[k], two * of_pair[k] - one
            xx, xy, yy = x * x, x * y, y * y
            bias = w[4] * x + w[5] * y + w[6] * xx + w[7] * xy + w[8] * yy
            gain = w[9] * x + w[10] * y + w[11] * xx + w[12] * xy + w[13] * yy
            level = w[0] + bias + z * (w[1] + gain + z * (w[2] + z * w[3]))
            steepness = two * (w[1] + gain + z * (two * w[2] + three * z * w[3]))
            is_inside = (level > zero) & (level < one)
            value_of_pair[k] = min(max(level, zero), one)
            slope_of_pair[k] = steepness if is_inside else zero


def regress_light(
    intensity: Tensor,
    noise: Tensor,
    u: Tensor,
    value: Tensor,
    seen: Tensor,
    floor: Tensor,
    settings: tuple[int, float, int],
) -> tuple[Tensor, Tensor]:
    """Do what `photometry.regress` does, on the first basis functions.

    Args:
        intensity: (B, N) float32, what is regressed on.
        noise: (B,) float64, its standard deviation.
        u: (B, 2, N) float32.
        value: (B, N) float32, what is to be explained.
        seen: (B, N) bool.
        floor: (B,) float64, least scale.
        settings: how many basis functions, the loss's width in scales, and how many samples a scale is read from.

    Returns:
        weights: (B, K) float64.
        scale: (B,) float64.
    """
    weights = torch.full((len(u), settings[0]), torch.nan, dtype=torch.float64)
    scale = torch.zeros(len(u), dtype=torch.float64)
    _regress_light(settings, *arrays(intensity, noise, u, value, seen, floor, weights, scale))
    return weights, scale


def light_cost(weights: Tensor, intensity: Tensor, u: Tensor, value: Tensor, seen: Tensor, width: Tensor) -> Tensor:
    """Return (B,) float64, the Cauchy loss of what the light that `weights` (B, K) say leaves of `value`.

    Args:
        weights: float64, of the first K basis functions.
        intensity: (B, N) float32.
        u: (B, 2, N) float32.
        value: (B, N) float32.
        seen: (B, N) bool.
        width: (B,) float64, of the loss.
    """
    cost = torch.zeros(len(u), dtype=torch.float64)
    _light_cost(*arrays(weights, intensity, u, value, seen, width, cost))
    return cost


@compiled
def _light_cost(
    weights: Doubles, intensity: Floats, u: Floats, value: Floats, seen: Bools, width: Doubles, cost: Doubles
) -> None:
    basis = np.empty((weights.shape[1], BLOCK), np.float32)
    rest = np.empty(BLOCK, np.float32)
    for b in range(len(u)):
        over_width = 1 / width[b]
        for first in range(0, value.shape[1], BLOCK):
            last = min(value.shape[1], first + BLOCK)
            n = last - first
            _write_basis(intensity[b, first:last], 0.0, u[b, 0, first:last], u[b, 1, first:last], basis[:, :n])
            rest[:n] = value[b, first:last]
            for i in range(len(basis)):
                _subtract(np.float32(weights[b, i]), basis[i, :n], rest[:n])
            for k in range(n):
                in_widths = rest[k] * over_width if seen[b, first + k] else 0.0
                cost[b] += math.log1p(in_widths * in_widths)


@compiled
def _regress_light(
    settings: tuple[int, float, int],
    intensity: Floats,
    noise: Doubles,
    u: Floats,
    value: Floats,
    seen: Bools,
    floor: Doubles,
    weights: Doubles,
    scale: Doubles,
) -> None:
    num_functions, loss_width, samples = settings
    basis = np.empty((num_functions, value.shape[1]), np.float32)
    residual, weight = np.empty(value.shape[1], np.float32), np.empty(value.shape[1], np.float32)
    weighted = np.empty(BLOCK, np.float32)
    normal, target = np.empty((num_functions, num_functions)), np.empty(num_functions)
    for b in range(len(u)):
        variance = (2 * noise[b]) ** 2  # of z
        _write_basis(intensity[b], variance, u[b, 0], u[b, 1], basis)
        for k in range(weight.size):
            weight[k] = np.float32(1) if seen[b, k] else np.float32(0)
        for _ in range(REWEIGHTINGS):
            _normal_equations(basis, weight, value[b], weighted, normal, target)
            _take_noise_away(variance, normal)
            if not factorise(normal):
                scale[b] = np.nan
                break
            solve_factorised(normal, target)
            for k in range(residual.size):
                residual[k] = value[b, k]
            for i in range(num_functions):
                weights[b, i] = target[i]
                _subtract(np.float32(target[i]), basis[i], residual)
            for k in range(residual.size):
                residual[k] = residual[k] if seen[b, k] else np.float32(0)
            scale[b] = max(robust_scale_of(residual, seen[b], samples), floor[b])
            over_width = np.float32(1 / (loss_width * scale[b]))
            for k in range(residual.size):
                in_widths = residual[k] * over_width
                weight[k] = np.float32(1) / (np.float32(1) + in_widths * in_widths) if seen[b, k] else np.float32(0)


@compiled
def _normal_equations(
    basis: Floats, weight: Floats, value: Floats, weighted: Floats, normal: Doubles, target: Doubles
) -> None:
    for i in range(len(basis)):
        target[i] = 0
        for j in range(len(basis)):
            normal[i, j] = RIDGE if i == j else 0.0
    for first in range(0, weight.size, BLOCK):
        last = min(weight.size, first + BLOCK)
        row = weighted[: last - first]
        for i in range(len(basis)):
            multiply(basis[i, first:last], weight[first:last], row)
            target[i] += dot(row, value[first:last])
            for j in range(i + 1):
                normal[i, j] += dot(row, basis[j, first:last])


@compiled
def _take_noise_away(variance: float, normal: Doubles) -> None:
    for k in range(len(NOISE_TERMS)):
        i, j, a, b = int(NOISE_TERMS[k, 0]), int(NOISE_TERMS[k, 1]), int(NOISE_TERMS[k, 2]), int(NOISE_TERMS[k, 3])
        if i < len(normal):
            normal[i, j] -= NOISE_TERMS[k, 5] * variance ** NOISE_TERMS[k, 4] * normal[a, b]


@compiled
def _subtract(factor: np.float32, values: Floats, rest: Floats) -> None:
    for k in range(rest.size):
        rest[k] -= factor * values[k]


@compiled
def _write_basis(intensity: Floats, variance: float, u: Floats, v: Floats, basis: Floats) -> None:
    """Write the first functions of `photometry._basis`, all fourteen or the two of a gain and a bias."""
    one, two = np.float32(1), np.float32(2)
    of_noise, thrice = np.float32(variance), np.float32(3 * variance)
    for k in range(u.size):
        z = two * intensity[k] - one
        basis[0, k] = one
        basis[1, k] = z
    if len(basis) == 2:
        return
    for k in range(u.size):
        x, y, z = u[k], v[k], two * intensity[k] - one
        basis[2, k] = z * z - of_noise
        basis[3, k] = (z * z - thrice) * z
        basis[4, k] = x
        basis[5, k] = y
        basis[6, k] = x * x
        basis[7, k] = x * y
        basis[8, k] = y * y
        basis[9, k] = z * x
        basis[10, k] = z * y
        basis[11, k] = z * x * x
        basis[12, k] = z * x * y
        basis[13, k] = z * y * y

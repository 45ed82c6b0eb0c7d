"""Passes over the full size before its last iterations, as `refinement.py`, `noise.py` and `template.py` ask for them.

B pairs, H W rows and columns, N points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homoalign.kernels.compiler import Bools, Doubles, Floats, arrays, compiled
from homoalign.kernels.robust import robust_scale_of


def merge(
    image: Tensor,
    template_value: Tensor,
    dst_value: Tensor,
    seen: Tensor,
    light: Tensor,
    *,
    loss_width: float,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """Average src with the aligned dst where they agree.

    Args:
        image: (B, N) float32, all pixels of src.
        template_value: (B, N) float32, src in dst's light but for a gain and a bias.
        dst_value: (B, N) float32, dst at src's pixels.
        seen: (B, N) bool.
        light: (B, 4) float64: gain, bias, the share of dst in the average, and the residual's least scale.
        loss_width: of the robust loss, in scales.
        samples: residuals that the scale is read from, about.

    Returns:
        merged: (B, N) float32.
        scale: (B,) float64, the residual's robust standard deviation.
    """
    merged, scale = torch.empty(image.shape, dtype=torch.float32), torch.empty(len(image), dtype=torch.float64)
    _merge(loss_width, samples, *arrays(image, template_value, dst_value, seen, light, merged, scale))
    return merged, scale


@compiled
def _merge(
    loss_width: float,
    samples: int,
    image: Floats,
    template_value: Floats,
    dst_value: Floats,
    seen: Bools,
    light: Doubles,
    merged: Floats,
    scale: Doubles,
) -> None:
    one, zero = np.float32(1), np.float32(0)
    for b in range(len(image)):
        gain, bias = np.float32(light[b, 0]), np.float32(light[b, 1])
        residual, source, target, is_seen = merged[b], template_value[b], dst_value[b], seen[b]
        for k in range(residual.size):
            residual[k] = target[k] - (gain * source[k] + bias) if is_seen[k] else zero
        scale[b] = max(robust_scale_of(residual, is_seen, samples), light[b, 3])
        over_width, share = np.float32(1 / (loss_width * scale[b])), np.float32(light[b, 2] / light[b, 0])
        for k in range(residual.size):
            in_widths = residual[k] * over_width
            residual[k] = image[b, k] + share * residual[k] / (one + in_widths * in_widths)


def keep_band(
    image: Tensor, coarser: Tensor, energy: Tensor, noise_energy: Tensor, certain: float, kept: Tensor
) -> None:
    """Add to `kept` what of image - coarser is signal, (B, H, W) float32 each, as `noise.denoise` asks for it.

    Args:
        image: one scale.
        coarser: the next one.
        energy: local mean square of the band.
        noise_energy: (B,) float32, above zero, of noise.
        certain: energies up to so many times that are no signal.
        kept: added to.
    """
    _keep_band(np.float32(certain), *arrays(image, coarser, energy, noise_energy, kept))


@compiled
def _keep_band(
    certain: np.float32, image: Floats, coarser: Floats, energy: Floats, noise_energy: Floats, kept: Floats
) -> None:
    zero = np.float32(0)
    for b in range(len(image)):
        noise = noise_energy[b]
        for i in range(image.shape[1]):
            fine, coarse, local, result = image[b, i], coarser[b, i], energy[b, i], kept[b, i]
            for k in range(fine.size):
                signal = max(local[k] - certain * noise, zero)
                result[k] += signal / (signal + noise) * (fine[k] - coarse[k])


def squared_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return (a - b)^2 of (B, H, W) float32."""
    squared = torch.empty_like(a, memory_format=torch.contiguous_format)
    _squared_difference(*arrays(a.flatten(), b.flatten(), squared.view(-1)))
    return squared


@compiled
def _squared_difference(a: Floats, b: Floats, squared: Floats) -> None:
    for k in range(a.size):
        difference = a[k] - b[k]
        squared[k] = difference * difference

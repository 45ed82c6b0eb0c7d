"""Products of Jacobians, summed over points: float32 within 32 threads, float64 beyond."""

from __future__ import annotations

import triton.language as tl

from homoalign.gpu.compiler import compiled
from homoalign.gpu.reading import UNSEEN


@compiled
def normal_equations(
    slope: tl.tensor,
    brightness: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    residual: tl.tensor,
    num_points: tl.tensor,
    over_width: tl.tensor,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tl.tuple:
    """Return J W J^T and J W r of the template's Jacobian, under Cauchy weights.

    Args:
        slope: (2, N) float32.
        brightness: (N,) float32.
        u: (N,) float32, centred coordinates along x.
        v: (N,) float32, along y.
        residual: (N,) float32.
        num_points: N.
        over_width: float32, one over the width of the loss.
        BLOCK: points at a time; one a thread, for every thread keeps 65 sums.
        AT_ONCE: so many blocks are asked for before the first is summed.

    Returns:
        (16, 16) and (16,) float64, of which ten rows are the parameters'.
    """
    zero = tl.zeros((BLOCK,), tl.float32)
    products, scores = (zero,) * 55, (zero,) * 10
    for first in range(0, num_points, BLOCK * AT_ONCE):
        for part in tl.static_range(AT_ONCE):
            k = first + part * BLOCK + tl.arange(0, BLOCK)
            here = k < num_points
            of_points = tl.load(residual + k, mask=here, other=UNSEEN)
            seen = of_points != UNSEEN
            in_widths = of_points * over_width
            weight = tl.where(seen, 1.0 / (1.0 + in_widths * in_widths), 0.0)
            rows = _rows(
                tl.load(slope + k, mask=here, other=0.0),
                tl.load(slope + num_points + k, mask=here, other=0.0),
                tl.load(brightness + k, mask=here, other=0.0),
                tl.load(u + k, mask=here, other=0.0),
                tl.load(v + k, mask=here, other=0.0),
            )
            products, scores = _add(products, scores, rows, weight, tl.where(seen, of_points, 0.0))
    return _matrix(products), _vector(scores)


@compiled
def _rows(slope_x: tl.tensor, slope_y: tl.tensor, brightness: tl.tensor, u: tl.tensor, v: tl.tensor) -> tl.tuple:
    """Return the ten rows of the Jacobian, see `homography.velocities`."""
    outward = slope_x * u + slope_y * v
    return (
        slope_x,
        slope_y,
        slope_y * u - slope_x * v,
        3.0 * outward,
        slope_x * u - slope_y * v,
        slope_x * v + slope_y * u,
        -u * outward,
        -v * outward,
        brightness,
        tl.full(u.shape, 1.0, tl.float32),
    )


@compiled
def _add(
    products: tl.tuple, scores: tl.tuple, rows: tl.tuple, weight: tl.tensor, residual: tl.tensor
) -> tuple[tl.tuple, tl.tuple]:
    """Return the sums with a block's own part added: 55 products, the lower half row by row, and ten scores."""
    more_products: tl.tuple = ()
    more_scores: tl.tuple = ()
    for i in tl.static_range(10):
        weighted = rows[i] * weight
        more_scores = more_scores + (scores[i] + weighted * residual,)  # noqa: RUF005
        for j in tl.static_range(i + 1):
            more_products = more_products + (products[i * (i + 1) // 2 + j] + weighted * rows[j],)  # noqa: RUF005
    return more_products, more_scores


@compiled
def _matrix(products: tl.tuple) -> tl.tensor:
    """Return the symmetric matrix (16, 16) float64 whose lower half, row by row, has been summed."""
    nothing = tl.zeros_like(products[0])
    pairs = _joined(_joined(_joined(products + (nothing,) * 9)))
    totals = _totals(_joined(_joined(_joined(pairs)))[0])
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    above, below = tl.maximum(row, column), tl.minimum(row, column)
    place = tl.where(above < 10, above * (above + 1) // 2 + below, 63)  # where there is a zero
    return tl.reshape(tl.gather(totals, tl.reshape(place, (256,)), 0), (16, 16))


@compiled
def _vector(scores: tl.tuple) -> tl.tensor:
    """Return the ten sums as a vector (16,) float64."""
    nothing = tl.zeros_like(scores[0])
    return _totals(_joined(_joined(_joined(_joined(scores + (nothing,) * 6))))[0])


@compiled
def _joined(blocks: tl.tuple) -> tl.tuple:
    """Return half as many blocks, each joined with the one half of them further on: their order stays."""
    half: tl.constexpr = len(blocks) // 2
    pairs: tl.tuple = ()
    for i in tl.static_range(half):
        pairs = pairs + (tl.join(blocks[i], blocks[half + i]),)  # noqa: RUF005
    return pairs


@compiled
def _totals(block: tl.tensor) -> tl.tensor:
    """Return the sums over the first dimension, flat, float64: one reduction for all of them."""
    num_threads: tl.constexpr = block.shape[0]
    flat = tl.reshape(block, (num_threads // 32, 32, block.numel // num_threads))
    return tl.sum(tl.sum(flat, axis=1).to(tl.float64), axis=0)

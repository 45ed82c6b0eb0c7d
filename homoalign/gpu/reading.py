"""Images read at warped points, and the residuals there.

Points are warped in float32, as on the processor. A residual that is `UNSEEN` belongs to a point that is not seen.
"""

from __future__ import annotations

import triton.language as tl

from homoalign.gpu.compiler import compiled
from homoalign.optimisation.residual import BORDER_PX

UNSEEN = tl.constexpr(float("inf"))
"""No residual is this large; one that is has overflowed, and is better not seen."""
_MARGIN = tl.constexpr(BORDER_PX)


@compiled
def residuals_at(
    image: tl.tensor,
    mask: tl.tensor,
    usable: tl.tensor,
    value: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    matrix: tl.tuple,
    gain: tl.tensor,
    bias: tl.tensor,
    k: tl.tensor,
    num_points: tl.tensor,
    IS_SPLINE: tl.constexpr,
    HAS_MASK: tl.constexpr,
) -> tl.tensor:
    """Return dst(H x) - (gain * src(x) + bias) at the points k, `UNSEEN` where dst or src has no such pixel.

    Args:
        image: (H, W) float32; (H + 2, W + 2) of `spline.spline_coefficients` where `IS_SPLINE`.
        mask: (H, W) float32; not read unless `HAS_MASK`.
        usable: (N,) uint8.
        value: (N,) float32, of src.
        u: (N,) float32, centred coordinates along x.
        v: (N,) float32, along y.
        height: of dst, pixels.
        width: of dst, pixels.
        matrix: nine numbers, float32, from centred coordinates to dst's pixels.
        gain: float32.
        bias: float32.
        k: indices of points.
        num_points: N.
        IS_SPLINE: cubic B-spline instead of bilinear.
        HAS_MASK: whether all four neighbours must be under the mask.
    """
    here = k < num_points
    at_u, at_v = tl.load(u + k, mask=here, other=0.0), tl.load(v + k, mask=here, other=0.0)
    over_w = 1.0 / (matrix[6] * at_u + matrix[7] * at_v + matrix[8])
    x = (matrix[0] * at_u + matrix[1] * at_v + matrix[2]) * over_w
    y = (matrix[3] * at_u + matrix[4] * at_v + matrix[5]) * over_w
    right, bottom = (width - 1).to(tl.float32), (height - 1).to(tl.float32)
    seen = (x >= _MARGIN) & (x <= right - _MARGIN) & (y >= _MARGIN) & (y <= bottom - _MARGIN)
    seen &= tl.load(usable + k, mask=here, other=0) != 0
    # NaN is not above zero.
    x, y = tl.where(x > 0, x, 0.0), tl.where(y > 0, y, 0.0)
    x, y = tl.where(x < right, x, right), tl.where(y < bottom, y, bottom)
    column, row = tl.minimum(x.to(tl.int32), width - 2), tl.minimum(y.to(tl.int32), height - 2)
    tx, ty = x - column.to(tl.float32), y - row.to(tl.float32)
    if HAS_MASK:
        seen &= _read_bilinear(mask + row * width + column, width, tx, ty) > 0.999
    if IS_SPLINE:
        read = _read_spline(image + row * (width + 2) + column, width + 2, tx, ty)
    else:
        read = _read_bilinear(image + row * width + column, width, tx, ty)
    model = gain * tl.load(value + k, mask=here, other=0.0) + bias
    return tl.where(seen, read - model, UNSEEN)


@compiled
def _read_bilinear(corner: tl.tensor, stride: tl.tensor, tx: tl.tensor, ty: tl.tensor) -> tl.tensor:
    """Read an image between the pixels at `corner` and their neighbours to the right and below."""
    left, right = tl.load(corner), tl.load(corner + 1)
    above = left + tx * (right - left)
    left, right = tl.load(corner + stride), tl.load(corner + stride + 1)
    below = left + tx * (right - left)
    return above + ty * (below - above)


@compiled
def _read_spline(corner: tl.tensor, stride: tl.tensor, tx: tl.tensor, ty: tl.tensor) -> tl.tensor:
    """Read a spline from the four by four coefficients of which `corner` is the first."""
    x0, x1, x2, x3 = _cubic_weights(tx)
    rows = _cubic_weights(ty)
    total = tl.zeros_like(tx)
    for i in tl.static_range(4):
        first = corner + i * stride
        along = x0 * tl.load(first) + x1 * tl.load(first + 1)
        total += rows[i] * (along + x2 * tl.load(first + 2) + x3 * tl.load(first + 3))
    return total


@compiled
def _cubic_weights(t: tl.tensor) -> tl.tuple:
    """Return the weights of a point's four cubic B-spline coefficients along one axis."""
    s = 1.0 - t
    return (
        s * s * s * (1 / 6),
        2 / 3 - 0.5 * t * t * (1.0 + s),
        2 / 3 - 0.5 * s * s * (1.0 + t),
        t * t * t * (1 / 6),
    )

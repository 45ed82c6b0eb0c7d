"""`AlignConfig`: everything that changes a pair's answer, and nothing that changes only speed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

Solver = Literal["gauss_newton", "adam"]
Model = Literal["translation", "euclidean", "similarity", "affine", "homography"]
Signal = Literal["auto", "intensity", "structure"]
Photometric = Literal["auto", "gain_bias", "none"]

UNLIMITED = sys.float_info.max

RANGES: dict[type, tuple[float, float]] = {int: (1, 2**31 - 1), float: (0, UNLIMITED)}
"""Least and largest value of a field of this type, where `RANGES_OF_FIELDS` has no other."""

RANGES_OF_FIELDS: dict[str, tuple[float, float]] = {
    "min_level_side_px": (4, 2**31 - 1),
    "search_max_scale": (1, 1000),  # beyond it the smaller image would be a pixel of the larger one
    "points_per_level": (16, 2**31 - 1),  # motion and light have ten parameters
    "final_points": (16, 2**31 - 1),
    "loss_width": (0.01, UNLIMITED),  # far below, no pixel keeps a weight, and nothing tells the precision
    "min_side_px": (4, 2**31 - 1),
    "min_overlap": (0, 1),
    "confidence_threshold": (0, 1),
    "adam_learning_rate": (0, 1),  # of coordinates in [-1, 1]
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Everything that changes the answer. Each field's meaning is the string below it."""

    solver: Solver = "gauss_newton"
    """`gauss_newton`: this project's solver; `adam`: kornia's tutorial, its published settings; it ignores masks."""

    model: Model = "homography"
    """Motion `gauss_newton` finds, or adds to a prior: `translation`, `euclidean`, `similarity`, `affine` or
    `homography`."""

    photometric: Photometric = "auto"
    """Light the solver fits: a tone curve and slow fields where they explain more (`auto`), `gain_bias`, or `none`."""

    min_level_side_px: int = 8
    """The pyramid ends before a side of either image, or of what both show at the start, would fall below this."""

    max_levels: int = 12
    """At most this many pyramid levels, the full-size image included."""

    signal: Signal = "auto"
    """What is compared: `intensity`, the `structure` of edges, or `auto`: structure where intensities do not tell."""

    ignore_surround: bool = True
    """Whether a flat surround (aperture, nodata, letterbox) is masked in images without a mask; it is not the scene."""

    use_search: bool = True
    """Whether pairs that identity and prior do not solve are searched over rotation, scale and translation."""

    use_features: bool = True
    """Whether pairs that the search does not solve either are tried from matched local features."""

    search_max_rotation_deg: float = 180.0
    """The search tries rotations up to this angle either way."""

    search_max_scale: float = 4.0
    """The search tries scales up to this factor either way, beside that of frame onto frame."""

    max_iterations: int = 40
    """Most steps the solver takes at one level."""

    step_tol_px: float = 0.002
    """The finest level ends when no corner moves further than this, in its pixels."""

    coarse_step_tol_px: float = 0.05
    """Every coarser level ends when no corner moves further than this, in pixels of that level."""

    points_per_level: int = 16_384
    """About how many pixels a coarse level is solved on, well spread and the steepest of their neighbourhood."""

    final_points: int = 65_536
    """About how many pixels the finest level is solved on."""

    forward_backward: bool = False
    """Whether dst is aligned onto src as well, for `forward_backward_px`; it takes about as long again."""

    loss_width: float = 2.385
    """Width of the Cauchy loss in robust standard deviations of the residual; 2.385 keeps 95 % efficiency."""

    min_side_px: int = 16
    """Images with a shorter side than this are `too_small`."""

    min_overlap: float = 0.05
    """Share of dst that src must cover, or of src that dst must show, in [0, 1]; less of both is `no_overlap`."""

    min_contrast: float = 0.002
    """Least standard deviation of an image's intensities, in [0, 1] and stretched if deep; less is `low_texture`."""

    confidence_threshold: float = 0.7
    """Results at or above this confidence are `ok`."""

    adam_learning_rate: float = 1e-3
    """Step size of `solver="adam"`, on the 3x3 matrix in normalised coordinates."""

    adam_steps: int = 100
    """Steps a level of `solver="adam"`."""

    adam_levels: int = 6
    """Pyramid levels of `solver="adam"`; fewer where the image is too small for them."""

    def __post_init__(self) -> None:
        """Check every field by its annotation, and keep it as Python's own type: numpy's scalars too, 1 as 1.0.

        Raises:
            TypeError: a value is not of its field's type.
            ValueError: it is none of the choices, or out of range.
        """
        for name, kind in _kinds().items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))

    def fingerprint(self) -> str:
        """Return a short stable digest of every field, kept in the plan and checked on resume."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(AlignConfig)


def _checked(name: str, value: Any, kind: Any) -> str | bool | float:
    """Return a field's value as Python's own type.

    Args:
        name: of the field.
        value: what it was given.
        kind: its annotation: bool, int, float or a `Literal` of strings.

    Raises:
        TypeError: the value is not of this type.
        ValueError: it is none of the choices, or out of range.
    """
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise ValueError(f"{name}={value!r} is none of {', '.join(get_args(kind))}")
        return str(value)
    is_flag = type(value).__name__ in ("bool", "bool_")  # Python's, numpy's
    if is_flag != (kind is bool) or not (is_flag or isinstance(value, Integral if kind is int else Real)):
        raise TypeError(f"{name}={value!r} should be {kind.__name__}, got {type(value).__name__}")
    if is_flag:
        return bool(value)
    number = int(value) if isinstance(value, Integral) else float(value)
    least, largest = RANGES_OF_FIELDS.get(name, RANGES[kind])
    if not least <= number <= largest:
        end = "inf)" if largest == UNLIMITED else f"{largest}]"
        raise ValueError(f"{name}={number} is outside [{least}, {end}")
    return number if kind is int else float(number) + 0.0  # never -0.0, which has another fingerprint

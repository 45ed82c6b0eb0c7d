"""`AlignConfig`: everything that changes a pair's answer, and nothing that changes only speed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal, get_args

Solver = Literal["gauss_newton", "adam"]
Model = Literal["translation", "euclidean", "similarity", "affine", "homography"]
Signal = Literal["auto", "intensity", "structure"]
Photometric = Literal["auto", "gain_bias", "none"]


MAX_INT = 2**31 - 1
"""More than that no compiled loop counts to."""
MAX_SCALE = 1000
"""Beyond it the smaller image would be a pixel of the larger one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Everything that changes the answer. Each field's meaning is the string below it."""

    solver: Solver = "gauss_newton"
    """`gauss_newton`: this project's solver; `adam`: kornia's tutorial, with its published settings."""

    model: Model = "homography"
    """Motion `gauss_newton` finds, or adds to a prior: `translation`, `euclidean`, `similarity`, `affine` or
    `homography`."""

    photometric: Photometric = "auto"
    """Light the solver fits: a tone curve and slow fields where they explain more (`auto`), `gain_bias`, or `none`."""

    min_level_side_px: int = 8
    """The pyramid ends before the shorter side of either image would fall below this."""

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

    min_overlap: float = 0.1
    """Share of dst that src must cover, or of src that dst must show, in [0, 1]; less of both is `no_overlap`."""

    min_contrast: float = 0.002
    """Least standard deviation of an image's intensities, in [0, 1]; less is `low_texture`."""

    confidence_threshold: float = 0.65
    """Results at or above this confidence are `ok`."""

    adam_learning_rate: float = 1e-3
    """Step size of `solver="adam"`, on the 3x3 matrix in normalised coordinates."""

    adam_steps: int = 100
    """Steps a level of `solver="adam"`."""

    adam_levels: int = 6
    """Pyramid levels of `solver="adam"`; fewer where the image is too small for them."""

    def __post_init__(self) -> None:
        choices = {"solver": Solver, "model": Model, "photometric": Photometric, "signal": Signal}
        for name, allowed in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(allowed)}")
        share = (0, 1)
        ranges = {"min_overlap": share, "confidence_threshold": share, "adam_learning_rate": share}
        for name, (low, high) in {**ranges, "search_max_scale": (1, MAX_SCALE)}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is outside [{low}, {high}]")
        for name in ("min_side_px", "min_level_side_px"):
            if not getattr(self, name) >= 4:
                raise ValueError(f"{name}={getattr(self, name)} is below 4")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not value >= 1:
                raise ValueError(f"{field.name}={value} is below 1")
            if field.type == "int" and not value <= MAX_INT:
                raise ValueError(f"{field.name}={value} is above {MAX_INT}")
            if field.type == "float" and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name}={value} is negative or not finite")

    def fingerprint(self) -> str:
        """Return a short stable digest of every field, kept in the plan and checked on resume."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

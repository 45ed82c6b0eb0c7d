"""homoalign: align image pairs by homography optimisation.

>>> import homoalign
>>> result = homoalign.align(src, dst)                                     # doctest: +SKIP
>>> warped = homoalign.warp(src, result.dst_homo_src, (height, width))     # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from homoalign.config import AlignConfig
from homoalign.errors import HomoalignError, PairError
from homoalign.status import Initialisation, Status, StopReason

if TYPE_CHECKING:
    from homoalign.aligner import align, warm_up
    from homoalign.levels.sampling import warp
    from homoalign.optimisation.trace import LevelTrace
    from homoalign.result import AlignResult

__all__ = [
    "AlignConfig",
    "AlignResult",
    "HomoalignError",
    "Initialisation",
    "LevelTrace",
    "PairError",
    "Status",
    "StopReason",
    "align",
    "warm_up",
    "warp",
]
__version__ = "0.1.0"

_AT_FIRST_USE = {
    "AlignResult": "homoalign.result",
    "LevelTrace": "homoalign.optimisation.trace",
    "align": "homoalign.aligner",
    "warm_up": "homoalign.aligner",
    "warp": "homoalign.levels.sampling",
}
"""Loaded when asked for (PEP 562): torch takes seconds, and who reads a status or a config needs none of it."""


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_AT_FIRST_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

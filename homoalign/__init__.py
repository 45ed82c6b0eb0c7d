"""homoalign: align image pairs by homography optimisation.

>>> import homoalign
>>> result = homoalign.align(src, dst)                                     # doctest: +SKIP
>>> warped = homoalign.warp(src, result.dst_homo_src, (height, width))     # doctest: +SKIP
"""

from homoalign.aligner import align, warm_up
from homoalign.config import AlignConfig
from homoalign.errors import HomoalignError, PairError
from homoalign.result import AlignResult, LevelTrace
from homoalign.sampling import warp
from homoalign.status import Initialisation, Status, StopReason

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

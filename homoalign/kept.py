"""Small tensors that are made once and kept for later calls: each copy to a GPU would make the host wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

import torch

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def kept(maxsize: int) -> Callable[[Callable[Arguments, Made]], Callable[Arguments, Made]]:
    """Keep what a function returns for its last `maxsize` arguments.

    Not as inference tensors, whoever calls first: a later caller may differentiate through them.
    """

    def keep(function: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
        return cast(Callable[Arguments, Made], lru_cache(maxsize)(torch.inference_mode(False)(function)))

    return keep

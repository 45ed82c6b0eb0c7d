"""How a Triton function is declared, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl

Function = TypeVar("Function", bound=Callable[..., Any])

OLDEST = (3, 7)
"""Version of Triton that the tests have been run with; before 3.4 no tuples are carried through loops."""


def compiled(function: Function) -> Any:
    """Compile for the device as a part of a program."""
    return triton.jit(function)


def program(*sizes: str) -> Callable[[Function], Any]:
    """Compile for the device at the first call, once for all values of these whole numbers: it takes seconds."""
    return triton.jit(do_not_specialize=sizes)  # type: ignore[no-any-return]


@compiled
def element(vector: tl.tensor, index: tl.tensor) -> tl.tensor:
    """Return one number of a vector (16,)."""
    return tl.sum(tl.where(tl.arange(0, 16) == index, vector, 0.0))


@program()
def _add_one(values: tl.tensor) -> None:
    tl.store(values, tl.load(values) + 1.0)


@contextmanager
def told_as_runtime_errors() -> Iterator[None]:
    """Raise `RuntimeError` for errors of Triton's own, which are of no kind that Python knows."""
    try:
        yield
    except triton.errors.TritonError as error:
        raise RuntimeError(str(error)) from error


def try_out(device: torch.device) -> None:
    """Compile and run a kernel.

    Raises:
        ImportError: Triton is missing, or too old.
        RuntimeError: it does not work here; it may also raise what its compilers raise.
    """
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        raise ImportError(f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}")
    if torch.version.cuda is None:
        raise RuntimeError("the kernels are for CUDA; this torch is built for something else")
    values = torch.zeros(1, dtype=torch.float32, device=device)
    with told_as_runtime_errors(), torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        _add_one[(1,)](values, enable_fp_fusion=True)
    if values.item() != 1:
        raise RuntimeError(f"a kernel that adds one to zero made {values.item()}")

"""How a kernel is compiled, and what kernels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Complexes = NDArray[np.complex64]

BLOCK = 512
"""Points at a time."""

FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""Sums may be taken in any order; NaN and infinity keep their meaning."""


def compiled(function: Function) -> Function:
    """Compile at the first call, and keep the machine code for other processes where there is a folder for it.

    Kernels that others call become part of them. Called, the copy that was loaded first would serve all of them, and
    copies round unlike each other: a pair's answer would depend on what else the process had compiled or loaded.
    """
    settings = {"nogil": True, "forceinline": True, "fastmath": FAST, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(**settings)(function)  # type: ignore[no-any-return]


def arrays(*tensors: Tensor) -> Any:
    """Return tensors as contiguous arrays on the same memory, or on a copy where they are not contiguous."""
    return [tensor.contiguous().numpy() for tensor in tensors]


@compiled
def multiply(a: Floats, b: Floats, product: Floats) -> None:
    """Write the product of two rows."""
    for k in range(product.size):
        product[k] = a[k] * b[k]


@compiled
def dot(a: Floats, b: Floats) -> np.float32:
    """Return the sum of products of two rows."""
    total = np.float32(0)
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@compiled
def dot_two(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
    """Return the sums of products of a row and two others."""
    of_b, of_c = np.float32(0), np.float32(0)
    for k in range(a.size):
        of_b += a[k] * b[k]
        of_c += a[k] * c[k]
    return of_b, of_c


@compiled
def add(values: Floats, total: Floats) -> None:
    """Add a row to another."""
    for k in range(total.size):
        total[k] += values[k]


@compiled
def factorise(a: Doubles) -> bool:
    """Replace the lower half of a matrix by its Cholesky factor; False where it is not positive definite."""
    for i in range(len(a)):
        for j in range(i + 1):
            for k in range(j):
                a[i, j] -= a[i, k] * a[j, k]
            if j < i:
                a[i, j] /= a[j, j]
        if not a[i, i] > 0:
            return False
        a[i, i] = math.sqrt(a[i, i])
    return True


@compiled
def solve_factorised(a: Doubles, b: Doubles) -> None:
    """Replace b by the solution of A x = b, whose A `factorise` has replaced."""
    for i in range(len(a)):
        for k in range(i):
            b[i] -= a[i, k] * b[k]
        b[i] /= a[i, i]
    for i in range(len(a) - 1, -1, -1):
        for k in range(i + 1, len(a)):
            b[i] -= a[k, i] * b[k]
        b[i] /= a[i, i]

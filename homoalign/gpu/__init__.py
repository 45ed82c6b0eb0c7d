"""The solver for images on a CUDA device, in Triton: one program solves one pair from start to end.

What `kernels.solver` does on the processor, step by step: `reading`, `robust` and `sums` are as there, `steps`, `trial`
and `solver` what a program does with them. Triton comes with torch's CUDA builds; nothing here imports it before a
tensor on a device asks for it.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache

import torch
from torch import Tensor


def serves(tensor: Tensor) -> bool:
    """Say whether the solver works on tensors like this one: on a CUDA device that Triton compiles for."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and _compiles_for(tensor.device)


@cache
def _compiles_for(device: torch.device) -> bool:
    """Try it once: Triton asks for a C compiler, Python's headers and a device that is not too old."""
    try:
        from homoalign.gpu.compiler import try_out

        try_out(device)

        from homoalign.gpu.agreement import check_agreement

        check_agreement(device)
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        warnings.warn(f"solving with torch, which is slower: Triton does not work on {device}: {error}", stacklevel=2)
        return False
    return True

"""When kernels are compiled, and what is kept of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from homoalign import aligner
from homoalign.kernels import compiler
from jobs.worker import child


def test_where_nothing_can_be_kept_the_kernels_are_compiled_anew(monkeypatch):
    calls = []

    def njit(**settings):
        calls.append(settings.get("cache", False))
        if settings.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return lambda function: function

    monkeypatch.setattr(compiler.numba, "njit", njit)
    assert compiler.compiled(lambda x: 2 * x)(4) == 8
    assert calls == [True, False]


WARM = """
import sys

import numpy as np
from numba.core.registry import CPUDispatcher
from scipy.ndimage import gaussian_filter

from homoalign.aligner import align, warm_up

def versions():
    # Loaded from an earlier process's folder counts as well as compiled: where there is none it would be.
    modules = [module for name, module in sys.modules.items() if name.startswith("homoalign.kernels")]
    return {
        (module.__name__, name): len(kernel.signatures)
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, CPUDispatcher)
    }

warm_up()
before = versions()
rng = np.random.default_rng(0)
gray, colours = rng.random((70, 90), np.float32), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
mask = rng.random((70, 90)) < 0.9
align(gray, gray, src_mask=mask, dst_mask=mask)
align(colours, np.roll(colours, 3, axis=1))
align(gray, gray ** 2, gt=np.eye(3))
smooth = gaussian_filter(gray, 2.0)
smooth = (smooth - smooth.min()) / np.ptp(smooth)
noisy = (smooth + rng.normal(0, 0.03, smooth.shape)).clip(0, 1)
covered = smooth ** 2
covered[20:50, 30:60] = 1 - covered[20:50, 30:60]
for image in (smooth ** 2, noisy ** 2, covered, noisy[::-1].copy()):
    for other in (smooth, noisy):
        align(other, image)
print(*(name for name, count in versions().items() if count > before[name]))
"""


def test_warming_up_leaves_nothing_to_compile():
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True, timeout=250)
    assert done.stdout == "\n"


SUM = """
import torch

from homoalign import kernels

generator = torch.Generator().manual_seed(0)
height, width = grid = (45, 61)
value = torch.rand(1, height * width, generator=generator)
y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
u = torch.stack([(x - 30).flatten(), (y - 22).flatten()])[None] / 30.5
slope, residual = torch.randn(1, 2, height * width, generator=generator), torch.randn(value.shape, generator=generator)
floor = torch.full((1,), 1e-3, dtype=torch.float64)
points, seen = (slope, value, value, u), torch.ones(value.shape, dtype=torch.bool)
sums = kernels.precision_sums(
    points, 0.1 * residual, seen, value, torch.ones(1), floor, grid=grid, side=6, loss_width=2.4, samples=8192
)
print(*(float.hex(each) for part in sums for each in part.flatten().tolist()))
"""


def test_bits_do_not_depend_on_what_a_process_compiled_and_what_it_loaded(tmp_path):
    """Where kernels call each other, the copy that comes first serves all: the one compiled here, or a caller's."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    compiling, loading = (
        subprocess.run(
            [sys.executable, "-c", SUM], env=environment, capture_output=True, text=True, check=True, timeout=250
        ).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*._precision_sums-*.nbc"))
    assert len(compiling.split()) > 200
    assert compiling == loading


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_keeps_its_memory_and_compiles_before_its_rows_are_timed(monkeypatch, device):
    calls = []
    monkeypatch.setattr(child, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(aligner, "warm_up", lambda: calls.append("warm"))
    child.prepare_process(1, device)
    assert calls == (["keep", "warm"] if device == "cpu" else ["keep"])

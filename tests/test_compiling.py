"""When kernels are compiled, and what is kept of that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from homoalign import aligner
from homoalign.kernels import compiler
from jobs import child


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
import numpy as np
from numba.core import event
from homoalign.aligner import align, warm_up
warm_up()

class Listener(event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__name__)

    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
rng = np.random.default_rng(0)
gray, colours = rng.random((70, 90), np.float32), rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
mask = rng.random((70, 90)) < 0.9
align(gray, gray, src_mask=mask, dst_mask=mask)
align(colours, np.roll(colours, 3, axis=1))
align(gray, gray ** 2, gt=np.eye(3))
print("aligned")
"""


def test_warming_up_leaves_nothing_to_compile():
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True, timeout=250)
    assert done.stdout == "aligned\n"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_compiles_before_its_rows_are_timed(monkeypatch, device):
    calls = []
    monkeypatch.setattr(aligner, "warm_up", lambda: calls.append("warm"))
    child.prepare_process(1, device)
    assert calls == (["warm"] if device == "cpu" else [])

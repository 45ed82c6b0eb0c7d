"""What `bench speed` measures: each method and batch in a process of its own, in turn, run after run.

N pairs of one size; images are (N, H, W) uint8.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import homoalign
from homoalign.aligner import group_size
from jobs.bench import peers
from jobs.bench.bare_solver import solve_bare
from jobs.bench.measure import time_call
from jobs.bench.methods import BARE, ECC, HOMOALIGN, SIFT, as_rgb, mean_distance_px
from jobs.bench.pairs import BenchPair
from jobs.bench.processes import MB, fresh_processes, memory_mb
from jobs.rendering.synthetic import Matrix
from jobs.worker.child import keep_freed_memory, set_threads

PEERS = {ECC: peers.ecc_multi_scale, SIFT: peers.sift_magsac}
WARM_UPS = 2

Images = npt.NDArray[np.uint8]
Call = Callable[[], list[Matrix | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A way to align that is measured: homoalign or its solver, with a batch size, or a peer, one pair at a time."""

    method: str
    batch: int = 1
    device: str = "cpu"
    config: homoalign.AlignConfig = field(default_factory=homoalign.AlignConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lap:
    """One candidate once over all pairs.

    Attributes:
        cpu_s: CPU seconds a pair.
        wall_s: wall seconds a pair.
        matrices: one for each of the N pairs; None where it gave up.
        peak_mb: most memory so far: of the process, or on a GPU of what torch allocated there.
        grown_mb: how much of it came after the images were there and before anything was aligned.
    """

    cpu_s: float
    wall_s: float
    matrices: list[Matrix | None]
    peak_mb: float
    grown_mb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A candidate's laps on the pairs of one size."""

    candidate: Candidate
    laps: list[Lap]
    errors_px: list[float]
    """Mean corner errors, infinite where there is no matrix."""

    @property
    def costs_s(self) -> list[float]:
        """Return, lap by lap, what a pair costs: CPU seconds, or on a GPU wall seconds."""
        return [lap.cpu_s if self.candidate.device == "cpu" else lap.wall_s for lap in self.laps]

    @property
    def cost_s(self) -> float:
        """Return the median of `costs_s`."""
        return statistics.median(self.costs_s)

    def ratio_to(self, other: Measured) -> float:
        """Return how many times the other's cost a pair costs: the median over laps, which were run in turn."""
        return statistics.median(a / b for a, b in zip(self.costs_s, other.costs_s, strict=True))


def measure(candidates: Sequence[Candidate], pairs: Sequence[BenchPair], *, runs: int) -> list[Measured]:
    """Run all candidates in turn over pairs of one size, `runs` times."""
    laps: dict[Candidate, list[Lap]] = {candidate: [] for candidate in candidates}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder, "pairs.npz")
        np.savez(file, src=np.stack([pair.src for pair in pairs]), dst=np.stack([pair.dst for pair in pairs]))
        homes = {candidate: stack.enter_context(fresh_processes()) for candidate in candidates}
        for _ in range(runs):
            for candidate, home in homes.items():
                laps[candidate].append(home.submit(run_lap, candidate, file).result())
    return [
        Measured(candidate=candidate, laps=found, errors_px=errors_px(found[-1].matrices, pairs))
        for candidate, found in laps.items()
    ]


def errors_px(matrices: Sequence[Matrix | None], pairs: Sequence[BenchPair]) -> list[float]:
    """Return the mean corner error of each pair, dst pixels."""
    return [
        math.inf if matrix is None else mean_distance_px(matrix, pair)
        for matrix, pair in zip(matrices, pairs, strict=True)
    ]


def run_lap(candidate: Candidate, file: Path) -> Lap:
    """Align the pairs of a file once; in a process that does nothing else."""
    calls, base_mb = _prepared(candidate, file)

    def all_calls() -> list[Matrix | None]:
        found = [matrix for call in calls for matrix in call()]
        if candidate.device == "cuda":
            torch.cuda.synchronize()
        return found

    timed = time_call(all_calls, runs=1, warm_ups=0)
    with np.load(file) as images:
        num_pairs = len(images["src"])
    num_aligned = len(timed.value)
    peak_mb = _peak_mb(candidate.device)
    return Lap(
        cpu_s=timed.cpu_s / num_aligned,
        wall_s=timed.wall_s / num_aligned,
        matrices=timed.value[:num_pairs],
        peak_mb=peak_mb,
        grown_mb=peak_mb - base_mb,
    )


@cache
def _prepared(candidate: Candidate, file: Path) -> tuple[list[Call], float]:
    """Return what a lap calls, warm, and the memory in use before the first call."""
    set_threads(1)
    keep_freed_memory()
    with np.load(file) as images:
        src, dst = images["src"], images["dst"]
    if candidate.method in BATCHED:
        calls: list[Call] = list(_batches(candidate, src, dst))
    else:
        align = PEERS[candidate.method]
        calls = [partial(_one, align, as_rgb(a), as_rgb(b)) for a, b in zip(src, dst, strict=True)]
    base_mb = _memory_mb(candidate.device)
    for _ in range(WARM_UPS):  # imports and first calls are not what is timed
        calls[0]()
    return calls, base_mb


def _batches(candidate: Candidate, src: Images, dst: Images) -> Iterator[Call]:
    """Yield calls that align whole batches; the pairs are taken again, in order, until the last one is full."""
    batch = candidate.batch
    for start in range(0, len(src), batch):
        chosen = np.arange(start, start + batch) % len(src)
        batch_src, batch_dst = (torch.from_numpy(images[chosen][:, None]).to(candidate.device) for images in (src, dst))
        yield partial(BATCHED[candidate.method], batch_src, batch_dst, candidate.config)


def _align(src: torch.Tensor, dst: torch.Tensor, config: homoalign.AlignConfig) -> list[Matrix | None]:
    matrices = homoalign.align(src, dst, config=config).dst_homo_src.cpu().numpy()
    return [matrix if np.isfinite(matrix).all() else None for matrix in matrices]


def _solve_bare(src: torch.Tensor, dst: torch.Tensor, config: homoalign.AlignConfig) -> list[Matrix | None]:
    """Solve groups of as many pairs as `homoalign.align` takes at a time."""
    size = group_size(dst)
    groups = zip(torch.split(src, size), torch.split(dst, size), strict=True)
    return [matrix for group in groups for matrix in solve_bare(*group, config)]


BATCHED = {HOMOALIGN: _align, BARE: _solve_bare}


def _one(align: Callable[[Images, Images], Matrix | None], src: Images, dst: Images) -> list[Matrix | None]:
    return [align(src, dst)]


def _memory_mb(device: str) -> float:
    return torch.cuda.memory_allocated() / MB if device == "cuda" else memory_mb("VmRSS")


def _peak_mb(device: str) -> float:
    return torch.cuda.max_memory_allocated() / MB if device == "cuda" else memory_mb("VmHWM")

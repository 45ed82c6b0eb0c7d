"""The pairs of `bench trust` through homoalign and its peers, on as many processes as asked for."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from homoalign.config import AlignConfig
from homoalign.trust.evidence import EVIDENCE
from jobs.bench import peers
from jobs.bench.measure import one_thread
from jobs.bench.methods import ECC, HOMOALIGN, SIFT, Answer, Outcome, align_timed, as_rgb, judge, read_answers, size_of
from jobs.bench.options import BenchOptions
from jobs.bench.pairs import BenchPair
from jobs.bench.trust_pairs import Group, TrustPair, TrustPairs
from jobs.progress import reporter
from jobs.rendering.synthetic import Matrix, corner_points, warp_points

FIGURES = ("corner_std_px", "zncc", "overlap", "inlier_ratio", "forward_backward_px", "photometric_l1")
"""Of homoalign's result, copied to its outcome."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustOutcome(Outcome):
    """What one method made of one pair, and how sure it said it was.

    Attributes:
        group, sigma_8bit, parameters: the pair's.
        score: the higher, the surer: homoalign's confidence, ECC's correlation, the share of matches that are inliers.
        corner_mahalanobis: squared distance of each corner's error in units of its predicted covariance, in the order
            top-left, top-right, bottom-right, bottom-left; None where there is no error or no covariance.
        corner_rms_px: root mean square length of the four corners' errors, dst pixels; None where there is none.
        corner_std_px, zncc, overlap, inlier_ratio, forward_backward_px, photometric_l1: as the result columns;
            None of peers.
        stop_reason, num_iterations: likewise.
        evidence: what the confidence was drawn from, by name; None where it could not be measured.
    """

    group: Group
    sigma_8bit: float
    parameters: dict[str, float | str]
    score: float
    corner_mahalanobis: tuple[float | None, ...] | None = None
    corner_rms_px: float | None = None
    corner_std_px: float | None = None
    zncc: float | None = None
    overlap: float | None = None
    inlier_ratio: float | None = None
    forward_backward_px: float | None = None
    photometric_l1: float | None = None
    stop_reason: str | None = None
    num_iterations: int | None = None
    evidence: dict[str, float | None] | None = None


def run_trust(
    pairs: TrustPairs, numbers: Sequence[tuple[Group, int]], options: BenchOptions, *, num_workers: int
) -> list[TrustOutcome]:
    """Draw and align every pair, each alone and on one thread, so that workers change nothing but the time.

    Args:
        pairs: what they are drawn from.
        numbers: group and number of each.
        options: config, and whether peers run.
        num_workers: processes; 1 is this one.
    """
    outcomes: list[TrustOutcome] = []
    counts: Counter[str] = Counter()
    align = partial(run_pair, pairs, config=options.config, with_peers=options.peers)
    with _mapper(num_workers) as map_pairs, reporter("auto", total=len(numbers), done=0) as progress:
        for done, found in enumerate(map_pairs(align, numbers), start=1):
            outcomes += found
            counts.update(outcome.status for outcome in found if outcome.status is not None)
            progress.update(done, counts)
    return outcomes


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable[..., Iterator[list[TrustOutcome]]]]:
    if num_workers == 1:
        yield map
        return
    # torch's threads do not survive a fork
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def run_pair(
    pairs: TrustPairs, number: tuple[Group, int], *, config: AlignConfig, with_peers: bool
) -> list[TrustOutcome]:
    """Draw one pair, align it by homoalign and by each peer, and judge."""
    with one_thread():
        _warm_up(config)
        pair = pairs.draw(*number)
        outcomes = [align_by_homoalign(pair, config)]
        if with_peers and pair.start is None:
            outcomes += [_trust_outcome(pair, name, answer, score=score) for name, answer, score in _ask_peers(pair)]
    return outcomes


@cache
def _warm_up(config: AlignConfig) -> None:
    """Align noise once in a process: imports and first calls are not what is timed."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    align_timed([BenchPair(number=0, name="", case="", src=noise, dst=noise, dst_homo_src=np.eye(3))], config)


def align_by_homoalign(pair: TrustPair, config: AlignConfig) -> TrustOutcome:
    """Align one pair by homoalign, and judge its matrix, confidence and covariance."""
    if pair.start is not None:
        signal = "structure" if pair.on_structure else config.signal
        config = replace(config, use_search=False, use_features=False, signal=signal)
    result, cpu_s = align_timed([pair], config, init=pair.start)
    (answer,) = read_answers(result, cpu_s)
    figures = {name: _finite(float(getattr(result, name)[0])) for name in FIGURES}
    error = None if answer.matrix is None else corner_errors(answer.matrix, pair)
    return _trust_outcome(
        pair,
        HOMOALIGN,
        answer,
        score=float(result.confidence[0]),
        corner_mahalanobis=None if error is None else corner_mahalanobis(error, result.corner_covariance[0].numpy()),
        corner_rms_px=None if error is None else _finite(float(np.sqrt((error**2).sum(axis=1).mean()))),
        stop_reason=str(result.stop_reason[0]),
        num_iterations=int(result.num_iterations[0]),
        evidence=dict(zip(EVIDENCE, map(_finite, result.evidence[0].tolist()), strict=True)),
        **figures,
    )


def corner_errors(dst_homo_src: Matrix, pair: BenchPair) -> Matrix:
    """Return the (4, 2) errors of an estimate at src's corners, dst pixels; NaN where there is no truth."""
    corners = corner_points(size_of(pair.src))
    return warp_points(dst_homo_src, corners) - warp_points(pair.dst_homo_src, corners)


def corner_mahalanobis(error: Matrix, covariance: Matrix) -> tuple[float | None, ...]:
    """Return e^T C^-1 e of every corner; None where an error or a positive definite covariance is missing.

    Args:
        error: (4, 2), dst pixels.
        covariance: (4, 2, 2), dst pixels squared.
    """
    return tuple(_squared_distance(e, c) for e, c in zip(error, covariance, strict=True))


def _squared_distance(error: Matrix, covariance: Matrix) -> float | None:
    if not np.isfinite(error).all() or not np.isfinite(covariance).all():
        return None
    if not np.linalg.eigvalsh(covariance)[0] > 0:
        return None
    return float(error @ np.linalg.solve(covariance, error))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ask_peers(pair: BenchPair) -> Iterator[tuple[str, Answer, float]]:
    src, dst = as_rgb(pair.src), as_rgb(pair.dst)
    for name, call in ((ECC, peers.scored_ecc), (SIFT, peers.scored_sift)):
        start = time.process_time()
        matrix, score = call(src, dst)
        yield name, Answer(matrix, {"cpu_s": time.process_time() - start}), _finite(score) or 0.0


def _trust_outcome(pair: TrustPair, method: str, answer: Answer, **more: Any) -> TrustOutcome:
    return TrustOutcome(
        **asdict(judge(pair, method, answer)),
        group=pair.group,
        sigma_8bit=pair.sigma_8bit,
        parameters=pair.parameters,
        **more,
    )

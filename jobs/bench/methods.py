"""homoalign and its peers side by side: pairs in, one outcome for each pair and method out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import homoalign
from jobs.bench import peers
from jobs.bench.measure import one_thread
from jobs.bench.options import BenchOptions
from jobs.bench.pairs import BenchPair
from jobs.rendering.synthetic import Matrix, Size, corner_points, frame_homography, warp_points

HOMOALIGN = "homoalign"
BARE = "its solver alone"
IDENTITY = "identity"
ECC = "OpenCV ECC multi-scale"
SIFT = "SIFT + USAC_MAGSAC"
SIFT_ECC = "SIFT + USAC_MAGSAC, then ECC"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one method made of one pair.

    Attributes:
        method: one of this module's names.
        case: the benchmark's case.
        number: the pair's.
        name: the pair's photograph or pair_id.
        error_px: mean corner error, dst pixels; infinite where there is no matrix, or it sends a corner behind the
            horizon.
        at_480: factor that takes `error_px` to MCE at 480.
        cpu_s: CPU seconds; of homoalign, a batch's share.
        bound_px: the pair's Cramer-Rao bound; NaN where there is none.
        landmark_px: median distance of mapped landmarks; NaN where the pair has none.
        status, status_detail, confidence, initialisation: homoalign's; None of peers.
    """

    method: str
    case: str
    number: int
    name: str
    error_px: float
    at_480: float
    cpu_s: float
    bound_px: float = math.nan
    landmark_px: float = math.nan
    status: str | None = None
    status_detail: str | None = None
    confidence: float | None = None
    initialisation: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that have a value; `error_px` always, None where it is infinite."""
        finite = {
            name: value
            for name, value in asdict(self).items()
            if value is not None and not (isinstance(value, float) and not math.isfinite(value))
        }
        return {**finite, "error_px": finite.get("error_px")}


@dataclass(frozen=True, slots=True)
class Answer:
    """A method's matrix, or None where it gave up, and the Outcome's fields that it knows."""

    matrix: Matrix | None
    fields: dict[str, Any]


def run_methods(
    pairs: Iterable[BenchPair],
    options: BenchOptions,
    *,
    batch_size: int = 16,
    with_identity: bool = False,
    ask: Callable[[BenchPair], Iterable[tuple[str, Answer]]] | None = None,
) -> list[Outcome]:
    """Align every pair by homoalign, batched, and by each peer, one thread each.

    Args:
        pairs: those of one case have equal shapes, or `batch_size` is 1; so it is where they have masks.
        options: config, and whether peers run.
        batch_size: of homoalign.
        with_identity: count what frame on frame would score as well.
        ask: the peers of one pair; `ask_peers` where None.
    """
    outcomes = []
    with one_thread():
        for i, batch in enumerate(batches_by_case(pairs, batch_size)):
            if i == 0:  # imports and first calls are not what is timed
                align_batch(batch, options.config)
            for pair, answer in zip(batch, align_batch(batch, options.config), strict=True):
                outcomes.append(judge(pair, HOMOALIGN, answer))
                if with_identity:
                    frames = frame_homography(size_of(pair.dst), size_of(pair.src))
                    outcomes.append(judge(pair, IDENTITY, Answer(frames, {"cpu_s": 0.0})))
                if options.peers:
                    outcomes += [judge(pair, method, peer) for method, peer in (ask or ask_peers)(pair)]
    return outcomes


def batches_by_case(pairs: Iterable[BenchPair], batch_size: int) -> Iterator[list[BenchPair]]:
    """Group pairs such that a batch is of one case: its cost is that case's."""
    waiting: dict[str, list[BenchPair]] = {}
    for pair in pairs:
        batch = waiting.setdefault(pair.case, [])
        batch.append(pair)
        if len(batch) == batch_size:
            yield waiting.pop(pair.case)
    yield from waiting.values()


def align_batch(batch: list[BenchPair], config: homoalign.AlignConfig) -> list[Answer]:
    """Align pairs by homoalign in one call."""
    return read_answers(*align_timed(batch, config))


def align_timed(
    batch: list[BenchPair], config: homoalign.AlignConfig, *, init: Matrix | None = None
) -> tuple[homoalign.AlignResult, float]:
    """Return homoalign's result of pairs in one call, from one prior (3, 3) or none, and its CPU seconds a pair."""
    inputs = {
        name: torch.from_numpy(np.stack([_channels_first(getattr(pair, name)) for pair in batch]))
        for name in ("src", "dst")
    }
    masks = {
        f"{name}_mask": torch.from_numpy(mask[None].copy())
        for name in ("src", "dst")
        if (mask := getattr(batch[0], f"{name}_mask")) is not None
    }
    start = time.process_time()
    result = homoalign.align(
        inputs["src"],
        inputs["dst"],
        src_mask=masks.get("src_mask"),
        dst_mask=masks.get("dst_mask"),
        init=init,
        config=config,
    )
    return result, (time.process_time() - start) / len(batch)


def read_answers(result: homoalign.AlignResult, cpu_s: float) -> list[Answer]:
    """Return each pair's answer of a batch's result, and what it cost."""
    matrices = result.dst_homo_src.numpy()
    return [
        Answer(
            matrices[i] if np.isfinite(matrices[i]).all() else None,
            {
                "cpu_s": cpu_s,
                "status": str(result.status[i]),
                "status_detail": result.status_detail[i],
                "confidence": float(result.confidence[i]),
                "initialisation": None if result.initialisation[i] is None else str(result.initialisation[i]),
            },
        )
        for i in range(len(matrices))
    ]


def ask_peers(pair: BenchPair) -> Iterator[tuple[str, Answer]]:
    """Align one pair by each peer. What refines another's matrix is charged for both."""
    src, dst = as_rgb(pair.src), as_rgb(pair.dst)

    def timed(call: Callable[[], Matrix | None]) -> Answer:
        start = time.process_time()
        return Answer(call(), {"cpu_s": time.process_time() - start})

    yield ECC, timed(lambda: peers.ecc_multi_scale(src, dst))
    matched = timed(lambda: peers.sift_magsac(src, dst))
    yield SIFT, matched
    start = matched.matrix
    refined = Answer(None, {"cpu_s": 0.0}) if start is None else timed(lambda: peers.ecc_from(src, dst, start))
    matrix = matched.matrix if refined.matrix is None else refined.matrix
    yield SIFT_ECC, Answer(matrix, {"cpu_s": matched.fields["cpu_s"] + refined.fields["cpu_s"]})


def judge(pair: BenchPair, method: str, answer: Answer) -> Outcome:
    """Measure an answer against the pair's truth."""
    error, landmark = math.inf, math.nan
    if answer.matrix is not None:
        error = mean_distance_px(answer.matrix, pair)
    if pair.landmarks is not None:
        landmark = math.inf
        if answer.matrix is not None:
            distance = np.linalg.norm(warp_points(answer.matrix, pair.landmarks[0]) - pair.landmarks[1], axis=1)
            landmark = float(np.median(np.where(np.isfinite(distance), distance, np.inf)))
    return Outcome(
        method=method,
        case=pair.case,
        number=pair.number,
        name=pair.name,
        error_px=error,
        at_480=480 / min(pair.dst.shape[:2]),
        bound_px=pair.bound_px,
        landmark_px=landmark,
        **answer.fields,
    )


def mean_distance_px(dst_homo_src: Matrix, pair: BenchPair) -> float:
    """Return the mean corner error, dst pixels; infinite where a corner falls behind the horizon."""
    return corner_distance_px(dst_homo_src, pair.dst_homo_src, size_of(pair.src))


def corner_distance_px(dst_homo_src: Matrix, truth: Matrix, src_size: Size) -> float:
    """Return the mean distance of src's corners under two matrices, dst pixels; infinite behind the horizon."""
    corners = corner_points(src_size)
    difference = warp_points(dst_homo_src, corners) - warp_points(truth, corners)
    error = float(np.linalg.norm(difference, axis=1).mean())
    return error if math.isfinite(error) else math.inf


def size_of(image: npt.NDArray[Any]) -> tuple[int, int]:
    """Return height, width."""
    return image.shape[0], image.shape[1]


def _channels_first(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))


def as_rgb(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8, which peers take: deeper integers by their full scale, floats by their own range."""
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if np.issubdtype(image.dtype, np.integer):
            low, high = 0.0, float(np.iinfo(image.dtype).max)
        image = np.rint((image.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image)

"""From the cheapest start to the dearest: each is tried only where no answer before was good enough (`goodness`).

    prior or identity -> exhaustive search -> local features

Wherever the blocks of the overlap all point elsewhere, that is tried before the next, dearer one. In the end answers
are held against what rivals them (`weighing.py`).

B pairs, K hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from homoalign.cascade.attempt import Batch, Signal, attempt, structure_score
from homoalign.cascade.settled import WRECK, goodness_of, is_settled, names_of
from homoalign.cascade.weighing import weigh_rivals
from homoalign.differences.explained import explained_share, explains_more
from homoalign.homography import corner_errors, image_size
from homoalign.levels.noise import UNEXPLAINED
from homoalign.levels.zoom import zoom_octave
from homoalign.optimisation.residual import Alignment
from homoalign.result import AlignResult
from homoalign.starts.features import match_features
from homoalign.starts.hypotheses import SAME_CORNERS, UPRIGHT_STAGES, Hypotheses, refine
from homoalign.starts.search import search_similarities, search_upright
from homoalign.status import Initialisation, StopReason
from homoalign.trust.evidence import Evidence
from homoalign.trust.goodness import GOOD_ENOUGH

SIGNALS: dict[str, tuple[Signal, ...]] = {
    "auto": ("intensity", "structure"),
    "intensity": ("intensity",),
    "structure": ("structure",),
}
"""What is compared, in turn, for each `AlignConfig.signal`."""

STANDING = 0.25
"""From this score on an answer is refined on structure before any other start is tried."""

LEAST_GAIN: dict[Signal, float] = {"intensity": 0.02, "structure": 0.04}
"""An answer replaces the one before where its structure agrees better by more than noise makes it do."""

POINTS_ELSEWHERE = 2.0
"""Blocks that would move the corners by more than so many standard deviations are followed."""

SEARCHED, SEARCHED_UPRIGHT = 200, 8
"""Hypotheses a pair that the search hands on, and that of shifts alone."""


def run_cascade(batch: Batch, start: Tensor, initialisation: list[Initialisation]) -> AlignResult:
    """Align pairs from wherever it takes.

    Args:
        batch: the pairs.
        start: (B, 3, 3) float64 priors and identities, full-size pixels.
        initialisation: which of the two each is.
    """
    config = batch.config
    on_structure = config.signal == "structure"
    signal: Signal = "structure" if on_structure else "intensity"
    result = attempt(batch, start, initialisation, is_near=on_structure, signal=signal)
    if config.solver == "adam":  # the tutorial knows no other start
        return result
    result = _go_on(batch, _rematch(batch, result, start, signal), signal)
    tried: list[tuple[Initialisation, Hypotheses]] = []
    if not bool(is_settled(result, config).all()):  # most batches are
        result, tried = _try_more(batch, result, start, initialisation, signal)
    return weigh_rivals(batch, result, tried, signal)


def _try_more(
    batch: Batch, result: AlignResult, start: Tensor, initialisation: list[Initialisation], signal: Signal
) -> tuple[AlignResult, list[tuple[Initialisation, Hypotheses]]]:
    """Try what is left to try for pairs that are not settled yet.

    Args:
        batch: the pairs.
        result: their answers so far.
        start: (B, 3, 3), where they started.
        initialisation: what that was.
        signal: what is compared first.

    Returns:
        The answers, and where else they might have started, by what proposed it.
    """
    config = batch.config
    if config.signal == "auto":
        result = _stay(batch, result)
    result = _follow_blocks(batch, result)
    tried: list[tuple[Initialisation, Hypotheses]] = []
    steps: list[tuple[bool, Initialisation | None, Callable[[Batch, Tensor, AlignResult], Hypotheses]]] = [
        (config.use_search, Initialisation.SEARCH, _search),
        (config.use_search, None, _refine_start),
        (config.use_search, Initialisation.SEARCH, _search_upright),
        (config.use_features and config.model == "homography", Initialisation.FEATURES, _match),
    ]
    for is_wanted, name, propose in steps:
        doubtful = _indices(~is_settled(result, batch.config))
        if is_wanted and len(doubtful) > 0:
            part = batch.select(doubtful)
            before = result.select(doubtful)
            proposed = propose(part, start[doubtful.to(start.device)], before)
            names = [name or initialisation[i] for i in doubtful.tolist()]
            if name is not None:
                tried.append((name, replace(proposed, pair=doubtful.to(proposed.pair.device)[proposed.pair])))
            after = _escalate(part, before, names, proposed)
            is_new = (after.dst_homo_src != before.dst_homo_src).any(-1).any(-1)
            after = _go_on(part, _follow_blocks(part, after, among=is_new), signal)
            # From its start a pair may look better than it is, by the edges of a cover: only what is good will do.
            kept = _indices(is_settled(after, config)) if name is None else torch.arange(len(doubtful))
            result = result.put(doubtful[kept], after.select(kept))
    return result, tried


def _indices(chosen: Tensor) -> Tensor:
    """Return the indices (int64) at which `chosen` (B,) holds."""
    return torch.nonzero(chosen)[:, 0]


def _rematch(batch: Batch, result: AlignResult, start: Tensor, signal: Signal) -> AlignResult:
    """Solve anew, on levels of like pitch, what turned out to be a zoom on the way."""
    src_size = image_size(batch.src[0].image)
    octave = zoom_octave(result.dst_homo_src, src_size)
    is_zoom = octave != zoom_octave(start.cpu(), src_size)
    if not bool(is_zoom.any()):
        return result
    index = _indices(is_zoom & (goodness_of(result) >= GOOD_ENOUGH))
    if len(index) == 0:
        return result
    part = batch.select(index)
    names = names_of(result, index)
    after = attempt(part, result.dst_homo_src[index].to(start.device), names, is_near=True, signal=signal)
    chosen = _indices(is_settled(after, batch.config))
    return result.put(index[chosen], after.select(chosen))


def _go_on(batch: Batch, result: AlignResult, signal: Signal) -> AlignResult:
    """Solve what is good enough, but ran out of steps, from where it ended."""
    ran_out = torch.tensor([reason == StopReason.MAX_ITERATIONS for reason in result.stop_reason])
    if not bool(ran_out.any()):
        return result
    index = _indices(ran_out & (goodness_of(result) >= GOOD_ENOUGH))
    if len(index) == 0:
        return result
    return _attempt_better(batch, result, index, result.dst_homo_src[index], names_of(result, index), signal)


def _stay(batch: Batch, result: AlignResult) -> AlignResult:
    """Solve on structure what stands but does not look alike: another sensor, other light, something in the way."""
    doubtful = _indices(~is_settled(result, batch.config))
    if len(doubtful) == 0:
        return result
    standing = _score(batch.select(doubtful), result.select(doubtful)) >= STANDING
    index = doubtful[standing.cpu()]
    if len(index) == 0:
        return result
    return _attempt_better(batch, result, index, result.dst_homo_src[index], names_of(result, index), "structure")


def _follow_blocks(batch: Batch, result: AlignResult, among: Tensor | None = None) -> AlignResult:
    """Start anew from where the blocks of the overlap would have src lie, where these are sure that it lies wrong.

    Only for `model=homography`: what the blocks ask for is one.

    Args:
        batch: the pairs.
        result: their answers.
        among: (B,) bool, the pairs that may be tried; None: all.
    """
    if batch.config.model != "homography":
        return result
    evidence = Evidence.of_table(result.evidence)
    is_sure = evidence.drift_480 > POINTS_ELSEWHERE * evidence.drift_std_480  # NaN: nobody asked the blocks
    known = result.second_opinion.isfinite().flatten(1).all(-1)
    index = _indices(is_sure & known & ~is_settled(result, batch.config) & (True if among is None else among))
    if len(index) == 0:
        return result
    signal = SIGNALS[batch.config.signal][-1]
    return _attempt_better(batch, result, index, result.second_opinion[index], names_of(result, index), signal)


def _escalate(batch: Batch, result: AlignResult, names: list[Initialisation], proposed: Hypotheses) -> AlignResult:
    """Try other starts, first on intensities, which are more precise, then on structure, which asks for less.

    Args:
        batch: the pairs.
        result: their answers so far.
        names: what each pair's start is called.
        proposed: the starts.
    """
    if len(proposed.pair) == 0:
        return result
    members, first = _first_of_each(proposed.pair)
    start, members = proposed.dst_homo_src[first].cpu(), members.cpu()
    for signal in SIGNALS[batch.config.signal]:
        open_ = _indices(~is_settled(result, batch.config)[members])
        if len(open_) == 0:
            break
        of_open = [names[i] for i in members[open_].tolist()]
        result = _attempt_better(batch, result, members[open_], start[open_], of_open, signal)
    return result


def _attempt_better(
    batch: Batch, result: AlignResult, index: Tensor, start: Tensor, names: list[Initialisation], signal: Signal
) -> AlignResult:
    """Attempt the pairs that `index` names from near, and keep the new answers whose structure agrees better."""
    part = batch.select(index)
    after = attempt(part, start.to(part.src[0].image.device), names, is_near=True, signal=signal)
    before = result.select(index)
    gain = (_score(part, after) - _score(part, before)).cpu()
    good, good_before = goodness_of(after), goodness_of(before)
    # Repeats may look a hair better: that alone does not leave a prior.
    starts = zip(before.initialisation, names, strict=True)
    leaves_prior = torch.tensor([start == Initialisation.PRIOR and name != start for start, name in starts])
    better = (gain > LEAST_GAIN[signal]) | ((gain > 0) & (good > good_before) & ~leaves_prior)
    # A wreck may agree better, on the little that it shows.
    better |= (good >= GOOD_ENOUGH) & (good_before < WRECK)
    share, share_before = _explained(part, after), _explained(part, before)
    better |= explains_more(share, share_before)
    better &= ~explains_more(share_before, share)
    chosen = _indices(better)
    return result.put(index[chosen], after.select(chosen))


def _explained(batch: Batch, result: AlignResult) -> Tensor:
    """Return (B,) on the CPU, the share of dst that answers explain; 0 where they leave more than noise."""
    device = batch.src[0].image.device
    answer = Alignment(*(values.to(device) for values in (result.dst_homo_src, result.gain, result.bias)))
    share = explained_share(batch.src, batch.dst, answer).cpu()
    return torch.where(Evidence.of_table(result.evidence).unexplained < UNEXPLAINED, share, 0.0)


def _first_of_each(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of (K,) sorted `pair`, and where each appears first."""
    members, count = torch.unique_consecutive(pair, return_counts=True)
    return members, count.cumsum(0) - count


def _score(batch: Batch, result: AlignResult) -> Tensor:
    return structure_score(batch, result.dst_homo_src.to(batch.src[0].image.device))


def _search(batch: Batch, _: Tensor, __: AlignResult) -> Hypotheses:
    """Search every pair, and refine what is found."""
    found = _of_each(batch, lambda one: search_similarities(one.src, one.dst, batch.config, keep=SEARCHED))
    return refine(batch.src, batch.dst, found, batch.config)


def _search_upright(batch: Batch, _: Tensor, result: AlignResult) -> Hypotheses:
    """Search every pair for the shifts of neighbouring tiles, and refine what is found where no answer lies yet."""
    found = _of_each(batch, lambda one: search_upright(one.src, one.dst, keep=SEARCHED_UPRIGHT))
    found = refine(batch.src, batch.dst, found, batch.config, UPRIGHT_STAGES)
    answer = result.dst_homo_src.to(found.pair.device)[found.pair]
    src_size, dst_size = (image_size(pyramid[0].image) for pyramid in (batch.src, batch.dst))
    apart_px = corner_errors(found.dst_homo_src, answer, *src_size).mean(-1)
    return found.select(_indices(~(apart_px < SAME_CORNERS * math.sqrt(math.prod(dst_size)))))


def _of_each(batch: Batch, search: Callable[[Batch], tuple[Tensor, Tensor]]) -> Hypotheses:
    """Return what a search finds for each pair, one at a time: the maps of many would take gigabytes."""
    found = [search(batch.select(torch.tensor([i]))) for i in range(len(batch.src[0].image))]
    matrix, score = (torch.cat([of_pair[0] for of_pair in parts]) for parts in zip(*found, strict=True))
    count = torch.tensor([score.shape[1] for _, score in found], device=matrix.device)
    pair = torch.arange(len(found), device=matrix.device).repeat_interleave(count)
    return Hypotheses(pair, matrix, score)


def _refine_start(batch: Batch, start: Tensor, _: AlignResult) -> Hypotheses:
    """Refine the start itself on structure: light may have led intensities away from it."""
    pair = torch.arange(len(start), device=start.device)
    return refine(batch.src, batch.dst, Hypotheses(pair, start, torch.ones_like(start[:, 0, 0])), batch.config)


def _match(batch: Batch, _: Tensor, __: AlignResult) -> Hypotheses:
    """Match features, for the pairs where any do; coarse levels have nothing to add to what they say."""
    matrix = match_features(batch.src, batch.dst)
    pair = torch.nonzero(matrix.isfinite().flatten(1).all(-1))[:, 0]
    return Hypotheses(pair, matrix[pair], torch.ones(len(pair), dtype=torch.float64, device=matrix.device))

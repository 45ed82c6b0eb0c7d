"""From the cheapest start to the dearest: each is tried only on the pairs that the ones before left in doubt.

    prior or identity -> exhaustive search -> local features

B pairs, K hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from homoalign import hypotheses
from homoalign.attempt import Batch, attempt
from homoalign.features import match_features
from homoalign.hypotheses import Hypotheses
from homoalign.result import AlignResult
from homoalign.search import search_similarities
from homoalign.status import Initialisation, Status

AGREEMENT_SIDE_PX = 256
"""Answers from unlike starts are compared on levels of about this side."""

SEARCHED = 200
"""Hypotheses a pair that the search hands on."""


def run_cascade(batch: Batch, start: Tensor, initialisation: list[Initialisation]) -> AlignResult:
    """Align pairs from wherever it takes.

    Args:
        batch: the pairs.
        start: (B, 3, 3) float64 priors and identities, full-size pixels.
        initialisation: which of the two each is.
    """
    result = attempt(batch, start, initialisation, is_near=False)
    config = batch.config
    if config.solver == "adam":  # the tutorial knows no other start
        return result
    steps: list[tuple[bool, Initialisation, Callable[[Batch], Hypotheses]]] = [
        (config.use_search, Initialisation.SEARCH, _search),
        (config.use_features, Initialisation.FEATURES, _match),
    ]
    for is_wanted, name, propose in steps:
        doubtful = torch.tensor([i for i, status in enumerate(result.status) if status != Status.OK], dtype=torch.int64)
        if is_wanted and len(doubtful) > 0:
            result = result.put(doubtful, _escalate(batch.select(doubtful), result.select(doubtful), name, propose))
    return result


def _escalate(
    batch: Batch, result: AlignResult, name: Initialisation, propose: Callable[[Batch], Hypotheses]
) -> AlignResult:
    """Try other starts, and keep for each pair whichever answer lies better."""
    proposed = propose(batch)
    if len(proposed.pair) == 0:
        return result
    refined = hypotheses.refine(batch.src, batch.dst, proposed, batch.config)
    members, first = _first_of_each(refined.pair)
    members = members.cpu()
    batch, before = batch.select(members), result.select(members)
    after = attempt(batch, refined.dst_homo_src[first], [name] * len(members), is_near=True)
    better = torch.nonzero(_agreement(batch, after) > _agreement(batch, before))[:, 0].cpu()
    return result.put(members[better], after.select(better))


def _first_of_each(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of (K,) sorted `pair`, and where each appears first."""
    members, count = pair.unique_consecutive(return_counts=True)
    return members, count.cumsum(0) - count


def _agreement(batch: Batch, result: AlignResult) -> Tensor:
    """Return (B,) how well the structure of both images agrees under each result."""
    matrix = result.dst_homo_src.to(batch.src[0].image.device)
    pair = torch.arange(len(matrix), device=matrix.device)
    found = Hypotheses(pair, matrix, torch.zeros_like(matrix[:, 0, 0]))
    return hypotheses.agreement(batch.src, batch.dst, found, side_px=AGREEMENT_SIDE_PX, config=batch.config)


def _search(batch: Batch) -> Hypotheses:
    """Return the search's best, `SEARCHED` a pair."""
    found, scores = [], []
    for i in range(len(batch.src[0].image)):
        index = torch.tensor([i])
        one = batch.select(index)
        matrix, score = search_similarities(one.src, one.dst, batch.config, keep=SEARCHED)
        found.append(matrix[0])
        scores.append(score[0])
    pair = torch.arange(len(found), device=found[0].device).repeat_interleave(
        torch.tensor([len(matrix) for matrix in found], device=found[0].device)
    )
    return Hypotheses(pair, torch.cat(found), torch.cat(scores))


def _match(batch: Batch) -> Hypotheses:
    """Return what matched features say, for the pairs where they say anything."""
    matrix = match_features(batch.src, batch.dst)
    pair = torch.nonzero(matrix.isfinite().flatten(1).all(-1))[:, 0]
    return Hypotheses(pair, matrix[pair], torch.ones(len(pair), dtype=torch.float64, device=matrix.device))

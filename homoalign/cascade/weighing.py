"""Answers beside what rivals them: better ones are followed, those that an equal one rivals are doubted.

B pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from homoalign.cascade.attempt import Batch, Signal, attempt
from homoalign.cascade.elsewhere import refine_shifted, shift_answers
from homoalign.cascade.rivals import doubt_rivalled, strongest_rival
from homoalign.cascade.settled import WRECK, goodness_of, is_settled, names_of
from homoalign.result import AlignResult
from homoalign.starts.hypotheses import Hypotheses
from homoalign.status import Initialisation
from homoalign.trust.evidence import Evidence
from homoalign.trust.footprint import is_template
from homoalign.trust.goodness import rivalry

LOOKS_BETTER = 1.05
"""A start under which the images correlate so many times as well as under the answer is followed: the search prefers
much that agrees a little to little that agrees fully."""

RIVALLED = 0.55
"""Answers with a rival of at least this strength are looked at as they lie elsewhere."""

SHIFTED = 6
"""Shifts of an answer that are looked at."""


def weigh_rivals(
    batch: Batch, result: AlignResult, tried: list[tuple[Initialisation, Hypotheses]], signal: Signal
) -> AlignResult:
    """Follow the other starts that look better than the answers, and doubt the answers that others still rival.

    Args:
        batch: the pairs.
        result: their answers.
        tried: where else they might have started, by what proposed it.
        signal: what is compared on the way.
    """
    shifted = _shift(batch, result)
    found = Hypotheses.concatenate([*(each for _, each in tried), shifted])
    if len(found.pair) == 0:
        return result
    names = [name for name, each in tried for _ in range(len(each.pair))] + names_of(result, shifted.pair.cpu())
    searched, pair = torch.unique(found.pair, return_inverse=True)
    found, searched = replace(found, pair=pair), searched.cpu()
    part, answers = batch.select(searched), result.select(searched)
    rival, best = strongest_rival(part.src, part.dst, answers.dst_homo_src, found)
    index = torch.nonzero(rival.cpu() > LOOKS_BETTER)[:, 0]
    if len(index) > 0:
        best = best[index.to(best.device)]
        start, of_best = found.dst_homo_src[best], [names[i] for i in best.tolist()]
        followed = part.select(index)
        after = attempt(followed, start, of_best, is_near=True, signal=signal)
        is_better = goodness_of(after) > goodness_of(answers.select(index))
        chosen = torch.nonzero(is_settled(after, batch.config) & is_better)[:, 0]
        answers = answers.put(index[chosen], after.select(chosen))
        rival, _ = strongest_rival(part.src, part.dst, answers.dst_homo_src, found)
    return result.put(searched, doubt_rivalled(answers, rival, batch.config))


def _shift(batch: Batch, result: AlignResult) -> Hypotheses:
    """Return the answers that may lie on a repeat: shifted, then refined, as perspective asks for."""
    evidence = Evidence.of_table(result.evidence)
    is_rivalled = rivalry(evidence) > RIVALLED
    index = torch.nonzero(is_rivalled & (goodness_of(result) > WRECK))[:, 0]
    device = batch.src[0].image.device
    if len(index) == 0:
        return Hypotheses.none(device)
    part = batch.select(index)
    answer = result.dst_homo_src[index].to(device)
    found = shift_answers(part.src, part.dst, answer, SHIFTED, is_template(evidence)[index])
    if len(found.pair) > 0:
        found = refine_shifted(part.src, part.dst, found, batch.config)
    return replace(found, pair=index.to(device)[found.pair])

"""The table of the benchmarks that change pairs in several ways and compare each way with one of them."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.bench.measure import show
from jobs.bench.methods import Outcome
from jobs.bench.options import BenchOptions, RenderOptions
from jobs.bench.score import as_json, precision_figures, ratio_to_case, rows_by_case


def show_against(
    case: str,
    outcomes: Sequence[Outcome],
    *,
    title: str,
    column: str,
    caption: tuple[str, str],
    render: RenderOptions,
    options: BenchOptions,
) -> None:
    """Print, and write where that is asked for, the figures of each case and its error over that in `case`.

    Args:
        case: what the others are compared with.
        outcomes: of every case.
        title: of the table.
        column: what tells the cases apart.
        caption: what the bound is, and what the pairs of `case` are.
        render: what the pairs were drawn from.
        options: where to write.
    """
    ratio, (bound, reference) = ratio_to_case(outcomes, case), caption
    show(
        title,
        rows_by_case(outcomes, column, lambda found: {**precision_figures(found), f"/ {case}": ratio(found)}),
        caption=f"Medians over pairs; a pair that failed counts as infinite. {bound} / {case}: over the error of the "
        f"same method and pair {reference}.",
        json_path=options.json_path,
        more={"seed": render.seed, "outcomes": as_json(outcomes)},
    )

"""summary.json, and `homoalign status`: both from tallies, never from rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from jobs.errors import ManifestInvalid
from jobs.manifests.plan import Plan, versions
from jobs.results.output import Output
from jobs.results.tally import Tally
from jobs.storage.errors import redact
from jobs.storage.lock import LOCK_NAME, is_dead, read_owner


class Reason(StrEnum):
    """Why a run ended."""

    DONE = "done"
    INTERRUPTED = "interrupted"
    ERROR_RATE = "error_rate"
    SHARDS_UNFINISHED = "shards_unfinished"
    FAILED = "failed"


@dataclass(slots=True)
class RunState:
    """How far a run is: one tally for the parts there are, and what this attempt did."""

    plan: Plan
    tally: Tally = field(default_factory=Tally)
    done: set[int] = field(default_factory=set)
    """Shards that have their part."""
    to_retry: list[int] = field(default_factory=list)
    """Those of them that hold rows to try again."""
    rows_aligned: int = 0
    """By this attempt."""
    losses: Counter[int] = field(default_factory=Counter)
    """How often the worker of a shard was lost."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that could not be finished, each with the reason."""
    is_new: bool = True
    """Whether OUT holds no such plan yet."""
    is_begun: bool = False
    """Whether this attempt has changed OUT."""
    device: str = ""
    num_workers: int = 0
    started: float = field(default_factory=time.time)

    @property
    def is_complete(self) -> bool:
        """Return whether every shard has its part."""
        return len(self.done) == self.plan.num_shards

    def add_parts(self, tallies: Iterable[tuple[int, Tally]], retry: frozenset[str]) -> None:
        """Count parts that are there already."""
        for shard, tally in tallies:
            self.tally.merge(tally)
            self.done.add(shard)
            if any(tally.counts[status] for status in retry):
                self.to_retry.append(shard)

    def add_shard(self, shard: int, tally: Tally, replaced: Tally | None, retry: frozenset[str]) -> None:
        """Count a part that this attempt made."""
        if replaced is None:
            self.rows_aligned += tally.rows
        else:
            self.rows_aligned += sum(replaced.counts[status] for status in retry)
            self.tally.subtract(replaced)
        self.tally.merge(tally)
        self.done.add(shard)


def describe(plan: Plan, tally: Tally, shards_done: int) -> dict[str, Any]:
    """Return what `summary.json` and `status --json` share."""
    return {
        "fingerprint": plan.fingerprint,
        "rows": plan.rows,
        "rows_done": tally.rows,
        "shards": plan.num_shards,
        "shards_done": shards_done,
        "counts": dict(sorted(tally.counts.items(), key=lambda item: (-item[1], item[0]))),
        "error_rate": round(tally.error_rate, 6),
        "percentiles": {
            name: {key: float(f"{value:.4g}") for key, value in found.items()}
            for name, found in tally.percentiles().items()
        },
        "errors": [
            {"kind": kind, "count": count, "example": example} for kind, (count, example) in tally.frequent_errors()
        ],
        "timings": {name: round(value, 3) for name, value in sorted(tally.timings.items())},
    }


def build_summary(state: RunState, reason: Reason) -> dict[str, Any]:
    """Return what `summary.json` holds."""
    ended = time.time()
    wall_s = max(ended - state.started, 1e-9)
    return {
        "reason": reason.value,
        **describe(state.plan, state.tally, len(state.done)),
        "shards_failed": [
            {"shard": shard, "reason": redact(text)} for shard, text in sorted(state.failed.items())[:100]
        ],
        "num_shards_failed": len(state.failed),
        "workers_lost": state.losses.total(),
        "started": datetime.fromtimestamp(state.started, UTC).isoformat(timespec="seconds"),
        "ended": datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),
        "rows_aligned": state.rows_aligned,
        "pairs_per_second": round(state.rows_aligned / wall_s, 3),
        "device": state.device,
        "num_workers": state.num_workers,
        "versions": versions(),
    }


def read_status(output: Output) -> dict[str, Any]:
    """Return how far the run in OUT is, from its files alone.

    Raises:
        ManifestInvalid: OUT holds no run.
        PlanChanged: OUT holds parts of several plans.
    """
    plan = output.read_plan()
    if plan is None:
        raise ManifestInvalid(f"{output.url} holds no run: there is no plan.json")
    state = RunState(plan=plan)
    state.add_parts(output.tallies(plan, output.part_numbers()), frozenset())
    holder = read_owner(output.store, f"{output.url}/{LOCK_NAME}")
    summary = output.read_summary()
    return {
        "state": _state(
            is_done=state.is_complete and output.is_success(), is_running=holder is not None and not is_dead(holder)
        ),
        **describe(plan, state.tally, len(state.done)),
        "lock": None if holder is None else f"{'dead: ' if is_dead(holder) else ''}{holder.text()}",
        "unfinished_shards": _some(shard for shard in range(plan.num_shards) if shard not in state.done),
        "last_end": None if summary is None else summary.get("reason"),
        "pairs_per_second": None if summary is None else summary.get("pairs_per_second"),
    }


def _state(*, is_done: bool, is_running: bool) -> str:
    if is_running:
        return "running"
    return "done" if is_done else "unfinished"


def _some(numbers: Iterable[int], most: int = 20) -> Sequence[int]:
    return [number for number, _ in zip(numbers, range(most), strict=False)]

"""A shard whose worker was lost: find the rows that did it, and save all others.

    the shard in a child process -> it dies or hangs -> the rows it worked on, one at a time, in children
      -> a row that ends its child, and again when it is alone in one, is `crashed` or `timed_out`
      -> the shard again, without that row

Where a child is lost between two rows, the row that ended last is suspected: harm shows late. A row that a child gave
up for its time keeps that result, and is in no further child: its thread may do the harm.

A row is judged by what it does to a child whose parent lives on: a machine that goes away takes both, and no row is
blamed. The rows that remain are aligned in the batches of a shard without the culprits, so that their bits depend on
which rows these are, not on when something died. Only where even that is not got through, as where memory does not
suffice for a batch, are rows aligned one by one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pyarrow as pa

from homoalign.status import Status
from jobs.results.rows import Row
from jobs.worker.child import Finished, Lost
from jobs.worker.shard import ShardTask

ROUNDS = 3
"""Times that only the rows that were worked on are suspected; then all are."""
MAX_LOST_EARLY = 3
"""Children that may be lost before they work on any row; one more, and it is not the rows."""

RunChild = Callable[[ShardTask], Finished | Lost]


class ChildLost(Exception):
    """Child processes are lost whatever rows they are given."""


def align_isolated(task: ShardTask, run_child: RunChild) -> tuple[pa.Table, Mapping[str, float]]:
    """Return a shard's result table and what it took, like `align_rows`, whatever its rows do.

    Args:
        task: what to do.
        run_child: makes the rows of a task in a process of its own.

    Raises:
        ChildLost: children are lost without any row to blame.
    """
    every = range(sum(segment.stop - segment.start for segment in task.segments))
    for attempt in range(ROUNDS + 1):
        end = run_child(task)
        if isinstance(end, Finished):
            return end.table, end.timings
        task = replace(task, settled={**task.settled, **end.settled})
        suspects = end.suspects if attempt < ROUNDS else every
        found = find_culprits(task, [number for number in suspects if number not in task.settled], run_child)
        task = replace(task, settled={**task.settled, **found})
    end = run_child(task)
    if isinstance(end, Lost):
        end = run_child(_one_by_one(task))
    if isinstance(end, Finished):
        return end.table, end.timings
    raise ChildLost(f"shard {task.index}: {end.how} at rows {list(end.suspects)}, none of which does it alone")


def find_culprits(task: ShardTask, suspects: Iterable[int], run_child: RunChild) -> dict[int, Row]:
    """Return those of the suspected rows, ascending, that end a child when they are alone in it, with their results.

    Likewise those that a child gave up before it was lost: what their threads still do may end the next one.
    """
    found: dict[int, Row] = {}
    losses: Counter[int] = Counter()
    left = deque(suspects)
    while left:
        end = run_child(_one_by_one(task, left))
        if isinstance(end, Finished):
            break
        found.update(end.settled)
        left = deque(number for number in left if number not in end.settled)
        blamed = [number for number in end.suspects if number not in end.settled]
        if end.settled and not blamed:
            continue
        number = blamed[0] if blamed else -1
        losses[number] += 1
        if number < 0:
            if losses[number] > MAX_LOST_EARLY:
                raise ChildLost(f"shard {task.index}: {end.how}, before any row")
            continue
        while left[0] != number:  # those before it went well
            left.popleft()
        if losses[number] > 1:  # the second time it was the first in its child
            found[left.popleft()] = _culprit_row(end)
    return found


def _one_by_one(task: ShardTask, numbers: Iterable[int] | None = None) -> ShardTask:
    """Return the task such that one row is worked on at a time, and of the rows only `numbers`."""
    settled = dict(task.settled)
    if numbers is not None:
        wanted = {*numbers}
        every = range(sum(segment.stop - segment.start for segment in task.segments))
        settled.update({number: {} for number in every if number not in wanted})
    ahead = replace(task.ahead, threads=1, decoders=1, rows=1)
    return replace(task, settled=settled, batching=replace(task.batching, pairs=1), ahead=ahead)


def _culprit_row(end: Lost) -> Row:
    status = Status.TIMED_OUT if end.is_stuck else Status.CRASHED
    return {"status": status.value, "status_detail": f"alone in a process, twice: {end.how}"}

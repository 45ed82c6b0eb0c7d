"""One shard to one part: rows in, exactly one result row for each out, in the manifest's order. Knows nothing of Ray.

    manifest rows -> fetch and decode ahead -> batches of one shape -> align -> rows -> part, published whole

Batches depend on the shard's rows and the batch settings alone, never on which thread was first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from homoalign.config import AlignConfig
from homoalign.errors import PairTimedOut, RowInvalid
from jobs.errors import ManifestInvalid, OutputNotWritable
from jobs.manifests.cells import cells_of, is_not_utf8, with_nulls
from jobs.manifests.manifest import IMAGE_COLUMNS, check_id_text, check_unchanged, read_rows
from jobs.manifests.plan import Segment
from jobs.results.rows import Row, build_table, encode_part, error_row, read_footer, read_part, result_rows
from jobs.results.tally import Tally, tally_rows
from jobs.schema import MANIFEST_COLUMNS, RESULT_COLUMNS
from jobs.storage.errors import FolderBlocked, ObjectDenied, ObjectExists, ObjectMissing, StorageFull, num_retries
from jobs.storage.lock import is_owner
from jobs.storage.store import Store
from jobs.worker.fetch import PairImages, Reader
from jobs.worker.prefetch import Ahead, fetch_in_order
from jobs.worker.watch import Unwatched, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from homoalign.result import AlignResult

ROW_TIMEOUT_S = 600.0

AlignFunction = Callable[..., "AlignResult"]
"""`homoalign.align`, or what a test puts in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How pairs are put together for `align`. Changes speed and memory, not results."""

    pairs: int = 32
    batch_bytes: int = 128 * 2**20
    """A batch is full when its pixels and masks take this much."""
    waiting_bytes: int = 256 * 2**20
    """When all unfilled batches together take more, the largest is aligned as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """All that a worker needs to make one part."""

    index: int
    segments: Sequence[Segment]
    part: str
    """URL the part is published at."""
    fingerprint: str
    schema: pa.Schema
    """The manifest's columns that are read, with their types."""
    config: AlignConfig
    carry: tuple[str, ...]
    trace: bool
    reader: Reader
    out: Store
    batching: Batching = field(default_factory=Batching)
    ahead: Ahead = field(default_factory=Ahead)
    device: str = "cpu"
    retry: frozenset[str] = frozenset()
    """Statuses to try again in the part that exists; empty for a new part."""
    lock: tuple[str, str] | None = None
    """URL of the lock and the owner it must name for the part to be published."""
    attempt: int = 0
    """How many attempts of this run at this shard were lost."""
    settled: Mapping[int, Row] = field(default_factory=dict)
    """Rows, by number, that need not be made any more."""
    row_timeout_s: float = ROW_TIMEOUT_S
    """Time without any sign of progress, for each row that is worked on together, before the worker is ended."""


class RunOver(Exception):
    """The run this shard belongs to no longer holds its lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDone:
    """What a finished shard tells the driver."""

    tally: Tally
    replaced: Tally | None
    """Of the part that stood there before, where rows were tried again."""


MakeRows = Callable[[ShardTask], tuple[pa.Table, Mapping[str, float]]]
"""Takes a task; returns its result table and what it took, as `align_rows` does."""


def run_shard(task: ShardTask, align: AlignFunction | None = None, *, make_rows: MakeRows | None = None) -> ShardDone:
    """Make and publish one part.

    Args:
        task: what to do.
        align: `homoalign.align` unless a test gives another.
        make_rows: what makes the rows; `align_rows`, here and now, unless given.

    Returns:
        What was counted, as it stands in the part's footer.

    Raises:
        RunOver: another run holds the lock.
        OutputNotWritable: storage will not take this part, nor another.
    """
    if task.attempt and (found := _published(task)) is not None:
        return found
    previous = read_part(task.out, task.part) if task.retry else None
    replaced = None if previous is None else Tally.from_metadata(previous.schema.metadata)
    retries_before = num_retries()
    if previous is not None:
        task = replace(task, settled=_rows_kept(previous, task.retry))
    table, timings = (make_rows or partial(align_rows, align=align))(task)
    tally = tally_rows(table, {**timings, "storage_retries": num_retries() - retries_before})
    data = encode_part(
        table, fingerprint=task.fingerprint, shard=task.index, tally=tally, run=_run_of(task), replaced=replaced
    )
    if task.lock is not None and not is_owner(task.out, *task.lock):
        raise RunOver(f"shard {task.index}: the run that asked for it no longer holds {task.lock[0]}")
    return _publish(task, data, ShardDone(tally=tally, replaced=replaced))


def _publish(task: ShardTask, data: bytes, done: ShardDone) -> ShardDone:
    """Publish a part, a new one only where none is: of an attempt and its late predecessor the first counts."""
    try:
        if done.replaced is not None:
            task.out.publish(task.part, data)
            return done
        try:
            task.out.publish(task.part, data, replace=False)
        except ObjectExists:
            if (found := _published(task)) is not None:
                return found
            task.out.publish(task.part, data)  # in place of a damaged one
    except (StorageFull, ObjectDenied, FolderBlocked) as error:
        raise OutputNotWritable(f"OUT cannot be written: {error}") from error
    return done


def _published(task: ShardTask) -> ShardDone | None:
    """Return what an earlier attempt published; None where it has not, or where its part is still to be tried again."""
    try:
        footer = read_footer(task.out, task.part)
    except (ObjectMissing, ValueError):
        return None
    is_ours = footer.fingerprint == task.fingerprint and (not task.retry or footer.run == _run_of(task))
    return ShardDone(tally=footer.tally, replaced=footer.replaced if task.retry else None) if is_ours else None


def _run_of(task: ShardTask) -> str:
    return "" if task.lock is None else task.lock[1]


def _rows_kept(part: pa.Table, retry: frozenset[str]) -> dict[int, Row]:
    """Return the rows of a part that are not tried again, without what never leaves Arrow."""
    names = [column.name for column in RESULT_COLUMNS if column.name in part.column_names and column.name != "pair_id"]
    rows = part.select(names).to_pylist()
    return {number: row for number, row in enumerate(rows) if row["status"] not in retry}


def align_rows(
    task: ShardTask, align: AlignFunction | None = None, watch: Watch | None = None
) -> tuple[pa.Table, Mapping[str, float]]:
    """Return a shard's result table and what it took, in seconds and bytes.

    Args:
        task: what to do.
        align: `homoalign.align`, or what stands for it.
        watch: who looks on.
    """
    if align is None:
        from homoalign import align as align_for_real

        align = align_for_real
    watch = watch or Unwatched()
    started = time.perf_counter()
    timings = dict.fromkeys(("fetch_s", "decode_s", "align_s", "bytes_read"), 0.0)
    kept: list[pa.RecordBatch] = []
    results = dict(task.settled)
    batcher = Batcher(task.batching)
    to_fetch = ((number, row) for number, row in _read(task, kept) if number not in task.settled)
    for number, fetched in fetch_in_order(to_fetch, task.reader, task.ahead, watch):
        for name in ("fetch_s", "decode_s", "bytes_read"):
            timings[name] += getattr(fetched, name)
        if fetched.error is not None:
            results[number] = error_row(fetched.error, fetched.src_size, fetched.dst_size)
            if isinstance(fetched.error, PairTimedOut):
                watch.settle(number, results[number])
        elif fetched.images is not None:
            for batch in batcher.add(number, fetched.images):
                _align_batch(batch, task, align, results, timings, watch)
    for batch in batcher.drain():
        _align_batch(batch, task, align, results, timings, watch)
    table = pa.Table.from_batches(kept, pa.schema([task.schema.field(name) for name in _names_kept(task)]))
    if sorted(results) != list(range(table.num_rows)):
        raise AssertionError(f"shard {task.index}: {len(results)} results for {table.num_rows} rows")
    rows = [results[number] for number in range(table.num_rows)]
    timings["wall_s"] = time.perf_counter() - started
    return build_table(rows, table, carry=task.carry, trace=task.trace), timings


def _read(task: ShardTask, kept: list[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the shard's rows, numbered from 0; `kept` gets their ids and carried columns."""
    inputs = [column.name for column in MANIFEST_COLUMNS if column.name in task.schema.names]
    names = _names_kept(task)
    number = 0
    for segment in task.segments:
        first = number - segment.start
        for batch in _batches(task, segment):
            check_id_text(batch["pair_id"], segment.file, number - first)
            spoilt = {name: is_not_utf8(batch[name]) for name in task.carry}
            kept.append(with_nulls(batch.select(names), spoilt))
            inputs_only = batch.select(inputs)
            for index in range(batch.num_rows):
                no_text = {
                    name: RowInvalid(f"{name} holds text that is not UTF-8") for name in spoilt if spoilt[name][index]
                }
                yield number, {**no_text, **cells_of(inputs_only.slice(index, 1))}
                number += 1


def _batches(task: ShardTask, segment: Segment) -> Iterator[pa.RecordBatch]:
    store, file = task.reader.store, segment.file
    has_files_in_cells = any(_holds_bytes(field.type) for field in task.schema if field.name in IMAGE_COLUMNS)
    batch_rows = 8 if has_files_in_cells else 256
    check_unchanged(store, file)
    try:
        yield from read_rows(store, file, segment.start, segment.stop, task.schema, batch_rows=batch_rows)
    except ManifestInvalid:
        check_unchanged(store, file)  # which would be the reason
        raise


def _names_kept(task: ShardTask) -> list[str]:
    """Return the columns that stay in Arrow: the id, what is carried, and the truth, to say which rows have one."""
    truth = ["dst_homo_src_gt"] if "dst_homo_src_gt" in task.schema.names else []
    return list(dict.fromkeys(["pair_id", *task.carry, *truth]))


def _holds_bytes(kind: pa.DataType) -> bool:
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)) and (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
    )


@dataclass(slots=True)
class _Batch:
    """Pairs of one shape that wait for alignment."""

    numbers: list[int] = field(default_factory=list)
    pairs: list[PairImages] = field(default_factory=list)
    nbytes: int = 0


class Batcher:
    """Puts pairs of the same shapes, depths and masks together, in the rows' order."""

    def __init__(self, batching: Batching) -> None:
        self.batching = batching
        self.open: dict[tuple[object, ...], _Batch] = {}

    def add(self, number: int, images: PairImages) -> Iterator[_Batch]:
        """Take a pair; yield the batches that are full by it."""
        key = tuple(
            None if array is None else (array.shape, array.dtype.str)
            for array in (images.src, images.dst, images.src_mask, images.dst_mask)
        )
        batch = self.open.setdefault(key, _Batch())
        batch.numbers.append(number)
        batch.pairs.append(images)
        batch.nbytes += images.nbytes
        if len(batch.pairs) >= self.batching.pairs or batch.nbytes >= self.batching.batch_bytes:
            yield self.open.pop(key)
        while sum(batch.nbytes for batch in self.open.values()) > self.batching.waiting_bytes:
            yield self.open.pop(max(self.open, key=lambda key: self.open[key].nbytes))

    def drain(self) -> Iterator[_Batch]:
        """Yield what is left, oldest first."""
        while self.open:
            yield self.open.pop(next(iter(self.open)))


def _align_batch(
    batch: _Batch,
    task: ShardTask,
    align: AlignFunction,
    results: dict[int, Row],
    timings: dict[str, float],
    watch: Watch,
) -> None:
    """Align a batch, put its rows into `results`, and let its pixels go."""
    started = time.perf_counter()
    watch.begin(batch.numbers)
    rows = align_pairs(batch.pairs, align, config=task.config, device=task.device, trace=task.trace)
    watch.end(batch.numbers)
    results.update(zip(batch.numbers, rows, strict=True))
    timings["align_s"] += time.perf_counter() - started


def align_pairs(
    pairs: list[PairImages], align: AlignFunction, *, config: AlignConfig, device: str, trace: bool
) -> list[Row]:
    """Return a result row for each pair of one batch.

    Args:
        pairs: of equal shapes, depths and masks. Emptied, so that their pixels do not wait for the alignment's end.
        align: `homoalign.align`, or what stands for it.
        config: what changes the answer.
        device: where to align.
        trace: fill `levels`.
    """
    src_size, dst_size = pairs[0].src.shape[:2], pairs[0].dst.shape[:2]
    src, dst = (_images([getattr(pair, side) for pair in pairs], device) for side in ("src", "dst"))
    inputs = {
        "src_mask": _masks([pair.src_mask for pair in pairs], device),
        "dst_mask": _masks([pair.dst_mask for pair in pairs], device),
        "init": _matrices([pair.init for pair in pairs]),
        "gt": _matrices([pair.gt for pair in pairs]),
    }
    pairs.clear()
    result = align(src, dst, **inputs, config=config, trace=trace)
    return result_rows(result, (src_size[0], src_size[1]), (dst_size[0], dst_size[1]))


def _images(arrays: Sequence[np.ndarray[Any, Any]], device: str) -> Tensor:
    """Return (B, C, H, W) of equally shaped (H, W) or (H, W, C) arrays."""
    import torch

    images = torch.from_numpy(np.stack(arrays)).to(device)
    return images[:, None] if images.ndim == 3 else images.movedim(-1, 1)


def _masks(arrays: Sequence[np.ndarray[Any, Any] | None], device: str) -> Tensor | None:
    """Return (B, H, W) bool; None where the pairs have none."""
    import torch

    given = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(given)).to(device) if given else None


def _matrices(arrays: Sequence[np.ndarray[Any, Any] | None]) -> Tensor | None:
    """Return (B, 3, 3) float64, NaN for a pair without; None where no pair has one."""
    import torch

    if all(array is None for array in arrays):
        return None
    return torch.from_numpy(np.stack([np.full((3, 3), np.nan) if array is None else array for array in arrays]))


def first_rows(task: ShardTask, num: int) -> ShardTask:
    """Return a task for the first `num` rows of a shard, to time it."""
    segments, left = [], num
    for segment in task.segments:
        taken = min(segment.stop - segment.start, left)
        segments.append(replace(segment, stop=segment.start + taken))
        left -= taken
    return replace(task, segments=[segment for segment in segments if segment.stop > segment.start])

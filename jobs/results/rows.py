"""Results to Parquet: `AlignResult` and errors to rows, rows to a part's bytes and back."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from homoalign.errors import PairError
from homoalign.status import Status
from jobs.results.tally import METADATA_PREFIX, Tally
from jobs.schema import result_schema
from jobs.storage.store import Store

if TYPE_CHECKING:
    from homoalign.result import AlignResult

Row = dict[str, Any]
"""A result row without `pair_id` and the carried columns, which never leave Arrow."""

MAX_DETAIL = 1000
"""Characters of a detail: a cell of any length may be quoted in it."""
REPLACED_PREFIX = METADATA_PREFIX + b"replaced."
TRUTH_KEY = METADATA_PREFIX + b"has_truth"
_TENSORS = (
    "confidence",
    "corner_std_px",
    "photometric_l1",
    "zncc",
    "overlap",
    "inlier_ratio",
    "forward_backward_px",
    "gain",
    "bias",
    "num_iterations",
    "gt_corner_error_px",
    "gt_corner_error_max_px",
    "gt_reprojection_l1",
)


def error_row(error: PairError, src_size: tuple[int, int] | None, dst_size: tuple[int, int] | None) -> Row:
    """Return the row of a pair that could not be had."""
    text = str(error).encode(errors="backslashreplace").decode()  # it may quote bytes that are no text
    detail = text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]}… ({len(text)} characters)"
    return {"status": error.status.value, "status_detail": detail, **size_columns(src_size, dst_size)}


def size_columns(src_size: tuple[int, int] | None, dst_size: tuple[int, int] | None) -> Row:
    """Return the columns of the images' sizes."""
    (src_height, src_width), (dst_height, dst_width) = src_size or (None, None), dst_size or (None, None)
    return {"src_height": src_height, "src_width": src_width, "dst_height": dst_height, "dst_width": dst_width}


def result_rows(result: AlignResult, src_size: tuple[int, int], dst_size: tuple[int, int]) -> list[Row]:
    """Return a row for each pair of a batch; NaN is null."""
    columns = {name: getattr(result, name).tolist() for name in _TENSORS}
    matrices = result.dst_homo_src.flatten(1).tolist()
    sizes = size_columns(src_size, dst_size)
    rows = []
    for i, status in enumerate(result.status):
        initialisation = result.initialisation[i]
        row: Row = {
            "status": status.value,
            "status_detail": None if status == Status.OK else result.status_detail[i],
            "dst_homo_src": matrices[i] if all(map(math.isfinite, matrices[i])) else None,
            "initialisation": None if initialisation is None else initialisation.value,
            "stop_reason": result.stop_reason[i].value,
            "levels": [{name: _null(getattr(level, name)) for name in level.__slots__} for level in result.levels[i]],
            **{name: _null(values[i]) for name, values in columns.items()},
            **sizes,
        }
        rows.append(row)
    return rows


def build_table(rows: Sequence[Mapping[str, Any]], kept: pa.Table, *, carry: Sequence[str], trace: bool) -> pa.Table:
    """Return the result table of a shard.

    Args:
        rows: one for each row of `kept`, in its order.
        kept: the manifest's `pair_id`, carried columns and, where it has them, true matrices.
        carry: the carried columns.
        trace: whether `levels` is present.
    """
    fields = [kept.schema.field(name) for name in carry]
    schema = result_schema(kept.schema.field("pair_id").type, trace=trace, carried=fields)
    columns = [
        kept[field.name]
        if field.name == "pair_id" or field.name in carry
        else pa.array([row.get(field.name) for row in rows], field.type)
        for field in schema
    ]
    given = np.zeros(len(rows), dtype=bool)
    if "dst_homo_src_gt" in kept.column_names:
        given = kept["dst_homo_src_gt"].is_valid().to_numpy()
    packed = base64.b64encode(np.packbits(given).tobytes())
    return pa.Table.from_arrays(columns, schema=schema.with_metadata({TRUTH_KEY: packed}))


def has_truth(part: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows of a part had a true matrix in the manifest, (N,); its error columns are null also where
    there is no estimate to compare with it.
    """
    packed = (part.schema.metadata or {}).get(TRUTH_KEY)
    if packed is None:  # rewritten by another program
        return np.asarray(part["gt_corner_error_px"].is_valid())
    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=part.num_rows).astype(bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What a part says about itself."""

    fingerprint: str
    run: str
    """The owner of the lock under which it was made; empty where there was none."""
    tally: Tally
    replaced: Tally | None
    """Of the part that stood there before, where rows of it were tried again."""
    schema: pa.Schema


def encode_part(
    table: pa.Table, *, fingerprint: str, shard: int, tally: Tally, run: str = "", replaced: Tally | None = None
) -> bytes:
    """Return a part's bytes: the rows, and in the footer which plan and shard they are and what was counted."""
    metadata = {
        **(table.schema.metadata or {}),
        METADATA_PREFIX + b"fingerprint": fingerprint.encode(),
        METADATA_PREFIX + b"shard": str(shard).encode(),
        METADATA_PREFIX + b"run": run.encode(),
        **tally.to_metadata(),
        **({} if replaced is None else replaced.to_metadata(REPLACED_PREFIX)),
    }
    target = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), target, compression="zstd")
    return target.getvalue()


def read_part(store: Store, url: str) -> pa.Table:
    """Read a part's rows; what is no Parquet raises `pyarrow.ArrowException`."""
    # Not `read_table`: its threads may drop the last hold on Python's bytes while the interpreter ends, and abort it.
    return pq.ParquetFile(pa.BufferReader(store.read(url))).read(use_threads=False)


def read_footer(store: Store, url: str) -> Footer:
    """Return what a part says about itself, from its footer alone.

    Raises:
        ValueError: it is no part of this program.
    """
    with store.open(url) as handle:
        try:
            file = pq.read_metadata(handle)
            metadata = file.metadata or {}
            has_replaced = any(name.startswith(REPLACED_PREFIX) for name in metadata)
            return Footer(
                fingerprint=metadata[METADATA_PREFIX + b"fingerprint"].decode(),
                run=metadata.get(METADATA_PREFIX + b"run", b"").decode(),
                tally=Tally.from_metadata(metadata),
                replaced=Tally.from_metadata(metadata, REPLACED_PREFIX) if has_replaced else None,
                schema=file.schema.to_arrow_schema(),
            )
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{url} is no part of a run: {type(error).__name__} {error}") from error


def _null(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The manifest: opened from Parquet footers alone, checked before work starts, read in row ranges.

Files may differ in how they store a column (plain or dictionary-encoded, 32 or 64 bit offsets, fixed or variable
lists) and in which optional columns they have; `Manifest.schema` says the one type every row is read as.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import ManifestChanged, ManifestInvalid, PlanChanged, UsageError
from jobs.manifests.cells import is_not_utf8
from jobs.schema import MANIFEST_COLUMNS, MATRIX, REQUIRED_COLUMNS, RESULT_COLUMNS
from jobs.storage.errors import ObjectMissing, StorageError, redact
from jobs.storage.parallel import map_in_order
from jobs.storage.store import ObjectInfo, Store

IMAGE_COLUMNS = ("src", "dst", "src_mask", "dst_mask")
MATRIX_COLUMNS = ("dst_homo_src_init", "dst_homo_src_gt")
MAX_IDS_CHECKED = 5_000_000
"""Above this many rows `pair_id` is checked only where asked for: it takes some seconds for every million."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestFile:
    """One Parquet file of the manifest, as it was when the run was planned."""

    path: str
    size: int
    etag: str | None
    mtime: str | None
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Every file of a manifest and the types its columns are read as."""

    url: str
    root: str
    """Folder that relative URIs start from."""
    files: tuple[ManifestFile, ...]
    schema: pa.Schema
    """All columns of the first file, and of the others those the job reads; those it knows have the types the rows are
    read as. What is carried always has a type: string where it holds only nulls.
    """

    @property
    def rows(self) -> int:
        """Return the number of rows in all files."""
        return sum(file.rows for file in self.files)

    def fields(self, names: Sequence[str]) -> pa.Schema:
        """Return the types of some columns."""
        return pa.schema([self.schema.field(name) for name in names])

    def columns_read(self, carry: Sequence[str]) -> list[str]:
        """Return the columns a run reads: those the job knows and those it carries."""
        known = [column.name for column in MANIFEST_COLUMNS if column.name in self.schema.names]
        return [*known, *(name for name in carry if name not in known)]


def open_manifest(store: Store, url: str, carry: Sequence[str] = ()) -> Manifest:
    """List the manifest's files and check their footers.

    Args:
        store: where it is.
        url: a file, a folder or a glob.
        carry: columns whose types must agree between files, beside those the job knows.

    Raises:
        ManifestInvalid: nothing is there, a file is no Parquet, or a column is missing or has a wrong type.
    """
    try:
        root, tables = store.list_tables(url)
    except StorageError as error:
        raise ManifestInvalid(f"manifest: {error}") from error
    if not tables:
        raise ManifestInvalid(f"manifest {redact(url)} names no Parquet file")
    files, schema = [], None
    footers = map_in_order(lambda table: _read_footer(store, table), tables)
    for table, (rows, stored) in zip(tables, footers, strict=True):
        readable = _readable_schema(stored, table.path)
        schema = readable if schema is None else _merged(schema, readable, (tables[0].path, table.path), carry)
        files.append(ManifestFile(path=table.path, size=table.size, etag=table.etag, mtime=table.mtime, rows=rows))
    if schema is None:
        raise AssertionError("tables is not empty")
    if pa.types.is_null(schema.field("pair_id").type):
        raise ManifestInvalid(f"column pair_id of {redact(url)} is null in every row")
    return Manifest(url=store.url_of(url), root=root, files=tuple(files), schema=_typed(schema, carry))


def check_carry(manifest: Manifest, carry: Sequence[str]) -> None:
    """Check that every carried column exists once and hides no result column.

    Raises:
        UsageError: naming the column.
    """
    results = {column.name for column in RESULT_COLUMNS}
    for name in carry:
        if name not in manifest.schema.names:
            raise UsageError(f"--carry names {name!r}; the manifest has {', '.join(manifest.schema.names)}")
        if name in results:
            raise UsageError(f"--carry names {name!r}, which is a result column")
        if list(carry).count(name) > 1:
            raise UsageError(f"--carry names {name!r} more than once")


def read_rows(
    store: Store, file: ManifestFile, start: int, stop: int, schema: pa.Schema, *, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows [start, stop) of a file in batches, reading only the row groups and columns they need.

    Args:
        store: where the file is.
        file: as planned.
        start: first row of the file.
        stop: the row after the last.
        schema: the columns to read and the types to give them; one the file lacks is null.
        batch_rows: most rows of a batch.

    Raises:
        ManifestChanged: the file is not as it was when the run was planned.
    """
    with _parquet(store, file.path) as parquet:
        if parquet.metadata.num_rows != file.rows:
            raise ManifestChanged(
                f"{redact(file.path)} has {parquet.metadata.num_rows} rows and had {file.rows} when the run was planned"
            )
        stored = [name for name in schema.names if name in parquet.schema_arrow.names]
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        groups = [i for i, end in enumerate(ends) if end > start and end - sizes[i] < stop]
        first = ends[groups[0]] - sizes[groups[0]] if groups else 0
        for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=stored, use_threads=False):
            low, high = max(start - first, 0), min(stop - first, batch.num_rows)
            first += batch.num_rows
            if low < high:
                yield _as_schema(batch.slice(low, high - low), schema)
            if first >= stop:
                return


def check_id_text(ids: pa.Array, file: ManifestFile, first_row: int) -> None:
    """Check that the ids of the rows of a file from `first_row` on are UTF-8, where they are text.

    Raises:
        ManifestInvalid: with the first that is not.
    """
    spoilt = np.flatnonzero(is_not_utf8(ids))
    if spoilt.size:
        shown = ids[spoilt[0]].as_buffer().to_pybytes()[:60]
        raise ManifestInvalid(
            f"pair_id {shown!r} in row {first_row + spoilt[0]} of {redact(file.path)} is not UTF-8 text"
        )


def check_agrees(schema: pa.Schema, part: pa.Schema, where: str) -> None:
    """Check that a part's carried columns read as one table with those of parts to come.

    Args:
        schema: the carried columns as they are read now.
        part: all columns of a part that is there.
        where: the part.

    Raises:
        PlanChanged: one held only nulls when the part was made, and has another type now.
    """
    for field in schema:
        before = part.field(field.name).type if field.name in part.names else field.type
        if pa.types.is_null(before) or (_is_string(before) and not _is_string(field.type)):
            raise PlanChanged(
                f"column {field.name} is of type {before} in {where}, made when it held only nulls, and of type "
                f"{field.type} in the manifest now: they would not read as one table; give this run an OUT of its own, "
                "or --overwrite"
            )


def check_unchanged(store: Store, file: ManifestFile) -> None:
    """Check that a file is still the one that was planned.

    Raises:
        ManifestChanged: naming what changed, with both values.
        StorageError: the store does not say.
    """
    try:
        now = store.info(file.path)
    except ObjectMissing as error:
        raise ManifestChanged(f"manifest: {error}") from error
    for name in ("size", "etag", "mtime"):
        if getattr(now, name) != getattr(file, name):
            raise ManifestChanged(
                f"{redact(file.path)} changed while the run read it: {name} {getattr(file, name)} then, "
                f"{getattr(now, name)} now"
            )


@contextmanager
def _parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; what goes wrong in the block is translated."""
    try:
        with store.open(path) as handle, pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20) as parquet:
            yield parquet
    except StorageError as error:
        raise ManifestInvalid(f"manifest: {error}") from error
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ManifestInvalid(f"manifest file {redact(path)} is not readable as Parquet: {reason}") from error
    except OSError as error:
        raise ManifestInvalid(f"manifest: {store.translated(error, path)}") from None


def _read_footer(store: Store, table: ObjectInfo) -> tuple[int, pa.Schema]:
    with _parquet(store, table.path) as parquet:
        return parquet.metadata.num_rows, parquet.schema_arrow


def _readable_schema(stored: pa.Schema, path: str) -> pa.Schema:
    """Return the types the rows of a file are read as, or say which column is missing or wrong."""
    names = stored.names
    for name in names:
        if names.count(name) > 1:
            raise ManifestInvalid(f"column {name} stands {names.count(name)} times in {redact(path)}")
    for name in REQUIRED_COLUMNS:
        if name not in names:
            raise ManifestInvalid(f"column {name} is missing in {redact(path)}; it has {', '.join(names) or 'none'}")
    fields = []
    for field in stored:
        wanted, is_right = _wanted(field.name, field.type)
        if not is_right and not (pa.types.is_null(field.type) and field.name not in REQUIRED_COLUMNS):
            raise ManifestInvalid(f"column {field.name} of {redact(path)} has type {field.type}; it should be {wanted}")
        fields.append(pa.field(field.name, _plain(field.name, field.type)))
    return pa.schema(fields)


def _wanted(name: str, found: pa.DataType) -> tuple[str, bool]:
    kind = found.value_type if pa.types.is_dictionary(found) else found
    if name == "pair_id":
        return "string or integer", _is_string(kind) or pa.types.is_integer(kind)
    if name in IMAGE_COLUMNS:
        return "string, binary or struct<bytes, path>", _is_string(kind) or _is_binary(kind) or _is_bytes_path(kind)
    if name in MATRIX_COLUMNS:
        return "list of 9 doubles", _is_matrix(kind)
    return "anything", True


def _plain(name: str, found: pa.DataType) -> pa.DataType:
    """Return the type a column is read as: what the job reads itself is plain, what it carries stays as it is."""
    if name in MATRIX_COLUMNS and not pa.types.is_null(found):
        return MATRIX
    if name not in ("pair_id", *IMAGE_COLUMNS):
        return found
    found = found.value_type if pa.types.is_dictionary(found) else found
    if pa.types.is_string_view(found):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(found) else found


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_bytes_path(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    found = {field.name: field.type for field in kind}
    return (
        {"bytes", "path"} <= set(found)
        and (_is_binary(found["bytes"]) or pa.types.is_null(found["bytes"]))
        and (_is_string(found["path"]) or pa.types.is_null(found["path"]))
    )


def _is_matrix(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_nine = pa.types.is_fixed_size_list(kind) and kind.list_size == 9
    return bool((is_list or is_nine) and pa.types.is_floating(kind.value_type))


def _merged(schema: pa.Schema, other: pa.Schema, paths: tuple[str, str], carry: Sequence[str]) -> pa.Schema:
    """Return the types that hold for both files, or say which column differs. Columns no one reads may differ; one that
    a file lacks is null there.
    """
    known = [column.name for column in MANIFEST_COLUMNS]
    for name in (*known, *(name for name in carry if name not in known)):
        ours = schema.field(name).type if name in schema.names else None
        theirs = other.field(name).type if name in other.names else None
        if theirs is None or ours == theirs or (ours is not None and _reads_as(theirs, ours)):
            continue
        if ours is None:
            schema = schema.append(pa.field(name, theirs))
        elif pa.types.is_null(ours):
            schema = schema.set(schema.get_field_index(name), pa.field(name, theirs))
        else:
            raise ManifestInvalid(
                f"column {name} is of type {ours} in {redact(paths[0])} and of type {theirs} in {redact(paths[1])}"
            )
    return schema


def _typed(schema: pa.Schema, carry: Sequence[str]) -> pa.Schema:
    """Return the types with one for each carried column that holds nothing but nulls: files to come may have text in
    it, and parts of no type and of one do not read as one table.
    """
    for name in carry:
        if name in schema.names and pa.types.is_null(schema.field(name).type):
            kind = MATRIX if name in MATRIX_COLUMNS else pa.string()
            schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    return schema


def _reads_as(theirs: pa.DataType, ours: pa.DataType) -> bool:
    return bool(pa.types.is_null(theirs) or (_is_string(theirs) and _is_string(ours)))


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns: Iterable[pa.Array] = (
        pc.cast(batch.column(field.name), field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    )
    return pa.RecordBatch.from_arrays(list(columns), schema=schema)

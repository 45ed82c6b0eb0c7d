"""Cells of any Arrow type: as values to show or to group by, as what a row is made of, and as text that is no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from homoalign.errors import RowInvalid


def value_of(cell: pa.Scalar) -> Any:
    """Return a cell as Python's value; what Python has none for as text.

    Text that is no UTF-8 keeps its bytes as `\\xff`; times beyond Python's years, in a zone that is not known here, or
    with nanoseconds where pandas is not installed are what Arrow prints.
    """
    try:
        return cell.as_py()
    except Exception:  # Arrow, datetime, zoneinfo and pandas raise kinds of their own
        if isinstance(cell, pa.DictionaryScalar):
            return value_of(cell.value)
        if isinstance(cell, pa.BinaryScalar):  # text among it
            return cell.as_buffer().to_pybytes().decode(errors="backslashreplace")
        return pa.array([cell], cell.type).to_string(skip_new_lines=True).removeprefix("[").removesuffix("]").strip()


def values_of(row: pa.RecordBatch) -> dict[str, Any]:
    """Return the cells of a batch of one row by column."""
    return {name: value_of(column[0]) for name, column in zip(row.schema.names, row.columns, strict=True)}


def cells_of(row: pa.RecordBatch) -> dict[str, Any]:
    """Return the cells of a batch of one row; text that is no UTF-8 as the `RowInvalid` it makes the row."""
    cells: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            cells[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            cells[name] = RowInvalid(f"{name} is not UTF-8 text: {bytes(error.object)[:60]!r}")
    return cells


def is_not_utf8(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which cells hold text that is no UTF-8, at any depth, (N,). Parquet's readers do not look, and writers
    pass it on to readers that fail on it.
    """
    found = np.zeros(len(column), dtype=bool)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for index, cell in enumerate(column):
            try:
                cell.as_py()
            except UnicodeDecodeError:
                found[index] = True
            except (ValueError, OverflowError):  # a time that Python has no type for
                continue
    return found


def with_nulls(batch: pa.RecordBatch, spoilt: Mapping[str, npt.NDArray[np.bool_]]) -> pa.RecordBatch:
    """Return the batch without the cells that are `spoilt`, by column."""
    for index, (name, column) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        if name in spoilt and spoilt[name].any():
            whole = column.take(pa.array(np.arange(len(column)), mask=spoilt[name]))
            if pa.types.is_dictionary(whole.type):  # whose dictionary still holds them
                whole = whole.dictionary_decode().cast(whole.type)
            batch = batch.set_column(index, batch.schema.field(name), whole)
    return batch

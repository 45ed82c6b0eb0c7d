"""A cell of any Arrow type as a value to show or to group by, whatever it holds."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


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

"""Cells become values without an error, whatever a manifest carried."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from jobs.manifests.cells import value_of, values_of

NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")]
)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1.5]), 1.5),
        (pa.array([None], pa.string()), None),
        (pa.array(["é"], pa.string_view()), "é"),
        (pa.array([b"\xff"], pa.binary_view()), b"\xff"),
        (NOT_UTF8, "a\\xff"),
        (NOT_UTF8.cast(pa.binary()).view(pa.binary()).cast(pa.large_binary()), b"a\xff"),
        (pa.DictionaryArray.from_arrays(pa.array([0]), NOT_UTF8), "a\\xff"),
        (pa.array([2**62], pa.timestamp("us")), "<value out of range: 4611686018427387904>"),
        (pa.array([2**62], pa.timestamp("us")).dictionary_encode(), "<value out of range: 4611686018427387904>"),
        (pa.array([2**30], pa.date32()), "<value out of range: 1073741824>"),
        (pa.array([2**62], pa.duration("s")), "4611686018427387904"),
        (pa.array([1], pa.timestamp("us", "Mars/Base")), "1970-01-01 00:00:00.000001Z"),
    ],
)
def test_a_cell_that_python_has_no_value_for_is_text(column, expected):
    assert value_of(column[0]) == expected
    assert value_of(pa.chunked_array([column])[0]) == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[2**62]], pa.list_(pa.timestamp("us"))),
        pa.array([{"at": 2**62}], pa.struct([("at", pa.timestamp("us"))])),
        pa.array([[("at", 2**62)]], pa.map_(pa.string(), pa.timestamp("us"))),
    ],
)
def test_nested_cells_are_what_arrow_prints(column):
    assert "4611686018427387904" in value_of(column[0])


def test_text_that_is_no_utf8_within_a_list_does_not_raise():
    column = pa.ListArray.from_arrays(pa.array([0, 2]), NOT_UTF8)
    assert isinstance(value_of(column[0]), str)


def test_nanoseconds_are_shown_where_pandas_is_not_installed():
    code = """
import sys
class NoPandas:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoPandas())
import pyarrow as pa
from jobs.manifests.cells import value_of
print(value_of(pa.array([1700000000123456789], pa.timestamp("ns"))[0]))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "2023-11-14 22:13:20.123456789\n"


def test_a_row_is_its_cells_by_column():
    batch = pa.RecordBatch.from_pydict({"a": ["x", "y"], "b": pa.array([2**62, 1], pa.timestamp("us"))})
    assert values_of(batch.slice(1, 1))["a"] == "y"
    assert values_of(batch.slice(0, 1))["b"] == "<value out of range: 4611686018427387904>"

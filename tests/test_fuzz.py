"""Whatever a manifest's cells hold, every row has its result row; the long form is `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import BATCH, GOOD, run_child
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from image_files import FILES, GRAY, HEIGHT, WIDTH, by_tifffile, patched_tiff, png_chunk
from job_pairs import ENVIRONMENT, ROOT
from shard_tasks import FakeAlign, task_for

from homoalign.status import Status
from jobs.results.rows import MAX_DETAIL
from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker.fetch import Reader
from jobs.worker.shard import run_shard

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
URIS = (
    *("good.png", "./good.png", "nowhere.png", ".", "..", "/", "", " ", "~", "~/a", "a" * 300, "a/" * 3000),
    *("x" * 100_000, "file:///", "file://", "file://a", "file://localhost", "FILE:///etc/hostname", "local://x"),
    *("//host/a", "file:////a", "s3://b/k", "s3://", "http://", "http://[", "http://[::1", "http://127.0.0.1:99999/"),
    *("http://\\@x/", "://", "a://"),
    *("::", "zip://a::b.zip", "zip://a::good.png", "zip::", "::zip", "simplecache::good.png", "reference://x", "memory://x"),
    *("data:image/png;base64,AAAA", "a\x00b", "a\nb", "\x1b[31m", "\u202ea", "\ud7ff", "/dev/null", "/proc/self/mem"),
)  # fmt: skip
TEXTS = st.just("good.png") | st.sampled_from(URIS) | st.text(max_size=30)
CONTENTS = st.just(GOOD) | st.sampled_from([b"", b"\x89PNG", *FILES.values()]) | st.binary(max_size=60)
MATRICES = (
    st.none() | st.lists(st.none() | st.floats(), max_size=12) | st.lists(st.floats(-2, 2), min_size=9, max_size=9)
)
TEXT_TYPES = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
BYTES_TYPES = (pa.binary(), pa.large_binary())
STRUCTS = st.fixed_dictionaries({"bytes": st.none() | CONTENTS, "path": st.none() | TEXTS})
STRUCT_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IDS = (
    (st.text(max_size=20), (pa.string(), pa.large_string())),
    (st.integers(-(2**63), 2**63 - 1), (pa.int64(),)),
    (st.integers(0, 255), (pa.uint8(),)),
)


@st.composite
def image_columns(draw: st.DrawFn, num_rows: int) -> pa.Array:
    """Cells of one image column: texts, files or structs of both."""
    cells, types = draw(st.sampled_from([(TEXTS, TEXT_TYPES), (CONTENTS, BYTES_TYPES), (STRUCTS, (STRUCT_TYPE,))]))
    values = draw(st.lists(st.none() | cells, min_size=num_rows, max_size=num_rows))
    return pa.array(values, draw(st.sampled_from(types)))


@st.composite
def manifests(draw: st.DrawFn) -> pa.Table:
    """A table with the contract's columns and anything in its cells."""
    ids, types = draw(st.sampled_from(IDS))
    values = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    columns = {"pair_id": pa.array(values, draw(st.sampled_from(types)))}
    for name in ("src", "dst", "src_mask", "dst_mask"):
        if name in ("src", "dst") or draw(st.booleans()):
            columns[name] = draw(image_columns(len(values)))
    for name in ("dst_homo_src_init", "dst_homo_src_gt"):
        if draw(st.booleans()):
            cells = draw(st.lists(MATRICES, min_size=len(values), max_size=len(values)))
            columns[name] = pa.array(
                cells, draw(st.sampled_from([pa.list_(pa.float64()), pa.large_list(pa.float32())]))
            )
    return pa.table(columns)


@pytest.mark.timeout(3000 if EXAMPLES > 1000 else 300)
@pytest.mark.parametrize("align", [FakeAlign(), None], ids=["stand-in", "aligner"])
def test_whatever_the_cells_hold_every_row_has_its_result_row(align: FakeAlign | None) -> None:
    @settings(
        max_examples=EXAMPLES if align is not None else max(8, EXAMPLES // 10),
        deadline=None,
        derandomize=EXAMPLES <= 60,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(manifests(), st.sampled_from([(), ("zip",), ("/etc",)]))
    def check(table: pa.Table, allow: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "good.png").write_bytes(GOOD)
            pq.write_table(table, folder / "m.parquet")
            rules = AccessRules(
                f"file://{folder}", tuple(f"{folder}/{entry}" if "." in entry else entry for entry in allow)
            )
            reader = Reader(store=Store(), rules=rules)
            run_shard(task_for(folder, folder / "m.parquet", reader=reader), align)
            found = pq.read_table(folder / "out" / "part-000000.parquet")
            assert found["pair_id"].to_pylist() == table["pair_id"].to_pylist()
            for row in found.to_pylist():
                assert row["status"] in {*Status}
                assert (row["status_detail"] is None) == (row["status"] == "ok")
                assert len(row["status_detail"] or "") < MAX_DETAIL + 50

    check()


def test_mutated_files_lose_no_row_and_crash_nothing(tmp_path: Path) -> None:
    result = run_child(seed=2**31, num_inputs=BATCH, folder=tmp_path)
    assert "failed" not in result, result["failed"]
    assert result["rows"] > BATCH / 2
    assert {"unreadable", "too_large", "low_confidence"} <= {*result["counts"]}
    assert result["peak_mb"] < 2500


BOMBS = """
import pickle, sys
from pathlib import Path
import imagecodecs, kornia_rs, tifffile, PIL.Image, cv2, torch
from fuzz import peak_mb
from homoalign.errors import ImageUnreadable
from homoalign.decoding.images import decode_image
for name, data in pickle.loads(Path(sys.argv[1]).read_bytes()).items():
    before = peak_mb()
    try:
        decode_image(data)
    except ImageUnreadable:
        pass
    print(name, round(peak_mb() - before), sep=":")
"""


def bombs() -> dict[str, bytes]:
    """Files whose headers are honest and whose pixel data unfolds to 256 MB."""
    import imagecodecs

    zeros = bytes(2**28)
    packed = zlib.compress(zeros)
    pngs = {
        kind: b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", np.array([WIDTH, HEIGHT], ">u4").tobytes() + bytes([bits, color, 0, 0, interlace]))
        + png_chunk(b"IDAT", packed)
        + png_chunk(b"IEND", b"")
        for kind, bits, color, interlace in (("png", 8, 0, 0), ("png 16", 16, 6, 0), ("png interlaced", 4, 0, 1))
    }
    strips = {
        "zlib": packed,
        "zstd": imagecodecs.zstd_encode(zeros),
        "lzw": imagecodecs.lzw_encode(zeros),
        "packbits": b"\x81\x00" * (2**28 // 128),
    }
    tiffs = {}
    for kind, strip in strips.items():
        small = by_tifffile(GRAY, compression=kind)
        tiffs[f"tiff {kind}"] = patched_tiff(patched_tiff(small + strip, 273, len(small)), 279, len(strip))
    return {**pngs, **tiffs}


def test_pixel_data_that_unfolds_beyond_its_header_costs_no_memory(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "bombs").write_bytes(pickle.dumps(bombs()))
    command = [sys.executable, "-c", BOMBS, str(tmp_path / "bombs")]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    grown = dict(line.rsplit(":", 1) for line in done.stdout.splitlines())
    assert set(grown) == set(bombs()), done.stderr
    assert {name: mb for name, mb in grown.items() if int(mb) > 30} == {}

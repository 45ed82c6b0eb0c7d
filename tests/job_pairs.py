"""Small image pairs and manifests for the job's tests."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
DEADLY = Path(__file__).parent / "deadly"
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own, 15, workers wait for the tests beside them
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{DEADLY}"}
ENVIRONMENT.pop("RAY_ADDRESS", None)
SHIFT = (3.0, -2.0)
"""Of every pair here, in pixels: dst is src moved by it."""
TRUTH = [1.0, 0.0, SHIFT[0], 0.0, 1.0, SHIFT[1], 0.0, 0.0, 1.0]


def photo(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Return a gray (H, W) uint8 texture with detail at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width))
    for size, weight in ((6, 1.0), (16, 0.6), (40, 0.3)):
        coarse = Image.fromarray(rng.random((size, size)).astype(np.float32))
        image += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two overlapping crops of one photo, so that dst_homo_src is `TRUTH`."""
    frame = photo(seed, 116, 148)
    return frame[10:106, 10:138], frame[12:108, 7:135]


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """Return an image file's bytes."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def write_pairs(folder: Path, num: int) -> list[dict[str, Any]]:
    """Write `num` pairs as PNG files and return their manifest rows."""
    rows = []
    for seed in range(num):
        for side, pixels in zip(("src", "dst"), pair(seed), strict=True):
            (folder / f"{side}{seed}.png").write_bytes(encoded(pixels))
        rows.append(
            {
                "pair_id": f"pair{seed}",
                "src": f"src{seed}.png",
                "dst": f"dst{seed}.png",
                "dst_homo_src_gt": TRUTH,
                "kind": "even" if seed % 2 == 0 else "odd",
            }
        )
    return rows


def write_manifest(path: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    """Write rows as Parquet; a cell a row lacks is null, `types` overrides what Arrow infers."""
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in names} for row in rows]
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array([row[name] for row in rows], kind))
    pq.write_table(table, path)
    return path


def homoalign(*arguments: object, timeout_s: float = 800) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def start_homoalign(*arguments: object) -> subprocess.Popen[str]:
    """Start the command line and return at once."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_rows(out: Path) -> list[dict[str, Any]]:
    """Return every result row, in the parts' order."""
    parts = sorted((out / "data").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]

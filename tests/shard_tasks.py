"""A shard's task, and a stand-in for the alignment that remembers what it was given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from homoalign import AlignConfig
from homoalign.result import AlignResult
from homoalign.status import Status
from jobs.manifests.manifest import open_manifest
from jobs.manifests.plan import Settings, build_plan
from jobs.prepare import config_values
from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker.fetch import Reader
from jobs.worker.shard import ShardTask

STORE = Store()


class FakeAlign:
    """Gives every pair the mean of its source as `bias`, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, src: torch.Tensor, dst: torch.Tensor, **inputs: Any) -> AlignResult:
        self.batches.append((*src.shape, *dst.shape[2:]))
        self.inputs = inputs
        result = AlignResult.blank([Status.LOW_CONFIDENCE] * len(src), ["made up"] * len(src))
        return dataclasses.replace(result, bias=src.double().flatten(1).mean(1))


def task_for(folder: Path, manifest: Path, **changes: Any) -> ShardTask:
    """Return the task of a manifest's one shard, which writes to `out` in the folder."""
    carry = changes.get("carry", ())
    opened = open_manifest(STORE, str(manifest), carry)
    plan = build_plan(opened, Settings(config=config_values(AlignConfig()), shard_rows=1000, carry=carry))
    values = {
        "index": 0,
        "segments": plan.shard(0),
        "part": f"file://{folder}/out/part-000000.parquet",
        "fingerprint": plan.fingerprint,
        "schema": pa.schema([opened.schema.field(name) for name in opened.columns_read(carry)]),
        "config": AlignConfig(),
        "carry": carry,
        "trace": False,
        "reader": Reader(store=STORE, rules=AccessRules(opened.root)),
        "out": STORE,
    }
    return ShardTask(**{**values, **changes})


def part(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of that shard's part."""
    return pq.read_table(folder / "out" / "part-000000.parquet").to_pylist()

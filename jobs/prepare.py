"""From what a run was asked for to a checked manifest and the tasks that make its parts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from fsspec.utils import get_protocol

from homoalign.config import AlignConfig
from homoalign.status import Status
from jobs.errors import OutputNotWritable, UsageError
from jobs.manifests.ids import check_ids
from jobs.manifests.manifest import MAX_IDS_CHECKED, Manifest, check_carry, open_manifest
from jobs.manifests.plan import Plan, Settings, default_shard_rows
from jobs.progress import ProgressKind
from jobs.results.output import Output
from jobs.storage.access import AccessRules, absolute_entry, check_entry
from jobs.storage.errors import StorageError, redact
from jobs.storage.store import Store
from jobs.worker.fetch import FETCH_TIMEOUT_S, MAX_BYTES, MAX_PIXELS, Reader
from jobs.worker.shard import ROW_TIMEOUT_S, Batching, ShardTask

RETRYABLE = (Status.UNREADABLE, Status.TIMED_OUT, Status.CRASHED, Status.NOT_ALLOWED, Status.TOO_LARGE)
"""Statuses that another try, or other limits, could change."""
DEFAULT_BATCH = {"cpu": 32, "cuda": 128}
BATCH_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Of pixels; aligning takes some twenty times as much of uint8. On a CPU large images gain nothing together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run: what `homoalign run` was asked for. Only `align`, `shard_rows`, `carry`, `trace` and `limit`, and of
    course the manifest, are in the plan; the rest may differ from one attempt to the next.
    """

    manifest: str
    out: str
    align: AlignConfig = field(default_factory=AlignConfig)
    shard_rows: int | None = None
    carry: tuple[str, ...] = ()
    trace: bool = False
    limit: int | None = None
    check_ids: bool = False
    address: str | None = None
    device: str = "auto"
    num_cpus: float = 1.0
    num_gpus: float | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    retry: frozenset[str] = frozenset()
    """Statuses of finished rows to try again."""
    incremental: bool = False
    overwrite: bool = False
    wait_lock_s: float = 0.0
    allow: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    fetch_timeout_s: float = FETCH_TIMEOUT_S
    row_timeout_s: float = ROW_TIMEOUT_S
    max_error_rate: float = 1.0
    progress: ProgressKind = "auto"
    store: Store = field(default_factory=Store)

    @property
    def output(self) -> Output:
        """Return the run's folder.

        Raises:
            UsageError: it has no name.
            OutputNotWritable: no storage is known there, or none that other processes see.
        """
        if not self.out.strip():
            raise UsageError("OUT is empty")
        if "::" in self.out:
            raise OutputNotWritable(f"OUT {redact(self.out)} is a chained URL: the workers would not see it")
        if get_protocol(self.out) == "memory":
            raise OutputNotWritable(f"OUT {self.out} is in this process's memory: the workers would not see it")
        try:
            return Output(self.store, self.store.url_of(self.out))
        except StorageError as error:
            raise OutputNotWritable(f"OUT: {error}") from error


def open_checked_manifest(run: RunConfig) -> Manifest:
    """Open the manifest and check all that must be right before work starts.

    Raises:
        ManifestInvalid: it is missing, malformed, or an id is null or repeated.
        UsageError: no manifest is named, `carry` names what it does not have, or `allow` what no one can read.
    """
    if not run.manifest.strip():
        raise UsageError("MANIFEST is empty")
    for entry in run.allow:
        check_entry(entry)
    manifest = open_manifest(run.store, run.manifest, run.carry)
    check_carry(manifest, run.carry)
    if manifest.rows <= MAX_IDS_CHECKED or run.check_ids:
        check_ids(run.store, manifest)
    return manifest


def settings_of(run: RunConfig, manifest: Manifest, previous: Plan | None) -> Settings:
    """Return what the plan records; the rows of a shard stay as they were where nobody says."""
    rows = manifest.rows if run.limit is None else min(run.limit, manifest.rows)
    known = previous.settings.shard_rows if previous is not None else default_shard_rows(rows)
    return Settings(
        config=config_values(run.align),
        shard_rows=known if run.shard_rows is None else run.shard_rows,
        carry=run.carry,
        trace=run.trace,
        limit=run.limit,
    )


def config_values(config: AlignConfig) -> Mapping[str, Any]:
    """Return a config field by field, as plan.json will give it back."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def access_rules(run: RunConfig, root: str) -> AccessRules:
    """Return what images may be named; local prefixes are taken from the folder the command runs in."""
    return AccessRules(root, tuple(absolute_entry(entry) for entry in run.allow))


def shard_task(
    run: RunConfig,
    manifest: Manifest,
    plan: Plan,
    index: int,
    *,
    device: str = "cpu",
    retry: frozenset[str] = frozenset(),
    lock: tuple[str, str] | None = None,
) -> ShardTask:
    """Return all that a worker needs to make a part."""
    columns = manifest.columns_read(run.carry)
    batch_bytes = BATCH_BYTES[device]
    batching = Batching(
        pairs=run.batch_size or DEFAULT_BATCH[device], batch_bytes=batch_bytes, waiting_bytes=2 * batch_bytes
    )
    return ShardTask(
        index=index,
        segments=plan.shard(index),
        part=run.output.part(index),
        fingerprint=plan.generation_of(index).fingerprint,
        schema=pa.schema([manifest.schema.field(name) for name in columns]),
        config=run.align,
        carry=run.carry,
        trace=run.trace,
        reader=Reader(
            store=run.store,
            rules=access_rules(run, manifest.root),
            max_pixels=run.max_pixels,
            max_bytes=run.max_bytes,
            fetch_timeout_s=run.fetch_timeout_s,
        ),
        out=run.store,
        batching=batching,
        device=device,
        retry=retry,
        lock=lock,
        row_timeout_s=run.row_timeout_s,
    )

"""A manifest's pairs with a truth, read as a job reads them, and the groups they are scored in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bench.pairs import BenchPair
from jobs.errors import ManifestInvalid, UsageError
from jobs.manifests.manifest import open_manifest, read_rows
from jobs.rendering.synthetic import Matrix
from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker.fetch import Reader, fetch_pair

Row = dict[str, Any]

PHOTO, SUB_PIXEL, CROSS_MODAL, ALL = "photo", "sub-pixel", "cross-modal", "all"
GROUPS = (PHOTO, SUB_PIXEL, CROSS_MODAL, ALL)
GROUP_OF_KIND = {"mono": PHOTO, "cross-modal": CROSS_MODAL, "cross-time": CROSS_MODAL}
"""Season, day and night change what is seen as another sensor does: only structure is left of it."""

ACCURATE_TIERS = ("A", "B")
"""Whose truth is good to about 1 % of the diagonal; tier P is good for gross success only."""


def groups_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the groups a pair counts in: by `kind`, `tier` and `gt_is_sub_pixel`; `all` without a `kind` it knows."""
    if row.get("kind") not in GROUP_OF_KIND:
        return (ALL,)
    if row.get("tier", ACCURATE_TIERS[0]) not in ACCURATE_TIERS:
        return ()
    by_kind = GROUP_OF_KIND[row["kind"]]
    return (by_kind, SUB_PIXEL) if row.get("gt_is_sub_pixel") else (by_kind,)


def read_manifest(store: Store, url: str) -> tuple[str, list[Row]]:
    """Return the folder that URIs are relative to, and the rows that have a truth.

    Raises:
        UsageError: no manifest is there, or no row has a truth.
    """
    try:
        manifest = open_manifest(store, url)
        rows = [
            row
            for file in manifest.files
            for batch in read_rows(store, file, 0, file.rows, manifest.schema, batch_rows=1024)
            for row in batch.to_pylist()
        ]
    except (ManifestInvalid, pa.ArrowException) as error:
        raise UsageError(f"--manifest {url}: {error}") from error
    rows = [row for row in rows if row.get("dst_homo_src_gt") is not None]
    if not rows:
        raise UsageError(f"--manifest {url}: no row has a dst_homo_src_gt, and errors are against that")
    return manifest.root, rows


def select_rows(rows: Sequence[Row], groups: Sequence[str], patterns: Sequence[str]) -> dict[str, Row]:
    """Return the rows by pair_id that are in one of the groups (any group, where none is named) and match a pattern.

    Raises:
        UsageError: nothing is left.
    """
    wanted = set(groups or GROUPS)
    chosen = {
        str(row["pair_id"]): row
        for row in rows
        if wanted & set(groups_of(row))
        and (not patterns or any(fnmatchcase(str(row["pair_id"]), pattern) for pattern in patterns))
    }
    if not chosen:
        counts = ", ".join(f"{sum(name in groups_of(row) for row in rows)} {name}" for name in GROUPS)
        raise UsageError(
            f"no pair is left by --group {list(groups)} and --pair-id {list(patterns)}; there are {counts}"
        )
    return chosen


def read_pairs(store: Store, root: str, rows: Mapping[str, Row]) -> Iterator[BenchPair]:
    """Read and decode the pairs; one that shows the same pixels as an earlier one is left out.

    Priors are not used: every method starts from nothing.

    Raises:
        UsageError: a pair cannot be read; its figures would be of the files, not of a method.
    """
    reader = Reader(store=store, rules=AccessRules(root))
    seen: set[bytes] = set()
    for number, (pair_id, row) in enumerate(rows.items()):
        fetched = fetch_pair(row, reader)
        images = fetched.images
        if images is None or images.gt is None:
            raise UsageError(f"pair {pair_id}: {fetched.error}")
        digest = hashlib.sha256(images.src.tobytes() + images.dst.tobytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        yield BenchPair(
            number=number,
            name=pair_id,
            case="",
            src=images.src,
            dst=images.dst,
            dst_homo_src=images.gt,
            src_mask=images.src_mask,
            dst_mask=images.dst_mask,
            landmarks=landmarks_of(row),
        )


def landmarks_of(row: Mapping[str, Any]) -> tuple[Matrix, Matrix] | None:
    """Return the (N, 2) points of src and of dst; None where the row has none."""
    sides = [row.get(f"landmarks_{side}") for side in ("src", "dst")]
    if any(side is None or len(side) == 0 for side in sides):
        return None
    src, dst = (np.array(side, dtype=np.float64) for side in sides)
    return (src, dst) if src.shape == dst.shape and src.shape[1:] == (2,) else None

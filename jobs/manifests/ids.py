"""`pair_id`: unique over all files, checked in memory that does not grow with the manifest.

ids -> 64-bit hashes, a share of them at a time -> sorted -> those that stand more than once -> their ids, counted

Unlike ids may have equal hashes, so the ids themselves decide in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import ManifestInvalid
from jobs.manifests.manifest import Manifest, check_id_text, read_rows
from jobs.storage.errors import redact
from jobs.storage.store import Store

HASHES_AT_A_TIME = 2**25
"""256 MB; a manifest with more rows is read as many times as it takes."""
BATCH_ROWS = 16_384
MAX_SUSPECTS = 1000
"""Repeated hashes of each share whose ids are looked at, to name the most frequent one."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_WEIGHTS = np.random.default_rng().integers(1, 2**64, 4096, dtype=np.uint64) | np.uint64(1)

Hashes = npt.NDArray[np.uint64]


def check_ids(store: Store, manifest: Manifest) -> None:
    """Check that no `pair_id` is null, repeated or no UTF-8, over all files.

    Raises:
        ManifestInvalid: with an example and its count.
    """
    num_shares = max(1, -(-manifest.rows // HASHES_AT_A_TIME))
    num_ids, num_repeated = 0, 0
    suspects = np.empty(0, np.uint64)
    for share in range(num_shares):
        hashes = _hashes(store, manifest, share, num_shares)
        hashes.sort()
        is_again = hashes[1:] == hashes[:-1]
        repeated, times = np.unique(hashes[1:][is_again], return_counts=True)
        num_ids += hashes.size - int(times.sum())
        num_repeated += repeated.size
        suspects = np.append(suspects, repeated[np.argsort(-times, kind="stable")[:MAX_SUSPECTS]])
    if not num_repeated:
        return
    count, first = min((-count, value) for value, count in _ids_with(store, manifest, suspects).items())
    if count < -1:
        first = first.decode() if isinstance(first, bytes) else first
        raise ManifestInvalid(
            f"pair_id {first!r} stands in {-count} rows; {num_repeated} of {num_ids} ids are repeated"
        )


def _hashes(store: Store, manifest: Manifest, share: int, num_shares: int) -> Hashes:
    """Return the hashes of one share of the ids, in any order."""
    found = np.empty(manifest.rows if num_shares == 1 else HASHES_AT_A_TIME * 9 // 8, np.uint64)
    size = 0
    for ids in _ids(store, manifest):
        hashes = hash_ids(ids)
        if num_shares > 1:
            hashes = hashes[(hashes >> np.uint64(32)) % np.uint64(num_shares) == share]
        if size + hashes.size > found.size:  # shares are unequal where few ids are most of the rows
            found = np.append(found, np.empty(max(found.size, hashes.size), np.uint64))
        found[size : size + hashes.size] = hashes
        size += hashes.size
    return found[:size]


def _ids_with(store: Store, manifest: Manifest, hashes: Hashes) -> Counter[Any]:
    """Count the ids that have one of these hashes."""
    found: Counter[Any] = Counter()
    for ids in _ids(store, manifest):
        wanted = np.isin(hash_ids(ids), hashes)
        if wanted.any():
            some = ids.filter(pa.array(wanted))
            found.update((some if pa.types.is_integer(some.type) else some.cast(pa.binary())).to_pylist())
    return found


def _ids(store: Store, manifest: Manifest) -> Iterator[pa.Array]:
    schema = pa.schema([manifest.schema.field("pair_id")])
    for file in manifest.files:
        num_null, num_seen = 0, 0
        for batch in read_rows(store, file, 0, file.rows, schema, batch_rows=BATCH_ROWS):
            num_null += batch.column(0).null_count
            check_id_text(batch.column(0), file, num_seen)
            num_seen += batch.num_rows
            if not num_null:
                yield batch.column(0)
        if num_null:
            raise ManifestInvalid(f"pair_id is null in {num_null} of {file.rows} rows of {redact(file.path)}")


def hash_ids(ids: pa.Array) -> Hashes:
    """Return a hash of each id; equal ids have equal ones, unlike ones nearly never.

    Args:
        ids: integers, or strings with 32 or 64 bit offsets; without nulls.
    """
    if pa.types.is_integer(ids.type):
        wide = pa.int64() if pa.types.is_signed_integer(ids.type) else pa.uint64()
        return np.asarray(pc.cast(ids, wide).to_numpy().view(np.uint64) * _ODD)
    _, offsets, content = ids.buffers()
    kind = np.int64 if pa.types.is_large_string(ids.type) else np.int32
    ends = np.frombuffer(offsets, kind)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    lengths = np.diff(ends)
    letters = np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]
    place = np.arange(letters.size) - np.repeat(ends[:-1] - ends[0], lengths)
    # sums wrap around, so a difference of two is that of the letters between them
    sums = np.concatenate([[np.uint64(0)], np.cumsum(letters * _WEIGHTS[place % _WEIGHTS.size])])
    ends -= ends[0]
    return np.asarray((sums[ends[1:]] - sums[ends[:-1]] + lengths.astype(np.uint64)) * _ODD)

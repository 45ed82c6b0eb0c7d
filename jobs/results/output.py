"""OUT: what lies where, which parts are there, and how it is cleared."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.errors import OutputNotWritable, PartDamaged, PlanChanged
from jobs.manifests.manifest import check_agrees
from jobs.manifests.plan import Plan, part_name, read_plan
from jobs.manifests.typed import typed
from jobs.results.rows import read_footer, read_part
from jobs.results.tally import Tally
from jobs.storage.access import local_path
from jobs.storage.errors import ObjectMissing, redact
from jobs.storage.parallel import map_in_order
from jobs.storage.store import TEMPORARY, Store, is_local


@dataclass(frozen=True, slots=True)
class FrequentError:
    """One of summary.json's errors."""

    kind: str
    count: int
    example: str


PLAN, SUMMARY, SUCCESS, REPORT = "plan.json", "summary.json", "_SUCCESS", "report.html"
SUMMARY_TYPES: Mapping[str, Any] = {
    "reason": str,
    "fingerprint": str,
    "rows": int,
    "rows_done": int,
    "counts": Mapping[str, int],
    "errors": tuple[FrequentError, ...],
    "rows_aligned": int,
    "wall_s": float,
    "pairs_per_second": float,
    "device": str,
}
"""What of summary.json is read again."""
PART = re.compile(r"^part-(\d{6,})\.parquet$")


@dataclass(frozen=True, slots=True)
class Output:
    """One run's folder."""

    store: Store
    url: str
    """Absolute, with its protocol."""

    @property
    def data(self) -> str:
        """Return the folder of the parts."""
        return f"{self.url}/data"

    def part(self, shard: int) -> str:
        """Return where a shard's part lies."""
        return f"{self.data}/{part_name(shard)}"

    def check_writable(self) -> None:
        """Check, without writing, that OUT may be written; what is not on a local disk shows only when it is.

        Raises:
            OutputNotWritable: it cannot be.
        """
        if not is_local(self.url):
            return
        for folder in (self.url, self.data):
            path = Path(local_path(folder))
            there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # also where refused
            if not os.path.isdir(there):
                raise OutputNotWritable(f"OUT cannot be written: {there} is no folder")
            if not os.access(there, os.W_OK | os.X_OK):
                raise OutputNotWritable(f"OUT cannot be written: {there} is read-only, or refuses us")

    def read_plan(self) -> Plan | None:
        """Return the plan OUT holds; None where there is none.

        Raises:
            PlanChanged: plan.json is something else.
        """
        where = f"{self.url}/{PLAN}"
        try:
            return read_plan(self.store.read(where), where=where)
        except ObjectMissing:
            return None

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json."""
        self.store.publish(f"{self.url}/{PLAN}", plan.to_json().encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self.store.publish(f"{self.url}/{SUMMARY}", (json.dumps(summary, indent=1) + "\n").encode())

    def read_summary(self) -> dict[str, Any] | None:
        """Return what summary.json holds; None where there is none or it is something else."""
        try:
            summary: dict[str, Any] = typed(Mapping[str, Any], json.loads(self.store.read(f"{self.url}/{SUMMARY}")))
            for name, kind in SUMMARY_TYPES.items():
                typed(kind, summary[name], name)
        except (ObjectMissing, KeyError, ValueError):
            return None
        return summary

    def write_success(self, plan: Plan) -> None:
        """Write the marker that says every manifest row has its result row."""
        text = json.dumps({"fingerprint": plan.fingerprint, "rows": plan.rows, "shards": plan.num_shards})
        self.store.publish(f"{self.url}/{SUCCESS}", (text + "\n").encode())

    def is_success(self) -> bool:
        """Return whether the marker is there."""
        return self.store.exists(f"{self.url}/{SUCCESS}")

    def part_numbers(self) -> list[int]:
        """Return the shards whose parts are there, whatever run they are of."""
        return sorted(int(match[1]) for name in self.store.list_names(self.data) if (match := PART.match(name)))

    def read_part(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Read a part's rows, which must have these columns among theirs.

        Raises:
            PartDamaged: it cannot be read, or lacks a column.
        """
        where = self.part(shard)
        try:
            part = read_part(self.store, where)
        except (pa.ArrowException, OSError) as error:  # corrupt pages are an OSError of Arrow's
            raise PartDamaged(f"{redact(where)} ({str(error).partition(chr(10))[0]})") from error
        missing = [name for name in columns if name not in part.column_names]
        if missing:
            raise PartDamaged(f"{redact(where)} (no part of a run: it has no column {missing[0]})")
        return part

    def tallies(
        self, plan: Plan, shards: Iterable[int], carried: pa.Schema | None = None
    ) -> Iterator[tuple[int, Tally]]:
        """Read the footers of parts, one after the other; one that is damaged counts as not there.

        Args:
            plan: what the parts are of.
            shards: which parts.
            carried: the carried columns of parts to come, where there will be any.

        Raises:
            PlanChanged: a part is of another plan, both fingerprints are named; or would not read as one table with
                those to come.
        """
        for shard, tally in map_in_order(lambda shard: (shard, self._tally(plan, shard, carried)), shards):
            if tally is not None:
                yield shard, tally

    def _tally(self, plan: Plan, shard: int, carried: pa.Schema | None) -> Tally | None:
        if shard >= plan.num_shards:
            raise PlanChanged(f"{self.part(shard)} is no part of this plan, which has {plan.num_shards} shards")
        try:
            footer = read_footer(self.store, self.part(shard))
        except (ObjectMissing, ValueError):
            return None
        wanted = plan.generation_of(shard).fingerprint
        if footer.fingerprint != wanted:
            raise PlanChanged(f"{self.part(shard)} is of plan {footer.fingerprint}, this is plan {wanted}")
        if carried is not None:
            check_agrees(carried, footer.schema, self.part(shard))
        return footer.tally

    def remove_success(self) -> None:
        """Remove the marker and the summary: the run is not over any more."""
        for name in (SUCCESS, SUMMARY):
            self.store.delete(f"{self.url}/{name}")

    def remove_leftovers(self) -> None:
        """Remove the temporary files that attempts which died have left."""
        for folder in (self.url, self.data):
            for name in self.store.list_names(folder):
                if TEMPORARY.match(name):
                    self.store.delete(f"{folder}/{name}")

    def clear(self) -> None:
        """Remove what an earlier run wrote, its plan last; what is not ours stays."""
        self.remove_success()
        self.store.delete(f"{self.url}/{REPORT}")
        for shard in self.part_numbers():
            self.store.delete(self.part(shard))
        self.remove_leftovers()
        self.store.delete(f"{self.url}/{PLAN}")

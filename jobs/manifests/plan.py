"""The plan: what a run will do, cut into shards, and whether OUT already holds the same one.

A shard is a range of `shard_rows` consecutive rows over the concatenated files of one generation, found by
arithmetic and never stored one by one. A run has one generation; `--incremental` appends one with the files that are
new. Each generation has its fingerprint, chained to the one before, so the parts of earlier ones stay valid, and its
own size of shards, so that a manifest that began small does not end in millions of parts.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.errors import PlanChanged, UsageError
from jobs.manifests.manifest import Manifest, ManifestFile
from jobs.manifests.typed import typed
from jobs.storage.errors import redact

FORMAT = 1
"""Of plan.json; raised when an older reader would misread it."""
MIN_SHARD_ROWS, MAX_SHARD_ROWS, SHARDS_AIMED_AT = 16, 1024, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Rows [start, stop) of one manifest file."""

    file: ManifestFile
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What changes the result rows, beside the manifest."""

    config: Mapping[str, Any]
    """The `AlignConfig`, field by field."""
    shard_rows: int
    carry: tuple[str, ...] = ()
    trace: bool = False
    limit: int | None = None
    """Only this many rows, from the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Files that were planned together."""

    files: tuple[ManifestFile, ...]
    first_shard: int
    num_shards: int
    rows: int
    """Rows to align: those of all files, or fewer with a limit."""
    shard_rows: int
    fingerprint: str
    """Of the settings, these files and every generation before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that a run's rows depend on."""

    manifest: str
    settings: Settings
    generations: tuple[Generation, ...]

    @property
    def rows(self) -> int:
        """Return the number of result rows a finished run has."""
        return sum(generation.rows for generation in self.generations)

    @property
    def num_shards(self) -> int:
        """Return the number of parts a finished run has."""
        return sum(generation.num_shards for generation in self.generations)

    @property
    def fingerprint(self) -> str:
        """Return the digest of everything that changes the result rows."""
        return self.generations[-1].fingerprint

    def shard(self, index: int) -> list[Segment]:
        """Return the file ranges of a shard, in order."""
        generation = self.generation_of(index)
        start = (index - generation.first_shard) * generation.shard_rows
        stop = min(start + generation.shard_rows, generation.rows)
        ends = list(itertools.accumulate(file.rows for file in generation.files))
        segments = []
        for file, end in itertools.islice(zip(generation.files, ends, strict=True), bisect.bisect(ends, start), None):
            first = end - file.rows
            if first >= stop:
                break
            segments.append(Segment(file=file, start=max(start - first, 0), stop=min(stop, end) - first))
        return [segment for segment in segments if segment.start < segment.stop]

    def generation_of(self, index: int) -> Generation:
        """Return the generation that a shard belongs to."""
        starts = [generation.first_shard for generation in self.generations]
        if not 0 <= index < self.num_shards:
            raise IndexError(f"shard {index} is outside [0, {self.num_shards})")
        # generations without rows start where the next one does
        return self.generations[bisect.bisect(starts, index) - 1]

    def to_json(self) -> str:
        """Return what plan.json holds."""
        document = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "manifest": redact(self.manifest),
            "rows": self.rows,
            "num_shards": self.num_shards,
            **dataclasses.asdict(self.settings),
            "generations": [
                {**dataclasses.asdict(generation), "files": [_file_record(file) for file in generation.files]}
                for generation in self.generations
            ],
            "versions": versions(),
        }
        return json.dumps(document, indent=1) + "\n"


def part_name(shard: int) -> str:
    """Return the name of a shard's part below OUT/data."""
    return f"part-{shard:06d}.parquet"


def versions() -> dict[str, str]:
    """Return the versions that a run's results were made with."""
    found = {"python": platform.python_version()}
    for package in ("homoalign", "torch", "pyarrow", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout on the path, not installed
            found[package] = "not installed"
    return found


def default_shard_rows(rows: int) -> int:
    """Return how many rows a shard has where nobody says: enough to fill batches, few enough to share out."""
    return min(max(-(-rows // SHARDS_AIMED_AT), MIN_SHARD_ROWS), MAX_SHARD_ROWS)


def build_plan(
    manifest: Manifest, settings: Settings, *, previous: Plan | None = None, incremental: bool = False
) -> Plan:
    """Plan a run, or find that it continues the one OUT holds.

    Args:
        manifest: as it is now.
        settings: as they are asked for now.
        previous: what OUT's plan.json holds.
        incremental: append the files that `previous` does not know, as a generation of their own.

    Raises:
        PlanChanged: `previous` is another plan; the message names what differs, with both values.
        UsageError: `incremental` together with a limit.
    """
    if incremental and settings.limit is not None:
        raise UsageError("--incremental and --limit exclude each other")
    if previous is None:
        first = _generation(manifest.files, settings, (), settings.shard_rows)
        return Plan(manifest=manifest.url, settings=settings, generations=(first,))
    known = {redact(file.path) for generation in previous.generations for file in generation.files}
    new = tuple(file for file in manifest.files if redact(file.path) not in known)
    differences = [*_settings_differences(previous.settings, settings), *_file_differences(previous, manifest)]
    if new and not incremental:
        differences.append(f"{redact(new[0].path)} and {len(new) - 1} more files are new (--incremental adds them)")
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        hint = " (new rows belong into new files)" if incremental else ""
        raise PlanChanged(f"OUT holds another plan: {'; '.join(differences[:5])}{more}{hint}")
    by_path = {redact(file.path): file for file in manifest.files}
    generations = tuple(
        dataclasses.replace(generation, files=tuple(by_path[redact(file.path)] for file in generation.files))
        for generation in previous.generations
    )
    if new:
        shard_rows = settings.shard_rows
        if shard_rows == default_shard_rows(generations[0].rows):  # no one asked for it
            shard_rows = max(shard_rows, default_shard_rows(sum(file.rows for file in new)))
        generations = (*generations, _generation(new, settings, generations, shard_rows))
    return Plan(manifest=manifest.url, settings=settings, generations=generations)


def read_plan(text: bytes | str, *, where: str) -> Plan:
    """Read what `Plan.to_json` wrote.

    Raises:
        PlanChanged: it is of another format, or no plan at all.
    """
    try:
        document = typed(Mapping[str, Any], json.loads(text))
        if document.get("format") != FORMAT:
            raise PlanChanged(f"{where} has format {document.get('format')}, this version reads {FORMAT}")
        names = [field.name for field in dataclasses.fields(Settings)]
        settings: Settings = typed(Settings, {name: document[name] for name in names if name in document})
        # an earlier version wrote the rows of a shard once, for all generations
        records = [
            {"shard_rows": settings.shard_rows, **record}
            for record in typed(tuple[Mapping[str, Any], ...], document.get("generations"), "generations")
        ]
        generations: tuple[Generation, ...] = typed(tuple[Generation, ...], records, "generations")
        _check_generations(generations, settings.limit)
        manifest: str = typed(str, document.get("manifest"), "manifest")
    except ValueError as error:
        raise PlanChanged(f"{where} is no plan of this program: {error}") from error
    return Plan(manifest=manifest, settings=settings, generations=generations)


def _check_generations(generations: Sequence[Generation], limit: int | None) -> None:
    """Raise `ValueError` where the numbers of generations do not follow from each other."""
    if not generations:
        raise ValueError("it has no generation")
    first_shard = 0
    for index, found in enumerate(generations):
        rows = _planned_rows(found.files, limit)
        if found.shard_rows < 1:
            raise ValueError(f"generations[{index}] has {found.shard_rows} rows a shard")
        if found.rows != rows:
            raise ValueError(f"generations[{index}] has {found.rows} rows, its files {rows}")
        num_shards = _num_shards(rows, found.shard_rows, is_first=index == 0)
        if (found.first_shard, found.num_shards) != (first_shard, num_shards):
            raise ValueError(
                f"generations[{index}] has {found.num_shards} shards from shard {found.first_shard}, "
                f"not {num_shards} from {first_shard}"
            )
        first_shard += num_shards


def _planned_rows(files: Sequence[ManifestFile], limit: int | None) -> int:
    rows = sum(file.rows for file in files)
    return rows if limit is None else min(rows, limit)


def _num_shards(rows: int, shard_rows: int, *, is_first: bool) -> int:
    # a manifest without rows still has a part, so that OUT/data is a dataset
    return -(-rows // shard_rows) if rows or not is_first else 1


def _generation(
    files: Sequence[ManifestFile], settings: Settings, before: Sequence[Generation], shard_rows: int
) -> Generation:
    rows = _planned_rows(files, settings.limit)
    settings = dataclasses.replace(settings, shard_rows=shard_rows)
    digest = hashlib.sha256()
    digest.update(before[-1].fingerprint.encode() if before else b"")
    digest.update(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for file in files:
        digest.update(json.dumps(_file_record(file), sort_keys=True).encode())
    return Generation(
        files=tuple(files),
        first_shard=sum(generation.num_shards for generation in before),
        num_shards=_num_shards(rows, shard_rows, is_first=not before),
        rows=rows,
        shard_rows=shard_rows,
        fingerprint=digest.hexdigest()[:16],
    )


def _file_record(file: ManifestFile) -> dict[str, Any]:
    return {**dataclasses.asdict(file), "path": redact(file.path)}


def _settings_differences(before: Settings, now: Settings) -> list[str]:
    found = []
    for field in dataclasses.fields(Settings):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if field.name == "config":
            names = sorted({*old, *new})
            found += [
                f"config {name} is {old.get(name)!r} there and {new.get(name)!r} now"
                for name in names
                if old.get(name) != new.get(name)
            ]
        elif old != new:
            found.append(f"{field.name} is {_text(old)} there and {_text(new)} now")
    return found


def _text(value: object) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _file_differences(previous: Plan, manifest: Manifest) -> list[str]:
    now = {redact(file.path): file for file in manifest.files}
    found = []
    for generation in previous.generations:
        for file in generation.files:
            current = now.get(redact(file.path))
            if current is None:
                found.append(f"{redact(file.path)} is planned there and not in the manifest now")
                continue
            found += [
                f"{name} of {redact(file.path)} is {getattr(file, name)} there and {getattr(current, name)} now"
                for name in ("size", "etag", "mtime", "rows")
                if getattr(file, name) != getattr(current, name)
            ]
    return found

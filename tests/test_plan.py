"""The plan: shards by arithmetic, what its fingerprint covers, and what is refused with both values."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pyarrow as pa
import pytest

from jobs.errors import PlanChanged, UsageError
from jobs.manifests.manifest import Manifest, ManifestFile
from jobs.manifests.plan import Plan, Settings, build_plan, default_shard_rows, read_plan


def file(name: str, rows: int, **changes: Any) -> ManifestFile:
    values = {"path": f"file:///m/{name}", "size": 10 * rows, "etag": None, "mtime": "1.0", "rows": rows}
    return ManifestFile(**{**values, **changes})


def manifest(*files: ManifestFile) -> Manifest:
    return Manifest(url="file:///m", root="file:///m", files=files, schema=pa.schema([]))


def settings(**changes: Any) -> Settings:
    return Settings(**{"config": {"max_levels": 12, "min_overlap": 0.1}, "shard_rows": 4, **changes})


def rows_of(plan: Plan, shard: int) -> list[tuple[str, int]]:
    return [(segment.file.path, row) for segment in plan.shard(shard) for row in range(segment.start, segment.stop)]


@pytest.mark.parametrize("sizes", [[10], [3, 0, 5, 2], [1] * 9, [4, 4], [0, 0, 1]])
@pytest.mark.parametrize("limit", [None, 1, 6])
def test_shards_are_all_rows_once_and_in_order(sizes, limit):
    files = [file(f"{i}.parquet", rows) for i, rows in enumerate(sizes)]
    plan = build_plan(manifest(*files), settings(limit=limit))
    expected = [(each.path, row) for each in files for row in range(each.rows)][:limit]
    shards = [rows_of(plan, shard) for shard in range(plan.num_shards)]
    assert [row for shard in shards for row in shard] == expected
    assert all(len(shard) == 4 for shard in shards[:-1])
    assert plan.rows == len(expected)


def test_a_shard_of_a_huge_plan_is_found_by_arithmetic():
    plan = build_plan(manifest(file("a", 10**11), file("b", 10**11)), settings(shard_rows=1000))
    assert plan.num_shards == 2 * 10**8
    (segment,) = plan.shard(10**8 + 7)
    assert (segment.file.path, segment.start, segment.stop) == ("file:///m/b", 7000, 8000)


def test_a_manifest_without_rows_has_one_shard_without_rows():
    plan = build_plan(manifest(file("a", 0)), settings())
    assert (plan.rows, plan.num_shards, plan.shard(0)) == (0, 1, [])


def test_plan_json_gives_the_same_plan_back():
    plan = build_plan(manifest(file("a", 5), file("b", 6)), settings(carry=("kind",), trace=True, limit=9))
    assert read_plan(plan.to_json(), where="plan.json") == plan


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"shard_rows": 5}, "shard_rows is 4 there and 5 now"),
    ({"carry": ("kind",)}, "carry is none there and kind now"),
    ({"trace": True}, "trace is False there and True now"),
    ({"limit": 3}, "limit is None there and 3 now"),
    ({"config": {"max_levels": 5, "min_overlap": 0.1}}, "config max_levels is 12 there and 5 now"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_other_settings_are_another_plan_named_with_both_values(change, message):
    before = build_plan(manifest(file("a", 5)), settings())
    assert build_plan(manifest(file("a", 5)), settings(**change)).fingerprint != before.fingerprint
    with pytest.raises(PlanChanged, match=message):
        build_plan(manifest(file("a", 5)), settings(**change), previous=before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 51}, "size of file:///m/a is 50 there and 51 now"),
        ({"mtime": "2.0"}, "mtime of file:///m/a is 1.0 there and 2.0 now"),
        ({"etag": "e", "mtime": None}, "etag of file:///m/a is None there and e now"),
    ],
)
def test_a_changed_file_is_another_plan_also_for_incremental_runs(change, message):
    before = build_plan(manifest(file("a", 5)), settings())
    changed = manifest(dataclasses.replace(file("a", 5), **change))
    assert build_plan(changed, settings()).fingerprint != before.fingerprint
    for incremental in (False, True):
        with pytest.raises(PlanChanged, match=message):
            build_plan(changed, settings(), previous=before, incremental=incremental)


def test_a_file_that_is_gone_is_named():
    before = build_plan(manifest(file("a", 5), file("b", 5)), settings())
    with pytest.raises(PlanChanged, match="file:///m/a is planned there and not in the manifest now"):
        build_plan(manifest(file("b", 5)), settings(), previous=before, incremental=True)


def test_new_files_need_incremental_and_leave_earlier_shards_as_they_were():
    before = build_plan(manifest(file("b", 5)), settings())
    grown = manifest(file("a", 3), file("b", 5))
    with pytest.raises(PlanChanged, match=r"file:///m/a .*new \(--incremental"):
        build_plan(grown, settings(), previous=before)
    after = build_plan(grown, settings(), previous=before, incremental=True)
    assert [rows_of(after, shard) for shard in range(2)] == [rows_of(before, shard) for shard in range(2)]
    assert rows_of(after, 2) == [("file:///m/a", row) for row in range(3)]
    assert after.generation_of(1).fingerprint == before.fingerprint != after.fingerprint
    # the next run, incremental or not, finds its plan again
    assert build_plan(grown, settings(), previous=read_plan(after.to_json(), where="")) == after


def test_incremental_without_new_files_is_the_same_plan():
    before = build_plan(manifest(file("a", 5)), settings())
    assert build_plan(manifest(file("a", 5)), settings(), previous=before, incremental=True) == before


def test_incremental_and_a_limit_exclude_each_other():
    with pytest.raises(UsageError, match="--limit"):
        build_plan(manifest(file("a", 5)), settings(limit=1), incremental=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "config": {}}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(PlanChanged, match=r"OUT/plan\.json"):
        read_plan(text, where="OUT/plan.json")


def test_signatures_in_urls_are_not_written():
    signed = file("a", 5, path="https://h/a.parquet?X-Amz-Signature=secret")
    plan = build_plan(manifest(signed), settings())
    assert "secret" not in plan.to_json()
    again = build_plan(manifest(signed), settings(), previous=read_plan(plan.to_json(), where=""))
    assert again.shard(0)[0].file.path == signed.path


@pytest.mark.parametrize(("rows", "expected"), [(0, 16), (59, 16), (10_000, 157), (10**8, 1024)])
def test_shards_grow_with_the_manifest_within_bounds(rows, expected):
    assert default_shard_rows(rows) == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("config",), None, "config is null, not an object"),
        (("manifest",), 5, "manifest is 5, not text"),
        (("shard_rows",), "4", 'shard_rows is "4", not a whole number'),
        (("shard_rows",), True, "shard_rows is true, not a whole number"),
        (("limit",), "4", 'limit is "4", not a whole number'),
        (("trace",), 1, "trace is 1, not true or false"),
        (("carry",), "kind", 'carry is "kind", not a list'),
        (("carry",), [1], "carry[0] is 1, not text"),
        (("carry",), None, "carry is null, not a list"),
        (("generations", 0, "files"), [], "generations[0] has 10 rows, its files 0"),
        (("generations", 0, "color"), "red", "generations[0].color is not known"),
        (("generations",), [], "it has no generation"),
        (("generations",), {}, "generations is {}, not a list"),
        (("generations", 0), 1, "generations[0] is 1, not an object"),
        (("generations", 0, "rows"), None, "generations[0].rows is null, not a whole number"),
        (("generations", 0, "num_shards"), "3", 'generations[0].num_shards is "3", not a whole number'),
        (("generations", 0, "first_shard"), "a", 'generations[0].first_shard is "a", not a whole number'),
        (("generations", 0, "fingerprint"), None, "generations[0].fingerprint is null, not text"),
        (("generations", 0, "files", 0, "rows"), None, "generations[0].files[0].rows is null, not a whole number"),
        (("generations", 0, "files", 0, "path"), 1, "generations[0].files[0].path is 1, not text"),
        (("generations", 0, "shard_rows"), 0, "generations[0] has 0 rows a shard"),
        (("generations", 0, "num_shards"), 4, "generations[0] has 4 shards from shard 0, not 3 from 0"),
        (("generations", 0, "first_shard"), 1, "generations[0] has 3 shards from shard 1, not 3 from 0"),
        (("generations", 0, "rows"), 11, "generations[0] has 11 rows, its files 10"),
        (("generations", 0, "rows"), -1, "generations[0] has -1 rows, its files 10"),
    ],
)
def test_a_damaged_plan_is_refused_with_what_is_wrong(path, value, message):
    document = json.loads(build_plan(manifest(file("a", 10)), settings()).to_json())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(PlanChanged, match=re.escape(f"out/plan.json is no plan of this program: {message}")):
        read_plan(json.dumps(document), where="out/plan.json")

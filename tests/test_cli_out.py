"""The command line against an OUT that cannot be used: one line, the right code, and nothing is started or lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fsspec.implementations.local import LocalFileSystem
from job_pairs import write_manifest, write_pairs

from jobs.cli import main
from jobs.manifests.plan import build_plan
from jobs.prepare import RunConfig, open_checked_manifest, settings_of, shard_task
from jobs.storage import store
from jobs.worker.shard import run_shard


def homoalign(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="homoalign")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 5))


def test_an_out_without_a_name_or_of_no_known_protocol_is_refused(manifest):
    assert homoalign("run", manifest, "").exit_code == 2
    assert homoalign("run", manifest, "foo://bar").exit_code == 3


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("out", ["memory://o", "simplecache::file://{}", "zip://o::{}/a.zip", "dir://o::memory://x"])
def test_an_out_that_workers_do_not_see_is_refused_at_once(tmp_path, manifest, verb, out):
    done = homoalign(verb, manifest, out.format(tmp_path))
    assert done.exit_code == 3
    assert "the workers would not see it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_overwrite_refuses_to_delete_the_manifest_or_anything_before_the_command_is_sound(tmp_path, manifest):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    part = out / "data" / "part-000000.parquet"
    part.write_bytes(manifest.read_bytes())
    within = homoalign("run", out / "data", out, "--overwrite")
    assert within.exit_code == 2
    assert "which is part of the manifest" in within.stderr
    unsound = homoalign("run", manifest, out, "--overwrite", "--incremental", "--limit", 2)
    assert unsound.exit_code == 2
    assert part.exists()


@pytest.fixture
def made(tmp_path: Path, manifest: Path) -> Path:
    """OUT with a plan and one of its three parts."""
    run = RunConfig(manifest=str(manifest), out=str(tmp_path / "out"), shard_rows=2)
    checked = open_checked_manifest(run)
    plan = build_plan(checked, settings_of(run, checked, None))
    run.output.write_plan(plan)
    run_shard(shard_task(run, checked, plan, 0))
    return tmp_path / "out"


LOOKING = [("status",), ("evaluate",), ("report",), ("plan", "m.parquet")]


@pytest.mark.parametrize("arguments", LOOKING)
@pytest.mark.parametrize("denied", ["plan.json", "data", "part-000000.parquet"])
def test_an_out_that_may_not_be_read_ends_with_3(tmp_path, made, monkeypatch, arguments, denied):
    def refuse(owner, name):
        function = getattr(owner, name)

        def refused(*given, **options):
            if any(str(each).endswith(denied) for each in given):
                raise PermissionError(13, "Permission denied")
            return function(*given, **options)

        monkeypatch.setattr(owner, name, refused)

    refuse(LocalFileSystem, "ls")
    refuse(LocalFileSystem, "open")
    refuse(store, "read_local")
    monkeypatch.chdir(tmp_path)
    done = homoalign(*arguments, made)
    if arguments == ("evaluate",) and denied == "plan.json":  # which it does without
        assert done.exit_code == 0
        return
    assert done.exit_code == 3
    assert done.stderr.endswith(f"{denied} may not be accessed\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("status",), ("report",), ("plan", "m.parquet")])
def test_a_folder_in_the_place_of_the_plan_ends_with_3(tmp_path, made, monkeypatch, arguments):
    (made / "plan.json").unlink()
    (made / "plan.json").mkdir()
    monkeypatch.chdir(tmp_path)
    done = homoalign(*arguments, made)
    assert done.exit_code == 3
    assert "plan.json: Is a directory" in done.stderr


@pytest.mark.parametrize("verb", ["status", "evaluate", "report"])
def test_an_out_of_no_known_protocol_ends_with_3(verb):
    done = homoalign(verb, "foo://x")
    assert done.exit_code == 3
    assert "Protocol not known: foo" in done.stderr


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("out", ["file", "file/out"])
def test_plan_refuses_an_out_that_run_could_not_write(tmp_path, manifest, verb, out):
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    done = homoalign(verb, manifest, tmp_path / out)
    assert done.exit_code == 3
    assert "OUT cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_refuses_a_read_only_out(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, *_: Path(path) != tmp_path)
    done = homoalign("plan", manifest, tmp_path / "not" / "there" / "yet")
    assert done.exit_code == 3
    assert f"OUT cannot be written: {tmp_path} is read-only, or refuses us" in done.stderr


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_parts_without_a_plan_end_with_5(made, manifest, verb):
    (made / "plan.json").unlink()
    done = homoalign(verb, manifest, made)
    assert done.exit_code == 5
    assert "1 parts without a plan.json" in done.stderr


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_plan_refuses_to_overwrite_the_manifest_as_run_does(tmp_path, manifest, verb):
    (tmp_path / "out" / "data").mkdir(parents=True)
    own = manifest.rename(tmp_path / "out" / "data" / "m.parquet")
    assert homoalign(verb, own, tmp_path / "out", "--overwrite").exit_code == 2

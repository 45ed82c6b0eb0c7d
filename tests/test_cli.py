"""The command line: help, usage errors, one line and the right code for what is wrong, and verbs without Ray."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from job_pairs import ENVIRONMENT, ROOT, TRUTH, encoded, pair, write_manifest, write_pairs
from PIL import Image

from homoalign import AlignConfig
from jobs.cli import VERBS, main
from jobs.commands.run import run_command, run_config
from jobs.errors import UsageError
from jobs.options import read_config, read_storage_options
from jobs.prepare import RunConfig
from jobs.schema import RESULT_COLUMNS
from jobs.storage.store import Store

OWN_VERBS = ["align", "run", "plan", "status", "evaluate"]


def homoalign(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="homoalign")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT, env=ENVIRONMENT).split())


def test_the_help_of_all_verbs_imports_neither_torch_nor_ray():
    loaded = loaded_after("from jobs.cli import main; main(['--help'], standalone_mode=False)")
    assert "jobs.cli" in loaded
    assert not {"torch", "ray", "pyarrow", "fsspec"} & loaded


def test_a_shard_is_made_without_ray():
    loaded = loaded_after("import jobs.worker.shard")
    assert "jobs.worker.shard" in loaded
    assert "ray" not in loaded


def test_help_lists_every_verb():
    text = homoalign("--help").stdout
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_the_help_of_a_verb_ends_with_an_example_that_parses(verb):
    lines = homoalign(verb, "--help").stdout.strip().splitlines()
    assert lines[-1].lstrip().startswith(f"Example: homoalign {verb} ")
    arguments = lines[-1].split()[3:]
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    assert command.make_context(verb, arguments).params


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("run", "--nonsense", "m", "o"), ("run", "m"), ("run", "m", "o", "--limit", "0"), ("status",)],
)
def test_wrong_usage_ends_with_2(arguments):
    done = homoalign(*arguments)
    assert done.exit_code == 2
    assert "Usage: homoalign" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--num-cpus", text) for text in ("nan", "inf", "0.00001", "0")),
        *(("--num-gpus", text) for text in ("nan", "inf", "0.00001", "1.5")),
        *(("--fetch-timeout", text) for text in ("nan", "0", "-inf")),
        *(("--row-timeout", text) for text in ("nan", "0", "-1")),
        ("--wait-lock", "nan"),
        ("--max-error-rate", "nan"),
    ],
)
def test_a_number_that_makes_no_sense_is_wrong_usage(arguments):
    done = homoalign("run", "m", "o", *arguments)
    assert done.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in done.stderr


@pytest.mark.parametrize("arguments", [("--num-gpus", "0.5"), ("--num-gpus", "2"), ("--num-gpus", "0")])
def test_a_share_of_a_gpu_or_whole_ones_may_be_asked_for(arguments):
    assert run_command.make_context("run", ["m", "o", *arguments]).params["num_gpus"] == float(arguments[1])


def test_the_options_of_run_are_the_fields_of_its_config():
    options = {parameter.name for parameter in run_command.params}
    one_field_from_several = {"config_file", "settings", "storage_options", "retry_failed", "retry_status"}
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert options - one_field_from_several == fields - {"align", "store", "retry"}


def test_the_defaults_of_run_are_those_of_its_config():
    context = run_command.make_context("run", ["m.parquet", "out"])
    given = {**context.params}
    for name in ("retry_failed", "retry_status"):
        given.pop(name)
    assert run_config(**given) == RunConfig(manifest="m.parquet", out="out")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "m.parquet", write_pairs(tmp_path, 5))


def broken(folder: Path, **changes: Any) -> Path:
    rows = [{**row, **changes} for row in write_pairs(folder, 2)]
    return write_manifest(folder / "broken.parquet", [{k: v for k, v in row.items() if v != "drop"} for row in rows])


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("changes", "options", "code", "words"),
    [
        ({"dst": "drop"}, (), 3, ("column dst is missing",)),
        ({"pair_id": "twice"}, (), 3, ("'twice' stands in 2 rows",)),
        ({}, ("--carry", "color"), 2, ("'color'", "pair_id")),
        ({}, ("--set", "max_level=3"), 2, ("'max_level'", "max_levels")),
        ({}, ("--set", "max_levels=many"), 2, ("max_levels='many' should be int",)),
        ({}, ("--set", "min_overlap=7"), 2, ("min_overlap=7", "outside [0, 1]")),
        ({}, ("--allow", "https://cdn.example:port/"), 2, ("--allow https://cdn.example:port/", "is no URL")),
        ({}, ("--storage-options", "{secret"), 2, ("not valid JSON at character 1",)),
    ],
)
def test_what_is_wrong_is_one_line_with_its_code_and_nothing_is_started(tmp_path, verb, changes, options, code, words):
    done = homoalign(verb, broken(tmp_path, **changes), tmp_path / "out", *options)
    assert done.exit_code == code
    assert done.stderr.startswith("homoalign: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert "secret" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_does_not_exist_ends_with_3(tmp_path):
    for verb in ("run", "plan"):
        done = homoalign(verb, tmp_path / "nowhere.parquet", tmp_path / "out")
        assert done.exit_code == 3
        assert "nowhere.parquet does not exist" in done.stderr


def test_an_out_that_cannot_be_written_ends_with_3(tmp_path, manifest):
    (tmp_path / "file").write_bytes(b"")
    done = homoalign("run", manifest, tmp_path / "file" / "out")
    assert done.exit_code == 3
    assert "OUT cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


def test_plan_counts_times_a_sample_and_writes_nothing(tmp_path, manifest):
    before = sorted(tmp_path.rglob("*"))
    done = homoalign("plan", manifest, tmp_path / "out", "--shard-rows", 2, "--sample", 2, "--carry", "kind", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["files"], plan["rows"], plan["shards"]) == (1, 5, 3)
    assert plan["columns_read"] == ["pair_id", "src", "dst", "dst_homo_src_gt", "kind"]
    estimate = plan["estimate"]
    assert estimate["pairs_timed"] == 2
    assert estimate["counts"] == {"ok": 2}
    assert estimate["seconds"] > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "about " in homoalign("plan", manifest, tmp_path / "out", "--sample", 1).stdout


def test_status_and_evaluate_of_a_folder_without_a_run_end_with_3(tmp_path):
    for verb in ("status", "evaluate"):
        done = homoalign(verb, tmp_path)
        assert done.exit_code == 3
        assert "holds no r" in done.stderr


def strict_loads(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_align_prints_the_result_row_as_json(tmp_path):
    write_pairs(tmp_path, 1)
    pictures = tmp_path / "overlay.png", tmp_path / "warped.jpg"
    done = homoalign(
        *("align", tmp_path / "src0.png", tmp_path / "dst0.png", "--json"),
        *("--overlay", pictures[0], "--warped", pictures[1]),
    )
    assert done.exit_code == 0, done.stderr
    row = strict_loads(done.stdout)
    assert list(row) == [column.name for column in RESULT_COLUMNS if column.name != "levels"]
    assert row["status"] == "ok"
    assert row["gt_corner_error_px"] is None
    assert np.allclose(row["dst_homo_src"], TRUTH, atol=0.1)
    overlay, warped = (np.asarray(Image.open(picture)).astype(float) for picture in pictures)
    assert overlay.shape == (96, 128, 3)
    assert warped.shape == (96, 128)
    # away from the border the warped source is dst; JPEG and rounding cost a few grey levels
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(warped - pair(0)[1])[inner].mean() < 3
    assert np.abs(overlay[..., 0] - overlay[..., 1])[inner].mean() < 1
    assert (overlay[..., 1] == overlay[..., 2]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlay", "src0.png"), "--overlay src0.png is the file of src"),
        (("--warped", "./dst0.png"), "--warped ./dst0.png is the file of dst"),
        (("--src-mask", "m.png", "--overlay", "m.png"), "--overlay m.png is the file of src_mask"),
        (("--overlay", "o.png", "--warped", "o.png"), "--warped o.png is the file of --overlay"),
    ],
)
def test_align_writes_no_picture_over_another_file_of_the_command(tmp_path, monkeypatch, options, message):
    write_pairs(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = homoalign("align", "src0.png", "dst0.png", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_align_of_an_image_that_is_no_image_is_a_row_with_that_status(tmp_path):
    write_pairs(tmp_path, 1)
    (tmp_path / "text.png").write_text("no image")
    done = homoalign("align", tmp_path / "text.png", tmp_path / "dst0.png", "--json", "--overlay", tmp_path / "o.png")
    assert done.exit_code == 0
    assert strict_loads(done.stdout)["status"] == "unreadable"
    assert "text.png" in strict_loads(done.stdout)["status_detail"]
    assert not (tmp_path / "o.png").exists()
    assert "no matrix (unreadable)" in done.stderr


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, manifest):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = homoalign("run", manifest, tmp_path / "out", "--address", address, "--progress", "none")
    assert done.exit_code == 2
    assert f"no Ray cluster at --address {address}" in done.stderr


def test_align_uses_masks_settings_and_trace(tmp_path):
    write_pairs(tmp_path, 1)
    (tmp_path / "mask.png").write_bytes(encoded(np.full((96, 128), 255, dtype=np.uint8)))
    command = ("align", tmp_path / "src0.png", tmp_path / "dst0.png", "--json", "--trace")
    row = strict_loads(homoalign(*command, "--src-mask", tmp_path / "mask.png", "--set", "max_levels=2").stdout)
    assert [level["level"] for level in row["levels"]] == [1, 0]


@pytest.mark.parametrize(
    ("name", "text"), [("c.toml", "max_levels = 3\nsolver = 'adam'"), ("c.json", '{"max_levels": 3, "solver": "adam"}')]
)
def test_a_config_file_is_read_and_set_goes_on_top(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = read_config(Store(), str(tmp_path / name), ["max_levels=4", "min_overlap=1"])
    assert config == AlignConfig(max_levels=4, solver="adam", min_overlap=1.0)


@pytest.mark.parametrize("name", ["none", "'none'", '"none"'])
def test_none_is_a_word_where_the_field_knows_it(name):
    assert read_config(Store(), None, [f"photometric={name}"]) == AlignConfig(photometric="none")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("max_levels=none", "max_levels='none' should be int"),
        (f"step_tol_px={10**400}", "too large to convert to float"),
        (f"max_levels={'9' * 5000}", "should be int"),
        ("max_levels", "should be KEY=VALUE"),
        ("max_levels=2.5", "max_levels=2.5 should be int"),
        ("max_levels=true", "max_levels=True should be int"),
        ("solver=newton", "solver='newton' should be gauss_newton or adam"),
        ("xyz=1", "AlignConfig has no 'xyz'; it has solver"),
    ],
)
def test_a_wrong_setting_says_what_it_should_be(setting, message):
    with pytest.raises(UsageError, match=message):
        read_config(Store(), None, [setting])


def test_storage_options_go_to_their_protocol_or_to_the_urls_own():
    assert read_storage_options('{"s3": {"key": "k"}}', ["/m"]) == {"s3": {"key": "k"}}
    assert read_storage_options('{"key": "k"}', ["s3://b/m", "/out"]) == {"s3": {"key": "k"}}
    with pytest.raises(UsageError, match="JSON object"):
        read_storage_options("[1]", [])


def test_python_m_align_manifest_is_run(tmp_path):
    command = [sys.executable, "-m", "jobs.align_manifest", str(tmp_path / "nowhere.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("homoalign: manifest:")


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("manifest", ["", " "])
def test_a_manifest_without_a_name_is_refused(tmp_path, verb, manifest):
    done = homoalign(verb, manifest, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (2, "homoalign: MANIFEST is empty\n")


def test_align_of_an_image_of_no_known_protocol_is_a_row_with_that_status(tmp_path):
    write_pairs(tmp_path, 1)
    done = homoalign("align", "foo://x", tmp_path / "dst0.png", "--json")
    assert done.exit_code == 0
    assert strict_loads(done.stdout)["status"] == "unreadable"
    assert "foo://x: Protocol not known: foo" in strict_loads(done.stdout)["status_detail"]

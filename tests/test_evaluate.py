"""Accuracy and calibration figures, against values worked out by hand."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli import main
from jobs.commands.evaluate import evaluate_command
from jobs.errors import ExitCode
from jobs.reports.evaluate import Pairs, area_under_recall, calibration, evaluate_run, measure
from jobs.results.output import Output
from jobs.results.rows import TRUTH_KEY
from jobs.results.tally import Distribution, Tally, kind_of
from jobs.storage.store import Store

INFINITE = float("inf")


def pairs(
    error: list[float],
    confidence: list[float],
    status: list[str],
    rms_px: list[float] | None = None,
    std_px: list[float] | None = None,
) -> Pairs:
    return Pairs(
        error=np.array(error),
        confidence=np.array(confidence),
        rms_px=np.array(error if rms_px is None else rms_px),
        std_px=np.array([np.nan] * len(error) if std_px is None else std_px),
        status=np.array(status, dtype=object),
        group=np.array([""] * len(error), dtype=object),
    )


def test_shares_and_wrong_among_ok_count_a_missing_estimate_as_infinite_error():
    found = measure(
        pairs([0.5, 2.0, 7.0, INFINITE], [1.0, 0.9, 0.8, np.nan], ["ok", "low_confidence", "ok", "unreadable"])
    )
    assert found["below_px"] == {"1": 0.25, "3": 0.5, "5": 0.5, "10": 0.75}
    assert (found["right"], found["ok"]) == (2, 2)
    assert found["wrong_among_ok"] == 0.5
    assert found["not_ok_among_right"] == 0.5
    assert (found["false_ok"], found["missed_ok"]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # trapezoids: (0, 0) (1, .5) (2, 1) (5, 1): .25 + .75 + 3 = 4 of 5
        ([1.0, 2.0], 0.8),
        ([0.0, 0.0], 1.0),
        ([INFINITE, 9.0], 0.0),
        ([INFINITE, 0.0], 0.5),
    ],
)
def test_area_under_recall(error, expected):
    assert area_under_recall(np.array(error), 5) == pytest.approx(expected)


def test_expected_calibration_error_weighs_bins_by_their_pairs():
    found = calibration(pairs([0.0, 0.0, 9.0, 9.0], [0.9, 0.9, 0.95, 0.25], ["ok"] * 4))
    # bin 0.9: three pairs, mean 0.9167, two right; bin 0.2: one pair, mean 0.25, none right
    assert found["expected_calibration_error"] == pytest.approx(0.75 * (2.75 / 3 - 2 / 3) + 0.25 * 0.25)
    assert [entry["pairs"] for entry in found["bins"]] == [1, 3]


def test_precision_is_measured_on_right_pairs_and_confidence_on_pairs_that_have_one():
    found = calibration(
        pairs(
            [0.5, 0.5, 9.0, INFINITE],
            [0.9, 0.8, 0.7, np.nan],
            ["ok", "ok", "ok", "unreadable"],
            rms_px=[1.0, 5.0, 9.0, np.nan],
            std_px=[1.0, 1.0, 99.0, np.nan],
        )
    )
    assert found["pairs"] == 3
    assert found["corner_std"] == {"pairs": 2, "median_ratio": 3.0, "within": {"1.39": 0.5, "1.96": 0.5}}
    assert found["risk_coverage"] == {"80": 1.0, "90": 1.0, "95": 1.0, "99": 1.0}  # of the first two
    assert found["auroc"] == 1


def test_nothing_to_measure_is_none_not_a_number():
    found = measure(pairs([], [], []))
    assert found["below_px"]["1"] is None
    assert found["auc_px"]["1"] is None
    assert found["wrong_among_ok"] is None
    nothing = calibration(pairs([], [], []))
    assert (nothing["auroc"], nothing["bins"], nothing["risk_coverage"]["80"]) == (None, [], None)


def test_percentiles_are_within_two_percent_and_merge():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(0, 2, 5000), -rng.lognormal(0, 2, 3000), np.zeros(100)])
    whole, parts = Distribution(), Distribution()
    whole.add(values)
    for chunk in np.array_split(values, 7):
        part = Distribution()
        part.add(chunk)
        parts.merge(part)
    assert parts.bins == whole.bins
    for percent in (0, 1, 25, 50, 90, 100):
        exact = float(np.percentile(values, percent, method="lower"))
        assert whole.percentile(percent) == pytest.approx(exact, rel=0.021)


def test_a_tally_survives_its_footer_and_subtraction_undoes_a_merge():
    def tally(statuses: list[str], values: list[float]) -> Tally:
        found = Tally(timings={"align_s": 1.0})
        found.counts.update(statuses)
        found.errors = {"unreadable: src …": (statuses.count("unreadable"), "src a/b.png")}
        found.distributions["zncc"] = Distribution()
        found.distributions["zncc"].add(np.array(values))
        return found

    first, second = tally(["ok", "unreadable"], [0.5]), tally(["unreadable"], [0.7, -0.1])
    assert Tally.from_metadata(first.to_metadata()) == first
    total = tally(["ok", "unreadable"], [0.5])
    total.merge(second)
    assert total.counts == {"ok": 1, "unreadable": 2}
    assert total.error_rate == pytest.approx(2 / 3)
    total.subtract(second)
    assert (total.counts, total.errors) == (first.counts, first.errors)
    assert total.distributions["zncc"].bins == first.distributions["zncc"].bins


def test_like_errors_have_one_kind():
    first = kind_of("src images/a1.png: PNG of 10 x 20 pixels, limit 5")
    assert first == kind_of("src images/b/c.png: PNG of 999 x 1 pixels, limit 5")
    assert first != kind_of("dst images/a1.png: PNG of 10 x 20 pixels, limit 5")


def test_a_run_is_evaluated_over_all_and_by_a_carried_column(tmp_path):
    rows = [
        # scene, status, confidence, mean and largest error of a dst of 240 px (so doubled at 480), std
        ("a", "ok", 0.95, 1.0, 1.0, 1.0),
        ("a", "ok", 0.9, 3.0, 4.0, 1.0),
        ("b", "low_confidence", 0.4, 2.0, 5.0, 1.2),
        ("b", "ok", 0.8, 1.0, 1.0, 0.6),
        ("b", "low_confidence", 0.1, None, None, None),
    ]
    names = ("scene", "status", "confidence", "gt_corner_error_px", "gt_corner_error_max_px", "corner_std_px")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    table = pa.table({**columns, "dst_height": [240] * 5, "dst_width": [320] * 5})
    truth = {TRUTH_KEY: base64.b64encode(bytes([0b11111000]))}
    (tmp_path / "data").mkdir()
    pq.write_table(table.replace_schema_metadata(truth), tmp_path / "data" / "part-000000.parquet")

    figures = evaluate_run(Output(Store(), Store().url_of(str(tmp_path))), "scene")
    assert (figures["rows"], figures["without_truth"]) == (5, 0)
    assert (figures["overall"]["false_ok"], figures["overall"]["missed_ok"]) == (1, 1)
    groups, trust = figures["by"]["groups"], figures["by"]["calibration"]
    assert {name: (found["false_ok"], found["missed_ok"]) for name, found in groups.items()} == {
        "a": (1, 0),
        "b": (0, 1),
    }
    assert [found["auroc"] for found in (figures["calibration"], trust["a"], trust["b"])] == [
        pytest.approx(4 / 6),
        1,
        1,
    ]
    # right: 0.95, 0.4, 0.8; the first four of five are taken
    assert figures["calibration"]["risk_coverage"]["80"] == 0.75
    # errors over predictions of the right ones: 1, sqrt((25 + 9 / 3) / 4) / 1.2 = 2.2, 1 / 0.6
    assert figures["calibration"]["corner_std"]["within"] == {
        "1.39": pytest.approx(1 / 3),
        "1.96": pytest.approx(2 / 3),
    }
    assert trust["b"]["corner_std"]["within"] == {"1.39": 0, "1.96": 0.5}
    assert trust["a"]["bins"] == [
        {"from": 0.9, "to": 1.0, "pairs": 2, "mean_confidence": pytest.approx(0.925), "right": 0.5}
    ]

    printed = CliRunner().invoke(evaluate_command, [str(tmp_path), "--by", "scene"], catch_exceptions=False).output
    trust_table = printed.split("AUROC")[1]
    (line,) = (line for line in trust_table.splitlines() if line.startswith("│ b "))
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "b", "1.000", "0.300", "100.0", "100.0", "100.0", "100.0", "0", "0.0", "1", "50.0", "0.0", "50.0"
    ]  # fmt: skip


def part_of(scenes: pa.Array) -> pa.Table:
    """A part whose rows all have a truth; the error of row n is 2 n px, at 480."""
    num = len(scenes)
    table = pa.table(
        {
            "scene": scenes,
            "status": ["ok"] * num,
            "confidence": np.linspace(0.7, 1, num),
            "gt_corner_error_px": 2.0 * np.arange(num),
            "gt_corner_error_max_px": 2.0 * np.arange(num),
            "corner_std_px": np.linspace(0.1, 1, num),
            "dst_height": [480] * num,
            "dst_width": [640] * num,
        }
    )
    return table.replace_schema_metadata({TRUTH_KEY: base64.b64encode(b"\xff" * (num // 8 + 1))})


def write_parts(out: Path, *parts: pa.Table) -> Output:
    (out / "data").mkdir()
    for shard, part in enumerate(parts):
        pq.write_table(part, out / "data" / f"part-{shard:06d}.parquet", compression="zstd")
    return Output(Store(), Store().url_of(str(out)))


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")]
)


@pytest.mark.parametrize(
    ("scenes", "names"),
    [
        (NOT_UTF8, ["a\\xff", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([2**62, 1], pa.timestamp("us")), ["1970-01-01 00:00:00.000001", f"<value out of range: {2**62}>"]),
        (pa.array([1, 1], pa.timestamp("us", "Mars/Base")), ["1970-01-01 00:00:00.000001Z"]),
        (pa.array([True, None]), ["True", "null"]),
        (pa.array([1.5, 2]), ["1.5", "2.0"]),
    ],
)
def test_pairs_are_grouped_by_whatever_was_carried(tmp_path, scenes, names):
    assert list(evaluate_run(write_parts(tmp_path, part_of(scenes)), "scene")["by"]["groups"]) == names


def test_null_the_word_null_and_a_group_named_all_are_groups_of_their_own(tmp_path):
    scenes = pa.array(["all", "b", None, "null", '"null"'])
    figures = evaluate_run(write_parts(tmp_path, part_of(scenes)), "scene")
    medians = {name: found["median_px"] for name, found in figures["by"]["groups"].items()}
    assert medians == {"all": 0, "b": 2, "null": 4, '"null"': 6, '""null""': 8}
    printed = CliRunner().invoke(evaluate_command, [str(tmp_path), "--by", "scene"], catch_exceptions=False).output
    lines = [line for line in printed.split("AUROC")[1].splitlines() if line.startswith("│ all")]
    assert [line.strip("│").split("│")[7].strip() for line in lines] == ["2", "0"]  # false ok: of all, of the group


def damage(part: Path, how: str) -> None:
    data = part.read_bytes()
    if how == "foreign":
        pq.write_table(pa.table({"a": [1]}), part)
    else:
        part.write_bytes({"truncated": data[:-20], "empty": b"", "zeroed": data[:100] + bytes(300) + data[400:]}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "foreign", "zeroed"])
def test_a_damaged_part_is_named(tmp_path, how):
    part = part_of(pa.array([f"scene {number}" for number in range(200)]))
    write_parts(tmp_path, part, part, part)
    damage(tmp_path / "data" / "part-000001.parquet", how)
    done = CliRunner().invoke(main, ["evaluate", str(tmp_path)])
    assert done.exit_code == ExitCode.SHARDS_UNFINISHED, done.output
    assert re.search(r"1 of 3 parts cannot be read: \S+/part-000001\.parquet", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_truth_that_sends_a_corner_beyond_the_horizon_is_no_error_of_the_estimate(tmp_path):
    identity, beyond = np.eye(3).ravel().tolist(), [1.0, 0, 0, 0, 1, 0, -0.01, 0, 1]  # w < 0 right of x = 100 px
    table = part_of(pa.array(["a"] * 4))
    errors = pa.array([0.5, None, None, None])
    table = table.set_column(table.schema.get_field_index("gt_corner_error_px"), "gt_corner_error_px", errors)
    table = table.append_column("dst_homo_src", pa.array([identity, identity, beyond, None]))
    for name, side in (("src_height", 480), ("src_width", 640)):
        table = table.append_column(name, pa.array([side] * 4))
    figures = evaluate_run(write_parts(tmp_path, table), "scene")
    assert (figures["rows"], figures["without_truth"], figures["not_measurable"]) == (4, 0, 1)
    assert (figures["overall"]["pairs"], figures["overall"]["right"]) == (3, 1)
    assert figures["overall"]["median_px"] is None  # of 0.5 and two that are infinite
    printed = CliRunner().invoke(evaluate_command, [str(tmp_path)], catch_exceptions=False).output
    assert printed.startswith(
        "4 rows, 0 of them without a truth, 1 whose truth sends a corner beyond the horizon: ok 4"
    )

"""The benchmarks on many pairs: they run, say what they should, and refuse what they cannot do."""

import json
import math

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.bench import bench_command, peers
from jobs.bench.methods import ECC, HOMOALIGN, IDENTITY, SIFT, SIFT_ECC, Outcome
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pairs
from jobs.bench.real_pairs import groups_of
from jobs.bench.score import range_figures, ratio_to_case, rows_by_case
from jobs.errors import UsageError
from jobs.rendering.degrade import to_uint8

PHOTOGRAPHS = ["--photographs", "astronaut,coffee"]
METHODS = [HOMOALIGN, ECC, SIFT, SIFT_ECC]


def bench(folder, *arguments):
    target = folder / "figures.json"
    result = CliRunner().invoke(bench_command, [*arguments, "--json", str(target)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(target.read_text())


def without_times(document):
    return [{name: value for name, value in each.items() if name != "cpu_s"} for each in document["outcomes"]]


def test_precision_compares_every_method_under_every_noise(tmp_path):
    found = bench(tmp_path, "precision", "--pairs", "2", "--size", "128", "--sigmas", "0,5", *PHOTOGRAPHS)
    assert [(row["noise"], row["method"]) for row in found["rows"]] == [
        (noise, method) for noise in ("sigma 0", "sigma 5") for method in METHODS
    ]
    ours = found["rows"][4]
    assert ours["<1 px %"] == 100
    assert 0.3 < ours["/ bound"] < 5  # an error far below the bound is a bound of something else
    assert len(found["outcomes"]) == 2 * 2 * 4
    assert {"number", "name", "error_px", "status", "confidence", "initialisation"} <= set(found["outcomes"][0])
    assert found["seed"] == 0


@pytest.mark.parametrize("noise", ["photons", "speckle"])
def test_noise_that_grows_with_brightness_has_no_bound_of_white_noise(tmp_path, noise):
    found = bench(tmp_path, "precision", "--noise", noise, "--pairs", "2", "--size", "128", "--sigmas", "0,20",
                  "--no-peers", *PHOTOGRAPHS)  # fmt: skip
    none, some = found["rows"]
    assert not {"bound px", "/ bound"} & set(none)
    assert some["<1 px %"] == 100
    assert some["median px"] > 2 * none["median px"]


def test_range_counts_failures_and_starts_and_follows_from_its_seed(tmp_path):
    arguments = ["range", "--pairs", "3", "--no-peers", *PHOTOGRAPHS]
    found = bench(tmp_path, *arguments)
    assert [row["method"] for row in found["rows"]] == [HOMOALIGN]
    assert {"<1 px %", "<0.1 px %", "mean px", "failed but ok %", "right not ok %"} <= set(found["rows"][0])
    assert sum(start["pairs %"] for start in found["starts"].values()) == pytest.approx(100)
    assert without_times(bench(tmp_path, *arguments)) == without_times(found)
    assert without_times(bench(tmp_path, *arguments, "--seed", "1")) != without_times(found)


def test_range_takes_another_size_rotation_and_scale(tmp_path):
    arguments = ["--size", "64", "--any-rotation", "--scale", "0.8,1.25", "--sigma", "2"]
    found = bench(tmp_path, "range", "--pairs", "1", *arguments, *PHOTOGRAPHS)
    assert "64 x 64, corners moved by up to 16 px, any rotation: yes, scale 0.8 to 1.25, sigma 2" in found["title"]


def test_photometric_compares_with_the_unchanged_case(tmp_path):
    found = bench(tmp_path, "photometric", "--pairs", "2", "--size", "96", "--offset", "4", "--no-peers", *PHOTOGRAPHS)
    cases = ["unchanged", "gain and bias", "gamma", "vignetting", "JPEG", "everything"]
    assert [row["change"] for row in found["rows"]] == cases
    assert found["rows"][0]["/ unchanged"] == 1


def test_occlusion_compares_with_the_first_share(tmp_path):
    arguments = ["--pairs", "1", "--size", "96", "--offset", "4", "--shares", "0,10", "--no-peers"]
    found = bench(tmp_path, "occlusion", *arguments, *PHOTOGRAPHS[:1], "astronaut")
    assert [row["covered"] for row in found["rows"]] == ["0 %", "10 %"]
    assert found["rows"][0]["/ 0 %"] == 1


def test_blur_compares_with_none(tmp_path):
    found = bench(
        tmp_path, "blur", "--pairs", "1", "--size", "96", "--offset", "4", "--jpeg", "80", "--no-peers", *PHOTOGRAPHS
    )
    cases = ["none", "dst, defocus", "src, defocus", "dst, motion", "src, motion"]
    assert [row["blur"] for row in found["rows"]] == cases
    assert found["rows"][0]["/ none"] == 1


def test_quantised_compares_with_all_levels(tmp_path):
    found = bench(tmp_path, "quantised", "--pairs", "1", "--size", "96", "--offset", "4", "--no-peers", *PHOTOGRAPHS)
    cases = ["256 levels", "32 levels", "16 levels", "8 levels", "4 levels", "2 levels", "dithered", "8 steps"]
    assert [row["images"] for row in found["rows"]] == cases
    assert found["rows"][0]["/ 256 levels"] == 1


def test_compression_compares_with_lossless_files(tmp_path):
    found = bench(tmp_path, "compression", "--pairs", "1", "--size", "96", "--offset", "4", "--no-peers", *PHOTOGRAPHS)
    cases = ["lossless", "JPEG 90", "JPEG 75", "JPEG 50", "JPEG 30", "JPEG 15", "WebP 75", "WebP 30"]
    assert [row["files"] for row in found["rows"]] == cases
    assert found["rows"][0]["/ lossless"] == 1
    drawn = bench(tmp_path, "compression", "--pairs", "1", "--size", "96", "--offset", "4", "--no-peers", "--drawings")
    assert {outcome["name"] for outcome in drawn["outcomes"]} == {"slide 0"}


def test_stripes_compares_with_none(tmp_path):
    found = bench(tmp_path, "stripes", "--pairs", "1", "--size", "96", "--offset", "4", "--no-peers", *PHOTOGRAPHS)
    cases = ["none", "rows", "fixed columns", "column gains", "detectors", "lines"]
    assert [row["stripes"] for row in found["rows"]] == cases
    assert found["rows"][0]["/ none"] == 1


def test_surround_compares_with_none(tmp_path):
    found = bench(tmp_path, "surround", "--pairs", "1", "--size", "96", "--offset", "4", "--no-peers", *PHOTOGRAPHS)
    assert [row["surround"] for row in found["rows"]] == ["none", "aperture", "letterbox", "nodata"]
    assert found["rows"][0]["/ none"] == 1


def test_template_says_what_is_found_and_what_is_trusted(tmp_path):
    found = bench(tmp_path, "template", "--pairs", "1", "--size", "96", "--no-peers", *PHOTOGRAPHS)
    cases = ["1/2", "1/3", "1/4", "1/3, covered", "tile, 1/2", "tile, 1/4", "absent"]
    assert [row["src in dst"] for row in found["rows"]] == cases
    assert found["rows"][0]["right %"] == found["rows"][0]["ok | right %"] == 100
    absent = found["rows"][-1]
    assert (absent["right %"], absent["wrong but ok %"]) == (0, 0)


def test_tiles_names_what_knows_the_stage(tmp_path):
    found = bench(tmp_path, "tiles", "--pairs", "1", "--size", "128", *PHOTOGRAPHS)
    rows = {(row["overlap"], row["method"]): row for row in found["rows"]}
    assert [row["overlap"] for row in found["rows"][::4]] == ["20 %", "10 %", "7 %", "none"]
    assert rows["20 %", "homoalign"]["right %"] == rows["20 %", "homoalign"]["ok | right %"] == 100
    assert rows["20 %", "phase correlation of the strips"]["right %"] == 100
    assert (rows["none", "homoalign"]["right %"], rows["none", "homoalign"]["wrong but ok %"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiles", "--photographs", "astronaut"], "at least two"),
        (["template", "--photographs", "astronaut"], "at least two"),
        (["precision", "--sigmas", "5,x"], "--sigmas 5,x"),
        (["precision", "--set", "stepp=1"], "did you mean"),
        (["precision", "--photographs", "nonesuch"], "neither a file or folder"),
        (["precision", "--json", "nonesuch/f.json"], "there is no folder"),
        (["range", "--offset", "60"], "leave room for 0 to 56 px"),
        (["range", "--scale", "2"], "it should be 2 numbers"),
        (["range", "--scale", "2,1"], "LOW <= HIGH"),
        (["occlusion", "--shares", "100"], "percent below 100"),
        (["real", "--manifest", "nonesuch.parquet"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(bench_command, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two photographs' pairs, the second one twice under two formats, and columns as the real data have them."""
    folder = tmp_path_factory.mktemp("real")
    render = RenderOptions(pairs=2, seed=0, photographs=("astronaut", "coffee"))
    rows = []
    for drawn in draw_pairs(render, size=160, offset_px=6):
        for suffix in ("png", "pgm") if drawn.number else ("png",):
            names = [f"{side}{drawn.number}.{suffix}" for side in ("src", "dst")]
            for name, view in zip(names, (drawn.views.src, drawn.views.dst), strict=True):
                cv2.imwrite(str(folder / name), to_uint8(view))
            rows.append(
                {
                    "pair_id": f"{drawn.name}/{suffix}",
                    "src": names[0],
                    "dst": names[1],
                    "dst_homo_src_gt": drawn.views.dst_homo_src.ravel().tolist(),
                    "kind": "cross-modal" if drawn.number else "mono",
                    "tier": "A",
                    "gt_is_sub_pixel": not drawn.number,
                    "landmarks_src": [[10.0, 20.0], [100.0, 30.0]],
                    "landmarks_dst": [[10.0, 20.0], [100.0, 30.0]],
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def test_real_scores_each_group_and_counts_a_copy_once(manifest, tmp_path):
    found = bench(tmp_path, "real", "--manifest", str(manifest))
    groups = {(row["group"], row["method"]): row for row in found["rows"]}
    assert {group for group, _ in groups} == {"photo", "sub-pixel", "cross-modal"}
    assert {method for _, method in groups} == {*METHODS, IDENTITY}
    assert all(row["pairs"] == 1 for row in found["rows"])
    ours = groups["sub-pixel", HOMOALIGN]
    assert ours["AUC@5"] > 90
    assert ours["max"] == ours["median"] < 0.5
    assert ours["ok | right"] == 100
    assert groups["photo", IDENTITY]["<1 px"] == 0
    first = found["outcomes"][0]
    assert first["groups"] == ["photo", "sub-pixel"]
    assert first["is_right"]
    assert first["error_at_480_px"] == pytest.approx(first["error_px"] * 3)
    identity = next(each for each in found["outcomes"] if each["method"] == IDENTITY)
    assert identity["landmark_px"] == 0  # the fixture's landmarks say that nothing moved
    assert first["landmark_px"] > 0.5


def test_real_takes_one_group_or_pair(manifest, tmp_path):
    base = ["real", "--manifest", str(manifest), "--no-peers"]
    assert {row["group"] for row in bench(tmp_path, *base, "--group", "sub-pixel")["rows"]} == {"sub-pixel"}
    found = bench(tmp_path, *base, "--pair-id", "coffee/p*")
    assert {each["name"] for each in found["outcomes"]} == {"coffee/png"}
    with pytest.raises(UsageError, match="1 photo, 1 sub-pixel, 2 cross-modal, 0 all"):
        CliRunner().invoke(bench_command, [*base, "--pair-id", "tea"], catch_exceptions=False)


def test_a_manifest_without_the_columns_is_one_group(manifest, tmp_path):
    plain = pq.read_table(manifest, columns=["pair_id", "src", "dst", "dst_homo_src_gt"])
    pq.write_table(plain, manifest.parent / "plain.parquet")
    found = bench(tmp_path, "real", "--manifest", str(manifest.parent / "plain.parquet"), "--no-peers")
    assert [(row["group"], row["pairs"]) for row in found["rows"]] == [("all", 2), ("all", 2)]


def test_an_unreadable_pair_and_a_manifest_without_truth_are_usage_errors(manifest, tmp_path):
    table = pq.read_table(manifest)
    absent = table.set_column(1, "src", pa.array(["absent.png"] * len(table)))
    pq.write_table(absent, tmp_path / "absent.parquet")
    pq.write_table(table.drop_columns(["dst_homo_src_gt"]), tmp_path / "blind.parquet")
    for name, message in (("absent", "absent.png"), ("blind", "no row has a dst_homo_src_gt")):
        with pytest.raises(UsageError, match=message):
            CliRunner().invoke(
                bench_command, ["real", "--manifest", str(tmp_path / f"{name}.parquet")], catch_exceptions=False
            )


def test_the_groups_follow_from_the_columns():
    assert groups_of({"kind": "mono", "tier": "B", "gt_is_sub_pixel": False}) == ("photo",)
    assert groups_of({"kind": "mono", "gt_is_sub_pixel": True}) == ("photo", "sub-pixel")
    assert groups_of({"kind": "cross-modal", "tier": "A", "gt_is_sub_pixel": False}) == ("cross-modal",)
    assert groups_of({"kind": "cross-time", "tier": "B", "gt_is_sub_pixel": False}) == ("cross-modal",)
    assert groups_of({"kind": "cross-time", "tier": "P"}) == ()
    assert groups_of({"kind": "mono", "tier": "P", "gt_is_sub_pixel": False}) == ()
    assert groups_of({"pair_id": "a"}) == groups_of({"kind": "aerial"}) == ("all",)


def outcome(method, number, error_px, **fields):
    return Outcome(
        method=method, case=fields.pop("case", ""), number=number, name="a", error_px=error_px, at_480=1.0, cpu_s=0.1,
        **fields,
    )  # fmt: skip


def test_a_failure_is_infinite_left_out_of_the_mean_and_counted_where_it_is_not_flagged():
    ok, low = {"status": "ok"}, {"status": "low_confidence"}
    ended = [(0.05, ok), (3.0, low), (50.0, ok), (math.inf, low)]
    found = range_figures([outcome("m", i, error_px, **fields) for i, (error_px, fields) in enumerate(ended)])
    assert found["<1 px %"] == 25
    assert found["<0.1 px %"] == 25
    assert found["mean px"] == pytest.approx(1.525)
    assert found["failed %"] == 50
    assert found["failed but ok %"] == 50
    assert found["right not ok %"] == 50


def test_a_ratio_is_of_the_same_method_and_pair():
    before = [outcome("m", 0, 0.1, case="0"), outcome("m", 1, 0.2, case="0"), outcome("m", 2, math.inf, case="0")]
    after = [outcome("m", 0, 0.2, case="1"), outcome("m", 1, 0.6, case="1"), outcome("m", 2, 0.1, case="1")]
    assert ratio_to_case([*before, *after], "0")(after) == pytest.approx(2.5)
    assert [row["case"] for row in rows_by_case([*before, *after], "case", lambda _: {})] == ["0", "1"]


def test_ecc_from_a_start_is_src_to_dst_and_says_when_it_gives_up():
    render = RenderOptions(pairs=1, seed=0, photographs=("astronaut",))
    (drawn,) = draw_pairs(render, size=160, offset_px=8)
    src, dst = (np.repeat(to_uint8(view)[..., None], 3, axis=2) for view in (drawn.views.src, drawn.views.dst))
    found = peers.ecc_from(src, dst, np.eye(3))
    np.testing.assert_allclose(found, drawn.views.dst_homo_src, rtol=0.05, atol=0.1)
    assert peers.ecc_from(src, np.zeros_like(dst), np.eye(3)) is None

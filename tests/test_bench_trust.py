"""`bench trust`: its pairs are what they are called, and its figures what they say."""

import json
import math

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from homoalign import AlignConfig
from jobs.bench import bench_command, trust_run
from jobs.bench.methods import ECC, HOMOALIGN, SIFT, mean_distance_px
from jobs.bench.pairs import BenchPair
from jobs.bench.photographs import place_of, select_split, split_of
from jobs.bench.trust import ellipse_rows, reliability_rows, trust_figures, unrelated_ok
from jobs.bench.trust_changes import draw_change
from jobs.bench.trust_pairs import (
    CASES,
    LOOKALIKES,
    MISLED,
    MISLED_CASES,
    NEAR_DUPLICATE,
    RELATED,
    STRANGERS,
    UNRELATED,
    TrustPairs,
    share_covered,
    trust_pairs,
)
from jobs.bench.trust_run import TrustOutcome, align_by_homoalign, corner_errors, corner_mahalanobis
from jobs.bench.trust_scenes import PATTERNS, SCENE_SIZE, draw_forms, draw_textures, same_spectrum
from jobs.errors import UsageError
from jobs.rendering.synthetic import PHOTOGRAPHS

NAMES = ("astronaut", "coffee", "rocket")


def disagreement(pair, dst_homo_src) -> float:
    """Mean absolute difference, 8-bit units, of dst and src warped by cv2, over the overlap."""
    size = pair.dst.shape[::-1]
    warped = cv2.warpPerspective(pair.src, dst_homo_src, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpPerspective(np.full_like(pair.src, 255), dst_homo_src, size, flags=cv2.INTER_LINEAR) == 255
    return float(np.abs(warped.astype(float) - pair.dst)[inside].mean())


def outcome(number, error_px, score, status="ok", **fields):
    given = {"method": HOMOALIGN, "case": "noise", "group": RELATED, "sigma_8bit": 0.0} | fields
    return TrustOutcome(
        number=number,
        name="a",
        error_px=error_px,
        at_480=1.0,
        cpu_s=0.1,
        score=score,
        status=status,
        parameters={},
        **given,
    )


def test_the_splits_share_no_place_and_both_have_textures_and_print():
    fit, held_out = (select_split(tuple(PHOTOGRAPHS), split) for split in ("fit", "held-out"))
    assert sorted([*fit, *held_out]) == sorted(PHOTOGRAPHS)
    assert {place_of(name) for name in fit}.isdisjoint(map(place_of, held_out))
    assert {"brick", "page"} <= set(fit)
    assert {"gravel", "text"} <= set(held_out)
    assert select_split(NAMES, "all") == NAMES
    # a file's split follows from its name, wherever it lies, and is the same for both sides of a stereo pair
    assert split_of("a/house_left.png") == split_of("b/house_right.jpg")
    assert {split_of(f"photographs/{name}.png") for name in ("a", "b", "c", "d")} == {"fit", "held-out"}


def test_a_pair_follows_from_seed_photographs_group_and_number_alone():
    few = list(trust_pairs(2, 3, 1, 5, NAMES))
    more = list(trust_pairs(3, 3, 2, 5, NAMES))
    assert [(pair.group, pair.number) for pair in few] == [
        (RELATED, 0), (RELATED, 1), (UNRELATED, 0), (UNRELATED, 1), (UNRELATED, 2), (NEAR_DUPLICATE, 0)
    ]  # fmt: skip
    again = {(pair.group, pair.number): pair for pair in more}
    for pair in few:
        np.testing.assert_array_equal(pair.dst, again[pair.group, pair.number].dst)
        np.testing.assert_array_equal(pair.src, again[pair.group, pair.number].src)
    other_seed = TrustPairs(seed=6, photographs=NAMES).draw(UNRELATED, 3)
    other_names = TrustPairs(seed=5, photographs=("camera", "coins")).draw(UNRELATED, 3)
    mine = TrustPairs(seed=5, photographs=NAMES).draw(UNRELATED, 3)
    assert mine.case == "textures"  # drawn by code: nothing but the names says that the photographs are others
    for other in (other_seed, other_names):
        assert other.src.shape != mine.src.shape or (other.src != mine.src).any()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_truth_of_every_related_case_lays_src_on_dst(number):
    pair = TrustPairs(seed=3, photographs=("astronaut", "coffee"), max_width=240).draw(RELATED, number)
    assert pair.case == CASES[number]
    assert {pair.src.shape[1], pair.dst.shape[1]} <= {160, 240}
    off = np.array([[1, 0, 6.0], [0, 1, 6.0], [0, 0, 1]]) @ pair.dst_homo_src
    assert disagreement(pair, pair.dst_homo_src) < disagreement(pair, off)
    assert 0 < pair.parameters["true_overlap"] <= 1


def test_overlaps_and_contrasts_reach_from_all_to_almost_nothing():
    pairs = TrustPairs(seed=0, photographs=NAMES, max_width=160)
    overlaps = [
        pairs.draw(RELATED, len(CASES) * i + CASES.index("overlap")).parameters["true_overlap"] for i in range(30)
    ]
    assert min(overlaps) < 0.15
    assert max(overlaps) > 0.8
    contrasts = [draw_change("texture", np.random.default_rng(i)).contrast for i in range(100)]
    assert min(contrasts) == 0
    assert 0 < sorted(contrasts)[20] < 0.05
    assert max(contrasts) > 0.8


def test_half_of_the_repeated_patterns_are_shifted_far():
    pairs = TrustPairs(seed=0, photographs=NAMES, max_width=160)
    overlaps = [
        pairs.draw(RELATED, len(CASES) * i + CASES.index("repeated")).parameters["true_overlap"] for i in range(48)
    ]
    assert 8 <= sum(overlap < 0.8 for overlap in overlaps) <= 28


@pytest.mark.parametrize("number", range(len(STRANGERS)))
def test_no_answer_to_an_unrelated_pair_is_right(number):
    pair = TrustPairs(seed=0, photographs=NAMES).draw(UNRELATED, number)
    assert pair.case == STRANGERS[number]
    assert np.isnan(pair.dst_homo_src).all()
    assert max(pair.src.shape[1], pair.dst.shape[1]) <= 240
    assert pair.src.shape != pair.dst.shape or np.corrcoef(pair.src.ravel(), pair.dst.ravel())[0, 1] < 0.9


def test_the_two_sides_of_a_stereo_pair_are_never_strangers():
    pairs = TrustPairs(seed=0, photographs=("motorcycle_left", "motorcycle_right", "moon"))
    drawn = {pairs.other_than("motorcycle_left", np.random.default_rng(i)) for i in range(20)}
    assert drawn == {"moon"}
    with pytest.raises(UsageError, match="at least two places"):
        TrustPairs(seed=0, photographs=("motorcycle_left", "motorcycle_right"))


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_near_duplicates_have_a_truth_where_they_share_a_place(kind):
    pairs = TrustPairs(seed=0, photographs=NAMES)
    pair = pairs.draw(NEAR_DUPLICATE, LOOKALIKES.index(kind))
    assert pair.case == kind
    assert np.isfinite(pair.dst_homo_src).all() == (kind in ("object", "form"))


def test_misled_pairs_start_beside_the_truth_and_are_not_searched(monkeypatch):
    pairs, count = TrustPairs(seed=0, photographs=NAMES, max_width=160), len(MISLED_CASES)
    drawn = [pairs.draw(MISLED, number) for number in range(2 * count)]
    assert "repeated" not in MISLED_CASES
    assert [pair.case for pair in drawn] == [*MISLED_CASES, *MISLED_CASES]
    assert [pair.on_structure for pair in drawn] == [False] * count + [True] * count
    off = [mean_distance_px(pair.start, pair) * 480 / min(pair.dst.shape) for pair in drawn]
    np.testing.assert_allclose(off, [pair.parameters["off_480"] for pair in drawn])
    assert min(off) < 8
    assert max(off) > 30
    assert 6 <= sum("relief_480" in pair.parameters for pair in drawn) <= 18
    assert pairs.draw(RELATED, 0).start is None
    asked = []
    monkeypatch.setattr(trust_run, "align_timed", lambda _, config, init: asked.append((config, init)) or 1 / 0)
    for pair in (drawn[0], drawn[count]):
        with pytest.raises(ZeroDivisionError):
            align_by_homoalign(pair, AlignConfig())
    assert [(config.use_search, config.use_features, config.signal) for config, _ in asked] == [
        (False, False, "auto"), (False, False, "structure")
    ]  # fmt: skip
    assert [init for _, init in asked] == [drawn[0].start, drawn[count].start]


def test_a_form_filled_in_twice_shares_its_print_alone():
    shares = []
    for seed in range(6):
        first, second = draw_forms(np.random.default_rng(seed))
        assert first.shape == SCENE_SIZE
        differs, dark = np.abs(first - second) > 0.05, first < first.max() - 0.3
        assert 0.05 < differs.mean() < 0.2
        shares.append((dark & ~differs).sum() / dark.sum())
    assert 0.69 < np.mean(shares) < 0.77  # 0.73 of the ink; 0.65 if the print of the boxes were not shared


def test_patterns_repeat_and_textures_of_a_kind_differ(numpy_rng):
    windows = PATTERNS["windows"](numpy_rng)
    spectrum = np.abs(np.fft.rfft(windows.mean(axis=0) - windows.mean()))
    assert spectrum.max() > 5 * np.median(spectrum)
    first, second = draw_textures(numpy_rng)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.3
    assert 0.8 < np.std(first) / np.std(second) < 1.25
    again = same_spectrum(windows, numpy_rng)
    assert abs(np.corrcoef(windows.ravel(), again.ravel())[0, 1]) < 0.3


def test_the_share_covered_is_that_of_dst():
    shift = np.array([[1, 0, 50.0], [0, 1, 0], [0, 0, 1]])
    assert share_covered(shift, (100, 101), (100, 101)) == pytest.approx(0.5, abs=0.02)
    assert share_covered(shift, (100, 51), (100, 101)) == pytest.approx(0.5, abs=0.02)
    assert share_covered(shift @ shift @ shift, (100, 101), (100, 101)) == 0


def test_a_corner_is_measured_in_units_of_its_own_covariance():
    blank = np.zeros((11, 21), dtype=np.uint8)
    pair = BenchPair(number=0, name="", case="", src=blank, dst=blank, dst_homo_src=np.eye(3))
    shifted = np.array([[1, 0, 2.0], [0, 1, 1.0], [0, 0, 1]])
    error = corner_errors(shifted, pair)
    np.testing.assert_allclose(error, [[2, 1]] * 4)
    covariance = np.array([np.diag([4.0, 1.0]), [[2, 1], [1, 2]], np.diag([1.0, 0]), np.full((2, 2), np.nan)])
    # e^T C^-1 e: 4/4 + 1/1; (2, 1) [[2, -1], [-1, 2]] (2, 1)^T / 3 = 6 / 3; singular; missing
    assert corner_mahalanobis(error, covariance) == (pytest.approx(2), pytest.approx(2), None, None)
    assert corner_mahalanobis(np.full((4, 2), np.nan), np.stack([np.eye(2)] * 4)) == (None,) * 4


def test_scores_and_statuses_are_set_against_the_truth():
    found = trust_figures(
        [
            outcome(0, 1.0, 0.9),
            outcome(1, 1.0, 0.2, "low_confidence"),
            outcome(2, 50.0, 0.8),
            outcome(3, math.inf, 0.1, "no_overlap"),
            outcome(4, math.inf, 0.1, "no_overlap"),
        ]
    )
    assert (found["right %"], found["ok"], found["wrong ok"]) == (40, 2, 1)
    assert (found["wrong ok %"], found["missed ok %"]) == (50, 50)
    assert found["AUROC"] == pytest.approx(5 / 6, abs=1e-4)
    assert found["ECE"] == pytest.approx((0.1 + 0.8 + 0.8 + 0.1 + 0.1) / 5)
    assert found["top 80 %"] == 0.5
    peer = trust_figures([outcome(0, 1.0, 0.9, None, method=ECC)])
    assert (peer["ok"], peer["missed ok %"], peer["AUROC"]) == ("", "", "")


def test_ok_among_unrelated_is_counted_per_thousand_of_homoaligns_answers():
    strangers = [outcome(i, math.inf, 0.1, "ok" if i < 3 else "low_confidence", group=UNRELATED) for i in range(200)]
    others = [outcome(0, 1.0, 0.9), outcome(0, math.inf, 0.9, None, group=UNRELATED, method=ECC)]
    assert unrelated_ok([*strangers, *others]) == {"pairs": 200, "ok": 3, "per_thousand": 15}
    assert unrelated_ok(others) == {"pairs": 0, "ok": 0, "per_thousand": None}


def test_ellipses_cover_by_noise_and_by_case_and_a_missing_covariance_is_outside():
    inside, outside = {"corner_rms_px": 1.0, "corner_std_px": 1.0}, {"corner_rms_px": 3.0, "corner_std_px": 1.0}
    rows = ellipse_rows(
        [
            outcome(0, 1.0, 0.9, sigma_8bit=5.0, corner_mahalanobis=(1.0, 5.99, 6.0, 0.1), **inside),
            outcome(1, 1.0, 0.9, sigma_8bit=5.0, corner_mahalanobis=None),
            outcome(2, 1.0, 0.9, case="blur", corner_mahalanobis=(9.0, 1.0, 1.0, None), **outside),
            outcome(3, 50.0, 0.9, corner_mahalanobis=(1.0,) * 4),  # wrong
            outcome(4, 1.0, 0.9, group=NEAR_DUPLICATE, corner_mahalanobis=(1.0,) * 4),
        ]
    )
    assert [(row["over"], row["right pairs"], row["inside"]) for row in rows] == [
        ("sigma 0", 1, 0.5), ("sigma 5", 2, 3 / 8), ("noise", 2, 3 / 8), ("blur", 1, 0.5)
    ]  # fmt: skip
    assert [row["error / predicted"] for row in rows] == [3, 1, 1, 3]
    assert [row["no covariance %"] for row in rows] == [25, 50, 50, 25]
    assert rows[1]["median squared"] == pytest.approx((1 + 5.99) / 2)


def test_the_reliability_is_of_each_methods_score():
    rows = reliability_rows([outcome(0, 1.0, 0.95), outcome(1, 50.0, 0.91), outcome(0, 1.0, 0.3, None, method=ECC)])
    assert [(row["method"], row["score"], row["pairs"], row["right"]) for row in rows] == [
        (HOMOALIGN, "0.9 to 1.0", 2, 0.5), (ECC, "0.3 to 0.4", 1, 1)
    ]  # fmt: skip


def bench(folder, *arguments):
    target = folder / "trust.json"
    sizes = ["--size", "160", "--split", "all", "--photographs", "astronaut,coffee", "--set", "use_search=false"]
    result = CliRunner().invoke(
        bench_command, ["trust", *sizes, *arguments, "--json", str(target)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(target.read_text())


def test_trust_runs_every_method_and_writes_every_pair(tmp_path):
    found = bench(tmp_path, "--pairs", "2", "--unrelated", "1", "--near-duplicates", "1")
    assert [row["method"] for row in found["rows"] if row["pairs of"] == "all"] == [HOMOALIGN, ECC, SIFT]
    assert len(found["outcomes"]) == 4 * 3
    ours = found["outcomes"][0]
    assert all(each["is_right"] and each["score"] > 0.3 for each in found["outcomes"][:3])
    assert (ours["group"], ours["case"], ours["is_right"]) == (RELATED, "noise", True)
    assert {"score", "confidence", "status", "corner_std_px", "zncc", "overlap", "inlier_ratio", "cpu_s"} <= set(ours)
    assert len(ours["corner_mahalanobis"]) == 4
    stranger = next(each for each in found["outcomes"] if each["group"] == UNRELATED)
    assert (stranger["error_px"], stranger["is_right"]) == (None, False)
    assert found["unrelated"]["pairs"] == 1
    assert found["split"] == "all"


def test_the_number_of_workers_changes_nothing_but_the_time(tmp_path):
    def without_times(document):
        return [{name: value for name, value in each.items() if name != "cpu_s"} for each in document["outcomes"]]

    arguments = ["--pairs", "3", "--unrelated", "0", "--near-duplicates", "0", "--no-peers"]
    alone = bench(tmp_path, *arguments)
    assert without_times(bench(tmp_path, *arguments, "--num-workers", "2")) == without_times(alone)
    assert {each["method"] for each in alone["outcomes"]} == {HOMOALIGN}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photographs", "astronaut"], "at least two places"),
        (["--photographs", "astronaut,brick", "--split", "held-out"], "at least two places"),
    ],
)
def test_photographs_that_are_too_few_are_said_before_anything_runs(arguments, message):
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(bench_command, ["trust", *arguments], catch_exceptions=False)

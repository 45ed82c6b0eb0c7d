"""Whom to ask where a doubt is left: the blocks, and whom else where their structure leaves one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from homoalign import AlignConfig, Status, align, homography
from homoalign.levels.pyramid import Level, build_pyramid
from homoalign.trust import witnesses
from homoalign.trust.confidence import confidence
from homoalign.trust.evidence import EVIDENCE, Evidence
from homoalign.trust.parts import measure_parts
from homoalign.trust.witnesses import ask_witnesses, error_480, is_plain, is_plain_strip, look_closer
from jobs.bench.photographs import load_gray
from jobs.rendering.degrade import add_noise, see_by_other_sensor
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

SIZE = (120, 160)
NOISE = torch.ones(1, dtype=torch.float64)
MORE_THAN_NOISE = 3 * NOISE


@pytest.fixture
def view(numpy_rng):
    """Render a pair of a photograph: (src, dst, dst_homo_src)."""

    def render(*, sigma_8bit=0.0, contrast=1.0, other_sensor=False):
        truth = random_homography(numpy_rng, SIZE, 6.0)
        pair = render_pair(load_scene("astronaut", gray=True), truth, SIZE, rng=numpy_rng)
        src, dst = (0.5 + contrast * (image.clip(0, 1) - 0.5) for image in (pair.src, pair.dst))
        if other_sensor:
            dst = see_by_other_sensor(dst, bends=2, rng=numpy_rng)
        src, dst = (add_noise(image.astype(np.float32), sigma_8bit=sigma_8bit, rng=numpy_rng) for image in (src, dst))
        return src, dst, pair.dst_homo_src

    return render


@pytest.fixture
def fine_alike(numpy_rng):
    """Render a pair that shares fine detail alone, as bands of unlike sensors do: (src, dst, dst_homo_src)."""

    def render(share=0.5):
        size = (2 * SIZE[0], 2 * SIZE[1])
        truth = random_homography(numpy_rng, size, 6.0)
        pair = render_pair(load_scene("grass", gray=True), truth, size, rng=numpy_rng)
        detail = [share * (image - gaussian_filter(image, 1.5)) for image in (pair.src, pair.dst)]
        ground = [gaussian_filter(load_gray(name)[: size[0], : size[1]], 2) for name in ("coffee", "astronaut")]
        src, dst = ground[0] + detail[0], ground[1] - detail[1]
        return src.astype(np.float32), dst.astype(np.float32), pair.dst_homo_src

    return render


def closer(*pairs, levels=2):
    """Return what structure says of pairs on the coarser of two levels, and what it does on the finer one too."""
    src, dst = (pyramid(*(pair[k] for pair in pairs), levels=levels) for k in (0, 1))
    matrix = homography.rescale(torch.from_numpy(np.stack([pair[2] for pair in pairs])), levels - 1)
    parts = measure_parts(src[-1], dst[-1], matrix)
    return parts, look_closer(src[:-1], dst[:-1], torch.arange(len(pairs)), matrix, parts)


def pyramid(*images, levels=2, mask=None):
    return build_pyramid(Level(torch.from_numpy(np.stack(images))[:, None], mask), levels)


def asked(src, dst, dst_homo_src, unexplained):
    """Return what structure alone says of one pair, and what all witnesses do."""
    levels, matrix = (pyramid(src), pyramid(dst)), torch.from_numpy(dst_homo_src)[None]
    parts = measure_parts(levels[0][0], levels[1][0], matrix)
    return parts, ask_witnesses(*levels, matrix, parts, unexplained)


def shifted(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def test_what_noise_hides_from_structure_intensities_tell(view):
    alone, together = asked(*view(sigma_8bit=20, contrast=0.3), NOISE)
    assert error_480(alone).item() > 8
    assert error_480(together).item() < 4
    assert together.here.item() > alone.here.item() + 0.2


@pytest.mark.parametrize("shift_px", [3, 6])
def test_a_wrong_answer_stays_one(view, shift_px):
    src, dst, truth = view(sigma_8bit=20, contrast=0.5)
    _, together = asked(src, dst, shifted(shift_px, 0) @ truth, NOISE)
    assert error_480(together).item() > 0.7 * shift_px * 480 / SIZE[0]
    assert together.here.item() < 0.3


def test_where_residuals_are_more_than_noise_structure_is_asked_alone(view):
    src, dst, truth = view(sigma_8bit=20, other_sensor=True)
    alone, together = asked(src, dst, truth, MORE_THAN_NOISE)
    assert error_480(together).item() == error_480(alone).item()
    _, together = asked(src, dst, truth, torch.full_like(NOISE, torch.nan))
    assert error_480(together).item() == error_480(alone).item()


def test_what_only_fine_detail_shows_is_seen_on_a_finer_level(fine_alike):
    coarse, fine = closer(fine_alike())
    assert error_480(coarse).item() > 5
    assert error_480(fine).item() < 1
    assert fine.here.item() > coarse.here.item() + 0.4


def test_a_second_finer_level_is_looked_at_where_one_leaves_a_doubt(fine_alike, monkeypatch):
    pair = fine_alike(4.0)
    monkeypatch.setattr(witnesses, "LEAST_HERE", -1.0)
    coarse, finer = closer(pair, levels=3)
    assert error_480(coarse).item() > 20
    assert error_480(finer).item() < 1
    monkeypatch.setattr(witnesses, "CLEAR_480", 0.1)
    _, finest = closer(pair, levels=3)
    assert error_480(finest).item() < 0.7 * error_480(finer).item()


@pytest.mark.parametrize("shift_px", [4, 8])
def test_a_finer_level_does_not_make_a_wrong_answer_right(fine_alike, monkeypatch, shift_px):
    src, dst, truth = fine_alike(1.0)
    monkeypatch.setattr(witnesses, "LEAST_HERE", -1.0)
    _, fine = closer((src, dst, shifted(shift_px, 0) @ truth))
    assert error_480(fine).item() > 0.7 * shift_px * 2
    assert fine.here.item() < 0.2


def test_what_a_finer_level_leaves_open_stays_as_it_was(fine_alike, monkeypatch):
    src, dst, truth = fine_alike()
    monkeypatch.setattr(witnesses, "CLOSE_480", 0.1)
    coarse, fine = closer((src, dst, truth))
    assert torch.equal(error_480(fine), error_480(coarse))


def test_what_fine_levels_drown_in_noise_is_told_on_the_coarse_one(view, monkeypatch):
    monkeypatch.setattr(witnesses, "CLOSE_480", 1e3)
    src, dst, truth = view(sigma_8bit=40.0)
    coarse, fine = closer((src, dst, truth))
    alone = measure_parts(pyramid(src)[0], pyramid(dst)[0], torch.from_numpy(truth)[None])
    assert error_480(alone).item() > 1.2 * error_480(coarse).item()
    assert torch.equal(error_480(fine), error_480(coarse))


def test_of_a_batch_those_that_are_named_are_looked_at(fine_alike):
    pair, other = fine_alike(), fine_alike(4.0)
    src, dst = (pyramid(other[k], pair[k]) for k in (0, 1))
    matrix = homography.rescale(torch.from_numpy(pair[2])[None], 1)
    parts = measure_parts(src[1].select(torch.tensor([1])), dst[1].select(torch.tensor([1])), matrix)
    fine = look_closer(src[:1], dst[:1], torch.tensor([1]), matrix, parts)
    torch.testing.assert_close(error_480(fine), error_480(closer(pair)[1]), rtol=1e-6, atol=1e-6)


def test_finer_levels_of_clear_and_of_hopeless_pairs_are_not_looked_at(fine_alike, monkeypatch):
    pairs = [fine_alike(4.0), (*fine_alike()[:2], shifted(8, 0)), fine_alike()]
    looked = []
    bare = witnesses.measure_parts
    monkeypatch.setattr(
        witnesses, "measure_parts", lambda src, *more: (looked.append(len(src.image)), bare(src, *more))[1]
    )
    coarse, fine = closer(*pairs)
    assert looked == [1]
    assert torch.equal(error_480(fine)[:2], error_480(coarse)[:2])
    _, alone = closer(pairs[2])
    torch.testing.assert_close(error_480(fine)[2:], error_480(alone), rtol=1e-6, atol=1e-6)


def test_a_pair_that_shares_fine_detail_alone_is_ok_and_its_precision_stays_that_of_the_level(fine_alike, monkeypatch):
    src, dst, truth = fine_alike()
    config = AlignConfig(signal="structure", use_search=False, use_features=False)

    def run():
        return align(src, dst, init=shifted(0.5, -0.5) @ truth, gt=truth, config=config)

    result = run()
    plain = load_gray("astronaut")[: src.shape[0], : src.shape[1]].astype(np.float32)  # nobody asks its blocks
    starts = torch.from_numpy(np.stack([np.eye(3), shifted(0.5, -0.5) @ truth]))
    both = [torch.from_numpy(np.stack([plain, image]))[:, None] for image in (src, dst)]
    together = align(*both, init=starts, config=config)
    torch.testing.assert_close(together.confidence[1:], result.confidence, rtol=1e-9, atol=1e-9)
    assert result.gt_corner_error_px.item() < 0.3
    assert result.status == [Status.OK]
    monkeypatch.setattr(witnesses, "FINER", 0)
    doubted = run()
    assert doubted.status == [Status.LOW_CONFIDENCE]
    assert torch.equal(doubted.corner_covariance, result.corner_covariance)


def test_a_clear_pair_costs_nothing(view, monkeypatch):
    monkeypatch.setattr(witnesses, "seek_blocks", lambda *_: 1 / 0)
    alone, together = asked(*view(), NOISE)
    assert together is alone
    with pytest.raises(ZeroDivisionError):
        asked(*view(sigma_8bit=20, contrast=0.3), NOISE)


def test_a_pair_is_asked_about_alone_as_among_others(view):
    pairs = [view(sigma_8bit=20, contrast=0.5), view(), view(sigma_8bit=20, contrast=0.3)]
    src, dst = (pyramid(*(pair[k] for pair in pairs)) for k in (0, 1))
    matrix = torch.from_numpy(np.stack([*(pair[2] for pair in pairs[:2]), np.full((3, 3), np.nan)]))
    parts = measure_parts(src[0], dst[0], matrix)
    together = ask_witnesses(src, dst, matrix, parts, NOISE.expand(3))
    for k, pair in enumerate(pairs[:2]):
        _, alone = asked(*pair, NOISE)
        torch.testing.assert_close(error_480(together)[k], error_480(alone)[0], rtol=1e-4, atol=1e-4)
    assert together.drift_480[2] == parts.drift_480[2]  # there is no matrix to ask about


def test_what_is_masked_is_not_asked(view, numpy_rng):
    src, dst, truth = view(sigma_8bit=10, contrast=0.5)
    mask = torch.ones(1, 1, *SIZE)
    mask[..., : SIZE[1] // 2] = 0
    spoilt = dst.copy()
    spoilt[:, : SIZE[1] // 2] = numpy_rng.random((SIZE[0], SIZE[1] // 2), dtype=np.float32)
    levels = [Level(torch.from_numpy(image)[None, None], mask) for image in (dst, spoilt)]
    matrix, from_src = torch.from_numpy(truth)[None], pyramid(src)[0]
    clean, masked = (witnesses.measure_parts_by_intensity(from_src, level, matrix) for level in levels)
    torch.testing.assert_close(clean.drift_480, masked.drift_480, rtol=1e-3, atol=1e-3)


def test_intensities_say_the_same_with_and_without_compiled_passes(view, monkeypatch):
    src, dst, truth = view(sigma_8bit=10, contrast=0.5)
    levels, matrix = (pyramid(src)[0], pyramid(dst)[0]), torch.from_numpy(shifted(1, -1) @ truth)[None]
    compiled = witnesses.measure_parts_by_intensity(*levels, matrix)
    monkeypatch.setattr("homoalign.kernels.serves", lambda *_: False)
    plain = witnesses.measure_parts_by_intensity(*levels, matrix)
    for name in ("here", "drift_480", "drift_std_480", "corner_covariance_480"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-3, atol=1e-3)


def test_the_blocks_of_a_plain_pair_are_not_asked(view, monkeypatch):
    src, dst, _ = view(sigma_8bit=2)
    result = align(src, dst)
    assert result.status == [Status.OK]
    plain = Evidence.of_table(result.evidence)
    assert is_plain(plain).all()
    assert plain.parts_here.isnan().all()
    monkeypatch.setattr("homoalign.cascade.attempt.measure_parts", lambda *_: 1 / 0)
    again = align(src, dst)
    assert torch.equal(again.dst_homo_src, result.dst_homo_src)
    darker = see_by_other_sensor(dst, bends=2, rng=np.random.default_rng(0)).astype(np.float32)
    with pytest.raises(ZeroDivisionError):
        align(src, darker)


PLAIN = dict.fromkeys(EVIDENCE, np.nan) | {
    "local_correlation": 0.97,
    "weak_correlation": 0.95,
    "overlap": 0.9,
    "src_overlap": 0.9,
    "rival": 0.3,
    "unexplained": 1.0,
    "corner_std_480": 0.05,
    "is_finite": 1.0,
}


def table(**changes):
    return Evidence.of_table(torch.tensor([[(PLAIN | changes)[name] for name in EVIDENCE]], dtype=torch.float64))


DOUBTS = [
    {"unexplained": 1.3},
    {"local_correlation": 0.8},
    {"weak_correlation": np.nan, "local_correlation": -0.95},
    {"rival": 0.9},
    {"rival": np.nan},
    {"corner_std_480": 2.0},
    {"corner_std_480": np.nan},
]


@pytest.mark.parametrize("doubt", [*DOUBTS, {"overlap": 0.15, "src_overlap": 0.1}])
def test_any_doubt_asks_the_blocks(doubt):
    assert is_plain(table()).all()
    assert not is_plain(table(**doubt)).any()


@pytest.mark.parametrize("doubt", [*DOUBTS, {"overlap": 0.4}, {"src_overlap": 0.4}])
def test_the_blocks_of_a_strip_are_not_asked_but_in_doubt(doubt):
    strip = {"overlap": 0.1, "src_overlap": 0.09, "corner_std_480": 1.2}
    assert is_plain_strip(table(**strip)).all()
    assert not is_plain_strip(table(**(strip | doubt))).any()


def test_a_strip_that_is_plain_anyhow_needs_no_other_word():
    wide = {"overlap": 0.3, "src_overlap": 0.3}
    assert is_plain(table(**wide)).all()
    assert not is_plain_strip(table(**wide)).any()


def test_the_word_of_the_solver_tells_strips_apart():
    stds = (0.1, 1.0, 1.9)
    told = [confidence(table(overlap=0.1, corner_std_480=std).with_precision(torch.tensor([0]))) for std in stds]
    assert told == sorted(told, reverse=True)
    assert told[0] > told[-1] > 0.65

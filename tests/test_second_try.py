"""What structure solved is solved on intensities again, beside a cover or in another light."""

import dataclasses

import numpy as np
import pytest
import torch

from homoalign import AlignConfig, Status, align
from homoalign.cascade import attempt
from homoalign.descent import second_try
from homoalign.optimisation.trace import LevelTrace, merged
from homoalign.trust.evidence import EVIDENCE
from jobs.bench.occlusion import occlusion_pairs
from jobs.bench.options import RenderOptions
from jobs.bench.photometric import photometric_pairs
from jobs.rendering.degrade import see_by_other_sensor
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

RETINA = RenderOptions(pairs=5, seed=0, photographs=("retina",))


@pytest.fixture
def shaded():
    """A smooth eyeground whose dst is darker towards its edges: that looks like motion."""
    pairs = photometric_pairs(RETINA, 256, 10.0, 5.0)
    return next(pair for pair in pairs if (pair.case, pair.number) == ("vignetting", 4))


def error_px(pair, *, init=None, **settings):
    config = AlignConfig(use_search=False, use_features=False, **settings)
    result = align(pair.src, pair.dst, gt=pair.dst_homo_src, init=init, config=config)
    return result.gt_corner_error_px.item(), result.status[0]


def test_light_that_led_intensities_astray_is_told_from_structures_answer(shaded, monkeypatch):
    # Of such ground the last digit decides where the coarsest level leads, and with it which pair comes to this.
    seeds = [dataclasses.replace(RETINA, seed=seed) for seed in (0, 1)]
    lit = [
        next(p for p in photometric_pairs(s, 256, 10.0, 5.0) if (p.case, p.number) == ("everything", 4)) for s in seeds
    ]
    beside = np.array([[1.0, 0, 3], [0, 1, -3], [0, 0, 1]]) @ lit[0].dst_homo_src
    starts = [(shaded, None), (lit[0], beside), (lit[1], lit[1].dst_homo_src)]
    after = np.array([error_px(pair, init=init)[0] for pair, init in starts])
    monkeypatch.setattr(attempt, "try_intensities", lambda _, solved: solved)
    before = np.array([error_px(pair, init=init)[0] for pair, init in starts])
    assert (after / before).min() < 0.5
    assert (after / before).max() < 1.1


def test_a_codecs_losses_are_not_light_that_is_missing():
    pairs = photometric_pairs(RETINA, 256, 10.0, 5.0)
    pair = next(pair for pair in pairs if (pair.case, pair.number) == ("everything", 4))
    assert error_px(pair)[0] < 0.5  # structure: 0.9


def test_who_wants_no_light_gets_none(shaded, monkeypatch):
    monkeypatch.setattr(second_try, "fit_light", lambda *_, **__: pytest.fail("nobody asked for light"))
    error, _ = error_px(shaded, photometric="gain_bias")
    assert error > 1


def test_what_is_explained_already_is_left_alone(monkeypatch):
    monkeypatch.setattr(second_try, "_try", lambda *_: pytest.fail("tried again"))
    pair = next(photometric_pairs(RETINA, 256, 10.0, 5.0))  # nothing changed
    assert error_px(pair)[1] is Status.OK


def test_what_stays_louder_than_the_limit_keeps_structures_answer(shaded, monkeypatch):
    monkeypatch.setattr(second_try, "MOST_LIT", 0.5)
    assert error_px(shaded)[0] > 4


@pytest.mark.parametrize("shift_px", [0.3, 5.0])
def test_what_explains_all_is_not_taken_where_structure_says_otherwise(monkeypatch, shift_px):
    """Texture that only one sensor sees passes for noise: any answer explains a pair then."""
    rng = np.random.default_rng(0)
    truth = random_homography(rng, (240, 320), 2.0)
    pair = render_pair(load_scene("camera", gray=True), truth, (240, 320), rng=rng)
    bare, shift = second_try.finish, torch.eye(3, dtype=torch.float64)
    shift[0, 2] = shift_px

    def finish(track, descent, *, is_beside):
        again = bare(track, descent, is_beside=is_beside)
        moved = dataclasses.replace(again.alignment, dst_homo_src=shift @ torch.from_numpy(truth)[None])
        return dataclasses.replace(again, alignment=moved, fitted_scale=torch.zeros_like(again.fitted_scale))

    monkeypatch.setattr(second_try, "finish", finish)
    monkeypatch.setattr(second_try, "_light_may_explain", lambda track: torch.ones(len(track.start.gain)).bool())
    config = AlignConfig(use_search=False, use_features=False)
    seen = see_by_other_sensor(pair.dst, bends=3, rng=np.random.default_rng(0))
    error = align(pair.src.astype(np.float32), seen, gt=truth, config=config).gt_corner_error_px.item()
    assert error == pytest.approx(0.3, abs=1e-3) if shift_px < 1 else error < 0.2


def test_a_pair_is_tried_as_it_is_alone(shaded):
    """A cover, another light and neither, together."""
    render = RenderOptions(pairs=1, seed=5, photographs=("camera",))
    covered = next(occlusion_pairs(render, 256, 10.0, 5.0, (40.0,)))
    plain = next(photometric_pairs(RETINA, 256, 10.0, 5.0))
    pairs = [shaded, covered, plain]
    src, dst = (
        torch.stack([torch.from_numpy(getattr(pair, side)) for pair in pairs])[:, None] for side in ("src", "dst")
    )
    together = align(src, dst)
    for k in range(len(pairs)):
        alone = align(src[k : k + 1], dst[k : k + 1])
        assert torch.equal(together.dst_homo_src[k], alone.dst_homo_src[0])
        assert torch.equal(together.corner_std_px[k], alone.corner_std_px[0])
        torch.testing.assert_close(together.evidence[k], alone.evidence[0], rtol=0, atol=0, equal_nan=True)
        assert together.status[k] is alone.status[0]


def test_noise_that_a_codec_hides_is_what_the_evidence_counts_by():
    """What light leaves of a JPEG is more than its images show, and no more than noise."""
    pairs = photometric_pairs(RETINA, 256, 10.0, 5.0)
    pair = next(pair for pair in pairs if (pair.case, pair.number) == ("everything", 4))
    result = align(pair.src, pair.dst, config=AlignConfig(use_search=False, use_features=False))
    assert result.evidence[0, EVIDENCE.index("unexplained")] < 2


def test_the_trace_holds_levels_that_only_the_second_try_solved():
    def level(number, taken):
        size = {"height": 8, "width": 8}
        return LevelTrace(level=number, num_iterations=taken, photometric_l1=0.1, gt_reprojection_l1=0.1, **size)

    both = merged([level(2, 3), level(1, 4)], [level(1, 5), level(0, 6)])
    assert [(trace.level, trace.num_iterations) for trace in both] == [(2, 3), (1, 9), (0, 6)]

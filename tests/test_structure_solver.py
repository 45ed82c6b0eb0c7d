"""The solver on structure, level by level."""

from __future__ import annotations

import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.descent import structure_solver
from homoalign.homography import corner_errors
from homoalign.levels.pyramid import Level
from homoalign.optimisation.structure_problem import LevelRefiner
from jobs.bench.drawings import DRAWINGS, drawn_scene
from jobs.bench.options import RenderOptions
from jobs.bench.pairs import draw_pair
from jobs.rendering.degrade import to_uint8

CONFIG = AlignConfig(signal="structure", use_search=False, use_features=False)


@pytest.mark.parametrize("shift_px", [0.0, 6.0])
def test_a_coarse_level_that_goes_astray_is_not_followed(make_pair, monkeypatch, shift_px):
    src, dst, truth = make_pair("camera", size=(240, 320), max_offset_px=2.0)
    bare = LevelRefiner.refine

    def refine(self, dst_homo_src, motion_parameters):
        found, steps = bare(self, dst_homo_src, motion_parameters)
        astray = torch.eye(3, dtype=torch.float64)
        astray[0, 2] = shift_px
        return (found @ astray if max(self._size) < 150 else found), steps

    monkeypatch.setattr(LevelRefiner, "refine", refine)
    result = align(src, 1 - dst, gt=truth, config=CONFIG)
    assert float(result.gt_corner_error_px[0]) < 0.3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("motion_parameters", [4, 8])
def test_compiled_steps_on_structure_end_where_those_of_torch_end(make_pair, rng, by_torch, motion_parameters, masked):
    src, dst, truth = make_pair("coffee", size=(96, 128), max_offset_px=3.0)
    mask = (torch.rand(2, 1, 96, 128, generator=rng) > 0.002).float() if masked else [None, None]
    levels = [
        Level(torch.as_tensor(image)[None, None].float(), None if hidden is None else hidden[None])
        for image, hidden in zip((src, 1 - dst), mask, strict=True)
    ]
    start = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    start[1, 0, 2], start[2, 1, 2] = 2.0, -1.5
    start[3, 0, 2] = 118.0  # of which little is seen, but more than the least share

    def refine():
        refiner = LevelRefiner(*levels, torch.zeros(4, dtype=torch.int64), 4096, AlignConfig())
        found, steps = refiner.refine(start, motion_parameters)
        return found, steps, refiner.score(found, 64)

    (ours, steps, score), (expected, expected_steps, expected_score) = refine(), by_torch(refine)
    assert steps.tolist() == expected_steps.tolist()
    assert steps.min() > 0
    assert corner_errors(ours, expected, 96, 128)[:3].max() < 2e-3
    torch.testing.assert_close(score, expected_score, atol=1e-3, rtol=0)
    assert (
        corner_errors(ours, torch.as_tensor(truth), 96, 128).mean()
        < corner_errors(start, torch.as_tensor(truth), 96, 128).mean()
    )


def test_an_answer_that_edges_speak_against_is_not_taken(monkeypatch):
    """Of a screen's sharp lines structure sees the stairs, and these lie alike in both images."""
    render = RenderOptions(pairs=1, seed=3, photographs=DRAWINGS)
    views = draw_pair(render, 4, size=(300, 400), offset_px=12.0, scene=drawn_scene).views
    src, dst = to_uint8(views.src), to_uint8(views.dst)
    config = AlignConfig(use_search=False, use_features=False)

    def error():
        return align(src, dst, gt=views.dst_homo_src, config=config).gt_corner_error_px.item()

    assert error() < 0.05
    monkeypatch.setattr(structure_solver, "MOST_LEFT", float("inf"))
    assert error() > 0.2

"""The solver on structure, level by level."""

from __future__ import annotations

import pytest
import torch

from homoalign import AlignConfig, align
from homoalign.structure_problem import LevelRefiner

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

"""What the report is made of: thumbnails, overlays, histograms, and the choice of rows."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest

from jobs.rendering import synthetic
from jobs.reports import cards as report_cards
from jobs.reports import rows as report_rows


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


def test_a_picture_is_no_larger_than_a_thumbnail_and_its_matrix_maps_edges_to_edges() -> None:
    small, small_homo_image = report_cards.shrink(np.zeros((501, 900, 3), dtype=np.uint8))
    assert small.shape == (178, 320, 3)
    edges = synthetic.warp_points(small_homo_image, np.array([[-0.5, -0.5], [899.5, 500.5]]))
    np.testing.assert_allclose(edges, [[-0.5, -0.5], [319.5, 177.5]])


@pytest.mark.parametrize("size", [(96, 112), (700, 800)])
def test_the_overlay_of_the_truth_is_gray_and_that_of_the_identity_is_not(
    rng: np.random.Generator, size: tuple[int, int]
) -> None:
    dst_homo_src = synthetic.random_homography(rng, size, 0.08 * min(size))
    pair = synthetic.render_pair(synthetic.load_scene("camera"), dst_homo_src, size, rng=rng)
    pictures = report_cards.draw_pictures(pair.src, pair.dst, pair.dst_homo_src)
    assert max(pictures["after"].shape) <= report_cards.THUMBNAIL_PX

    def colour(name: str) -> float:
        return float(np.abs(pictures[name][..., 0] - pictures[name][..., 1])[20:-20, 20:-20].mean())

    assert colour("after") < 0.02
    assert colour("before") > 4 * colour("after")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_depth_is_shown_at_its_full_scale(dtype: type) -> None:
    white = np.full((40, 40), np.iinfo(dtype).max if dtype != np.float32 else 1.0, dtype=dtype)
    np.testing.assert_allclose(report_cards.shrink(white)[0], 1, atol=1e-6)


def test_the_rows_kept_are_the_smallest_however_they_come_in_batches(rng: np.random.Generator) -> None:
    keys = rng.uniform(size=100)
    keys[::7] = np.nan
    batch = pa.RecordBatch.from_pydict({"pair_id": list(range(100))})
    whole, parts = report_rows.Smallest(9), report_rows.Smallest(9)
    whole.offer(keys, batch, 0, 0)
    for start in range(0, 100, 13):
        parts.offer(keys[start : start + 13], batch.slice(start, 13), 0, start)
    assert [pick.row["pair_id"] for pick in whole.picks] == np.argsort(keys)[:9].tolist()
    assert parts.picks == whole.picks
    assert [pick.row for pick in parts.picks] == [pick.row for pick in whole.picks]


def test_a_histogram_counts_what_is_outside_at_its_ends_and_leaves_out_nan() -> None:
    histogram = report_rows.Histogram(np.linspace(0, 1, 3))
    histogram.add(np.array([-5, 0.2, 0.7, 1.0, np.nan, 9]), np.array([True, True, False, True, True, False]))
    assert histogram.ok.tolist() == [2, 1]
    assert histogram.other.tolist() == [0, 2]

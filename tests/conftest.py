"""What every test module may use."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from job_pairs import ENVIRONMENT, encoded, photo, write_manifest, write_pairs

from homoalign import align, cleaning, kernels
from jobs.rendering.synthetic import load_scene, random_homography, render_pair

MADE_ONCE = {"finished", "undisturbed", "speed", "job_figures", "tutorial_rows"}
"""Fixtures that take ten seconds and more, and are the same for all who ask."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that share such a fixture share a process."""
    for item in items:
        for name in MADE_ONCE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(autouse=True)
def one_thread():
    """Two test processes share two cores."""
    torch.set_num_threads(1)


def _seed(request: pytest.FixtureRequest) -> int:
    """The test's own name, without the group that xdist puts behind it."""
    return zlib.crc32(request.node.nodeid.partition("@")[0].encode())


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded by the test's own name: stable alone, in any order, under xdist."""
    return torch.Generator().manual_seed(_seed(request))


@pytest.fixture
def numpy_rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Likewise, for numpy."""
    return np.random.default_rng(_seed(request))


@pytest.fixture
def make_pair(numpy_rng):
    """Render a pair of a photograph of scikit-image: (src, dst, dst_homo_src), float32 in [0, 1] and float64."""

    def render(photograph="camera", *, size=(120, 160), max_offset_px=6.0, gray=True):
        dst_homo_src = random_homography(numpy_rng, size, max_offset_px)
        pair = render_pair(load_scene(photograph, gray=gray), dst_homo_src, size, rng=numpy_rng)
        return pair.src.clip(0, 1), pair.dst.clip(0, 1), pair.dst_homo_src

    return render


@pytest.fixture
def by_torch(monkeypatch):
    """Call with torch in place of the kernels."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "serves", lambda *_: False)
            return function()

    return call


@pytest.fixture
def align_without(monkeypatch):
    """Align as if a step that changes images, `smooth_quantised` say, changed none."""

    def without(step):
        def run(*arguments, **more):
            with monkeypatch.context() as patch:
                size = (2,) if step == "take_stripes_away" else ()
                none_changed = lambda src, dst: (src, dst, torch.zeros(len(src.image), *size) > 0)  # noqa: E731
                patch.setattr(cleaning, step, none_changed)
                return align(*arguments, **more)

        return run

    return without


@pytest.fixture(scope="session")
def joined() -> Iterator[tuple[str, ...]]:
    """Options of a run that joins a Ray of two tasks, which stands as long as this process: it takes half the time."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "PYTHONPATH"):  # a worker's environment is that of its Ray
            patch.setenv(name, ENVIRONMENT[name])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield ("--progress", "none", "--address", cluster.address)
    cluster.shutdown()


@pytest.fixture
def mixed_manifest(tmp_path: Path) -> Path:
    """A manifest of pairs of three sizes, with missing images among them."""
    rows = write_pairs(tmp_path, 12)
    for i, row in enumerate(rows):
        if i % 3 == 0:
            (tmp_path / row["src"]).write_bytes(encoded(photo(i, 40 + 8 * (i % 2), 50)))
        if i % 5 == 4:
            row["dst"] = "missing.png"
    return write_manifest(tmp_path / "m.parquet", rows)

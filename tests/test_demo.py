"""The demo: its pairs are what they say, its broken rows are broken, and the whole of it runs twice in one folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from homoalign.errors import ImageUnreadable, RowInvalid, UriNotAllowed
from jobs.errors import UsageError
from jobs.rendering import demo_pairs, synthetic
from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker.fetch import Reader, fetch_pair

FEW = {"none": ("coins",), "unlike sizes": ("camera",), "mask": ("camera",), "prior": ("coins",)}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo of few pairs, for tests that look at its files."""
    monkeypatch.setattr(demo_pairs, "CHANGES", FEW)
    demo_pairs.build_demo(tmp_path)
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict[str, object]]:
    return {row["pair_id"]: row for row in pq.read_table(folder / "manifest.parquet").to_pylist()}


def reader_of(folder: Path) -> Reader:
    return Reader(store=Store(), rules=AccessRules(root=f"file://{folder}"))


def test_there_are_at_least_forty_pairs_of_many_photographs_and_changes() -> None:
    recipes = list(demo_pairs.recipes())
    assert len(set(recipes)) == len(recipes) >= 40
    assert len({recipe.photograph for recipe in recipes}) >= 15
    assert {recipe.photograph for recipe in recipes} <= set(synthetic.PHOTOGRAPHS)


def test_every_format_holds_both_sides_of_pairs() -> None:
    formats = demo_pairs.FORMATS
    numbers = range(len(list(demo_pairs.recipes())))
    pairs = Counter(demo_pairs.formats_of(number) for number in numbers)
    assert {src for src, _ in pairs} == {dst for _, dst in pairs} == set(formats)
    assert len(pairs) > 2 * len(formats)


@pytest.mark.parametrize("photograph", ["coffee", "camera"])
@pytest.mark.parametrize("suffix", demo_pairs.FORMATS)
def test_a_file_is_read_back_as_it_was_written(tmp_path: Path, photograph: str, suffix: str) -> None:
    image = synthetic.load_photograph(photograph)[:90, :120]
    uri = demo_pairs.write_image(tmp_path, "image", image, suffix)
    fetched = fetch_pair({"src": Path(uri).name, "dst": Path(uri).name}, reader_of(tmp_path))
    assert fetched.images is not None, fetched.error
    pixels = fetched.images.src
    full = np.iinfo(pixels.dtype).max if pixels.dtype != np.float32 else 1
    off = np.abs(pixels.squeeze() / full - (image if pixels.ndim == image.ndim else image[..., None])).mean()
    # 8 bits round to 0.001 on average; JPEG and WebP of quality 95 lose some of the detail
    assert off < (0.02 if suffix in ("jpg", "webp") else 0.002)
    assert pixels.dtype == {"16.png": np.uint16, "tif": np.float32}.get(suffix, np.uint8)


def test_a_pair_has_what_its_change_says(folder: Path) -> None:
    rows = rows_of(folder)
    reader = reader_of(folder)
    unlike = fetch_pair(rows["camera-unlike-sizes"], reader)
    masked = fetch_pair(rows["camera-mask"], reader).images
    with_prior = fetch_pair(rows["coins-prior"], reader).images
    plain = fetch_pair(rows["coins-none"], reader).images
    assert unlike.src_size != unlike.dst_size
    assert masked is not None
    assert with_prior is not None
    assert plain is not None
    assert masked.dst_mask is not None
    assert masked.dst_mask.mean() == pytest.approx(0.55, abs=0.01)
    assert with_prior.init is not None
    assert with_prior.gt is not None
    corners = synthetic.corner_points(with_prior.src.shape[:2])
    off = synthetic.warp_points(with_prior.init, corners) - synthetic.warp_points(with_prior.gt, corners)
    assert 0.5 < np.linalg.norm(off, axis=1).mean() < 20
    assert plain.init is None
    assert plain.dst_mask is None


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("missing file", ImageUnreadable, "does not exist"),
        ("truncated JPEG", ImageUnreadable, "truncated.jpg"),
        ("text named .png", ImageUnreadable, "text.png"),
        ("empty file", ImageUnreadable, "0 bytes"),
        ("foreign URI", UriNotAllowed, "http://example.org"),
        ("null cell", RowInvalid, "dst is null"),
        ("constant image", None, ""),
        ("one pixel", None, ""),
        ("unrelated images", None, ""),
    ],
)
def test_a_broken_row_is_broken_as_it_says(
    tmp_path: Path, change: str, error: type[Exception] | None, text: str
) -> None:
    (tmp_path / "images").mkdir()
    rows = {row["change"]: row for row in demo_pairs.broken_rows(tmp_path / "images")}
    assert len(rows) == 9
    fetched = fetch_pair(rows[change], reader_of(tmp_path))
    assert isinstance(fetched.error, error) if error else fetched.error is None
    assert text in str(fetched.error)


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_building_it_again_gives_the_same_bytes(folder: Path) -> None:
    before = digest(folder)
    demo_pairs.build_demo(folder)
    assert digest(folder) == before
    assert len(before) > 12


def test_a_manifest_that_no_demo_wrote_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"pair_id": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"manifest\.parquet is not a demo's; name another folder"):
        demo_pairs.build_demo(tmp_path)
    assert path.read_bytes() == before
    assert not (tmp_path / "images").exists()


def run_demo(folder: Path, *, patch: str) -> subprocess.CompletedProcess[str]:
    imports = "from jobs.cli import main\nfrom jobs.rendering import demo_pairs, synthetic"
    code = f"{imports}\n{patch}\nmain(['demo', {str(folder)!r}])"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "120", "RAY_ADDRESS": "127.0.0.1:1"},  # it starts a Ray of its own
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_aligns_real_photographs_and_runs_again_in_the_same_folder(tmp_path: Path) -> None:
    patch = f"demo_pairs.CHANGES = {FEW!r}"
    for _ in range(2):
        done = run_demo(tmp_path / "demo", patch=patch)
        assert done.returncode == 0, done.stderr
        assert "13 rows: 4 ok, 4 unreadable" in done.stdout
        assert str(tmp_path / "demo" / "out" / "report.html") in done.stdout
    results = pq.read_table(tmp_path / "demo" / "out" / "data").to_pandas().set_index("pair_id")
    aligned = results[results["change"].isin(FEW)]
    assert (aligned["gt_corner_error_px"] < 1).all(), aligned["gt_corner_error_px"]
    assert (results["status"] != "ok")[[change not in FEW for change in results["change"]]].all()
    assert (tmp_path / "demo" / "out" / "_SUCCESS").exists()
    assert (tmp_path / "demo" / "out" / "report.html").stat().st_size > 50_000


def test_without_scikit_image_the_demo_names_the_extra_in_one_line(tmp_path: Path) -> None:
    hide = "import importlib.util as u; u.find_spec = lambda name, *_: None"
    done = run_demo(tmp_path / "demo", patch=hide)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'homoalign[demo]'" in done.stderr

"""The report's gallery: chosen result rows to thumbnails, re-read and decoded as the job did.

One pair's pixels are held at a time. An image that is gone is a card that says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from homoalign.errors import HomoalignError
from jobs.fetch import Reader, fetch_pair
from jobs.manifest import Manifest, read_rows
from jobs.plan import Plan
from jobs.report_rows import Pick, error_at_480
from jobs.schema import RESULT_COLUMNS

THUMBNAIL_PX = 320
"""Longest side of a picture in the report."""
JPEG_QUALITY = 82

Pixels = npt.NDArray[np.float32]
"""(H, W, 3) in [0, 1]."""
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Card:
    """One pair of the gallery."""

    pair_id: str
    status: str
    detail: str | None
    numbers: list[tuple[str, str]]
    carried: list[tuple[str, str]]
    pictures: dict[str, str]
    """`src`, `dst`, `before`, `after`, `checker` to data URIs; fewer where there is nothing to show."""
    problem: str | None
    """Why there are no pictures."""


def build_cards(plan: Plan, manifest: Manifest | HomoalignError, reader: Reader, picks: Sequence[Pick]) -> list[Card]:
    """Return the cards of the picked rows, in their order.

    Args:
        plan: of the run.
        manifest: the run's, or why it cannot be read.
        reader: how the images are read.
        picks: the chosen rows.
    """
    cards: dict[tuple[int, int], Card] = {}
    for shard, chosen in groupby(sorted(picks, key=lambda pick: (pick.shard, pick.offset)), lambda pick: pick.shard):
        by_offset = {pick.offset: pick for pick in chosen}
        try:
            if isinstance(manifest, HomoalignError):
                raise manifest
            for offset, row in _manifest_rows(plan, manifest, reader, shard, by_offset):
                cards[shard, offset] = build_card(by_offset[offset].row, row, reader)
        except HomoalignError as error:
            for offset, pick in by_offset.items():
                cards.setdefault((shard, offset), text_card(pick.row, str(error)))
    gone = "the manifest no longer has this row"
    return [cards.get((pick.shard, pick.offset)) or text_card(pick.row, gone) for pick in picks]


def build_card(result: dict[str, Any], row: dict[str, Any], reader: Reader) -> Card:
    """Return the card of one result row, given its manifest row."""
    if row["pair_id"] != result["pair_id"]:
        return text_card(result, f"the manifest has pair_id {row['pair_id']} in this row now")
    fetched = fetch_pair(row, reader)
    if fetched.images is None:
        # what the job said of the row stands in its detail already
        problem = str(fetched.error)
        return text_card(result, None if problem == result["status_detail"] else problem)
    matrix = result["dst_homo_src"]
    pictures = draw_pictures(
        fetched.images.src,
        fetched.images.dst,
        None if matrix is None else np.array(matrix, dtype=np.float64).reshape(3, 3),
    )
    return text_card(result, None, {name: data_uri(pixels) for name, pixels in pictures.items()})


def text_card(result: dict[str, Any], problem: str | None, pictures: dict[str, str] | None = None) -> Card:
    """Return a card of a result row's values."""
    known = {column.name for column in RESULT_COLUMNS}
    return Card(
        pair_id=str(result["pair_id"]),
        status=str(result["status"]),
        detail=result["status_detail"],
        numbers=list(_numbers(result)),
        carried=[(name, str(value)) for name, value in result.items() if name not in known and value is not None],
        pictures=pictures or {},
        problem=problem,
    )


def draw_pictures(src: npt.NDArray[Any], dst: npt.NDArray[Any], dst_homo_src: Matrix | None) -> dict[str, Pixels]:
    """Return the pictures of a pair at thumbnail size: `src`, `dst`, and with a matrix the overlays.

    `before` and `after` show the warped src in red and dst in cyan, so that what is aligned is gray; `before` lays
    frame on frame. `checker` takes alternate squares from the warped src and from dst, in colour.
    """
    src_small, src_small_homo_src = shrink(src)
    dst_small, dst_small_homo_dst = shrink(dst)
    pictures = {"src": src_small, "dst": dst_small}
    if dst_homo_src is None:
        return pictures
    scale_y, scale_x = (there / here for there, here in zip(dst_small.shape[:2], src_small.shape[:2], strict=True))
    before = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    after = dst_small_homo_dst @ dst_homo_src @ np.linalg.inv(src_small_homo_src)
    pictures["before"] = anaglyph(*warp_picture(src_small, before, dst_small), dst_small)
    warped, covered = warp_picture(src_small, after, dst_small)
    pictures["after"] = anaglyph(warped, covered, dst_small)
    pictures["checker"] = checkerboard(warped, covered, dst_small)
    return pictures


def shrink(image: npt.NDArray[Any]) -> tuple[Pixels, Matrix]:
    """Return an image as RGB at thumbnail size, and the homography that takes its pixels there."""
    import torch
    from torch.nn.functional import interpolate

    from homoalign.intensity import to_unit_range

    height, width = image.shape[:2]
    channels = image[:, :, None] if image.ndim == 2 else image[:, :, :3]
    planes = torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))[None]
    unit = to_unit_range(planes)[0]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    small_height, small_width = (max(1, round(scale * side)) for side in (height, width))
    small = interpolate(unit, size=(small_height, small_width), mode="bilinear", antialias=True)
    pixels = small[0].expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy()
    scale_y, scale_x = small_height / height, small_width / width
    matrix = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    return pixels.astype(np.float32), matrix


def warp_picture(src: Pixels, dst_homo_src: Matrix, dst: Pixels) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return src in dst's frame, and which of its pixels src covers."""
    import torch

    import homoalign

    planes = torch.from_numpy(np.dstack([src, np.ones_like(src[..., :1])]).transpose(2, 0, 1).copy())[None]
    size = (dst.shape[0], dst.shape[1])
    warped = homoalign.warp(planes, torch.from_numpy(dst_homo_src)[None], size)[0].permute(1, 2, 0).numpy()
    return warped[..., :3], warped[..., 3] > 0.5


def anaglyph(warped: Pixels, covered: npt.NDArray[np.bool_], dst: Pixels) -> Pixels:
    """Return src in red over dst in cyan; src takes dst's brightness and contrast, so that colour means motion."""
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    src_gray: npt.NDArray[np.float32] = warped @ luma
    dst_gray: npt.NDArray[np.float32] = dst @ luma
    if covered.any():
        over = src_gray[covered], dst_gray[covered]
        contrast = float(over[1].std() / over[0].std()) if over[0].std() > 1e-4 else 1.0
        src_gray = (src_gray - over[0].mean()) * min(contrast, 4.0) + over[1].mean()
    red = np.where(covered, src_gray, 0.35 * dst_gray)
    cyan = np.where(covered, dst_gray, 0.35 * dst_gray)
    picture: Pixels = np.dstack([red, cyan, cyan]).astype(np.float32)
    return picture.clip(0, 1)


def checkerboard(warped: Pixels, covered: npt.NDArray[np.bool_], dst: Pixels) -> Pixels:
    """Return alternate squares of the warped src and of dst; dst alone, darker, where src does not reach."""
    height, width = dst.shape[:2]
    square = max(8, round(max(height, width) / 8))
    y, x = np.mgrid[:height, :width] // square
    of_src = ((x + y) % 2 == 0) & covered
    board = np.where(of_src[..., None], warped, dst)
    return np.where(covered[..., None], board, 0.35 * dst).astype(np.float32)


def data_uri(pixels: Pixels) -> str:
    """Return a picture as a `data:` URI."""
    from PIL import Image as PillowImage

    file = io.BytesIO()
    # without chroma subsampling: red against cyan is the message
    rounded = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    PillowImage.fromarray(rounded).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def short_number(value: float) -> str:
    """Return three digits of a number, and no exponent where it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _manifest_rows(
    plan: Plan, manifest: Manifest, reader: Reader, shard: int, offsets: Iterable[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the manifest rows at some offsets of a shard."""
    wanted, start = set(offsets), 0
    names = manifest.columns_read(())
    schema = pa.schema([manifest.schema.field(name) for name in names])
    for segment in plan.shard(shard):
        # few rows at a time: a cell may hold a whole image
        for batch in read_rows(reader.store, segment.file, segment.start, segment.stop, schema, batch_rows=16):
            for offset in sorted(wanted & set(range(start, start + batch.num_rows))):
                yield offset, batch.slice(offset - start, 1).to_pylist()[0]
            start += batch.num_rows


def _numbers(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, label, form in (
        ("confidence", "confidence", "{:.3f}"),
        ("corner_std_px", "predicted error", "{:.3g} px"),
        ("zncc", "zncc", "{:.3f}"),
        ("overlap", "overlap", "{:.0%}"),
        ("inlier_ratio", "inliers", "{:.0%}"),
        ("photometric_l1", "photometric L1", "{:.4f}"),
        ("num_iterations", "steps", "{}"),
        ("initialisation", "start", "{}"),
        ("stop_reason", "stopped", "{}"),
    ):
        if result[name] is not None and (result["dst_homo_src"] is not None or name == "stop_reason"):
            yield label, form.format(result[name])
    if result["gt_corner_error_px"] is not None:
        error = result["gt_corner_error_px"]
        at_480 = error_at_480(error, result["dst_height"], result["dst_width"])
        yield "corner error", f"{short_number(error)} px"
        yield "at 480", f"{short_number(float(at_480))} px"
    if result["src_height"] is not None and result["dst_height"] is not None:
        src, dst = (f"{result[f'{side}_width']}×{result[f'{side}_height']}" for side in ("src", "dst"))
        yield "size", src if src == dst else f"{src} → {dst}"

"""The report's gallery: chosen result rows to thumbnails, re-read and decoded as the job did.

Only what the run has read is opened again, and no image with more pixels than it had: what the run could not have, or
what ended or held up its worker, is a card of text. So is an image that is gone, or does not come in time. One pair's
pixels are held at a time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from homoalign.errors import HomoalignError
from jobs.manifests.cells import cells_of, value_of
from jobs.manifests.manifest import Manifest, read_rows
from jobs.manifests.plan import Plan
from jobs.reports.rows import Pick, error_at_480
from jobs.results.tally import ERROR_STATUSES
from jobs.schema import RESULT_COLUMNS
from jobs.worker.fetch import Fetched, Reader
from jobs.worker.prefetch import Ahead, fetch_in_order

THUMBNAIL_PX = 320
"""Longest side of a picture in the report."""
JPEG_QUALITY = 82
AHEAD = Ahead(threads=8, decoders=1, rows=16, decoded_bytes=0)
"""Rows are fetched together, so that slow ones are waited for together, and decoded one by one."""
SIZES = ("src_height", "src_width", "dst_height", "dst_width")

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
        reader: how the images are read; of the largest size that the run read among these rows, whatever it says.
        picks: the chosen rows.
    """
    picked = dict(enumerate(sorted(picks, key=lambda pick: (pick.shard, pick.offset))))
    cards: dict[int, Card] = {}
    reader = replace(reader, max_pixels=max((_num_pixels(pick.row) for pick in picks), default=1))
    to_fetch = _rows_to_fetch(plan, manifest, reader, picked, cards)
    for number, fetched in fetch_in_order(to_fetch, reader, AHEAD):
        cards[number] = picture_card(picked[number].row, fetched)
    gone = "the manifest no longer has this row"
    by_row = {(pick.shard, pick.offset): cards.get(number) for number, pick in picked.items()}
    return [by_row[pick.shard, pick.offset] or text_card(pick.row, gone) for pick in picks]


def picture_card(result: dict[str, Any], fetched: Fetched) -> Card:
    """Return the card of one result row, given its images or why there are none."""
    if fetched.images is None:
        return text_card(result, str(fetched.error))
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

    from homoalign.levels.depth import stretch_narrow_image
    from homoalign.levels.intensity import to_unit_range

    height, width = image.shape[:2]
    channels = image[:, :, None] if image.ndim == 2 else image[:, :, :3]
    planes = torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))[None]
    unit = to_unit_range(stretch_narrow_image(planes))[0]
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


def _rows_to_fetch(
    plan: Plan,
    manifest: Manifest | HomoalignError,
    reader: Reader,
    picked: Mapping[int, Pick],
    cards: dict[int, Card],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the manifest rows of the picks, by their numbers; `cards` gets those of the rows that are not read."""
    for shard, chosen in groupby(picked, lambda number: picked[number].shard):
        left = {picked[number].offset: number for number in chosen}
        for offset, number in list(left.items()):
            if not _was_read(picked[number].row):
                cards[number] = text_card(picked[left.pop(offset)].row, None)
        try:
            if left and isinstance(manifest, HomoalignError):
                raise manifest
            if left and isinstance(manifest, Manifest):
                for offset, pair_id, cells in _manifest_rows(plan, manifest, reader, shard, left):
                    number = left.pop(offset)
                    result = picked[number].row
                    if pair_id == result["pair_id"]:
                        yield number, cells
                    else:
                        cards[number] = text_card(result, f"the manifest has pair_id {pair_id} in this row now")
        except HomoalignError as error:
            for number in left.values():
                cards[number] = text_card(picked[number].row, str(error))


def _was_read(result: dict[str, Any]) -> bool:
    """Return whether the run had both images, and came to an end with them."""
    return result["status"] not in ERROR_STATUSES and all(result[name] is not None for name in SIZES)


def _num_pixels(result: dict[str, Any]) -> int:
    """Return the pixels of the larger image; 1 where the run did not read both."""
    if not _was_read(result):
        return 1
    return int(max(result["src_height"] * result["src_width"], result["dst_height"] * result["dst_width"]))


def _manifest_rows(
    plan: Plan, manifest: Manifest, reader: Reader, shard: int, offsets: Iterable[int]
) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Yield offset, id and cells of the manifest rows at some offsets of a shard."""
    wanted, start = set(offsets), 0
    names = manifest.columns_read(())
    schema = pa.schema([manifest.schema.field(name) for name in names])
    inputs = [name for name in names if name != "pair_id"]
    for segment in plan.shard(shard):
        # few rows at a time: a cell may hold a whole image
        for batch in read_rows(reader.store, segment.file, segment.start, segment.stop, schema, batch_rows=16):
            for offset in sorted(wanted & set(range(start, start + batch.num_rows))):
                row = batch.slice(offset - start, 1)
                yield offset, value_of(row["pair_id"][0]), cells_of(row.select(inputs))
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

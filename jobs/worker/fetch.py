"""One manifest row to decoded images: parse the cells, check access, read, decode.

A pair that cannot be had is a `Fetched` with its `PairError`; whose message names the column, the URI and the values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from homoalign.decoding.images import DecodedImage, decode_image, decode_mask
from homoalign.errors import ImageTooLarge, ImageUnreadable, PairError, PairTimedOut, RowInvalid
from jobs.storage.access import AccessRules
from jobs.storage.errors import ObjectTimedOut, ObjectTooLarge, StorageError, redact
from jobs.storage.store import Store

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 2**20
FETCH_TIMEOUT_S = 120.0
MAX_CONDITION = 1e12
"""Of a prior or truth in units of 1000 px; more than this is singular for double precision at image scale."""

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How images are read: from where, and how much of them."""

    store: Store
    rules: AccessRules
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    """Of one encoded image."""
    fetch_timeout_s: float = FETCH_TIMEOUT_S
    """For a row's images to be fetched, and again to be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairImages:
    """What `align` takes for one pair."""

    src: npt.NDArray[Any]
    """(H, W) or (H, W, C)."""
    dst: npt.NDArray[Any]
    src_mask: Mask | None
    dst_mask: Mask | None
    init: Matrix | None
    gt: Matrix | None

    @property
    def nbytes(self) -> int:
        """Return the bytes the pixels and masks take."""
        arrays = (self.src, self.dst, self.src_mask, self.dst_mask)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A row's images, or why there are none; and what it took."""

    images: PairImages | None
    error: PairError | None
    src_size: tuple[int, int] | None
    """Height and width, also where the rest of the row failed; None where the image was not read."""
    dst_size: tuple[int, int] | None
    bytes_read: int
    fetch_s: float
    decode_s: float


class _Row:
    """Reads the cells of one row, counting bytes and seconds."""

    def __init__(self, row: Mapping[str, Any], reader: Reader) -> None:
        self.row, self.reader = row, reader
        self.bytes_read, self.fetch_s, self.decode_s = 0, 0.0, 0.0
        self.sizes: dict[str, tuple[int, int]] = {}

    def read(self, before_decoding: Callable[[], object]) -> PairImages:
        init, gt = matrix_of(self.row, "dst_homo_src_init"), matrix_of(self.row, "dst_homo_src_gt")
        cells = {name: cell_of(self.row, name) for name in ("src", "dst", "src_mask", "dst_mask")}
        encoded = {name: self.fetch(name, cell) for name, cell in cells.items() if cell is not None}
        before_decoding()
        src, dst = (self.decode(name, encoded, cells[name]) for name in ("src", "dst"))
        return PairImages(src=src.pixels, dst=dst.pixels, src_mask=src.mask, dst_mask=dst.mask, init=init, gt=gt)

    def fetch(self, name: str, cell: str | bytes) -> bytes:
        limit = self.reader.max_bytes
        started = time.perf_counter()
        try:
            if isinstance(cell, bytes):
                if len(cell) > limit:
                    raise ImageTooLarge(f"{_label(name, cell)} is over the limit of {limit} bytes (--max-bytes)")
                data = cell
            else:
                data = self.reader.store.read_named(cell, self.reader.rules, max_bytes=limit)
        except PairError as error:
            raise type(error)(_prefixed(name, str(error))) from error
        except ObjectTooLarge as error:
            raise ImageTooLarge(f"{name}: {error} (--max-bytes)") from error
        except ObjectTimedOut as error:
            raise PairTimedOut(f"{name}: {error}") from error
        except StorageError as error:
            raise ImageUnreadable(f"{name}: {error}") from error
        finally:
            self.fetch_s += time.perf_counter() - started
        self.bytes_read += len(data)
        if not data:
            raise ImageUnreadable(f"{_label(name, cell)} is an empty file (0 bytes)")
        return data

    def decode(self, name: str, encoded: dict[str, bytes], cell: str | bytes | None) -> DecodedImage:
        """Decode an image and its mask, and drop their encoded bytes."""
        started = time.perf_counter()
        max_pixels = self.reader.max_pixels
        try:
            image = decode_image(encoded.pop(name), max_pixels=max_pixels)
        except PairError as error:
            raise type(error)(f"{_label(name, cell)}: {error}") from error
        finally:
            self.decode_s += time.perf_counter() - started
        self.sizes[name] = (image.pixels.shape[0], image.pixels.shape[1])
        return self.with_mask(name, image, encoded.pop(f"{name}_mask", None))

    def with_mask(self, side: str, image: DecodedImage, encoded: bytes | None) -> DecodedImage:
        if encoded is None:
            return image
        name = f"{side}_mask"
        label = _label(name, cell_of(self.row, name))
        started = time.perf_counter()
        try:
            mask = decode_mask(encoded, max_pixels=self.reader.max_pixels)
        except PairError as error:
            raise type(error)(f"{label}: {error}") from error
        finally:
            self.decode_s += time.perf_counter() - started
        if mask.shape != self.sizes[side]:
            (height, width), (wanted_height, wanted_width) = mask.shape, self.sizes[side]
            raise RowInvalid(f"{label} is {width} x {height} pixels, its image {wanted_width} x {wanted_height}")
        return DecodedImage(pixels=image.pixels, mask=mask if image.mask is None else mask & image.mask)


def fetch_pair(
    row: Mapping[str, Any],
    reader: Reader,
    before_decoding: Callable[[], object] = lambda: None,
) -> Fetched:
    """Read and decode one row's images.

    Args:
        row: the manifest's cells; a `RowInvalid` in place of one that could not be read.
        reader: from where, and the limits.
        before_decoding: called when all bytes are there; it may wait, which bounds memory.
    """
    state = _Row(row, reader)
    images, error = None, None
    try:
        for cell in row.values():
            if isinstance(cell, RowInvalid):
                raise cell
        images = state.read(before_decoding)
    except PairError as raised:
        error = raised.with_traceback(None)
        error.__cause__ = error.__context__ = None  # they hold on to frames, and these to encoded images
    return Fetched(
        images=images,
        error=error,
        src_size=state.sizes.get("src"),
        dst_size=state.sizes.get("dst"),
        bytes_read=state.bytes_read,
        fetch_s=state.fetch_s,
        decode_s=state.decode_s,
    )


def cell_of(row: Mapping[str, Any], name: str) -> str | bytes | None:
    """Return the URI or the encoded bytes of an image cell; None where a mask has none.

    Raises:
        RowInvalid: the cell is null where an image is required, or empty.
    """
    cell = row.get(name)
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    if cell is None:
        if name in ("src", "dst"):
            raise RowInvalid(f"{name} is null")
        return None
    if not isinstance(cell, (str, bytes)):
        raise RowInvalid(f"{name} holds {type(cell).__name__}, which is neither a URI nor bytes")
    if not cell:
        raise RowInvalid(f"{name} is an empty cell ({'0 bytes' if isinstance(cell, bytes) else '0 characters'})")
    return cell


def matrix_of(row: Mapping[str, Any], name: str) -> Matrix | None:
    """Return the (3, 3) matrix of a cell; None where it is null.

    Raises:
        RowInvalid: not 9 finite numbers, or singular.
    """
    cell = row.get(name)
    if cell is None:
        return None
    if len(cell) != 9:
        raise RowInvalid(f"{name} holds {len(cell)} values, not 9")
    for index, value in enumerate(cell):
        if value is None or not np.isfinite(value):
            raise RowInvalid(f"{name}[{index}] is {'null' if value is None else value}")
    matrix = np.array(cell, dtype=np.float64).reshape(3, 3)
    to_pixels = np.diag([1000.0, 1000.0, 1.0])
    condition = float(np.linalg.cond(np.linalg.inv(to_pixels) @ matrix @ to_pixels))
    if not condition < MAX_CONDITION:
        raise RowInvalid(f"{name} is singular: condition number {condition:.3g}, limit {MAX_CONDITION:.0g}")
    return matrix


def _label(name: str, cell: str | bytes | None) -> str:
    if isinstance(cell, str):
        return f"{name} {redact(cell)}"
    return f"{name} ({len(cell or b'')} bytes in the cell)"


def _prefixed(name: str, text: str) -> str:
    return text if text.startswith(f"{name} ") else f"{name}: {text}"

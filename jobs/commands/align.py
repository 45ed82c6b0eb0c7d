"""`homoalign align`: one pair, no Ray."""

from __future__ import annotations

import io
import json
from pathlib import PurePosixPath
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from homoalign.config import AlignConfig
from jobs.errors import OutputNotWritable, UsageError
from jobs.options import align_config, read_config, read_storage_options, storage_options
from jobs.results.rows import Row, error_row
from jobs.schema import RESULT_COLUMNS
from jobs.storage.access import AccessRules, absolute_entry
from jobs.storage.errors import StorageError
from jobs.storage.store import Store
from jobs.worker.fetch import MAX_BYTES, MAX_PIXELS, PairImages, Reader, fetch_pair
from jobs.worker.shard import align_pairs

Pixels = npt.NDArray[np.float32]


@click.command(
    "align",
    short_help="Align one pair of images.",
    epilog="\b\nExample: homoalign align src.jpg dst.jpg --json --overlay overlay.png",
)
@click.argument("src")
@click.argument("dst")
@click.option("--json", "as_json", is_flag=True, help="The result row as one JSON object.")
@click.option("--overlay", metavar="FILE", help="Write the warped src (red) and dst (cyan) over each other.")
@click.option("--warped", metavar="FILE", help="Write src warped onto dst's frame, with 8 bits.")
@click.option("--src-mask", metavar="FILE", help="Image whose nonzero pixels are used.")
@click.option("--dst-mask", metavar="FILE", help="Likewise for dst.")
@click.option("--trace", is_flag=True, help="Fill `levels`.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--max-pixels", type=click.IntRange(min=1), default=MAX_PIXELS, show_default=True)
@click.option("--max-bytes", type=click.IntRange(min=1), default=MAX_BYTES, show_default=True)
@align_config
@storage_options
def align_command(  # noqa: PLR0913, one parameter for each option
    src: str,
    dst: str,
    *,
    as_json: bool,
    overlay: str | None,
    warped: str | None,
    src_mask: str | None,
    dst_mask: str | None,
    trace: bool,
    device: str,
    max_pixels: int,
    max_bytes: int,
    config_file: str | None,
    settings: tuple[str, ...],
    storage_options: str,
) -> None:
    """Align SRC to DST, files or any fsspec URL, and print the result row.

    As in a job, an image that cannot be read is a row with that status and exit code 0. Where there is no matrix,
    no overlay and no warped image is written, and a line on standard error says so.
    """
    files = {"src": src, "dst": dst, "src_mask": src_mask, "dst_mask": dst_mask}
    given = {name: file for name, file in files.items() if file is not None}
    store = Store(read_storage_options(storage_options, list(given.values())))
    config = read_config(store, config_file, settings)
    urls = {name: _url_of(store, file) for name, file in given.items()}
    pictures = {"overlay": overlay, "warped": warped}
    _check_pictures(store, {name: file for name, file in pictures.items() if file is not None}, urls)
    # what is named on the command line is allowed
    links = (link for url in urls.values() for link in url.split("::"))
    rules = AccessRules("file:///", tuple(absolute_entry(link) for link in links))
    reader = Reader(store=store, rules=rules, max_pixels=max_pixels, max_bytes=max_bytes)
    fetched = fetch_pair(urls, reader)
    if fetched.images is None:
        if fetched.error is None:
            raise AssertionError("neither images nor an error")
        row = error_row(fetched.error, fetched.src_size, fetched.dst_size)
    else:
        row = _aligned(fetched.images, config, device=device, trace=trace)
    for kind, file in pictures.items():
        if file is not None:
            _write_picture(store, file, kind, fetched.images, row)
    row = {"pair_id": f"{src} {dst}", **row}
    names = [column.name for column in RESULT_COLUMNS if trace or column.name != "levels"]
    if as_json:
        click.echo(json.dumps({name: row.get(name) for name in names}))
    else:
        for name in names:
            if row.get(name) is not None:
                click.echo(f"{name}: {row[name]}")


def _url_of(store: Store, file: str) -> str:
    """Return the URL of a file, or the name itself where no storage knows it: reading it says so in the row."""
    try:
        return store.url_of(file)
    except StorageError:
        return file


def _check_pictures(store: Store, pictures: dict[str, str], inputs: dict[str, str]) -> None:
    """Refuse to write a picture over an input, or over the other one.

    Raises:
        UsageError: with both names.
    """
    taken = {url: name for name, url in inputs.items()}
    for name, file in pictures.items():
        url = _url_of(store, file)
        if url in taken:
            raise UsageError(f"--{name} {file} is the file of {taken[url]}, which it would replace")
        taken[url] = f"--{name}"


def _aligned(images: PairImages, config: AlignConfig, *, device: str, trace: bool) -> Row:
    import torch

    from homoalign import align

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch finds no CUDA device here")
    device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return align_pairs([images], align, config=config, device=device, trace=trace)[0]


def _write_picture(store: Store, file: str, kind: str, images: PairImages | None, row: Row) -> None:
    from PIL import Image

    if images is None or row.get("dst_homo_src") is None:
        click.echo(f"homoalign: no matrix ({row['status']}), {file} is not written", err=True)
        return
    warped = _warped(_unit(images.src), row)
    if kind == "overlay":
        dst, seen = _gray(_unit(images.dst)), _gray(warped)
        warped = np.stack([seen, dst, dst], axis=-1)
    picture = Image.fromarray(np.round(255 * np.clip(warped, 0, 1)).astype(np.uint8).squeeze())
    target = io.BytesIO()
    suffix = PurePosixPath(file).suffix.lower()
    try:
        kind_of_file = Image.registered_extensions()[suffix]
        picture.save(target, kind_of_file)
    except (KeyError, OSError, ValueError) as error:
        raise UsageError(f"{file}: {suffix or 'no extension'} is no image format that can be written") from error
    try:
        store.publish(store.url_of(file), target.getvalue())
    except StorageError as error:
        raise OutputNotWritable(str(error)) from error


def _unit(pixels: npt.NDArray[Any]) -> Pixels:
    """Return (H, W, C) in [0, 1]."""
    import torch

    from homoalign.levels.depth import stretch_narrow_image
    from homoalign.levels.intensity import to_unit_range

    image = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])
    planes = torch.from_numpy(image).movedim(-1, 0)[None]
    unit = to_unit_range(stretch_narrow_image(planes))[0]
    return np.asarray(unit[0].movedim(0, -1).numpy(), dtype=np.float32)


def _warped(image: Pixels, row: Row) -> Pixels:
    import torch

    from homoalign import warp

    matrix = torch.tensor(row["dst_homo_src"], dtype=torch.float64).view(1, 3, 3)
    size = (row["dst_height"], row["dst_width"])
    warped = warp(torch.from_numpy(image).movedim(-1, 0)[None], matrix, size)
    return np.asarray(warped[0].movedim(0, -1).numpy(), dtype=np.float32)


def _gray(image: Pixels) -> Pixels:
    return np.asarray(image.mean(axis=-1), dtype=np.float32)

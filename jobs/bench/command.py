"""The `bench` verb: a group whose subcommands are imported when they are called."""

from __future__ import annotations

import importlib

import click

BENCHMARKS = {
    "tutorial": "kornia's tutorial pair: its own loop, this solver, OpenCV's ECC, SIFT + MAGSAC",
    "precision": "corner error under noise against the Cramer-Rao bound, small motions",
    "range": "how far apart two images may be: the deep-homography protocol and beyond",
    "photometric": "corner error under gain, gamma, vignetting and JPEG",
    "occlusion": "corner error where something else covers part of the image",
    "blur": "corner error where one of the images is out of focus, or was taken in motion",
    "quantised": "corner error of images of few gray levels: posterised, thresholded, dithered, faded",
    "compression": "corner error of images that went through lossy files: JPEG, WebP",
    "stripes": "corner error of images that their sensor striped: rows, columns, detectors in turn",
    "surround": "corner error where an aperture, nodata or a letterbox frames the images",
    "template": "an object, or a tile, that is to be found somewhere in a larger image",
    "tiles": "neighbouring tiles of a mosaic, which share a narrow strip",
    "real": "real pairs of a manifest with the truth: photographs and cross-modal ones",
    "trust": "whether confidence, precision and status tell the truth, on pairs in every trouble and unrelated ones",
    "speed": "the library's CPU time a pair by size and batch against its peers', with error and memory",
    "job": "the whole job, from JPEG files to Parquet, against decoding alone and a plain process pool",
}


class BenchGroup(click.Group):
    """Benchmarks by name; `jobs.bench.NAME` holds the command `NAME_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """Return the names of the benchmarks."""
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 click's signature
        """Import and return one benchmark."""
        if name not in BENCHMARKS:
            return None
        command: click.Command = getattr(importlib.import_module(f"jobs.bench.{name}"), f"{name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the benchmarks without importing them."""
        with formatter.section("Benchmarks"):
            formatter.write_dl(list(BENCHMARKS.items()))


@click.group("bench", cls=BenchGroup, epilog="Example: homoalign bench tutorial --json tutorial.json")
def bench_command() -> None:
    """Run one of the project's benchmarks, with its peers in the same run."""

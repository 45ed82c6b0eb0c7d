"""The Parquet columns: what a manifest may hold and what a result row holds.

`RESULT_COLUMNS` is the one list of result columns; the writer, the README's table and its test follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

MATRIX = pa.list_(pa.float64())
LEVELS = pa.list_(
    pa.struct(
        [
            ("level", pa.int32()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("num_iterations", pa.int32()),
            ("photometric_l1", pa.float64()),
            ("gt_reprojection_l1", pa.float64()),
        ]
    )
)
TEXT = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Column:
    """A column of the manifest or of the results, with the sentence the README prints."""

    name: str
    type: pa.DataType | None
    meaning: str


MANIFEST_COLUMNS = (
    Column("pair_id", None, "string or integer, unique; required"),
    Column(
        "src",
        None,
        "source image: URI, absolute or relative to the manifest's folder; or the encoded file as binary; or a struct "
        "with `bytes`, `path`; required",
    ),
    Column("dst", None, "destination image, likewise; required"),
    Column("src_mask", None, "image whose nonzero pixels are used; optional, nullable"),
    Column("dst_mask", None, "likewise for the destination"),
    Column("dst_homo_src_init", MATRIX, "9 doubles, row-major: a prior; optional, nullable"),
    Column("dst_homo_src_gt", MATRIX, "9 doubles: the truth, used for error columns only; optional, nullable"),
)
REQUIRED_COLUMNS = ("pair_id", "src", "dst")

RESULT_COLUMNS = (
    Column("pair_id", None, "as in the manifest; every manifest row has exactly one result row"),
    Column("status", TEXT, "what became of the pair, see below"),
    Column("status_detail", pa.string(), "what went wrong, with values; null when `ok`"),
    Column(
        "dst_homo_src",
        MATRIX,
        "9 doubles, row-major, source to destination pixels; null where nothing could be estimated",
    ),
    Column(
        "confidence",
        pa.float64(),
        "probability that the result is right (mean corner error at 480 below 5 px), in [0, 1]",
    ),
    Column(
        "corner_std_px",
        pa.float64(),
        "predicted root-mean-square length of the four corners' error vectors, destination pixels, given that it is "
        "right",
    ),
    Column(
        "photometric_l1",
        pa.float64(),
        "mean absolute difference of the warped source and dst over the overlap, intensities in [0, 1]",
    ),
    Column("zncc", pa.float64(), "zero-mean normalised cross-correlation over the overlap"),
    Column("overlap", pa.float64(), "share of dst covered by the warped source"),
    Column("inlier_ratio", pa.float64(), "share of the overlap's pixels that the robust loss trusts"),
    Column("forward_backward_px", pa.float64(), "corner disagreement of the two directions; null where not computed"),
    Column("gain", pa.float64(), "photometric model: dst ~ gain * src + bias"),
    Column("bias", pa.float64(), "see `gain`; intensities in [0, 1]"),
    Column("initialisation", TEXT, "where the solver started: `prior`, `identity`, `search`, `features`"),
    Column("stop_reason", TEXT, "why the solver stopped"),
    Column("num_iterations", pa.int32(), "steps over all levels"),
    Column(
        "levels",
        LEVELS,
        "coarse to fine: level, height, width, num_iterations, photometric_l1, gt_reprojection_l1; present with "
        "`--trace`",
    ),
    Column("gt_corner_error_px", pa.float64(), "mean corner error against `dst_homo_src_gt`; null without it"),
    Column("gt_corner_error_max_px", pa.float64(), "largest corner error, likewise"),
    Column(
        "gt_reprojection_l1", pa.float64(), "mean absolute difference of src warped by the estimate and by the truth"
    ),
    Column("src_height", pa.int32(), "pixels; null where the image was not read"),
    Column("src_width", pa.int32(), "likewise"),
    Column("dst_height", pa.int32(), "likewise"),
    Column("dst_width", pa.int32(), "likewise"),
)


def result_schema(pair_id: pa.DataType, *, trace: bool, carried: list[pa.Field]) -> pa.Schema:
    """Return the Arrow schema of a result part.

    Args:
        pair_id: type of the manifest's `pair_id`.
        trace: whether `levels` is present.
        carried: the manifest's fields that `--carry` names, appended in that order.
    """
    fields = [
        pa.field(column.name, pair_id if column.name == "pair_id" else column.type)
        for column in RESULT_COLUMNS
        if trace or column.name != "levels"
    ]
    return pa.schema([*fields, *carried])

"""Passes over a pair's points and pixels, compiled for the processor: what torch does in a dozen passes, in one.

Torch serves GPUs with the same formulas; tests hold the two together. Points go through in blocks that stay in the
first-level cache. Each function works pair by pair, so a pair's answer does not depend on its batch, and on one thread
without Python's lock: a job runs one task a core.

B pairs, H W rows and columns, N points.
"""

import torch
from torch import Tensor

from homoalign.kernels.fit import FitSums, count_inside, fit_sums, warp_difference, warp_level
from homoalign.kernels.joint import joint_scores, light_up
from homoalign.kernels.leftover import block_products
from homoalign.kernels.light import NOISE_TERMS, REWEIGHTINGS, RIDGE, light_cost, light_template, regress_light
from homoalign.kernels.matching import best_two
from homoalign.kernels.parts import Grid, block_energies, common_motion, cross_spectrum, cut, peaks
from homoalign.kernels.patterns import local_patterns, pattern_sums, products_of_spectra, second_best, weighted_patterns
from homoalign.kernels.pixels import (
    box,
    convolve,
    gray_of_bytes,
    halve,
    smooth,
    soften,
    spread,
    unit_of_bytes,
)
from homoalign.kernels.precision import PrecisionSums, precision_sums, share_of_rows
from homoalign.kernels.reading import read
from homoalign.kernels.refinement import keep_band, merge, squared_difference
from homoalign.kernels.robust import (
    SCALE_OF_MEDIAN,
    magnitude_quantile,
    mean_square,
    median_second_difference,
    trimmed_line,
)
from homoalign.kernels.saturation import not_cut_off
from homoalign.kernels.shifts import LEAST_ENERGY, best_shifts, turned_cross_spectra, window_spectra
from homoalign.kernels.slopes import Points, every, slopes_at, sobel, steepest_points, usable_pixels, without_flat
from homoalign.kernels.stripes import line_contrasts
from homoalign.kernels.structure import describe
from homoalign.kernels.structure import products as structure_products
from homoalign.kernels.sums import normal_equations

__all__ = [
    "LEAST_ENERGY",
    "NOISE_TERMS",
    "REWEIGHTINGS",
    "RIDGE",
    "SCALE_OF_MEDIAN",
    "FitSums",
    "Grid",
    "Points",
    "PrecisionSums",
    "best_shifts",
    "best_two",
    "block_energies",
    "block_products",
    "box",
    "common_motion",
    "convolve",
    "count_inside",
    "cross_spectrum",
    "cut",
    "describe",
    "every",
    "fit_sums",
    "gray_of_bytes",
    "halve",
    "joint_scores",
    "keep_band",
    "light_cost",
    "light_template",
    "light_up",
    "line_contrasts",
    "local_patterns",
    "magnitude_quantile",
    "mean_square",
    "median_second_difference",
    "merge",
    "normal_equations",
    "not_cut_off",
    "pattern_sums",
    "peaks",
    "precision_sums",
    "products_of_spectra",
    "read",
    "regress_light",
    "second_best",
    "serves",
    "share_of_rows",
    "slopes_at",
    "smooth",
    "sobel",
    "soften",
    "spread",
    "squared_difference",
    "steepest_points",
    "structure_products",
    "trimmed_line",
    "turned_cross_spectra",
    "unit_of_bytes",
    "usable_pixels",
    "warp_difference",
    "warp_level",
    "weighted_patterns",
    "window_spectra",
    "without_flat",
]


def serves(tensor: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Say whether the kernels work on tensors like this one: on the processor, and of the dtype that they take."""
    return tensor.device.type == "cpu" and tensor.dtype == dtype

"""The pairs of `bench trust`: related ones in every trouble, unrelated ones, near-duplicates, and misled ones.

A pair follows from the seed, the photographs' names, its group and its number in that group alone; so a longer run
holds a shorter one, and two splits of the photographs share neither a photograph nor a scene drawn by code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal
from zlib import crc32

import numpy as np

from jobs.bench.pairs import CHANGE, MOTION, NOISE, START, BenchPair, random_turned_homography
from jobs.bench.photographs import gray_scene, load_gray, place_of
from jobs.bench.trust_changes import Change, apply_change, draw_change
from jobs.bench.trust_scenes import PATTERNS, draw_forms, draw_textures, same_spectrum
from jobs.errors import UsageError
from jobs.rendering.degrade import occlude
from jobs.rendering.synthetic import (
    Image,
    Matrix,
    RenderedPair,
    Scene,
    Size,
    build_scene,
    corner_points,
    homography_from_corners,
    random_homography,
    render_pair,
    similarity_homography,
    warp_points,
)

Group = Literal["related", "unrelated", "near-duplicate", "misled"]
RELATED: Final = "related"
UNRELATED: Final = "unrelated"
NEAR_DUPLICATE: Final = "near-duplicate"
MISLED: Final = "misled"
GROUPS = (RELATED, UNRELATED, NEAR_DUPLICATE, MISLED)

CASES = (
    "noise",
    "lighting",
    "blur",
    "JPEG",
    "occlusion",
    "overlap",
    "texture",
    "repeated",
    "motion",
    "sensor",
    "relief",
    "everything",
)
"""Of related pairs, in turn."""

STRANGERS = ("photographs", "elsewhere", "spectrum", "textures", "generated")
"""Kinds of unrelated pairs, in turn: two photographs; two places of one; a photograph and noise of another's spectrum;
two textures of one kind; a photograph and a pattern, or two unlike patterns."""

LOOKALIKES = ("object", "form", "overlay", "pattern")
"""Kinds of near-duplicates, in turn: a place with another large object before it; a printed form with other entries;
two frames under one overlay; two scenes of one repeated pattern. The first two have a truth, the others none."""

MISLED_CASES = tuple(case for case in CASES if case != "repeated")
"""A start beside the truth tells which of many repeats is the right one, as no start does that anyone has."""

MISLED_480 = (4.0, 50.0)
"""Misled pairs start with their corners off by so much on average, pixels at 480: least and most."""

NOISE_LEVELS = (0.0, 2.5, 5.0, 10.0, 20.0)
"""Of both images of a pair, 8-bit units."""

SIZES: tuple[Size, ...] = ((120, 160), (180, 240), (240, 320))
MAX_UNRELATED_WIDTH = 240
"""Every start there is gets tried on an unrelated pair: it costs as much as thirty related ones."""

NOWHERE: Matrix = np.full((3, 3), math.nan)
"""The truth of pairs of which no answer is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustPair(BenchPair):
    """A pair, and what was drawn for it.

    Attributes:
        group: one of `GROUPS`.
        sigma_8bit: noise of both images, 8-bit units.
        parameters: what else was drawn, by name.
        start: (3, 3), where a misled pair starts, and is not searched from; None for all others.
        on_structure: whether a misled pair is solved on structure alone.
    """

    group: Group
    sigma_8bit: float
    parameters: dict[str, float | str] = field(default_factory=dict)
    start: Matrix | None = None
    on_structure: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustPairs:
    """What the pairs are drawn from.

    Attributes:
        seed: of all that is drawn.
        photographs: of at least two places.
        max_width: of the images, px.
    """

    seed: int
    photographs: tuple[str, ...]
    max_width: int = SIZES[-1][1]

    def __post_init__(self) -> None:
        if len({place_of(name) for name in self.photographs}) < 2:
            raise UsageError(f"photographs of at least two places are needed, got {', '.join(self.photographs)}")
        if self.max_width < SIZES[0][1]:
            raise UsageError(f"--size {self.max_width}: the smallest images are {SIZES[0][1]} px wide")

    def rng(self, group: Group, number: int, stream: int) -> np.random.Generator:
        """Return the generator of one stream of one pair."""
        places = crc32(",".join(sorted(map(place_of, self.photographs))).encode())
        return np.random.default_rng([self.seed, places, GROUPS.index(group), number, stream])

    def draw(self, group: Group, number: int) -> TrustPair:
        """Return a pair by its number in its group, from 0."""
        draw = {RELATED: _related, UNRELATED: _unrelated, NEAR_DUPLICATE: _near_duplicate, MISLED: _misled}
        return draw[group](self, number)

    def turn(self, number: int) -> str:
        """Return the photograph whose turn it is."""
        return self.photographs[number % len(self.photographs)]

    def other_than(self, name: str, rng: np.random.Generator) -> str:
        """Draw a photograph of another place."""
        return str(rng.choice([other for other in self.photographs if place_of(other) != place_of(name)]))

    def draw_size(self, rng: np.random.Generator, max_width: int | None = None) -> Size:
        """Draw a height and a width."""
        sizes = [size for size in SIZES if size[1] <= min(self.max_width, max_width or self.max_width)]
        return sizes[int(rng.integers(len(sizes)))]


def trust_pairs(
    count: int, unrelated: int, near_duplicates: int, seed: int, photographs: tuple[str, ...]
) -> Iterator[TrustPair]:
    """Draw related, unrelated and near-duplicate pairs, in this order.

    Raises:
        UsageError: the photographs are of one place only.
    """
    pairs = TrustPairs(seed=seed, photographs=photographs)
    for group, number in trust_numbers(count, unrelated, near_duplicates):
        yield pairs.draw(group, number)


def trust_numbers(count: int, unrelated: int, near_duplicates: int, misled: int = 0) -> Iterator[tuple[Group, int]]:
    """Return group and number of every pair, in order."""
    groups: tuple[tuple[Group, int], ...] = (
        (RELATED, count),
        (UNRELATED, unrelated),
        (NEAR_DUPLICATE, near_duplicates),
        (MISLED, misled),
    )
    return ((group, number) for group, size in groups for number in range(size))


def _related(pairs: TrustPairs, number: int) -> TrustPair:
    return _draw_related(pairs, RELATED, number, CASES)


def _draw_related(pairs: TrustPairs, group: Group, number: int, cases: tuple[str, ...]) -> TrustPair:
    case, name = cases[number % len(cases)], pairs.turn(number // len(cases))
    rng = pairs.rng(group, number, MOTION)
    scene, pattern = gray_scene(name), {}
    if case == "repeated":
        pattern_name = str(rng.choice(list(PATTERNS)))
        name, pattern = pattern_name, {"pattern": pattern_name}
        scene = build_scene(PATTERNS[pattern_name](rng))
    views, motion = _moved_views(pairs, case, scene, rng)
    change_rng = pairs.rng(group, number, CHANGE)
    change = draw_change(case, change_rng)
    if group == MISLED and change_rng.uniform() < 0.5:
        change = replace(change, relief_480=draw_change("relief", change_rng).relief_480)
    return _finish(pairs, group, number, case, name, views, change, {**pattern, **motion})


def _misled(pairs: TrustPairs, number: int) -> TrustPair:
    """Draw a related pair, every second not flat, and a start beside its truth: many find a wrong answer near it."""
    pair = _draw_related(pairs, MISLED, number, MISLED_CASES)
    rng = pairs.rng(MISLED, number, START)
    off_480 = math.exp(rng.uniform(*np.log(MISLED_480)))
    off = rng.normal(size=2) + 0.6 * rng.normal(size=(4, 2))  # together, and each corner on its own
    off *= off_480 * min(pair.dst.shape[:2]) / 480 / np.linalg.norm(off, axis=1).mean()
    corners = corner_points((pair.src.shape[0], pair.src.shape[1]))
    start = homography_from_corners(corners, warp_points(pair.dst_homo_src, corners) + off)
    parameters = {**pair.parameters, "off_480": off_480}
    return replace(pair, start=start, on_structure=number // len(MISLED_CASES) % 2 == 1, parameters=parameters)


def _moved_views(
    pairs: TrustPairs, case: str, scene: Scene, rng: np.random.Generator
) -> tuple[RenderedPair, dict[str, float | str]]:
    """Render two views: near each other, or as far apart as the case says."""
    size = dst_size = pairs.draw_size(rng)
    if case == "motion":
        dst_homo_src = random_turned_homography(rng, size, 0.1 * size[0], any_rotation=True, scales=(0.4, 2.5))
    elif case == "overlap":
        size = dst_size = pairs.draw_size(rng, 240)
        share, along_x = rng.uniform(0.05, 1), rng.uniform()
        shift = (1 - share**along_x) * (size[1] - 1), (1 - share ** (1 - along_x)) * (size[0] - 1)
        dst_homo_src = _shift(rng.choice([-1, 1], size=2) * shift) @ random_homography(rng, size, 0.03 * size[0])
    else:
        offset_px = size[0] * math.exp(rng.uniform(math.log(0.003), math.log(0.2)))
        if rng.uniform() < 0.2:
            dst_size = pairs.draw_size(rng)
            offset_px *= dst_size[0] / size[0]
        dst_homo_src = random_homography(rng, size, offset_px, dst_size=dst_size)
    if case == "repeated" and rng.uniform() < 0.5:  # by more than a period, mostly: the nearest fit is another repeat
        dst_homo_src = _shift(rng.uniform(-0.35, 0.35, size=2) * dst_size[::-1]) @ dst_homo_src
    corners = corner_points(size)
    moved = np.linalg.norm(warp_points(dst_homo_src, corners) - corners, axis=1).mean()
    overlap = share_covered(dst_homo_src, size, dst_size)
    views = render_pair(scene, dst_homo_src, size, rng=rng, dst_size=dst_size)
    return views, {"motion_px": float(moved), "true_overlap": overlap}


def _shift(xy: Matrix) -> Matrix:
    return np.array([[1, 0, xy[0]], [0, 1, xy[1]], [0, 0, 1]])


def share_covered(dst_homo_src: Matrix, src_size: Size, dst_size: Size) -> float:
    """Return the share of dst that src covers, to 1 %."""
    y, x = (np.linspace(0, side - 1, 64) for side in dst_size)
    src_homo_dst = np.linalg.inv(dst_homo_src).astype(np.float64)
    xy = warp_points(src_homo_dst, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return float(((xy >= 0) & (xy <= np.array([src_size[1] - 1, src_size[0] - 1]))).all(axis=1).mean())


def _unrelated(pairs: TrustPairs, number: int) -> TrustPair:
    kind, name = STRANGERS[number % len(STRANGERS)], pairs.turn(number // len(STRANGERS))
    rng = pairs.rng(UNRELATED, number, MOTION)
    src_scene, dst_scene, names = _strangers(pairs, kind, name, rng)
    src_view = _draw_view(src_scene, pairs.draw_size(rng, MAX_UNRELATED_WIDTH), rng)
    dst_view = _draw_view(dst_scene, pairs.draw_size(rng, MAX_UNRELATED_WIDTH), rng)
    views = RenderedPair(src_view, dst_view, NOWHERE)
    change_rng = pairs.rng(UNRELATED, number, CHANGE)
    change = draw_change(str(change_rng.choice(["noise", "lighting", "blur", "JPEG", "texture"])), change_rng)
    return _finish(pairs, UNRELATED, number, kind, names, views, change, {})


def _strangers(pairs: TrustPairs, kind: str, name: str, rng: np.random.Generator) -> tuple[Scene, Scene, str]:
    if kind == "elsewhere":
        return _half_scene(name, 0), _half_scene(name, 1), f"{name}, {name}"
    if kind == "textures":
        first, second = draw_textures(rng)
        return build_scene(first), build_scene(second), "texture, texture"
    if kind == "generated":
        first_name, second_name = map(str, rng.permutation(list(PATTERNS))[:2])
        second_scene = build_scene(PATTERNS[second_name](rng))
        if rng.uniform() < 0.5:
            return gray_scene(name), second_scene, f"{name}, {second_name}"
        return build_scene(PATTERNS[first_name](rng)), second_scene, f"{first_name}, {second_name}"
    other = pairs.other_than(name, rng)
    if kind == "spectrum":
        return gray_scene(name), build_scene(same_spectrum(load_gray(other)[:720, :720], rng)), f"{name}, as {other}"
    return gray_scene(name), gray_scene(other), f"{name}, {other}"


@lru_cache(maxsize=32)
def _half_scene(name: str, half: int) -> Scene:
    """Return one of two parts of a photograph that share nothing."""
    image = load_gray(name)
    is_wide = image.shape[1] >= image.shape[0]
    side = image.shape[1] if is_wide else image.shape[0]
    part = slice(0, round(0.48 * side)) if half == 0 else slice(side - round(0.48 * side), side)
    return build_scene(np.ascontiguousarray(image[:, part] if is_wide else image[part]))


def _draw_view(scene: Scene, size: Size, rng: np.random.Generator) -> Image:
    """Render a view from anywhere, upright or, as often, turned by any angle."""
    angle_deg = rng.uniform(0, 360) if rng.uniform() < 0.5 else 0.0
    turn = similarity_homography(size, angle_deg=angle_deg)
    return render_pair(scene, turn, size, rng=rng, density=rng.uniform(1, 3)).dst


def _near_duplicate(pairs: TrustPairs, number: int) -> TrustPair:
    kind, name = LOOKALIKES[number % len(LOOKALIKES)], pairs.turn(number // len(LOOKALIKES))
    rng = pairs.rng(NEAR_DUPLICATE, number, MOTION)
    size = pairs.draw_size(rng, MAX_UNRELATED_WIDTH)
    parameters: dict[str, float | str] = {}
    near = random_homography(rng, size, size[0] * rng.uniform(0.01, 0.1))
    if kind == "object":
        views, parameters = _with_objects(pairs, name, render_pair(gray_scene(name), near, size, rng=rng), rng)
    elif kind == "form":
        views, name = _filled_in(near, size, rng), "form"
    elif kind == "overlay":
        other = pairs.other_than(name, rng)
        views, parameters = _under_overlay([_draw_view(gray_scene(each), size, rng) for each in (name, other)], rng)
        name = f"{name}, {other}"
    else:
        name = str(rng.choice(list(PATTERNS)))
        src_view, dst_view = (_draw_view(build_scene(PATTERNS[name](rng)), size, rng) for _ in range(2))
        views = RenderedPair(src_view, dst_view, NOWHERE)
    change_rng = pairs.rng(NEAR_DUPLICATE, number, CHANGE)
    change = draw_change(str(change_rng.choice(["noise", "lighting", "JPEG"])), change_rng)
    return _finish(pairs, NEAR_DUPLICATE, number, kind, name, views, change, parameters)


def _with_objects(
    pairs: TrustPairs, name: str, views: RenderedPair, rng: np.random.Generator
) -> tuple[RenderedPair, dict[str, float | str]]:
    """Cover the same part of both frames, each by an ellipse of another photograph."""
    share = rng.uniform(0.15, 0.5)
    height, width = views.src.shape
    radius_y = math.sqrt(share * height * width / math.pi) * math.exp(rng.uniform(-0.25, 0.25))
    radius_x = share * height * width / (math.pi * radius_y)
    y, x = np.ogrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.35, 0.65, size=2) * (height, width)
    inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
    covers = [_draw_view(gray_scene(pairs.other_than(name, rng)), (height, width), rng) for _ in range(2)]
    src, dst = (np.where(inside, cover, view) for cover, view in zip(covers, (views.src, views.dst), strict=True))
    return RenderedPair(src, dst, views.dst_homo_src), {"covered": float(inside.mean())}


def _filled_in(dst_homo_src: Matrix, size: Size, rng: np.random.Generator) -> RenderedPair:
    """Render one view of a form and one of the same form with other entries."""
    forms = draw_forms(rng)
    place = rng.integers(2**32)
    first, second = (
        render_pair(build_scene(form), dst_homo_src, size, rng=np.random.default_rng(place)) for form in forms
    )
    return RenderedPair(first.src, second.dst, first.dst_homo_src)


def _under_overlay(views: list[Image], rng: np.random.Generator) -> tuple[RenderedPair, dict[str, float | str]]:
    """Lay the same captions, logos and bars over both frames, at the same pixels."""
    shape = views[0].shape
    share = rng.uniform(0.05, 0.35)
    overlay, covered = occlude(
        np.zeros(shape, dtype=np.float32), other=PATTERNS[str(rng.choice(list(PATTERNS)))](rng), share=share, rng=rng
    )
    src, dst = (np.where(covered, overlay, view) for view in views)
    return RenderedPair(src, dst, NOWHERE), {"covered": float(covered.mean())}


def _finish(
    pairs: TrustPairs,
    group: Group,
    number: int,
    case: str,
    name: str,
    views: RenderedPair,
    change: Change,
    parameters: dict[str, float | str],
) -> TrustPair:
    """Change the views, add their noise, and round them."""
    rng = pairs.rng(group, number, NOISE)
    sigma_8bit = float(rng.choice(NOISE_LEVELS))
    other = load_gray(pairs.other_than(name, rng)) if change.covered else None
    src, dst = apply_change(change, views, sigma_8bit=sigma_8bit, other=other, rng=rng)
    return TrustPair(
        group=group,
        number=number,
        name=name,
        case=case,
        src=src,
        dst=dst,
        dst_homo_src=views.dst_homo_src,
        sigma_8bit=sigma_8bit,
        parameters={**parameters, **change.parameters()},
    )

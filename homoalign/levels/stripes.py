"""Images striped by their sensor: rows or columns brighter or darker than their neighbours, each on its own.

So do the amplifiers of a CMOS sensor's rows, the columns of a thermal camera, the detectors of a scanner, lines of a
display. Stripes stay where the sensor is when the scene moves: they hold an alignment where frame lies on frame, and
hide the scene elsewhere. A scene has stripes as well, but not like these: seen through optics, its lines are wider than
a pixel, and seldom run along the frame from end to end.

So each line's level is told in four parts along it. Where the parts agree about it, and neighbouring lines know nothing
of each other, lines may be a sensor's; they are not where motion takes them along. A sensor's lose what they have
beside their neighbourhood, an offset or a gain (Carfantan and Idier, "Statistical linear destriping of satellite-based
pushbroom-type images", TGRS 2010), at the frequencies that the parts agree about (Wiener's filter).

B pairs, H W rows and columns; lines are rows, or the columns of an image that was transposed; N lines of P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from homoalign import kernels
from homoalign.homography import warp_points
from homoalign.levels.pyramid import Level

PARTS = 4
"""Of a line, told apart."""

STRIPS = 32
"""Of five rows each, all that is looked at to tell whether there are stripes."""

LEAST_SIDE_PX = 32
"""Of images that are asked."""

AGREE = 0.45
"""Share of the lines all of whose parts lie above their neighbours, or all below: by chance an eighth of them do."""

FINE = 1.5
"""Lines two apart differ as neighbours do; up to so many times as much they may know nothing of each other."""

LEAST = 0.1 / 255
"""Median contrast of a line to the mean of its neighbours: less of it does no harm."""

MOST_PIXELS = 1024
"""Of a line that its level is told from."""

SLOW_PX = 8.0
"""Standard deviation of a Gaussian over lines: what that leaves of their levels may be the scene's, and stays."""

CERTAIN = 4.0
"""A frequency of the levels counts beyond so many times the energy that their parts disagree about..."""

FREQUENCIES = 9
"""... as told from so many neighbouring ones."""

OUTLIER = 2.0
"""Median distances from the median beyond which a difference of neighbouring pixels is the scene's..."""

LEAST_WIDTH = 1 / 255
"""... of at least that, as those of eight bits come in steps."""

DARK = 0.02
"""Brightness below which a line's gain is not told."""

MOVED_PX = 1.0
"""Mean distance by which lines are moved across themselves: lines that stay may be a sensor's."""

EXPLAINED = 0.5
"""Of the stripes' standard deviation: what leaves less explains them."""

LEAST_LEFT = 1 / 4
"""Share of the contrast: an image of which less is left shows stripes and nothing else, and keeps them."""


def take_stripes_away(src: Level, dst: Level) -> tuple[Level, Level, Tensor]:
    """Free images of stripes along their rows or columns, each image on its own.

    Args:
        src: full-size source images.
        dst: full-size destination images.

    Returns:
        src: freed where it is striped.
        dst: likewise.
        strength: (B, 2) float64 on the CPU, the standard deviation of what rows and columns lost, of the image that
            lost more; zero where neither is striped.
    """
    is_striped = torch.stack([_find_striped(level) for level in (src, dst)]).cpu()
    (src, of_src), (dst, of_dst) = (_freed(*each) for each in zip((src, dst), is_striped, strict=True))
    return src, dst, torch.maximum(of_src, of_dst)


def move_along(strength: Tensor, left: Tensor, dst_homo_src: Tensor, src_size: tuple[int, int]) -> Tensor:
    """Say whether stripes move with the scene, and so are part of it.

    Args:
        strength: (B, 2) as `take_stripes_away` has it.
        left: (B,) standard deviation of what an alignment of the images with their stripes leaves.
        dst_homo_src: (B, 3, 3) float64, that alignment.
        src_size: height, width.

    Returns:
        (B,) bool: it moves lines across themselves, and leaves much less than the stripes are: it explains them.
    """
    height, width = src_size
    y, x = torch.meshgrid(
        *(torch.linspace(0, side - 1, 5, dtype=torch.float64) for side in (height, width)), indexing="ij"
    )
    places = torch.stack([x.flatten(), y.flatten()], dim=-1)
    moved = (warp_points(dst_homo_src, places.expand(len(strength), -1, -1)) - places).abs().mean(1).flip(-1)
    is_moved = ((moved >= MOVED_PX) & (strength > 0)).any(-1)
    return is_moved & (left < EXPLAINED * strength.amax(-1))


def spread(level: Level) -> Tensor:
    """Return (B,) float64 on the CPU, the standard deviation of what masks leave of the intensities."""
    known = [None] * len(level.image) if level.mask is None else (level.mask[:, 0] > 0).unbind()
    pairs = zip(level.image[:, 0].unbind(), known, strict=True)
    return torch.stack([_spread(image, where) for image, where in pairs]).double().cpu()


def _freed(level: Level, by_axis: Tensor) -> tuple[Level, Tensor]:
    """Return the level freed of stripes along rows and along columns (2, B), on the CPU, and their strength (B, 2)."""
    strength = torch.zeros(len(level.image), 2, dtype=torch.float64)
    image = level.image
    for i in torch.nonzero(by_axis.any(0))[:, 0].tolist():
        one = torch.tensor([i], device=image.device)
        striped, known = level.image[i, 0], None if level.mask is None else level.mask[i, 0] > 0
        freed, taken = striped, torch.zeros(2, dtype=torch.float64)
        for axis in torch.nonzero(by_axis[:, i])[:, 0].tolist():
            before = freed
            freed = _without_stripes(freed, known) if axis == 0 else _without_stripes(freed.T, _turned(known)).T
            taken[axis] = _spread(before - freed, known).double()
        if _spread(freed, known) >= LEAST_LEFT * _spread(striped, known):
            strength[i] = taken
            image = image.index_copy(0, one, freed[None, None])
    return (Level(image, level.mask) if bool(strength.any()) else level), strength


def _turned(known: Tensor | None) -> Tensor | None:
    return None if known is None else known.T


def _find_striped(level: Level) -> Tensor:
    """Return (2, B) bool, where rows are stripes, and where columns are."""
    image, mask = level.image[:, 0], None if level.mask is None else level.mask[:, 0]
    if min(image.shape[-2:]) < LEAST_SIDE_PX:
        return torch.zeros(2, len(image), dtype=torch.bool, device=image.device)
    agree, near, far = contrasts(image, mask).unbind(-1)
    return ((agree >= AGREE) & (near >= 2 * LEAST) & (far <= FINE * near)).T


def contrasts(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tell how lines differ from their neighbours, of some rows and of all columns in these rows.

    Args:
        image: (B, H, W) float32, sides of at least `LEAST_SIDE_PX`.
        mask: (B, H, W), 0 where a pixel is not to be looked at; None: all are.

    Returns:
        (B, 2, 3) float64, of rows and of columns: the share of lines all of whose parts lie above both neighbours'
        mean or all below, and the median difference of a line from that mean, twice, and from that of lines two apart.
    """
    first = torch.linspace(0, image.shape[1] - 5, STRIPS, dtype=torch.float64, device=image.device).round().long()
    strips = first[:, None] + torch.arange(5, device=image.device)
    if mask is None and kernels.serves(image):
        return kernels.line_contrasts(image, strips, PARTS)
    profiles = _profiles(image, strips)
    if mask is not None:
        # A line of which a part knows little is not asked.
        known, sums = _profiles(mask, strips), _profiles(torch.where(mask > 0, image, 0), strips)
        profiles = [torch.where(share > 0.5, of / share, torch.nan) for of, share in zip(sums, known, strict=True)]
    return torch.stack([_contrasts(profile) for profile in profiles], dim=1).double()


def _profiles(values: Tensor, strips: Tensor) -> list[Tensor]:
    """Return the means over the parts of some lines of (B, H, W), each with two neighbours either way.

    Returns:
        rows: (B, PARTS, 5, STRIPS).
        columns: (B, PARTS, 5, W - 4).
    """
    width, some = values.shape[2], values[:, strips.flatten()]
    rows = some[..., : width // PARTS * PARTS].reshape(len(some), STRIPS, 5, PARTS, -1).mean(-1)
    columns = some.view(len(some), PARTS, -1, width).mean(2)
    return [rows.permute(0, 3, 2, 1), torch.stack([columns[..., i : width - 4 + i] for i in range(5)], dim=2)]


def _contrasts(profile: Tensor) -> Tensor:
    """Return (B, 3), of (B, PARTS, 5, N); NaN is unknown."""
    near, far = (2 * profile[:, :, 2] - profile[:, :, 2 - hole] - profile[:, :, 2 + hole] for hole in (1, 2))
    sign = near.sign().sum(1)
    agree = (sign.abs() == PARTS).sum(-1) / sign.isfinite().sum(-1).clamp_min(STRIPS // 2)
    return torch.stack([agree, *(some.mean(1).abs().nanmedian(-1).values for some in (near, far))], dim=-1)


def _without_stripes(image: Tensor, known: Tensor | None) -> Tensor:
    """Return (N, P) freed of the offsets, or the gains, of its lines: of those that leave less."""
    step = -(-image.shape[1] // MOST_PIXELS)
    some = image[:, ::step]
    is_known = torch.ones_like(some, dtype=torch.bool) if known is None else known[:, ::step]
    offset = _levels_of(torch.where(is_known, some, torch.nan))
    gain = _levels_of(torch.where(is_known & (some > DARK), some, torch.nan).log()).exp()
    left = [_roughness(freed, is_known) for freed in (some - offset, some / gain)]
    return image - offset if left[0] <= left[1] else image / gain


def _levels_of(lines: Tensor) -> Tensor:
    """Return (N, 1), what lines (N, P) have beside their neighbourhood as far as their parts agree; NaN is unknown."""
    parts = lines[:, : lines.shape[1] // PARTS * PARTS].reshape(len(lines), PARTS, -1)
    steps = _centre(parts[1:] - parts[:-1]).nan_to_num(0.0).double()
    levels = pad(steps.cumsum(0), (0, 0, 1, 0))
    spectrum = torch.fft.rfft(torch.cat([levels, levels.flip(0)]), dim=0)  # mirrored, so that its ends meet
    level = spectrum.mean(-1)
    error = (spectrum - level[:, None]).abs().square().sum(-1) / (PARTS * (PARTS - 1))
    kept = (1 - CERTAIN * _smooth(error) / level.abs().square().clamp_min(1e-12)).clamp_min(0)
    frequency = torch.fft.rfftfreq(2 * len(lines), device=lines.device, dtype=level.real.dtype) * 2 * torch.pi
    kept = kept * (1 - (-0.5 * (SLOW_PX * frequency).square()).exp())
    told: Tensor = torch.fft.irfft(level * kept, n=2 * len(lines))
    return told[: len(lines), None].to(lines)


def _centre(values: Tensor) -> Tensor:
    """Return (...) the centre of (..., P), NaN left out: by Tukey's biweight, one step from the median."""
    median = values.nanmedian(-1, keepdim=True).values
    off = values - median
    width = OUTLIER * off.abs().nanmedian(-1, keepdim=True).values.clamp_min(LEAST_WIDTH)
    weight = (1 - (off / width).square().clamp_max(1)).square()
    return median[..., 0] + (weight * off).nansum(-1) / weight.nansum(-1)


def _smooth(values: Tensor) -> Tensor:
    """Return (F,) averaged over neighbouring frequencies."""
    return avg_pool1d(values[None], FREQUENCIES, stride=1, padding=FREQUENCIES // 2, count_include_pad=False)[0]


def _roughness(image: Tensor, is_known: Tensor) -> Tensor:
    """Return (), the mean difference of neighbouring lines."""
    return (image[1:] - image[:-1]).abs()[is_known[1:] & is_known[:-1]].mean()


def _spread(image: Tensor, known: Tensor | None) -> Tensor:
    return image.std() if known is None else image[known].std()

"""Light that a gain and a bias do not explain: tone curves, vignettes, slow illumination, saturation.

At a given alignment dst is regressed on src: a polynomial tone curve, and a gain and a bias that are quadratic in
position (Bartoli, "Groupwise geometric and photometric direct image registration", PAMI 2008, fits affine light
jointly; here it alternates with the motion). The template is then replaced by what it should look like in dst, and the
solver goes on with a gain and a bias. A pair keeps the plain model unless the richer one explains clearly more.

B pairs, H W rows and columns, N points, K basis functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homoalign import kernels
from homoalign.levels.noise import smooth
from homoalign.levels.pyramid import Level
from homoalign.optimisation.residual import Alignment, DirectProblem
from homoalign.optimisation.solver import SCALE_SAMPLES, cauchy, cauchy_weight, robust_scale
from homoalign.optimisation.template import Template

NUM_FUNCTIONS = 14
"""K, see `_basis`."""

LINEAR = 2
"""The first basis functions: a constant and the intensity."""

LEAST_GAIN = 0.05
"""Share of the robust cost that the richer model must save; chance saves a thousandth."""

LEAST_SHARE = 0.1
"""Share of the points that must be seen and unsaturated for the richer model to be tried."""

MORE_THAN_NOISE = 1.1
"""Residuals of so many times the noise are no longer noise alone."""

NOISE_SHARE = 0.85
"""Of the variance of src's noise, how much is taken out of the regression. The loss leaves about 0.91 of it where it
weighs the points; with all of that out, the curves of faint images swing wide where few points hold them."""

FIT_POINTS = 8192
SATURATED = 0.5 / 255
"""Intensities this close to 0 or 1 say nothing about how bright it was."""


LARGEST_NOISE = 0.3
"""Share of src's variance above which light is a gain and a bias."""


@dataclass(frozen=True, slots=True)
class Light:
    """How dst's intensities follow from src's.

    Attributes:
        weights: (B, K) of the basis functions, float32.
        is_rich: (B,) bool, False where a gain and a bias are enough and `weights` is not to be used.
        is_certain: (B,) bool, whether what a gain and a bias leave is more than noise; noise in src alone bends the
            line that dst follows a little.
    """

    weights: Tensor
    is_rich: Tensor
    is_certain: Tensor

    @staticmethod
    def plain(like: Tensor) -> Light:
        """Return light that a gain and a bias explain, for as many pairs as `like` (B,) has."""
        weights = torch.zeros(len(like), NUM_FUNCTIONS, dtype=torch.float32, device=like.device)
        no = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        return Light(weights, no, no)

    def select(self, index: Tensor) -> Light:
        """Return the pairs that `index` (int64) names."""
        return Light(self.weights[index], self.is_rich[index], self.is_certain[index])

    def put(self, index: Tensor, part: Light) -> Light:
        """Return this with the pairs that `index` (int64) names replaced by `part`."""
        return Light(
            self.weights.index_copy(0, index, part.weights),
            self.is_rich.index_copy(0, index, part.is_rich),
            self.is_certain.index_copy(0, index, part.is_certain),
        )


def has_contrast(src: Level) -> Tensor:
    """Return (B,) bool, whether src has contrast enough for more than a gain and a bias to be told.

    Of noise as strong as the contrast a tone curve says more than of src.
    """
    return src.noise.square() < LARGEST_NOISE * src.contrast.square()


def fit_light(
    problem: DirectProblem, state: Alignment, *, src_noise: Tensor, noise: Tensor, loss_width: float
) -> tuple[Light, Alignment]:
    """Regress dst on src at an alignment.

    Args:
        problem: of the full-size images, or a `sample` of it, with src's own intensities as its template.
        state: an alignment that is good to a fraction of a pixel or so.
        src_noise: (B,) standard deviation of the noise of src.
        noise: (B,) of the residual, see `noise.residual_noise`.
        loss_width: of the robust loss, in standard deviations of the residual.

    Returns:
        light: dst as a function of src.
        state: the alignment with the gain and bias to go on with: those on top of `light` where it is rich.
    """
    value, seen = problem.read_dst(state.dst_homo_src)
    seen = seen & (value > SATURATED) & (value < 1 - SATURATED)
    src_noise = NOISE_SHARE**0.5 * src_noise
    rich, rich_scale = regress(problem, NUM_FUNCTIONS, value, seen, src_noise, loss_width)
    plain, plain_scale = regress(problem, LINEAR, value, seen, src_noise, loss_width)
    width = loss_width * rich_scale
    rich_cost, plain_cost = (_cost(problem.template, weights, value, seen, width) for weights in (rich, plain))
    # A falling tone curve is a negative, or a wrong alignment.
    enough = seen.double().mean(-1) > LEAST_SHARE
    usable = (rich[:, 1] > 0.02) & rich.isfinite().all(-1) & enough
    is_rich = usable & (rich_cost < (1 - LEAST_GAIN) * plain_cost)
    light = Light(rich.to(value), is_rich, is_rich & (plain_scale > MORE_THAN_NOISE * noise))
    gain, bias = 2 * plain[:, 1], plain[:, 0] - plain[:, 1]
    known = enough & (gain > 0.01) & bias.isfinite()
    gain, bias = torch.where(known, gain, state.gain), torch.where(known, bias, state.bias)
    gain, bias = torch.where(light.is_rich, 1.0, gain), torch.where(light.is_rich, 0.0, bias)
    return light, Alignment(state.dst_homo_src, gain, bias)


def sample(problem: DirectProblem) -> DirectProblem:
    """Return the problem on as many of its points as light is told from."""
    return replace(problem, template=problem.template.every(sample_stride(problem)))


def sample_stride(problem: DirectProblem) -> int:
    """Return which points a `sample` has; an odd stride does not fall in step with the rows of an image."""
    return max(1, problem.template.u.shape[-1] // FIT_POINTS) | 1


def apply_light(template: Template, light: Light) -> Template:
    """Return the template as it should look in dst: intensities, and slopes that follow the tone curve's."""
    if kernels.serves(template.value):
        if not bool(light.is_rich.any()):
            return template
        parts = (template.value, template.slope, template.brightness, template.u)
        value, slope, brightness = kernels.light_template(light.weights, light.is_rich, *parts)
        return replace(template, value=value, slope=slope, brightness=brightness)
    rich = torch.nonzero(light.is_rich)[:, 0]
    if len(rich) == 0:
        return template
    part, weights = template.select(rich), light.weights[rich]
    value, slope = predict(weights, part.value, part.u)
    is_recorded = part.brightness is part.value
    brightness = value if is_recorded else predict(weights, part.brightness, part.u)[0]
    return template.put(rich, replace(part, value=value, slope=part.slope * slope[:, None], brightness=brightness))


def to_plain(is_rich: Tensor, lit: Tensor, problem: DirectProblem, state: Alignment) -> tuple[Alignment, Tensor]:
    """Say what light and state come to as one gain and one bias, over what is seen.

    Args:
        is_rich: (B,) bool, where there is light to speak of.
        lit: (B, N), src's intensities as they should look in dst.
        problem: with src's own intensities as its template.
        state: an alignment, its gain and bias on top of `lit`.

    Returns:
        state: with the gain and bias of dst ~ gain * src + bias.
        scale: (B,) robust standard deviation of what this leaves where the light is rich, NaN elsewhere.
    """
    scale = torch.full_like(state.gain, torch.nan)
    rich = torch.nonzero(is_rich)[:, 0]
    if len(rich) == 0:
        return state, scale
    part, start = sample(problem).select(rich), state.select(rich)
    lit = lit[rich, :: sample_stride(problem)].contiguous()
    _, seen = part.read_dst(start.dst_homo_src)
    raw = part.template.value
    count = seen.sum(-1).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(seen, values, 0.0).sum(-1, dtype=torch.float64) / count

    raw_mean, lit_mean = mean(raw), mean(lit)
    centred = raw - raw_mean[:, None].to(raw)
    gain = mean(centred * lit) / mean(centred * centred).clamp_min(1e-12)
    bias = lit_mean - gain * raw_mean
    plain = Alignment(start.dst_homo_src, start.gain * gain, start.gain * bias + start.bias)
    left = robust_scale(*part.evaluate(plain), part.scale_floor)
    return state.put(rich, plain), scale.index_copy(0, rich, left)


def normalise_locally(level: Level) -> Level:
    """Take each neighbourhood's mean away and divide by its standard deviation, with a floor.

    Args:
        level: images.

    Returns:
        Images of about a tenth's standard deviation.
    """
    share = 1.0 if level.mask is None else _neighbourhood(level.mask).clamp_min(1e-3)
    used = level.image if level.mask is None else level.image * level.mask
    centred = level.image - _neighbourhood(used) / share
    centred = centred if level.mask is None else centred * level.mask
    variance = _neighbourhood(centred.square()) / share
    return Level(0.1 * centred / (variance + 0.02**2).sqrt(), level.mask)


def _neighbourhood(image: Tensor) -> Tensor:
    """Blur with a standard deviation of about five pixels, less where the image is small."""
    for hole in (1, 2, 4):
        if 2 * hole < min(image.shape[-2:]):
            image = smooth(image, hole)
    return image


def _basis(intensity: Tensor, u: Tensor, variance: Tensor) -> Tensor:
    """Return (B, K, N): 1, z, z^2, z^3, and 1 and z each times x, y, x^2, xy, y^2; z is the intensity from -1 to 1.

    Powers are less what noise of `variance` (B,) in z adds to them on average.
    """
    z = 2 * intensity - 1
    of_noise = variance[:, None].to(z)
    x, y = u[:, 0], u[:, 1]
    fields = [x, y, x * x, x * y, y * y]
    tone = [torch.ones_like(z), z, z * z - of_noise, (z * z - 3 * of_noise) * z]
    return torch.stack([*tone, *fields, *(z * field for field in fields)], dim=1)


def predict(weights: Tensor, intensity: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return intensities in dst, (B, N), and their slope over src's; flat where they saturate."""
    z = 2 * intensity - 1
    x, y = u[:, 0], u[:, 1]
    w = weights[..., None].unbind(1)  # K of (B, 1)
    bias = w[4] * x + w[5] * y + w[6] * x * x + w[7] * x * y + w[8] * y * y
    gain = w[9] * x + w[10] * y + w[11] * x * x + w[12] * x * y + w[13] * y * y
    value = w[0] + bias + z * (w[1] + gain + z * (w[2] + z * w[3]))
    slope = 2 * (w[1] + gain + z * (2 * w[2] + 3 * z * w[3]))
    inside = (value > 0) & (value < 1)
    return value.clamp(0, 1), torch.where(inside, slope, 0.0)


def regress(
    problem: DirectProblem, num_functions: int, value: Tensor, seen: Tensor, src_noise: Tensor, loss_width: float
) -> tuple[Tensor, Tensor]:
    """Regress dst on the first basis functions, robustly; noise in src does not flatten what is found.

    Noise in what is regressed on would turn a line into a flatter one, and bend it where dark and bright are not
    equally frequent: it is taken out of the normal equations (adjusted least squares, see `kernels.NOISE_TERMS`).

    Args:
        problem: as for `fit_light`.
        num_functions: K.
        value: (B, N), dst at the points.
        seen: (B, N) bool.
        src_noise: (B,) standard deviation of the noise of src.
        loss_width: of the robust loss, in standard deviations of the residual.

    Returns:
        weights: (B, K) float64.
        scale: (B,) float64, of the residual; NaN where there is no solution.
    """
    template, floor = problem.template, problem.scale_floor
    if kernels.serves(value):
        settings = (num_functions, loss_width, SCALE_SAMPLES)
        return kernels.regress_light(template.value, src_noise, template.u, value, seen, floor, settings)
    variance = (2 * src_noise).square()  # of z
    basis = _basis(template.value, template.u, variance)[:, :num_functions]
    weight = seen.to(value)
    ridge = kernels.RIDGE * torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
    # Two columns, as in `DirectProblem.normal_equations`.
    twice = torch.stack([value, value], dim=-1)
    for _ in range(kernels.REWEIGHTINGS):
        weighted = basis * weight[:, None]
        normal = _without_noise((weighted @ basis.mT).double() + ridge, variance)
        factor, info = torch.linalg.cholesky_ex(normal)
        solution = torch.cholesky_solve((weighted @ twice).double(), factor)[..., 0]
        solution = torch.where((info == 0)[:, None], solution, torch.nan)
        residual = torch.where(seen, value - _sum(basis, solution), 0.0)
        scale = robust_scale(residual, seen.to(value), floor)
        weight = cauchy_weight(residual, loss_width * scale) * seen
    return solution, scale


def _without_noise(normal: Tensor, variance: Tensor) -> Tensor:
    """Return sums (B, K, K) of products of basis functions as they would be without noise of `variance` (B,) in z."""
    normal = normal.clone()
    for i, j, a, b, power, factor in kernels.NOISE_TERMS.tolist():
        if i < normal.shape[-1]:
            normal[:, int(i), int(j)] -= factor * variance**power * normal[:, int(a), int(b)]
    return normal  # the lower half, which is all that is read


def _sum(basis: Tensor, weights: Tensor) -> Tensor:
    """Return (B, N), added up in one order whatever the batch."""
    result = torch.zeros_like(basis[:, 0])
    for k in range(basis.shape[1]):
        result.addcmul_(basis[:, k], weights[:, k, None].to(basis))
    return result


def _cost(template: Template, weights: Tensor, value: Tensor, seen: Tensor, width: Tensor) -> Tensor:
    """Return (B,) float64, the Cauchy loss that is left by `weights` (B, K) of the first basis functions."""
    if kernels.serves(value):
        return kernels.light_cost(weights, template.value, template.u, value, seen, width)
    basis = _basis(template.value, template.u, torch.zeros_like(width))[:, : weights.shape[1]]
    residual = torch.where(seen, value - _sum(basis, weights), 0.0)
    return cauchy(residual, width)[0].sum(-1, dtype=torch.float64)

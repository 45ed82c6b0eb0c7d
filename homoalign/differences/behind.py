"""The image behind both images of a pair, as they show it where they are aligned.

B pairs, N points, K basis functions of light, P = 8 + K parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from homoalign.differences import joint
from homoalign.differences.joint import LitAlignment
from homoalign.differences.refinement import denoise_by_share
from homoalign.optimisation.residual import DirectProblem, products
from homoalign.optimisation.solver import cauchy_weight, robust_scale
from homoalign.optimisation.template import Template, jacobian_of

PLAIN = 2
"""The first functions of light: a constant and the intensity."""

LEAST_STEEPNESS = 0.02
"""Where dst changes by less than this share of src, it tells nothing of src."""


@dataclass(frozen=True, slots=True)
class View:
    """How pairs look at a state.

    Attributes:
        residual: (B, N).
        seen: (B, N), 1 or 0.
        weight: (B, N) of the loss, 0 where nothing is seen.
        scale: (B,) robust standard deviation of the residual.
        steepness: (B, N), or (B, 1) where it is the same everywhere, how dst changes with src.
    """

    residual: Tensor
    seen: Tensor
    weight: Tensor
    scale: Tensor
    steepness: Tensor

    def select(self, index: Tensor) -> View:
        """Return the pairs that `index` (int64) names."""
        return View(*(getattr(self, field.name)[index] for field in fields(self)))

    def variance(self) -> Tensor:
        """Return (B,) float64, the variance of the scores of a robust loss, for a unit of curvature."""
        squared = (self.weight * self.residual).square().sum(-1, dtype=torch.float64)
        return squared / self.weight.sum(-1, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Behind:
    """Pairs, and the image behind each.

    Attributes:
        raw: of the full-size images, all of their pixels, dst read by a spline, src's own intensities as template.
        image: (B, 1, H, W), src.
        noise: (B, 2), of src and of dst.
        share: (B,) of noise in the energy of src's slopes.
        fields: (B, F, N), of `joint.py`; None where light is a gain and a bias.
        in_scales: (B,) width of the loss.
        free: how many parameters of motion are solved for.
        is_lit: whether light is solved for at all.
    """

    raw: DirectProblem
    image: Tensor
    noise: Tensor
    share: Tensor
    fields: Tensor | None
    in_scales: Tensor
    free: int
    is_lit: bool

    def select(self, index: Tensor) -> Behind:
        """Return the pairs that `index` (int64) names."""
        return replace(
            self,
            raw=self.raw.select(index),
            image=self.image[index],
            noise=self.noise[index],
            share=self.share[index],
            fields=None if self.fields is None else self.fields[index],
            in_scales=self.in_scales[index],
        )

    def weigh(self, view: View) -> View:
        """Return a look with the weights of another width of the loss."""
        return replace(view, weight=cauchy_weight(view.residual, self.in_scales * view.scale) * view.seen)

    def look(self, state: LitAlignment) -> View:
        """Return the pairs as they look at a state."""
        value, seen = self.raw.read_dst(state.dst_homo_src)
        model, steepness = self.light_up(state.weights)
        residual, is_seen = torch.where(seen, value - model, 0.0), seen.to(value)
        scale = robust_scale(residual, is_seen, self.raw.scale_floor)
        return self.weigh(View(residual, is_seen, is_seen, scale, steepness))

    def light_up(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return src as it looks in dst, (B, N), and its `View.steepness`; a gain and a bias cut nothing off."""
        src = self.raw.template.value
        if self.fields is not None:
            return joint.light_up(weights, src, self.fields)
        gain, bias = (part[:, None].to(src) for part in plain_light(weights))
        return torch.addcmul(bias, gain, src), gain

    def merge(self, view: View) -> tuple[Tensor, Tensor]:
        """Return the mean of both images in src's light, (B, 1, H, W), and (B,) its noise.

        The mean's noise and the residual's are uncorrelated.
        """
        src, dst = self.noise.to(view.residual).square().unbind(-1)
        steepness = view.steepness.clamp_min(LEAST_STEEPNESS)
        of_dst = dst[:, None] / steepness.square()
        share = src[:, None] / (src[:, None] + of_dst)
        # Where dst is not seen, or flat there, src is all there is.
        told = torch.where(view.steepness > LEAST_STEEPNESS, view.weight, 0.0)
        change = told * view.residual / steepness
        variance = share * of_dst
        # A texture that looks like noise is the same in both images.
        left = (view.scale[:, None].to(steepness) / steepness).square() * share * (1 - share)
        count = told.sum(-1, dtype=torch.float64).clamp_min(1e-6)
        noise = (torch.minimum(variance, left) * told).sum(-1, dtype=torch.float64) / count
        return (self.image.flatten(1) + share * change).view_as(self.image), noise.sqrt()

    def template_of(self, view: View, image: Tensor, guide: Tensor, noise: Tensor) -> Template:
        """Return src's intensities with the slopes, in dst's light, of an image without what is noise in `guide`."""
        clean = denoise_by_share(image, guide, noise, self.share)
        template = self.raw.template.with_slopes_of(clean, torch.arange(len(image), device=image.device))
        return replace(template, slope=template.slope * view.steepness[:, None])

    def normal_equations(self, template: Template, view: View, stride: int = 1) -> tuple[Tensor, Tensor]:
        """Return (B, P, P) J W J^T and (B, P) J W r of all parameters, float64, zero for those that it has not.

        The former is told from every `stride`-th point where light is rich.
        """
        if self.fields is None:
            product, scores = products(template, view.residual, view.weight)
            of_motion = torch.eye(8, dtype=product.dtype, device=product.device)
            of_plain = product.new_tensor([[0.0, 2.0], [1.0, -1.0]])  # brightness and one make one and z
            to_light = pad(of_motion, (0, PLAIN, 0, PLAIN)) + pad(of_plain, (8, 0, 8, 0))
            # Added up, not multiplied: a batched product rounds otherwise than that of one pair.
            scores = (scores[:, :, None] * to_light).sum(1)
            rest = (0, joint.NUM_FUNCTIONS - PLAIN)
            return pad(to_light.mT @ product @ to_light, 2 * rest), pad(scores, rest)
        part, weight = template.every(stride), view.weight[:, None, ::stride]
        jacobian = torch.cat([motion_of(part), joint.basis_of(part.brightness, self.fields[..., ::stride])], dim=1)
        curvature = stride * ((jacobian * weight) @ jacobian.mT).double()
        return curvature, joint.scores_of(template, template, self.fields, view.residual, view.weight)

    def is_free(self) -> Tensor:
        """Return (P,) bool, which parameters are solved for."""
        free = torch.ones(8 + joint.NUM_FUNCTIONS, dtype=torch.bool, device=self.share.device)
        free[:8] = torch.arange(8, device=free.device) < self.free
        free[8 + PLAIN :] = self.fields is not None
        free[8:] &= self.is_lit
        return free


def motion_of(template: Template) -> Tensor:
    """Return (B, 8, N), the Jacobian of motion."""
    return jacobian_of(template.slope, template.value, template.u)[:, :8]


def plain_light(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and bias, (B,) each, of (B, K) `weights` of which the first two say all."""
    return 2 * weights[:, 1], weights[:, 0] - weights[:, 1]

# SPDX-License-Identifier: Apache-2.0
"""What stands for rounding while a codec learns, because rounding has no gradient.

A surrogate says of residuals, latents minus their means, what is counted as their rate and what the
synthesis sees. The contexts of a probability model see rounded latents whatever it says: networks
that learned from others predicted real ones worse than static tables do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lvqcodec.model.entropy.base import LATENT_UNITS, Density
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.base import Lattice
from lvqcodec.model.likelihood import Logistic, logistic_bin, rdo_round, widened_bits
from lvqcodec.model.quantizer import RDO_LAMBDA


class Proxy(NamedTuple):
    """What residuals (B, P, c) in steps come to: bits, rounded, and what the synthesis sees.

    seen: None where it is the rounded ones, with the gradient of the residuals.
    """

    bits: Tensor
    rounded: Tensor
    seen: Tensor | None = None


Surrogate = Callable[[Tensor, Density], Proxy]
"""Maps residuals (B, P, c) in steps and their density to a `Proxy`."""


def straight_through(residual: Tensor, density: Density) -> Proxy:
    """Count the rounded residuals, and let gradients pass straight through (Bengio et al., 2013).

    The bits and the gradient of the density are those of the rounded residuals, as they will be
    coded; the gradient of the residuals is taken at themselves, where it is smooth.
    https://arxiv.org/abs/1308.3432
    """
    rounded = rdo_round(residual.detach(), density)
    bits = density(rounded)
    smooth = density.fixed()(residual)
    return Proxy(bits + smooth - smooth.detach(), rounded)


def noise(residual: Tensor, density: Density, *, generator: torch.Generator) -> Proxy:
    """Count residuals with uniform noise, show the synthesis the rounded ones.

    The mixture that Minnen and Singh (2020, section 3.3) found best,
    https://arxiv.org/abs/2007.08739, of the noise of Ballé et al. (2017),
    https://arxiv.org/abs/1611.01704.
    """
    noisy = residual + _uniform(residual, generator)
    return Proxy(density(noisy), rdo_round(residual.detach(), density))


def noise_for_all(residual: Tensor, density: Density, *, generator: torch.Generator) -> Proxy:
    """Count residuals with uniform noise and show the synthesis the same (Ballé et al., 2017).

    https://arxiv.org/abs/1611.01704
    """
    noisy = residual + _uniform(residual, generator)
    rounded = rdo_round(residual.detach(), density)
    return Proxy(density(noisy), rounded, noisy)


def lattice(residual: Tensor, density: Density, *, points: Lattice) -> Proxy:
    """Move residuals to lattice points as the codec does, straight through, and count the points.

    Those of a logistic density that the lattice packs go in their order into vectors, to the point
    that costs least by the tables of `points`; a coordinate of it counts its density, widened by
    the second moment of a cell. Of E8 that is the exact mass of the cell to within 0.6 % of the
    rate at a standard deviation of 0.3 steps and 0.05 % at 0.5. The rest is rounded as by
    `straight_through`.
    Agustsson and Theis (2020, https://arxiv.org/abs/2006.09952) on why rounding while learning
    should be that of the codec.
    """
    scalar = straight_through(residual, density)
    if not isinstance(density, Logistic):
        return scalar
    flat, sigma = residual.flatten(), density.sigma.flatten()
    bins = logistic_bin(sigma)
    at = (bins >= points.packing.first_bin).nonzero().squeeze(-1)
    at = at[: len(at) // points.dim * points.dim]
    x, sigma = flat[at], sigma[at]
    shape = -1, points.dim
    weights = torch.full_like(x, RDO_LAMBDA).view(shape)
    j = points.choose(x.detach().view(shape), bins[at].view(shape), weights)
    rounded = points.reconstruct(j, bins[at].view(shape)).flatten().to(x.dtype) / LATENT_UNITS
    smooth = widened_bits(x, sigma.detach(), points.second_moment)
    bits = widened_bits(rounded, sigma, points.second_moment) + smooth - smooth.detach()
    return Proxy(
        scalar.bits.flatten().index_copy(0, at, bits).view_as(residual),
        scalar.rounded.flatten().index_copy(0, at, rounded).view_as(residual),
    )


@cache
def _parametric(name: str) -> Lattice:
    return LATTICES[name].fit()


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in [-1/2, 1/2), the same on every device."""
    drawn = torch.rand(like.shape, generator=generator, dtype=like.dtype) - 0.5
    return drawn.to(like.device)


SURROGATES: dict[str, Callable[[torch.Generator, float, str], Surrogate]] = {
    "straight-through": lambda generator, progress, name: straight_through,
    "noise": lambda generator, progress, name: partial(noise, generator=generator),
    "noise-for-all": lambda generator, progress, name: partial(noise_for_all, generator=generator),
    "lattice": lambda generator, progress, name: partial(lattice, points=_parametric(name)),
}
"""Every surrogate by the name that a training stage gives it.

Each is made for a step: of a generator of noise (on the CPU), of how much of the stage is over, 0
to 1, for those that change on the way, and of the name of the codec's lattice. A new one is a
function and a line here.
"""

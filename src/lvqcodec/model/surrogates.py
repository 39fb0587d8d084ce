# SPDX-License-Identifier: Apache-2.0
"""What stands for rounding while a codec learns, because rounding has no gradient.

A surrogate says of residuals, latents minus their means, what is counted as their rate and what the
synthesis sees. The contexts of a probability model see rounded latents whatever it says: networks
that learned from others predicted real ones worse than static tables do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lvqcodec.model.entropy.base import Density
from lvqcodec.model.likelihood import rdo_round


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


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in [-1/2, 1/2), the same on every device."""
    drawn = torch.rand(like.shape, generator=generator, dtype=like.dtype) - 0.5
    return drawn.to(like.device)


SURROGATES: dict[str, Callable[[torch.Generator, float], Surrogate]] = {
    "straight-through": lambda generator, progress: straight_through,
    "noise": lambda generator, progress: partial(noise, generator=generator),
    "noise-for-all": lambda generator, progress: partial(noise_for_all, generator=generator),
}
"""Every surrogate by the name that a training stage gives it.

Each is made for a step: of a generator of noise (on the CPU) and of how much of the stage is over,
0 to 1, for those that change on the way. A new one is a function and a line here.
"""

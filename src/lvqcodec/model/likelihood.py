# SPDX-License-Identifier: Apache-2.0
"""What latents cost under the density that the rate is estimated with: a logistic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lvqcodec.coding.rows import FRACTION, NUM_BINS, SIGMAS
from lvqcodec.model.entropy.base import Density
from lvqcodec.model.quantizer import RDO_LAMBDA


def nearest_bin(scale: Tensor) -> Tensor:
    """Map integer scales in sixteenths of a bin to bins, exactly."""
    return torch.floor((scale + FRACTION // 2) / FRACTION).to(torch.int64)


@torch.no_grad()
def rdo_round(residual: Tensor, density: Density) -> Tensor:
    """Round to the nearest integer or the next one towards zero, whichever costs less.

    The cost is squared error + RDO_LAMBDA * bits, as the codec's quantizer weighs them: networks
    that learn from latents rounded in this way meet the same statistics when coding.
    """
    near = torch.round(residual)
    less = near - near.sign()
    gain = density(near) - density(less)
    loss = (residual - less).square() - (residual - near).square()
    return torch.where(loss < RDO_LAMBDA * gain, less, near)


@dataclass(frozen=True, eq=False)
class Logistic:
    """The density around means: a logistic of standard deviations sigma (B, P, c) in steps."""

    sigma: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """See `entropy.base.Density`; values are residuals."""
        return logistic_bits(values, self.sigma)

    def fixed(self) -> Logistic:
        """See `entropy.base.Density`."""
        return Logistic(self.sigma.detach())


def bin_sigma(scale: Tensor) -> Tensor:
    """Map scales in sixteenths of a bin to standard deviations in steps."""
    span = math.log(SIGMAS[1] / SIGMAS[0]) / FRACTION
    return float(SIGMAS[0]) * torch.exp(scale * span)


def logistic_bin(sigma: Tensor) -> Tensor:
    """Map standard deviations in steps to the nearest bins, int64."""
    place = torch.log(sigma.detach() / float(SIGMAS[0])) / math.log(SIGMAS[1] / SIGMAS[0])
    return place.round().clamp(0, NUM_BINS - 1).to(torch.int64)


def widened_bits(residual: Tensor, sigma: Tensor, second_moment: float) -> Tensor:
    """Bits of `residual` under a logistic density of variance sigma^2 + second_moment.

    -log2 of the density, which stands for the mass of a lattice's cell of that second moment and
    volume 1.
    """
    scale = torch.sqrt(sigma.square() + second_moment) * (math.sqrt(3) / math.pi)
    tail = residual.abs() / scale
    return (tail + 2 * F.softplus(-tail) + torch.log(scale)) * (1 / math.log(2))


def logistic_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits of a unit cell around `residual` under a logistic density of standard deviation `sigma`.

    -log2(F(r + 1/2) - F(r - 1/2)) in the closed form softplus + softplus - log(1 - exp(-1/s)),
    which loses no digits in the tails.
    """
    inverse = (math.pi / math.sqrt(3)) / sigma
    magnitude = residual.abs()
    tails = F.softplus((magnitude - 0.5) * inverse) + F.softplus(-(magnitude + 0.5) * inverse)
    return (tails - torch.log(-torch.expm1(-inverse))) * (1 / math.log(2))

# SPDX-License-Identifier: Apache-2.0
"""Latents fitted to the picture at hand: the encoder searches, the decoder never knows.

The loss is bits + what the distortion costs in bits. Around latents y_hat it is, in steps,

    loss(y_hat + d) = loss(y_hat) + g d + curvature d^2 / 2 + what d changes in their own bits

so that the best latents are those which rate-distortion optimised quantisation with rdo_lambda =
2 / curvature finds for the target y_hat - g / curvature. `refine` goes there in rounds: quantise
the target as the coder will, take g, move the target some of the way. The gradient g holds what
plain quantisation does not see: the synthesis is no orthogonal transform, what is coded now is the
context of what comes later, and latents that are nothing but their means move with them.

Latents are overfitted by gradient descent elsewhere (Campos et al., 2019; Yang, Bamler and Mandt,
2020; Zhang et al., "Leveraging progressive model and overfitting for efficient learned image
compression", III-D). That starts from plain rounding and takes hundreds of steps; from latents that
are rate-distortion optimised already it gained less in forty steps than this in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lvqcodec.model.codec_model import CodecModel, LatentQuantizer
from lvqcodec.model.entropy.base import Channels, Density
from lvqcodec.model.likelihood import bin_sigma, logistic_bits
from lvqcodec.model.quantizer import Quantizer

LONG, SHORT = (0.5, 0.12), (0.35, 0.25)
"""Share of the way to the new target in the first and in the last round, and in short searches."""

_REACH = 0.3
"""The farthest in steps that a target moves in a round, times the share: beyond, g says nothing."""

_PROBES = 2
_PROBE_MOVE = 0.25  # steps, about what quantisation moves latents by

_FOLLOWS = 0.42
"""Latents of smaller sigma that are their means are taken to stay so when those move."""

Cost = Callable[[Tensor], Tensor]
"""What latents (1, h * w, C) cost in bits, by the distortion of what they decode to; a scalar."""


@dataclass(frozen=True, eq=False)
class Round:
    """A target (1, h * w, C) in steps, the bits and the cost that it came to."""

    target: Tensor
    bits: float
    cost: float

    @property
    def loss(self) -> float:
        """What is to be small, in bits."""
        return self.bits + self.cost


def mse_curvature(model: CodecModel, quality: Tensor, weight: float) -> Tensor:
    """Second derivative (1, C) of `weight` * squared error / 3 by each latent in steps.

    Taken as of an orthonormal transform; that of the trained ones is 0.8 to 1 times as much.
    """
    return 2 * weight / 3 * torch.exp(2 * model.log_step(quality))


def measured_curvature(cost: Cost, y_hat: Tensor, grid: tuple[int, int]) -> Tensor:
    """Second derivative (h * w, C) of any cost around latents y_hat, by each latent in steps.

    The diagonal of the Hessian H is the mean of v * H v over random signs v (Hutchinson, 1990;
    H v by differences of gradients). Two probes are noisy, so it is taken for the product of a
    factor for each channel and one for each position, smooth over 5 x 5 positions.
    """
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.zeros_like(y_hat)
    for _ in range(_PROBES):
        signs = torch.randint(0, 2, y_hat.shape, generator=generator) * 2 - 1
        move = _PROBE_MOVE * signs.to(y_hat)
        for side in (1, -1):
            y = (y_hat + side * move).requires_grad_()
            (gradient,) = torch.autograd.grad(cost(y), y)
            diagonal += side * gradient / move
    diagonal /= 2 * _PROBES
    channels = diagonal.mean((0, 1))
    channels = channels.clamp(min=1e-3 * float(channels.max()))
    places = F.avg_pool2d(
        diagonal.mean(2).reshape(1, 1, *grid), 5, 1, padding=2, count_include_pad=False
    ).flatten()
    places = places.clamp(min=0.05 * float(places.mean()))
    return channels * (places / places.mean())[:, None]


@dataclass(frozen=True, eq=False)
class Objective:
    """What the latents of a grid (h, w) cost in bits: their own, and their distortion's.

    quality: (1,), whole; cost: of the distortion, and curvature (1 or h * w, C) its second
    derivative by each latent in steps. The model is frozen.
    """

    model: CodecModel
    quantizer: Quantizer
    quality: Tensor
    grid: tuple[int, int]
    cost: Cost
    curvature: Tensor

    def moved(self, target: Tensor, y_hat: Tensor, gradient: Tensor, share: float) -> Tensor:
        """Return a target that has gone `share` of the way to the best one around y_hat.

        All (1, h * w, C) in steps, gradient in bits per step; y_hat may have features behind.
        """
        channels = target.shape[2]
        best = y_hat[..., :channels] - gradient[..., :channels] * (1 / self.curvature)
        return target + share * (best - target).clamp(-_REACH, _REACH)

    def corrected(self, target: Tensor, y_hat: Tensor, share: float) -> Tensor:
        """Do as `moved` by the gradient of the distortion alone, which is cheap."""
        y_hat = y_hat.requires_grad_()
        (gradient,) = torch.autograd.grad(self.cost(y_hat), y_hat)
        return self.moved(target, y_hat.detach(), gradient, share)

    def probe(self, target: Tensor) -> _Probe:
        """Return what codes a target as the file will, and remembers what its bits hang on."""
        targets = self.model.targets(target, self.grid, self.quality)
        return _Probe(targets, self.quantizer, 2 / self.curvature)


class _BitCount:
    """A sink (see `model.Sink`) that adds up bits and remembers which latents are their means.

    Apart from the probe that owns it, which would otherwise be in a cycle with its coder, and the
    graph that it holds in memory until the cycle is found.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.bits = 0.0
        self.zero = torch.empty(0)

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        self.bits += self._quantizer.bits(j, bins)
        self.zero = j == 0


class _Probe:
    """The coder's own quantiser, which remembers what the loss depends on.

    `shift` (zeros, as y) is what the gradient is taken of: a change of the reconstruction.
    """

    def __init__(
        self, targets: Mapping[str, Tensor], quantizer: Quantizer, rdo_lambda: Tensor
    ) -> None:
        self.count = _BitCount(quantizer)
        self._coder = LatentQuantizer(targets, quantizer, self.count, rdo_lambda)
        self.shift = torch.zeros_like(targets["y"], requires_grad=True)
        self.smooth_bits = self.shift.new_zeros(())

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        sigma = bin_sigma(scale)
        fixed = mean.detach()
        with torch.no_grad():
            y_hat = self._coder(plane, positions, channels, fixed, scale)
        follows = self.count.zero.reshape(mean.shape) & (sigma < _FOLLOWS)
        # a later latent that is coded stays where it is when its mean moves, at another price
        bits = logistic_bits(y_hat - torch.where(follows, fixed, mean), sigma)
        self.smooth_bits = self.smooth_bits + bits.sum()
        carried = torch.where(follows, mean, fixed)
        coded = carried + (y_hat - fixed)
        return coded + self.shift[:, positions, channels] if plane == "y" else coded

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`; around zero, bits hang on nothing that moves."""
        with torch.no_grad():
            coded = self._coder.own(plane, positions, channels, rows, density)
        return coded + self.shift[:, positions, channels] if plane == "y" else coded


def refine(
    objective: Objective,
    target: Tensor,
    shares: tuple[float, float],
    elapsed: Callable[[], float],
) -> Iterator[Round]:
    """Yield one round after the other, the first with `target` (1, h * w, C) itself.

    Coding the target of a round with rdo_lambda = 2 / curvature gives what the round found.
    `elapsed` tells how much of the search is over, 0 to 1: moves go from the first of `shares` to
    the second with it. The search itself has no end.
    """
    first, last = shares
    while True:
        probe = objective.probe(target)
        y_hat = objective.model.entropy.code(probe, *objective.grid, objective.quality)
        spent = objective.cost(y_hat)
        yield Round(target, probe.count.bits, float(spent.detach()))
        (gradient,) = torch.autograd.grad(spent + probe.smooth_bits, probe.shift)
        share = first * math.exp(elapsed() * math.log(last / first))
        target = objective.moved(target, y_hat.detach(), gradient, share)

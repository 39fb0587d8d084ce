# SPDX-License-Identifier: Apache-2.0
"""One codec: a transform, steps and an entropy model, composed here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.config import CodecConfig
from lvqcodec.entropy import ENTROPY_MODELS
from lvqcodec.entropy.base import FRACTION, LATENT_UNITS, SIGMAS
from lvqcodec.errors import UsageError
from lvqcodec.layers import QualityTable
from lvqcodec.quantizer import RDO_LAMBDA, Quantizer
from lvqcodec.transforms import TRANSFORMS

if TYPE_CHECKING:
    from lvqcodec.lattices.tables import CodingTables

T = TypeVar("T")

STEP_NODES = 6


def _pick(choices: Mapping[str, T], name: str) -> T:
    """Return what an axis has under a name; raises UsageError."""
    if name not in choices:
        raise UsageError(f"unknown {name!r} in [codec]; choose one of {', '.join(choices)}")
    return choices[name]


class RateOutput(NamedTuple):
    """Estimated bits (B,) and quantised latents (B, h * w, C) in steps."""

    bits: Tensor
    y_hat: Tensor


class ForwardOutput(NamedTuple):
    """Pictures x_hat (B, 3, H, W), estimated bits (B,), latents y_hat as in `RateOutput`."""

    x_hat: Tensor
    bits: Tensor
    y_hat: Tensor


class CodecModel(nn.Module):
    """Pictures <-> latents in steps, and the probability model of the latents.

    `tables` are the stored probability rows that the coder uses; a model in training has none yet.
    """

    def __init__(self, config: CodecConfig, tables: CodingTables | None = None) -> None:
        super().__init__()
        self.config = config
        channels = config.transform.latent_channels
        self.transform = _pick(TRANSFORMS, config.transform.name)(config.transform)
        self.entropy = _pick(ENTROPY_MODELS, config.entropy.name)(config.entropy, channels)
        self.log_step = QualityTable(STEP_NODES, channels)
        self.tables = tables
        with torch.no_grad():
            for node in range(STEP_NODES):
                quality = 100 * node / (STEP_NODES - 1)
                self.log_step.rows[node] = math.log(theoretical_step(config.lmbda(quality)))

    @property
    def stride(self) -> int:
        """Pixels per latent position and direction."""
        return self.transform.stride

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the latent grid of a picture."""
        return -(-height // self.stride), -(-width // self.stride)

    def pad(self, x: Tensor) -> Tensor:
        """Repeat the last row and column of (B, 3, H, W) up to multiples of the stride."""
        height, width = x.shape[-2:]
        rows, columns = self.grid(height, width)
        return F.pad(
            x, (0, columns * self.stride - width, 0, rows * self.stride - height), "replicate"
        )

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map padded pictures (B, 3, H, W) in [0, 1] to latents (B, h * w, C) in steps."""
        y = self.transform.analysis(x, quality).float()
        step = torch.exp(self.log_step(quality))[:, None, :]
        return y.flatten(2).transpose(1, 2) * (1 / step)

    def synthesis(self, y_hat: Tensor, grid: tuple[int, int], quality: Tensor) -> Tensor:
        """Map latents (B, h * w, C) in steps to pictures (B, 3, 8h, 8w), unclamped."""
        step = torch.exp(self.log_step(quality))[:, None, :]
        y = torch.unflatten((y_hat * step).transpose(1, 2), 2, grid)
        return self.transform.synthesis(y, quality)

    def rate(self, x: Tensor, quality: Tensor) -> RateOutput:
        """Quantise pictures (B, 3, H, W), sides multiples of the stride; estimate their bits."""
        y = self.analysis(x, quality)
        grid = self.grid(*x.shape[-2:])
        estimator = RateEstimator(self.targets(y, grid, quality))
        with torch.autocast(x.device.type, enabled=False):
            y_hat = self.entropy.code(estimator, *grid, quality.float())
        return RateOutput(estimator.bits, y_hat)

    def targets(self, y: Tensor, grid: tuple[int, int], quality: Tensor) -> dict[str, Tensor]:
        """Return what is to be coded of latents y (B, h * w, C), plane by plane."""
        return {**self.entropy.side(y, grid, quality), "y": y}

    def forward(self, x: Tensor, quality: Tensor) -> ForwardOutput:
        """Code pictures (B, 3, H, W), sides multiples of the stride, without a bitstream."""
        bits, y_hat = self.rate(x, quality)
        return ForwardOutput(self.synthesis(y_hat, self.grid(*x.shape[-2:]), quality), bits, y_hat)


class RateEstimator:
    """A coder that writes nothing: rounds `targets`, sums the estimated bits (B,).

    targets: (B, h * w, C) in steps, of every plane.

    The value and the gradient of the scales are those of the rounded residual, as it will be coded;
    the gradient of means and latents is taken at the residual itself, where it is smooth.
    """

    def __init__(self, targets: Mapping[str, Tensor]) -> None:
        self._targets = targets
        y = targets["y"]
        self.bits = y.new_zeros(y.shape[0])

    def __call__(
        self, plane: str, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`; the latents pass straight through the rounding."""
        target = self._targets[plane][:, positions, channels]
        residual = target - mean
        sigma = bin_sigma(scale)
        rounded = rdo_round(residual.detach(), sigma.detach())
        bits = logistic_bits(rounded, sigma)
        smooth = logistic_bits(residual, sigma.detach())
        self.bits = self.bits + (bits + smooth - smooth.detach()).sum((1, 2))
        return target + (mean + rounded - target).detach()


Sink = Callable[[Tensor, Tensor, Tensor], None]
"""Takes coordinates j, bins and residuals (P * c,) of a parallel step, channels fastest."""


class LatentQuantizer:
    """A coder that quantises `targets` to the lattice, in exact mode, for a `sink`.

    targets: (B, h * w, C) in steps, of every plane. `rdo_lambda` (1 or h * w, C), in squared steps
    a bit, takes the place of the quantizer's own for y.
    """

    def __init__(
        self,
        targets: Mapping[str, Tensor],
        quantizer: Quantizer,
        sink: Sink,
        rdo_lambda: Tensor | None = None,
    ) -> None:
        self._targets = targets
        self._quantizer = quantizer
        self._sink = sink
        self._rdo_lambda = rdo_lambda

    def __call__(
        self, plane: str, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        bins = nearest_bin(scale).flatten()
        residual = self._targets[plane][:, positions, channels] - mean
        weights = None
        if self._rdo_lambda is not None and plane == "y":
            mine = self._rdo_lambda[:, channels]
            mine = mine if len(mine) == 1 else mine[positions]
            weights = mine.expand(residual.shape).flatten()
        j = self._quantizer.choose(residual.flatten(), bins, weights)
        self._sink(j, bins, residual.flatten())
        return reconstruct(self._quantizer, j, bins, mean)


def reconstruct(quantizer: Quantizer, j: Tensor, bins: Tensor, mean: Tensor) -> Tensor:
    """Return latents (B, P, c) in steps of coordinates j and bins (B * P * c,) around means."""
    residual = quantizer.reconstruct(j, bins).to(mean.dtype) / LATENT_UNITS
    return mean + residual.reshape(mean.shape)


def nearest_bin(scale: Tensor) -> Tensor:
    """Map integer scales in sixteenths of a bin to bins, exactly."""
    return torch.floor((scale + FRACTION // 2) / FRACTION).to(torch.int64)


@torch.no_grad()
def rdo_round(residual: Tensor, sigma: Tensor) -> Tensor:
    """Round to the nearest integer or the next one towards zero, whichever costs less.

    The cost is squared error + RDO_LAMBDA * bits, as the codec's quantizer weighs them: networks
    that learn from latents rounded in this way meet the same statistics when coding.
    """
    near = torch.round(residual)
    less = near - near.sign()
    gain = logistic_bits(near, sigma) - logistic_bits(less, sigma)
    loss = (residual - less).square() - (residual - near).square()
    return torch.where(loss < RDO_LAMBDA * gain, less, near)


def bin_sigma(scale: Tensor) -> Tensor:
    """Map scales in sixteenths of a bin to standard deviations in steps."""
    span = math.log(SIGMAS[1] / SIGMAS[0]) / FRACTION
    return float(SIGMAS[0]) * torch.exp(scale * span)


def logistic_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits of a unit cell around `residual` under a logistic density of standard deviation `sigma`.

    -log2(F(r + 1/2) - F(r - 1/2)) in the closed form softplus + softplus - log(1 - exp(-1/s)),
    which loses no digits in the tails.
    """
    inverse = (math.pi / math.sqrt(3)) / sigma
    magnitude = residual.abs()
    tails = F.softplus((magnitude - 0.5) * inverse) + F.softplus(-(magnitude + 0.5) * inverse)
    return (tails - torch.log(-torch.expm1(-inverse))) * (1 / math.log(2))


def theoretical_step(lmbda: float) -> float:
    """Return the best step for bpp + lmbda 255^2 MSE, orthonormal transform, high rate.

    One bit buys 6.02 dB: dD/dR = -2 ln 2 step^2 / 12 per latent, and MSE averages over 3 samples a
    pixel: step^2 = 36 / (2 ln 2 lmbda 255^2).
    """
    return math.sqrt(36 / (2 * math.log(2) * lmbda * 255**2))

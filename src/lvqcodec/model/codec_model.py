# SPDX-License-Identifier: Apache-2.0
"""One codec: a transform, steps and an entropy model, composed here and nowhere else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.config import QUALITIES, AxisConfig, from_table, pick
from lvqcodec.errors import UsageError
from lvqcodec.model.entropy import ENTROPY_MODELS
from lvqcodec.model.entropy.base import (
    LATENT_UNITS,
    NUM_BINS,
    Channels,
    Density,
    LatentCoder,
    Plane,
)
from lvqcodec.model.entropy.schedule import Teacher
from lvqcodec.model.layers import QualityTable
from lvqcodec.model.likelihood import Logistic, bin_sigma, nearest_bin
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.model.surrogates import Surrogate, straight_through
from lvqcodec.model.transforms import TRANSFORMS

if TYPE_CHECKING:
    from lvqcodec.model.lattices.tables import CodingTables

STEP_NODES = 6


@dataclass(frozen=True)
class CodecConfig:
    """One composition: transform x lattice x entropy model, and the range of rate points.

    The Lagrangian of quality q is `lmbda_min * (lmbda_max / lmbda_min) ** (q / 100)` in
    bpp + lmbda * 255^2 * MSE, with the MSE of samples in [0, 1].
    """

    transform: AxisConfig = field(
        default_factory=TRANSFORMS["lapped"].Config, metadata={"choices": TRANSFORMS}
    )
    entropy: AxisConfig = field(
        default_factory=ENTROPY_MODELS["msp"].Config, metadata={"choices": ENTROPY_MODELS}
    )
    lattice: str = "e8"
    lmbda_min: float = 4e-4
    lmbda_max: float = 0.6
    qualities: tuple[int, int] = (QUALITIES[0], QUALITIES[-1])
    """The first and the last quality that the weights are for; encoders refuse others."""

    def __post_init__(self) -> None:
        low, high = self.qualities
        if not QUALITIES[0] <= low <= high <= QUALITIES[-1]:
            raise UsageError(f"qualities = [{low}, {high}] must rise within 0 to 100")

    @property
    def quality_range(self) -> range:
        """All qualities that the weights are for."""
        return range(self.qualities[0], self.qualities[1] + 1)

    def lmbda(self, quality: float) -> float:
        """Return the Lagrange multiplier of a quality in 0..100."""
        return float(self.lmbda_min * (self.lmbda_max / self.lmbda_min) ** (quality / 100))

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data; `from_dict` is the inverse."""
        data = dataclasses.asdict(self)
        if self.quality_range == QUALITIES:  # as in weights files of before there was a choice
            del data["qualities"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CodecConfig:
        """Build from nested plain data; unknown keys and wrong types raise UsageError."""
        return from_table(cls, data, "codec")


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
        self.transform = pick(TRANSFORMS, config.transform.name)(config.transform)
        channels = self.transform.channels
        self.entropy = pick(ENTROPY_MODELS, config.entropy.name)(config.entropy, channels)
        if self.transform.features != self.entropy.features:
            raise UsageError(
                f"{config.transform.name!r} takes {self.transform.features} features and"
                f" {config.entropy.name!r} gives {self.entropy.features}; choose a pair that agrees"
            )
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
        """Map latents (B, h * w, C) in steps, and features behind, to pictures, unclamped.

        Pictures are (B, 3, stride * h, stride * w).
        """
        step = torch.exp(self.log_step(quality))[:, None, :]
        if self.entropy.features:
            step = torch.cat([step, torch.ones_like(step[..., : self.entropy.features])], 2)
        y = torch.unflatten((y_hat * step).transpose(1, 2), 2, grid)
        return self.transform.synthesis(y, quality)

    def rate(
        self, x: Tensor, quality: Tensor, surrogate: Surrogate = straight_through
    ) -> RateOutput:
        """Quantise pictures (B, 3, H, W), sides multiples of the stride; estimate their bits."""
        y = self.analysis(x, quality)
        grid = self.grid(*x.shape[-2:])
        targets = self.targets(y, grid, quality)
        estimator = RateEstimator(targets, surrogate)
        coder = Teacher(estimator, targets) if self.entropy.taught else estimator
        with torch.autocast(x.device.type, enabled=False):
            y_hat = self.entropy.code(coder, *grid, quality.float())
        return RateOutput(estimator.bits, estimator.seen(y_hat))

    def targets(self, y: Tensor, grid: tuple[int, int], quality: Tensor) -> dict[str, Tensor]:
        """Return what is to be coded of latents y (B, h * w, C), plane by plane."""
        return {**self.entropy.side(y, grid, quality), "y": y}

    def forward(
        self, x: Tensor, quality: Tensor, surrogate: Surrogate = straight_through
    ) -> ForwardOutput:
        """Code pictures (B, 3, H, W), sides multiples of the stride, without a bitstream."""
        bits, y_hat = self.rate(x, quality, surrogate)
        return ForwardOutput(self.synthesis(y_hat, self.grid(*x.shape[-2:]), quality), bits, y_hat)


class RateEstimator:
    """A coder that writes nothing: rounds `targets`, sums the estimated bits (B,).

    targets: (B, h * w, C) in steps, of every plane. `surrogate` says what is counted and what the
    synthesis is to see; the model's own contexts see rounded latents whatever it says.
    """

    def __init__(
        self, targets: Mapping[str, Tensor], surrogate: Surrogate = straight_through
    ) -> None:
        self._targets = targets
        self._surrogate = surrogate
        self._seen: Tensor | None = None
        y = targets["y"]
        self.bits = y.new_zeros(y.shape[0])

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`; the latents pass straight through the rounding."""
        return self._estimate(plane, positions, channels, mean, Logistic(bin_sigma(scale)))

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        zero = torch.zeros_like(self._targets[plane][:, positions, channels])
        return self._estimate(plane, positions, channels, zero, density)

    def _estimate(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, density: Density
    ) -> Tensor:
        target = self._targets[plane][:, positions, channels]
        found = self._surrogate(target - mean, density)
        self.bits = self.bits + found.bits.sum((1, 2))
        if found.seen is not None and plane == "y":
            if self._seen is None:
                self._seen = torch.zeros_like(self._targets["y"])
            self._seen[:, positions, channels] = mean + found.seen
        return target + (mean + found.rounded - target).detach()

    def seen(self, coded: Tensor) -> Tensor:
        """Return what the synthesis is to see of the latents y that were coded, and features."""
        if self._seen is None:
            return coded
        return torch.cat([self._seen, coded[..., self._seen.shape[2] :]], 2)


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
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        return self._quantise(plane, positions, channels, mean, nearest_bin(scale).flatten())

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        zero = torch.zeros_like(self._targets[plane][:, positions, channels])
        return self._quantise(plane, positions, channels, zero, own_bins(rows, zero))

    def _quantise(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, bins: Tensor
    ) -> Tensor:
        residual = self._targets[plane][:, positions, channels] - mean
        weights = None
        if self._rdo_lambda is not None and plane == "y":
            everywhere = self._rdo_lambda.expand(self._targets["y"].shape[1:])
            weights = everywhere[positions, channels].expand(residual.shape).flatten()
        j = self._quantizer.choose(residual.flatten(), bins, weights)
        self._sink(j, bins, residual.flatten())
        return reconstruct(self._quantizer, j, bins, mean)


class Recorder:
    """A coder that passes all steps on to another, and keeps what is coded of planes beside y."""

    def __init__(self, coder: LatentCoder, planes: Sequence[Plane]) -> None:
        self._coder = coder
        self._planes = {plane.name: plane for plane in planes[:-1]}
        self._coded: dict[str, Tensor] = {}

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        coded = self._coder(plane, positions, channels, mean, scale)
        return self._keep(plane, positions, channels, coded)

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        coded = self._coder.own(plane, positions, channels, rows, density)
        return self._keep(plane, positions, channels, coded)

    def _keep(self, name: str, positions: Tensor, channels: Channels, coded: Tensor) -> Tensor:
        if (plane := self._planes.get(name)) is not None:
            if name not in self._coded:
                size = (coded.shape[0], math.prod(plane.grid), plane.channels)
                self._coded[name] = coded.new_zeros(size)
            self._coded[name][:, positions, channels] = coded
        return coded

    @property
    def coded(self) -> list[Tensor]:
        """The planes beside y, (B, h * w, C) in steps, in the order of coding."""
        return [self._coded[name] for name in self._planes]


def own_bins(rows: Tensor, like: Tensor) -> Tensor:
    """Return bins (B * P * c,) that stand for rows of their own (c,), of latents (B, P, c)."""
    return (NUM_BINS + rows).expand(like.shape).flatten()


def reconstruct(quantizer: Quantizer, j: Tensor, bins: Tensor, mean: Tensor) -> Tensor:
    """Return latents (B, P, c) in steps of coordinates j and bins (B * P * c,) around means."""
    residual = quantizer.reconstruct(j, bins).to(mean.dtype) / LATENT_UNITS
    return mean + residual.reshape(mean.shape)


def theoretical_step(lmbda: float) -> float:
    """Return the best step for bpp + lmbda 255^2 MSE, orthonormal transform, high rate.

    One bit buys 6.02 dB: dD/dR = -2 ln 2 step^2 / 12 per latent, and MSE averages over 3 samples a
    pixel: step^2 = 36 / (2 ln 2 lmbda 255^2).
    """
    return math.sqrt(36 / (2 * math.log(2) * lmbda * 255**2))

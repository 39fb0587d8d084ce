# SPDX-License-Identifier: Apache-2.0
"""Strided convolutions with divisive normalisation, as in `bmshj2018-factorized`.

    x --conv--GDN--conv--GDN--conv--GDN--conv--> y               5x5, stride 2 each
    y_hat --deconv--IGDN--deconv--IGDN--deconv--IGDN--deconv--> x_hat

The layers are those of Balle, Minnen, Singh, Hwang and Johnston, "Variational image compression
with a scale hyperprior", 2018 (https://arxiv.org/abs/1802.01436), figure 4. One model serves all
qualities: before the last layer of each half stands a gain by channel and quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.config import AxisConfig
from lvqcodec.errors import UsageError
from lvqcodec.model.layers import QualityTable, module_list
from lvqcodec.model.transforms.base import Transform

_LAYERS = 4
_KERNEL = 5
_NODES = 6
_LEAST_BETA = 1e-3
_GAMMA = 0.1
"""What a channel weighs in its own normalisation at first (Balle et al.'s initialisation)."""

_REACH = 2
"""Positions of 16 pixels: a latent sees 2 (1 + 2 + 4 + 8) = 30 pixels beyond its first on each
side, and pixels see back through the transposed layers 1 position to the left and 2 to the right.
"""


class DivisiveNorm(nn.Module):
    """Generalised divisive normalisation (Balle, Laparra and Simoncelli, 2016, equation 3).

    z_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2), https://arxiv.org/abs/1511.06281; inverted, x_i
    times the root (IGDN). Roots of beta and gamma are what is stored: whatever their signs, and
    however they are rounded to float16, both stay positive, and gamma may be as small as 1e-9.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.root_beta = nn.Parameter(torch.ones(channels))
        self.root_gamma = nn.Parameter(torch.zeros(channels, channels))
        self.root_gamma.data.fill_(1e-3).diagonal().fill_(math.sqrt(_GAMMA))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        beta = self.root_beta.square() + _LEAST_BETA
        energy = F.conv2d(x.square(), self.root_gamma.square()[:, :, None, None], beta)
        out: Tensor = x * (torch.sqrt(energy) if self.inverse else torch.rsqrt(energy))
        return out


class _Half(nn.Module):
    """Layers from (channels of) the first to the last, normalisation between, a gain at the end."""

    def __init__(self, widths: Sequence[int], *, inverse: bool) -> None:
        super().__init__()
        self.layers = module_list(_layer(*pair, inverse=inverse) for pair in pairwise(widths))
        self.norms = module_list(DivisiveNorm(n, inverse=inverse) for n in widths[1:-1])
        self.gain = QualityTable(_NODES, widths[-2], value=1.0)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map (B, first, H, W) and qualities (B,) to (B, last, h, w)."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = norm(layer(x))
        out: Tensor = self.layers[-1](x * self.gain(quality)[:, :, None, None])
        return out


def _layer(channels_in: int, channels_out: int, *, inverse: bool) -> nn.Conv2d | nn.ConvTranspose2d:
    """A 5x5 convolution that halves both sides, or its transpose, which doubles them."""
    pad = _KERNEL // 2
    layer: nn.Conv2d | nn.ConvTranspose2d
    if inverse:
        layer = nn.ConvTranspose2d(channels_in, channels_out, _KERNEL, 2, pad, output_padding=1)
    else:
        layer = nn.Conv2d(channels_in, channels_out, _KERNEL, 2, pad)
    if not layer.weight.is_meta:  # of a transposed one each output sees a quarter of the kernel
        fan = channels_in * _KERNEL**2 / (4 if inverse else 1)
        nn.init.normal_(layer.weight, std=fan**-0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class ConvTransform(Transform):
    """Analysis g_a and synthesis g_s of four layers each, latents at 1/16 resolution."""

    @dataclass(frozen=True)
    class Config(AxisConfig):
        """`channels` (N of the paper) of the layers between, `latent_channels` (M)."""

        name: str = "conv"
        channels: int = 128
        latent_channels: int = 192

        @property
        def layers(self) -> int:
            """See `AxisConfig.layers`."""
            return 2 * (2 * _LAYERS - 1)

    config: Config
    stride = 2**_LAYERS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if min(config.channels, config.latent_channels) < 1:
            raise UsageError("a convolution needs channels: give channels and latent_channels")
        self.channels = config.latent_channels
        widths = [3, *[config.channels] * (_LAYERS - 1), self.channels]
        self.g_a = _Half(widths, inverse=False)
        self.g_s = _Half(widths[::-1], inverse=True)

    @property
    def analysis_reach(self) -> int:
        """Positions on each side of it on whose pixels a latent depends."""
        return _REACH

    @property
    def synthesis_reach(self) -> int:
        """Positions on each side of its own on whose latents a pixel depends."""
        return _REACH

    def start(self, crops: Tensor) -> None:
        """Give latents the variance, in all, of the samples that they stand for, and mean zero.

        An orthonormal transform keeps it; how the channels share it is for training to find.
        """
        quality = crops.new_full((1,), 50.0)
        y = torch.cat([self.analysis(c[None], quality).flatten(2)[0] for c in crops], 1)
        samples = crops.transpose(0, 1).flatten(1)
        wanted = self.stride**2 * samples.var(1).sum()
        gain = torch.sqrt(wanted / y.var(1).sum().clamp(min=1e-12))
        last = self.g_a.layers[-1]
        assert last.bias is not None
        last.bias.copy_(gain * (last.bias - y.mean(1)))
        last.weight.mul_(gain)

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """See `Transform.parts`."""
        return {"analysis": [self.g_a], "synthesis": [self.g_s]}

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1], qualities (B,) to latents (B, C, H/16, W/16)."""
        out: Tensor = self.g_a(x - 0.5, quality)
        return out

    def synthesis(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """Map latents (B, C, h, w), qualities (B,) to pictures (B, 3, 16h, 16w), unclamped."""
        out: Tensor = self.g_s(y_hat, quality) + 0.5
        return out

# SPDX-License-Identifier: Apache-2.0
"""A lapped KLT with residual networks beside it.

    x --prefilter--> 16x16 blocks --KLT--+--> y
     \\--1/8 network--1/16 network--------/

    y_hat --KLT^T--> blocks --postfilter--+--> x_hat
     \\--1/16 network--1/8 network---------/

The linear path alone is a complete orthogonal transform codec, so that training starts from
transform coding and not from noise; the networks start at zero and learn what it lacks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lvqcodec.config import TransformConfig
from lvqcodec.layers import QualityTable, ResidualBlock, module_list

STRIDE = 16
"""Pixels per latent position and direction."""

_BLOCK = 3 * STRIDE * STRIDE
_NODES = 6


def lapped_filter(size: int) -> Tensor:
    """Return the orthogonal time-domain pre-filter (size, size) of the fast LOT, in float64.

    Applied across block borders before a block transform it makes a lapped transform
    (Malvar and Staelin, 1989; in this form Tran, Liang and Tu, 2003).
    """
    half = size // 2
    k = torch.arange(half, dtype=torch.float64)
    dct2 = math.sqrt(2 / half) * torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * half))
    dct2[0] /= math.sqrt(2)
    angles = math.pi * (2 * k[None] + 1) * (2 * k[:, None] + 1) / (4 * half)
    dct4 = math.sqrt(2 / half) * torch.cos(angles)
    eye = torch.eye(half, dtype=torch.float64)
    flip = eye.flip(0)
    rotation = flip @ dct2.T @ dct4 @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)])
    blocks: Tensor = torch.block_diag(eye, rotation)  # type: ignore[no-untyped-call]
    return 0.5 * butterfly @ blocks @ butterfly


def _across_borders(x: Tensor, filter_: Tensor) -> Tensor:
    """Multiply the 16 samples around every inner border of the last dimension by `filter_`."""
    half = STRIDE // 2
    inner = x[..., half:-half]
    inner = (torch.unflatten(inner, -1, (-1, STRIDE)) @ filter_.T).flatten(-2)
    return torch.cat([x[..., :half], inner, x[..., -half:]], -1)


def _lap(x: Tensor, filter_: Tensor) -> Tensor:
    """Filter (B, C, H, W) across the block borders in both directions."""
    if x.shape[-1] > STRIDE:
        x = _across_borders(x, filter_)
    if x.shape[-2] > STRIDE:
        x = _across_borders(x.transpose(-1, -2), filter_).transpose(-1, -2)
    return x


def _unshuffle(x: Tensor, factor: int) -> Tensor:
    """Move factor x factor pixels (B, C, H, W) into the channels, channels last in memory."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
    x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return x.permute(0, 3, 1, 2)


def _shuffle(x: Tensor, factor: int) -> Tensor:
    """Undo `_unshuffle`; channels last in memory."""
    batch, _, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height, width, -1, factor, factor)
    x = x.permute(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)
    return x.permute(0, 3, 1, 2)


class Pointwise(nn.Linear):
    """A 1x1 convolution, written as a matrix product on channels-last data.

    Its backward pass is several times faster on CPUs than that of the convolution it equals.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """Residual blocks of one width; every block is conditioned on the quality."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = module_list(ResidualBlock(channels, nodes=_NODES) for _ in range(blocks))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map (B, C, H, W) and qualities (B,) to (B, C, H, W)."""
        for block in self.blocks:
            x = block(x, quality)
        return x


class LappedTransform(nn.Module):
    """Analysis g_a and synthesis g_s between pictures and latents at 1/16 resolution."""

    stride = STRIDE
    prefilter: Tensor

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        latent, width8, width16 = config.latent_channels, config.width8, config.width16
        self.register_buffer("prefilter", lapped_filter(STRIDE).float(), persistent=False)
        # linear path
        self.klt = Pointwise(_BLOCK, latent)
        self.inverse_klt = Pointwise(latent, _BLOCK)
        # analysis networks
        self.analysis_in = Pointwise(_BLOCK // 4, width8)
        self.analysis8 = _Stage(width8, config.analysis_blocks8)
        self.analysis_down = Pointwise(4 * width8, width16)
        self.analysis16 = _Stage(width16, config.analysis_blocks16)
        self.analysis_out = Pointwise(width16, latent)
        # synthesis networks
        self.synthesis_in = Pointwise(latent, width16)
        self.synthesis16 = _Stage(width16, config.synthesis_blocks16)
        self.synthesis_up = Pointwise(width16, 4 * width8)
        self.synthesis_linear = Pointwise(_BLOCK // 4, width8)
        self.synthesis8 = _Stage(width8, config.synthesis_blocks8)
        self.synthesis_gain = QualityTable(_NODES, width8, value=1.0)
        self.synthesis_out = Pointwise(width8, _BLOCK // 4)
        for last in (self.analysis_out, self.synthesis_out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def blocks(self, x: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), sides multiples of 16, to blocks (B, 768, H/16, W/16)."""
        return _unshuffle(_lap(x - 0.5, self.prefilter), STRIDE)

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] and qualities (B,) to latents (B, C, H/16, W/16)."""
        hidden = self.analysis_in(_unshuffle(x - 0.5, 8))
        hidden = self.analysis8(hidden, quality)
        hidden = self.analysis_down(_unshuffle(hidden, 2))
        hidden = self.analysis16(hidden, quality)
        linear = self.klt(self.blocks(x))
        out: Tensor = linear + self.analysis_out(hidden)
        return out

    def synthesis(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """Map latents (B, C, h, w) and qualities (B,) to pictures (B, 3, 16h, 16w), unclamped."""
        linear = _lap(_shuffle(self.inverse_klt(y_hat), STRIDE), self.prefilter.T)
        hidden = self.synthesis16(self.synthesis_in(y_hat), quality)
        hidden = _shuffle(self.synthesis_up(hidden), 2)
        seen = _unshuffle(linear, 8)
        hidden = self.synthesis8(hidden + self.synthesis_linear(seen), quality)
        hidden = hidden * self.synthesis_gain(quality)[:, :, None, None]
        return linear + _shuffle(self.synthesis_out(hidden), 8) + 0.5

# SPDX-License-Identifier: Apache-2.0
"""A lapped KLT with residual networks beside it.

    x --prefilter--> 8x8 blocks --KLT--+--> y
     \\---------- pyramid -------------/

    y_hat --KLT^T--> blocks --postfilter--> picture --+--> x_hat
     \\------------------ pyramid --------------------/

The linear path alone is a complete orthogonal transform codec, so that training starts from
transform coding and not from noise; the networks start at zero and learn what it lacks.

Blocks are small so that the probability model, which sees the picture at the resolution of the
latents, can tell an edge from the plain beside it: with the same linear transform family and the
same context networks, 8x8 blocks took 12 to 18 % fewer bits than 16x16 blocks at medium and high
rates, 4x4 blocks no fewer than 8x8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lvqcodec.config import AxisConfig, limited
from lvqcodec.errors import UsageError
from lvqcodec.model.layers import QualityTable, ResidualBlock, module_list
from lvqcodec.model.transforms.base import Transform

STRIDE = 8
"""Pixels per latent position and direction."""

_BLOCK = 3 * STRIDE * STRIDE
_NODES = 6


def lapped_filter(size: int) -> Tensor:
    """Return the orthogonal time-domain pre-filter (size, size) of the fast LOT, in float64.

    Applied across block borders before a block transform it makes a lapped transform
    (Malvar and Staelin, 1989; in this form Tran, Liang and Tu, 2003).
    """
    half = size // 2
    k = torch.arange(half, dtype=torch.float64, device="cpu")
    dct2 = math.sqrt(2 / half) * torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * half))
    dct2[0] /= math.sqrt(2)
    angles = math.pi * (2 * k[None] + 1) * (2 * k[:, None] + 1) / (4 * half)
    dct4 = math.sqrt(2 / half) * torch.cos(angles)
    eye = torch.eye(half, dtype=torch.float64, device="cpu")
    flip = eye.flip(0)
    rotation = flip @ dct2.T @ dct4 @ flip
    butterfly = torch.cat([torch.cat([eye, flip], 1), torch.cat([flip, -eye], 1)])
    blocks: Tensor = torch.block_diag(eye, rotation)  # type: ignore[no-untyped-call]
    return 0.5 * butterfly @ blocks @ butterfly


def _across_borders(x: Tensor, filter_: Tensor) -> Tensor:
    """Multiply the STRIDE samples around every inner border of the last dimension by `filter_`."""
    half = STRIDE // 2
    inner = x[..., half:-half]
    inner = (torch.unflatten(inner, -1, (-1, STRIDE)) @ filter_.T).flatten(-2)
    return torch.cat([x[..., :half], inner, x[..., -half:]], -1)


def _reach(levels: Sequence[tuple[int, int, int]]) -> int:
    """Positions on each side that a pyramid sees: every block convolves twice by 3x3."""
    return -(-sum(2 * blocks * pixels for pixels, _, blocks in levels) // STRIDE)


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


class _Resample(Pointwise):
    """Linear change of channels and resolution; `pixels` per position and direction."""

    def __init__(self, channels_in: int, pixels_in: int, channels_out: int, pixels_out: int):
        self._down = max(pixels_out // pixels_in, 1)
        self._up = max(pixels_in // pixels_out, 1)
        super().__init__(channels_in * self._down**2, channels_out * self._up**2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H * up / down, W * up / down)."""
        if self._down > 1:
            x = _unshuffle(x, self._down)
        x = super().forward(x)
        return _shuffle(x, self._up) if self._up > 1 else x


class _Level(nn.Module):
    """Residual blocks at one resolution, on features from the level before and on the picture."""

    def __init__(self, before: tuple[int, int] | None, level: tuple[int, int, int]) -> None:
        super().__init__()
        pixels, channels, blocks = level
        self.see = _Resample(3, 1, channels, pixels)
        self.enter = _Resample(*before, channels, pixels) if before else None
        self.blocks = module_list(ResidualBlock(channels, nodes=_NODES) for _ in range(blocks))

    def forward(self, picture: Tensor, features: Tensor | None, quality: Tensor) -> Tensor:
        """Map a picture (B, 3, H, W) and features of another level to (B, channels, h, w)."""
        x: Tensor = self.see(picture)
        if self.enter is not None:
            x = x + self.enter(features)
        for block in self.blocks:
            x = block(x, quality)
        return x


class _Pyramid(nn.Module):
    """Levels (pixels, channels, blocks) one after the other, then a gain that starts at zero out.

    `before` and `after` are the (channels, pixels) of what goes in, if anything, and comes out.
    """

    def __init__(
        self,
        levels: Sequence[tuple[int, int, int]],
        before: tuple[int, int] | None,
        after: tuple[int, int],
    ) -> None:
        super().__init__()
        chain = [before, *((channels, pixels) for pixels, channels, _ in levels)]
        self.levels = module_list(_Level(*pair) for pair in zip(chain, levels, strict=False))
        channels, pixels = levels[-1][1], levels[-1][0]
        self.gain = QualityTable(_NODES, channels, value=1.0)
        self.out = _Resample(channels, pixels, *after)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, picture: Tensor, features: Tensor | None, quality: Tensor) -> Tensor:
        """Map a picture (B, 3, H, W), features and qualities (B,) to what `after` says."""
        for level in self.levels:
            features = level(picture, features, quality)
        assert features is not None
        out: Tensor = self.out(features * self.gain(quality)[:, :, None, None])
        return out


class LappedTransform(Transform):
    """Analysis g_a and synthesis g_s between pictures and latents at 1/8 resolution."""

    @dataclass(frozen=True)
    class Config(AxisConfig):
        """Sizes of the transform.

        `analysis` and `synthesis` are the levels of their networks, in order, each as
        (pixels per position and direction, channels, residual blocks).
        """

        name: str = "lapped"
        latent_channels: int = 192
        analysis: tuple[tuple[int, int, int], ...] = limited(((4, 48, 2), (8, 96, 3)), length=8)
        synthesis: tuple[tuple[int, int, int], ...] = limited(((8, 96, 3), (4, 48, 2)), length=8)

        @property
        def layers(self) -> int:
            """See `AxisConfig.layers`."""
            return 2 * sum(blocks for _, _, blocks in self.analysis + self.synthesis)

    config: Config
    stride = STRIDE
    prefilter: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for pixels, _, _ in (*config.analysis, *config.synthesis):
            if pixels < 1 or STRIDE % pixels:
                raise UsageError(f"a level of {pixels} pixels does not divide blocks of {STRIDE}")
        self.channels = latent = config.latent_channels
        self.register_buffer("prefilter", lapped_filter(STRIDE).float(), persistent=False)
        self.klt = Pointwise(_BLOCK, latent)
        self.inverse_klt = Pointwise(latent, _BLOCK)
        self.analysis_pyramid = _Pyramid(config.analysis, None, (latent, STRIDE))
        self.synthesis_pyramid = _Pyramid(config.synthesis, (latent, STRIDE), (3, 1))

    @property
    def analysis_reach(self) -> int:
        """Positions around it on whose pixels a latent depends."""
        return max(_reach(self.config.analysis), 1)

    @property
    def synthesis_reach(self) -> int:
        """Positions around it on whose latents a pixel depends: networks see what is lapped."""
        return _reach(self.config.synthesis) + 1

    def start(self, crops: Tensor) -> None:
        """Set the linear path to the KLT of the blocks of pictures (B, 3, H, W)."""
        blocks = torch.cat([self.blocks(c[None]).flatten(2)[0].T for c in crops]).double()
        mean = blocks.mean(0)
        centred = blocks - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred / len(blocks))
        basis = vectors.flip(1)[:, : self.channels].T
        self.klt.weight.copy_(basis)
        self.klt.bias.copy_(-basis @ mean)
        self.inverse_klt.weight.copy_(basis.T)
        self.inverse_klt.bias.copy_(mean)

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """See `Transform.parts`; "klt" is the linear path, the others are the networks beside."""
        return {
            "klt": [self.klt, self.inverse_klt],
            "analysis": [self.analysis_pyramid],
            "synthesis": [self.synthesis_pyramid],
        }

    def decoder_modules(self) -> Sequence[nn.Module]:
        """See `Transform.decoder_modules`."""
        return [self.inverse_klt, self.synthesis_pyramid]

    def rate_class(self, name: str) -> str:
        """See `Transform.rate_class`."""
        if name.startswith(("klt.", "inverse_klt.")):
            return "klt"
        return "matrices" if name.endswith(".weight") else "networks"

    def blocks(self, x: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W), sides multiples of 8, to blocks (B, 192, H/8, W/8)."""
        return _unshuffle(_lap(x - 0.5, self.prefilter), STRIDE)

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] and qualities (B,) to latents (B, C, H/8, W/8)."""
        out: Tensor = self.klt(self.blocks(x)) + self.analysis_pyramid(x - 0.5, None, quality)
        return out

    def synthesis(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """Map latents (B, C, h, w) and qualities (B,) to pictures (B, 3, 8h, 8w), unclamped."""
        linear = _lap(_shuffle(self.inverse_klt(y_hat), STRIDE), self.prefilter.T)
        out: Tensor = linear + self.synthesis_pyramid(linear, y_hat, quality) + 0.5
        return out

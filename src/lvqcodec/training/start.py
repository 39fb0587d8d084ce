# SPDX-License-Identifier: Apache-2.0
"""Start from what is measured on the training pictures, on every axis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lvqcodec.model.codec_model import CodecModel, RateEstimator
from lvqcodec.model.entropy.base import Channels, Regression

_MIDDLE = 50.0
_FIT_QUALITY = 62.0
_FIT_BATCH = 4


@torch.no_grad()
def initialise(model: CodecModel, crops: Tensor) -> None:
    """Set what crops (B, 3, H, W) determine, first of the transform, then of what codes it."""
    model.transform.start(crops)
    initialise_entropy(model, crops)


@torch.no_grad()
def initialise_entropy(model: CodecModel, crops: Tensor) -> None:
    """Set what the latents of crops (B, 3, H, W) determine of what codes them."""
    # at a medium quality: a transform that has just started hardly depends on it
    middle = torch.full((1,), _MIDDLE, device=crops.device)
    y = torch.cat([model.transform.analysis(c[None], middle).flatten(2) for c in crops])
    grid = model.grid(*crops.shape[-2:])
    model.entropy.start(y.transpose(1, 2), grid, torch.exp(model.log_step.rows))


@torch.no_grad()
def solve(regression: Regression, model: CodecModel, crops: Tensor) -> None:
    """Solve for what a regression of the entropy model fits, on crops (B, 3, H, W)."""
    grid = model.grid(*crops.shape[-2:])
    for some in torch.split(crops, _FIT_BATCH):
        quality = some.new_full((len(some),), _FIT_QUALITY)
        targets = model.targets(model.analysis(some, quality), grid, quality)
        model.entropy.code(_Watched(targets, regression), *grid, quality)
    regression.solve()


class _Watched(RateEstimator):
    """Rounds like its parent, under the eyes of a regression."""

    def __init__(self, targets: Mapping[str, Tensor], regression: Regression) -> None:
        super().__init__(targets)
        self._regression = regression

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `RateEstimator`."""
        residual = self._targets[plane][:, positions, channels] - mean
        self._regression.see(plane, channels, residual)
        return super().__call__(plane, positions, channels, mean, scale)

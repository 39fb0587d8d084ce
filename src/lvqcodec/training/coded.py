# SPDX-License-Identifier: Apache-2.0
"""Crops as the codec codes them: analysed, quantised, counted, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.model.codec_model import CodecModel, LatentQuantizer, Sink
from lvqcodec.model.lattices.tables import added
from lvqcodec.model.quantizer import Quantizer


@dataclass(frozen=True)
class Batch:
    """Crops (B, 3, H, W) and their latents y (B, h * w, C), coded at one quality."""

    crops: Tensor
    y: Tensor
    grid: tuple[int, int]
    quality: int

    @property
    def pixels(self) -> int:
        """Of all crops."""
        return self.crops[:, 0].numel()

    @property
    def qualities(self) -> Tensor:
        """The quality of every crop (B,)."""
        return self.y.new_full((len(self.y),), float(self.quality))


@torch.no_grad()
def analyse(model: CodecModel, crops: Tensor, quality: int) -> Batch:
    """Analyse crops (B, 3, H, W); exact networks take as many as share a quality at once."""
    at = torch.full((len(crops),), float(quality), device=crops.device)
    return Batch(crops, model.analysis(crops, at), model.grid(*crops.shape[-2:]), quality)


def batches_of(model: CodecModel, crops: Tensor) -> list[Batch]:
    """Spread crops (B, 3, H, W) evenly over the qualities of the model."""
    qualities = model.config.quality_range
    shares = [crops[place :: len(qualities)] for place in range(len(qualities))]
    return [
        analyse(model, share, q) for q, share in zip(qualities, shares, strict=True) if len(share)
    ]


@torch.no_grad()
def quantise(model: CodecModel, batch: Batch, quantizer: Quantizer, sink: Sink) -> Tensor:
    """Return the latents (B, h * w, C) as the codec would code them."""
    targets = model.targets(batch.y, batch.grid, batch.qualities)
    coder = LatentQuantizer(targets, quantizer, sink)
    return model.entropy.code(coder, *batch.grid, batch.qualities)


class Cost:
    """A sink that adds up the bits of what a quantizer chooses."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.bits = 0.0

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        """See `codec_model.Sink`."""
        self.bits += self.quantizer.bits(j, bins)


class Choices(Cost):
    """A sink that counts what is chosen too."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer)
        self.counts: dict[str, dict[str, NDArray[Any]]] = {}

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        """See `codec_model.Sink`."""
        super().__call__(j, bins, residual)
        self.counts = added(self.counts, self.quantizer.count(j, bins, residual))


def choices_of(model: CodecModel, batches: Sequence[Batch], quantizer: Quantizer) -> Choices:
    """Return what a quantizer chooses of batches."""
    choices = Choices(quantizer)
    for batch in batches:
        quantise(model, batch, quantizer, choices)
    return choices


@torch.no_grad()
def log_losses(
    model: CodecModel, batches: Sequence[Batch], quantizer: Quantizer
) -> NDArray[np.float64]:
    """Return ln(bpp + lmbda 255^2 MSE) of every batch, of pictures as they decode.

    The logarithm makes a per cent at one quality worth a per cent at any other.
    """
    losses = []
    for batch in batches:
        cost = Cost(quantizer)
        y_hat = quantise(model, batch, quantizer, cost)
        x_hat = model.synthesis(y_hat, batch.grid, batch.qualities).clamp(0, 1)
        mse = float((x_hat - batch.crops).square().mean())
        weight = model.config.lmbda(batch.quality) * 255**2
        losses.append(math.log(cost.bits / batch.pixels + weight * mse))
    return np.array(losses)

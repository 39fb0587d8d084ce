# SPDX-License-Identifier: Apache-2.0
"""The contract between an entropy model and whoever codes with it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lvqcodec.coding.tables import FRACTION, NUM_BINS, SIGMAS

LATENT_LIMIT = 16383
"""Context networks see latents clipped to +-16383 sixteenths of a step (about 1024 steps)."""

MEAN_PARTS = 4
"""Means, and with them latents, are whole multiples of a quarter of a sixteenth of a step.

Most latents at low rates are their means. Whole sixteenths cost 3 % of the rate at 26 dB, because
steps are large there and the rounding of 192 small means adds up.
"""

__all__ = ["FRACTION", "LATENT_LIMIT", "MEAN_PARTS", "NUM_BINS", "SIGMAS", "LatentCoder"]


class LatentCoder(Protocol):
    """What takes the parallel steps: an encoder, a decoder or an estimator of the rate."""

    def __call__(self, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor) -> Tensor:
        """Code the latents of a parallel step.

        positions: (P,) flat indices into the h x w grid; channels: the slice of channels;
        mean: (B, P, c) in sixteenths of a step; scale: (B, P, c) in sixteenths of a bin, within
        [0, 16 * (NUM_BINS - 1)]. Returns the reconstructed latents (B, P, c), sixteenths of a step.
        """
        ...

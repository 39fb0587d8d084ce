# SPDX-License-Identifier: Apache-2.0
"""The contract between an entropy model, the latents and whoever codes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lvqcodec.coding.tables import FRACTION, LATENT_UNITS, NUM_BINS, SIGMAS
from lvqcodec.errors import ModelMismatch
from lvqcodec.integer import IntegerLayer, Mode

LATENT_LIMIT = 16383
"""Context networks see latents in sixteenths of a step, clipped to +-16383 (about 1024 steps)."""

__all__ = [
    "FRACTION",
    "LATENT_LIMIT",
    "LATENT_UNITS",
    "NUM_BINS",
    "SIGMAS",
    "EntropyModel",
    "LatentCoder",
    "Plane",
]


@dataclass(frozen=True)
class Plane:
    """One of the arrays of latents of a picture: its name, its grid (h, w) and its channels."""

    name: str
    grid: tuple[int, int]
    channels: int


class LatentCoder(Protocol):
    """What takes the parallel steps: an encoder, a decoder or an estimator of the rate."""

    def __call__(
        self, plane: str, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """Code the latents of a parallel step.

        plane: the name of the `Plane`; positions: (P,) flat indices into its grid; channels: the
        slice of its channels; mean: (B, P, c) in steps, in exact mode multiples of
        1 / LATENT_UNITS; scale: (B, P, c) in sixteenths of a bin, within [0, 16 * (NUM_BINS - 1)],
        in exact mode integers. Returns the reconstructed latents (B, P, c) in steps.
        """
        ...


class EntropyModel(nn.Module, ABC):
    """What the decoder expects of latents (B, h * w, C) in steps, before it reads them.

    A subclass walks its order of coding in `code`, for every kind of coder alike. Everything that
    a mean or a scale depends on goes through layers of `integer`, which train in floating point and
    are frozen to integers, so that every machine expects the same.
    """

    channels: int
    mode: Mode = "float"

    features: int = 0
    """Channels that `code` returns behind those of y, for the synthesis: exact integers too."""

    def planes(self, height: int, width: int) -> tuple[Plane, ...]:
        """Return what is coded of an h x w grid, in the order of coding; y is the last."""
        return (Plane("y", (height, width), self.channels),)

    def side(self, y: Tensor, grid: tuple[int, int], quality: Tensor) -> dict[str, Tensor]:
        """Return what the encoder wants the other planes to be, by name: (B, h * w, C) in steps.

        y (B, h * w, C) are the latents to be coded, in floating point; the decoder never asks.
        """
        return {}

    @abstractmethod
    def code(self, coder: LatentCoder, height: int, width: int, quality: Tensor) -> Tensor:
        """Walk all steps of an h x w grid with `coder`; return the latents (B, h * w, C) in steps.

        quality: (B,) in 0..100 (in exact mode one integer quality for the batch). `features`
        channels more follow those of y, if the model has any. In exact mode all are multiples of
        1 / LATENT_UNITS and the same on every machine.
        """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of parallel steps."""

    @property
    @abstractmethod
    def period(self) -> int:
        """Positions after which the order of coding repeats itself, in both directions."""

    # --- exact arithmetic -----------------------------------------------------------------------

    def layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """Every layer with arithmetic of its own, by name."""
        for name, module in self.named_modules():
            if isinstance(module, IntegerLayer):
                yield name, module

    def set_mode(self, mode: Mode) -> None:
        """Switch every layer to float, simulated or (once frozen) exact arithmetic."""
        self.mode = mode
        for _, layer in self.layers():
            layer.mode = mode

    def freeze(self) -> None:
        """Make every layer exact, proving its bound; ModelMismatch if one does not hold."""
        for _, layer in self.layers():
            layer.freeze()
        self.mode = "exact"

    def to_integers(self) -> dict[str, Tensor]:
        """Return the integers of a frozen model by name, in the smallest types that hold them."""
        return {
            f"{name}.{part}": integers.to(_STORED[part])
            for name, layer in self.layers()
            for part, integers in layer.integers().items()
        }

    def load_integers(self, arrays: Mapping[str, Tensor]) -> None:
        """Undo `to_integers`, every bound proved again; ModelMismatch if anything is amiss."""
        left = dict(arrays)
        for name, layer in self.layers():
            parts = {}
            for part, shape in layer.integer_shapes().items():
                stored = left.pop(f"{name}.{part}", None)
                if stored is None:
                    raise ModelMismatch(f"the weights lack '{name}.{part}'; install them again")
                if stored.dtype != _STORED[part] or stored.shape != shape:
                    raise ModelMismatch(
                        f"'{name}.{part}' is {stored.dtype} {tuple(stored.shape)}, not"
                        f" {_STORED[part]} {shape}; install the weights again"
                    )
                parts[part] = stored
            layer.load_integers(parts)
        if left:
            raise ModelMismatch(f"the weights hold an unknown {min(left)!r}; upgrade lvqcodec")
        self.mode = "exact"


_STORED = {"weight": torch.int16, "bias": torch.int32, "exponent": torch.int8}
"""Types of the integers in a weights file, by what they are in their layer."""

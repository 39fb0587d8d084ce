# SPDX-License-Identifier: Apache-2.0
"""The contract between an entropy model, the latents and whoever codes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lvqcodec.coding.rows import FRACTION, LATENT_UNITS, NUM_BINS, SIGMAS, RowTable
from lvqcodec.config import AxisConfig
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.integer import IntegerLayer, Mode

LATENT_LIMIT = 16383
"""Context networks see latents in sixteenths of a step, clipped to +-16383 (about 1024 steps)."""

__all__ = [
    "FRACTION",
    "LATENT_LIMIT",
    "LATENT_UNITS",
    "NUM_BINS",
    "SIGMAS",
    "Channels",
    "Density",
    "EntropyModel",
    "LatentCoder",
    "Plane",
    "Regression",
]


@dataclass(frozen=True)
class Plane:
    """One of the arrays of latents of a picture: its name, its grid (h, w) and its channels."""

    name: str
    grid: tuple[int, int]
    channels: int


Channels = slice | Tensor
"""Channels of a parallel step: a slice, the same at all positions (P,), or (P, c) indices, those at
each of the positions (P, 1). Either way `y[:, positions, channels]` is (B, P, c)."""


class Density(Protocol):
    """What values cost: -log2 of the mass of the unit cell around each."""

    def __call__(self, values: Tensor) -> Tensor:
        """Map values (B, P, c) in steps to bits, differentiable by values and parameters."""
        ...

    def fixed(self) -> Density:
        """Return the same, but differentiable by values alone."""
        ...


class LatentCoder(Protocol):
    """What takes the parallel steps: an encoder, a decoder or an estimator of the rate."""

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """Code the latents of a parallel step around means.

        plane: the name of the `Plane`; positions: flat indices into its grid; channels: which of
        its channels, see `Channels`; mean: (B, P, c) in steps, in exact mode multiples of
        1 / LATENT_UNITS; scale: (B, P, c) in sixteenths of a bin, within [0, 16 * (NUM_BINS - 1)],
        in exact mode integers. Returns the reconstructed latents (B, P, c) in steps.
        """
        ...

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """Code the latents of a parallel step by rows of their own, around zero.

        rows: (c,) int64, of those that `EntropyModel.own_rows` gave to the tables; density: what
        the rows are made of, for an estimator in training alone: a decoder never asks.
        Returns the reconstructed latents (B, P, c) in steps, whole numbers in exact mode.
        """
        ...


class Regression(Protocol):
    """Least squares over a walk: part of an entropy model is solved for, not trained."""

    def see(self, plane: str, channels: Channels, residual: Tensor) -> None:
        """Take what a parallel step leaves of its targets, (B, P, c) in steps, before coding."""
        ...

    def solve(self) -> None:
        """Set what the residuals seen determine, once."""
        ...


class EntropyModel(nn.Module, ABC):
    """What the decoder expects of latents (B, h * w, C) in steps, before it reads them.

    A subclass walks its order of coding in `code`, for every kind of coder alike; `schedule` has
    the usual orders. Everything that a mean or a scale depends on goes through layers of `integer`,
    which train in floating point and are frozen to integers, so that every machine expects the
    same; a weights file holds these and, as rows of their own, what else a prior knows. What `side`
    needs is held by such layers too, or by nothing: a frozen layer keeps a float twin.

    A subclass is made with its own `Config` for a number of channels of y.
    """

    Config: ClassVar[type[AxisConfig]]
    """What an instance is made with: a frozen dataclass nested in the class."""

    mode: Mode = "float"

    features: int = 0
    """Channels that `code` returns behind those of y, for the synthesis: exact integers too."""

    sparse: torch.Generator | None = None
    """If set, `code` may let a part of its networks learn, drawn anew each time, and not all.

    Values are as ever, and gradients on the average: a training step is cheaper.
    """

    taught: bool = False
    """Whether `code` is given a `schedule.Teacher` in training, to take one step for all."""

    num_own_rows: int = 0
    """Rows of their own that the tables hold for this model."""

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels

    # --- coding ---------------------------------------------------------------------------------

    def planes(self, height: int, width: int) -> tuple[Plane, ...]:
        """Return what is coded of an h x w grid, in the order of coding; y is the last."""
        return (Plane("y", (height, width), self.channels),)

    def side(self, y: Tensor, grid: tuple[int, int], quality: Tensor) -> dict[str, Tensor]:
        """Return what the encoder wants the other planes to be, by name: (B, h * w, C) in steps.

        y (B, h * w, C) are the latents to be coded, in floating point; quality (B,); grids and
        channels are those of `planes`. The decoder never asks, so nothing here need be exact.
        """
        return {}

    @abstractmethod
    def code(self, coder: LatentCoder, height: int, width: int, quality: Tensor) -> Tensor:
        """Walk all steps of an h x w grid with `coder`; return the latents (B, h * w, C) in steps.

        quality: (B,) in 0..100 (in exact mode one integer quality for the batch), whose type and
        device all tensors are to have. Every latent of every plane is coded once. What is expected
        of one depends on nothing but what the coder returned before. `features` channels more
        follow those of y, if the model has any. In exact mode all are multiples of
        1 / LATENT_UNITS and the same on every machine.
        """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of parallel steps; of a wavefront, which grows with the grid, at 48 x 32."""

    @property
    @abstractmethod
    def period(self) -> int:
        """Positions after which the order of coding repeats itself, in both directions."""

    # --- training -------------------------------------------------------------------------------

    def start(self, y: Tensor, grid: tuple[int, int], steps: Tensor) -> None:
        """Set what statistics of training latents determine, without gradients; nothing here.

        y: (B, h * w, C) in units of the transform, of a grid (h, w); steps: (nodes, C) by which y
        will be divided, at evenly spaced qualities 0..100.
        """

    def regression(self) -> Regression | None:
        """Return what is to be solved for before training, None where nothing is (any more).

        Called after `start`, or after weights of another run were taken; then `code` is walked in
        float mode with training latents at a medium quality, every step of it seen.
        """
        return None

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the state for this model that another one's amounts to, by name; None: begin anew.

        Here: the same, where all names and shapes are the same.
        """
        own = self.state_dict()
        if any(name not in state or state[name].shape != own[name].shape for name in own):
            return None
        return {name: state[name] for name in own}

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return what a training stage may name, with its modules; every parameter is in one."""
        return {"entropy": [self]}

    def rate_class(self, name: str) -> str:
        """Return how a parameter of the model is moved, a class of `training.optimizers`.

        "networks" here; "predictor" are weights of what is linear in latents, which move less.
        Tables over quality have a class of their own, whatever this says.
        """
        return "networks"

    def own_rows(self) -> RowTable | None:
        """Return `num_own_rows` probability rows made of trained densities, None if that is 0.

        Called once, at export; the tables keep them, and may fit them to counts.
        """
        return None

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
        """Undo `to_integers`, every bound proved again; ModelMismatch if anything is amiss.

        Parameters that are not stored must be gone afterwards: they never had values.
        """
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

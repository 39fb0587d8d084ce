# SPDX-License-Identifier: Apache-2.0
"""What lattices have in common whose costs add up over coordinates: tables over |j|, bin by bin."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import centroid_limits
from lvqcodec.coding.rows import FRACTION, LATENT_UNITS, NUM_BINS, Floats, RowTable, named
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Lattice, Packing


@dataclass(frozen=True, eq=False)
class Tabled(Lattice):
    """A lattice of points unit * j, j integers, with a cost and a centroid for each bin and |j|.

    Costs and centroids are the same for either sign. centroids (BINS, num_centroids) int8 over
    |j|, the last of all larger ones: what a reconstruction is moved towards zero, in 1/16 step.
    BINS is NUM_BINS for each axis: NUM_BINS * axis + bin is where tables have a bin.
    A subclass with fields is a frozen dataclass too; its fields are what is stored.
    """

    rows: RowTable
    centroids: NDArray[np.int8]

    unit: ClassVar[float]
    """Steps between coordinates."""

    axes: ClassVar[tuple[float, ...]] = (1.0,)
    """One for all coordinates of a vector or one for each, with tables of its own: its `unit`s."""

    q24_units: ClassVar[tuple[int, ...]] = ()
    """The same of every axis in 1 / LATENT_UNITS step, Q24 (`q24_root`), if it is irrational."""

    edge: ClassVar[int]
    """The largest |j| that costs and counts tell from larger ones."""

    num_centroids: ClassVar[int]

    @property
    @abstractmethod
    def costs(self) -> NDArray[np.float32]:
        """Bits of each |j| (BINS, edge + 1), of either sign, inf where there is no such j."""

    # --- storage ----------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        """Raise ModelMismatch for tables that are none."""
        fault = self._fault()
        if fault:
            raise ModelMismatch(f"tables of {self.name}: {fault}; install the weights again")

    def _fault(self) -> str | None:
        centroids, shape = self.centroids, (NUM_BINS * len(self.axes), self.num_centroids)
        if centroids.dtype != np.int8 or centroids.shape != shape:
            return f"centroids of type {centroids.dtype} and shape {centroids.shape}"
        limits = centroid_limits(self.num_centroids, self.unit)
        if (np.abs(centroids.astype(np.int16)) > limits).any():
            return f"centroids of {centroids.min()} to {centroids.max()}, or one that moves zero"
        return None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """See `Lattice.to_arrays`."""
        arrays: dict[str, NDArray[Any]] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, RowTable):
                arrays |= {f"{field.name}.{key}": part for key, part in value.to_arrays().items()}
            elif isinstance(value, Packing):
                if value != CODING_ORDER:  # weights of before there was a choice say nothing of it
                    arrays[field.name] = np.array(value, np.int32)
            else:
                arrays[field.name] = value
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """See `Lattice.from_arrays`."""
        parts: dict[str, Any] = dict(arrays)
        for field in fields(cls):
            if field.type in (RowTable, RowTable.__name__):
                prefix = f"{field.name}."
                keys = [key for key in parts if key.startswith(prefix)]
                rows = {key[len(prefix) :]: parts.pop(key) for key in keys}
                parts[field.name] = RowTable.from_arrays(rows)
            elif field.type in (Packing, Packing.__name__):
                parts[field.name] = _packing(parts.get(field.name))
        return cls(**named(cls, parts))

    # --- choices ----------------------------------------------------------------------------------

    def reconstruct(self, j: Tensor, bins: Tensor) -> Tensor:
        """See `Lattice.reconstruct`."""
        return self._points(j) - j.sign() * _look_up(self._shifts, self._cells(j, bins))

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`; this is the part that adds up over coordinates."""
        costs = _look_up(self._costs, self._cells(j, bins))
        outliers = (j.abs().clamp(min=self.edge).double() / self.edge).log2()
        return float(costs.double().sum() + 2 * outliers.sum())  # as Exp-Golomb codes grow

    def count(self, j: Tensor, bins: Tensor, x: Tensor) -> dict[str, NDArray[Any]]:
        """Count each |j| and sum up its distance from x towards zero, (BINS, edge + 1) both."""
        cells = self._cells(j, bins).flatten().cpu().numpy()
        offsets = (j.sign() * (j.float() * self._units(j) - x)).flatten().cpu().numpy()
        size = self._costs.numel()
        return self._named_counts(
            np.bincount(cells, minlength=size),
            np.bincount(cells, offsets, minlength=size).astype(np.float64),
        )

    def _named_counts(
        self, counts: NDArray[np.int64], offsets: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        """The sums of all cells by name."""
        shape = (NUM_BINS * len(self.axes), self.edge + 1)
        return {"counts": counts.reshape(shape), "offsets": offsets.reshape(shape)}

    def _points(self, j: Tensor) -> Tensor:
        """Points of j in 1 / LATENT_UNITS step, int32."""
        if not self.q24_units:
            return int(self.unit * LATENT_UNITS) * j
        return q24_product(j, torch.tensor(self.q24_units, device=j.device))

    def _units(self, like: Tensor) -> float | Tensor:
        """Steps between coordinates, to be multiplied by `like` (V, dim, ...)."""
        if len(self.axes) == 1:
            return self.unit
        return _along(torch.tensor(self.axes, dtype=torch.float32) * self.unit, like)

    def _cells(self, j: Tensor, bins: Tensor) -> Tensor:
        """Flat indices (int64) of j into arrays (BINS, edge + 1)."""
        rows = bins.long()
        if len(self.axes) > 1:
            rows = rows + _along(NUM_BINS * torch.arange(len(self.axes)), bins)
        return rows * (self.edge + 1) + j.abs().clamp(max=self.edge)

    def _loss(self, j: Tensor, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Squared error + rdo_lambda * bits of j, the others broadcast to it."""
        cells = self._cells(j, bins)
        bits, shift = _look_up(self._costs, cells), _look_up(self._shifts, cells)
        # not of whole numbers: their quotient has the default dtype, which is the caller's
        error = j.float() * self._units(j) - x - (j.sign() * shift).float() / LATENT_UNITS
        return error.square_().addcmul_(bits, rdo_lambda)

    def _cell_costs(self) -> NDArray[np.float32]:
        return self.costs.ravel()

    @cached_property
    def _costs(self) -> Tensor:
        """Bits of every cell, float32."""
        return torch.from_numpy(self._cell_costs())

    @cached_property
    def _shifts(self) -> Tensor:
        """What every cell's reconstruction is moved by, int32 in 1 / LATENT_UNITS step."""
        place = np.minimum(np.arange(self.edge + 1), self.num_centroids - 1)
        shifts = np.zeros(self._costs.numel(), np.int32)
        tabled = self.centroids[:, place].ravel()
        shifts[: len(tabled)] = tabled * np.int32(LATENT_UNITS // FRACTION)
        return torch.from_numpy(shifts)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Values (dim,) that broadcast to `like` (V, dim, ...)."""
    return values.to(like.device).view(-1, *[1] * (like.ndim - 2))


def _look_up(table: Tensor, cells: Tensor) -> Tensor:
    """Entries of a flat table; quicker than `take`."""
    return table.to(cells.device).index_select(0, cells.flatten()).view_as(cells)


def q24_root(numerator: int, denominator: int, degree: int) -> int:
    """LATENT_UNITS * (numerator / denominator)^(1 / degree) in Q24, rounded down, by integers."""
    power = (LATENT_UNITS << 24) ** degree * numerator // denominator
    root = 0
    for bit in reversed(range(power.bit_length() // degree + 1)):
        if (root | 1 << bit) ** degree <= power:
            root |= 1 << bit
    return root


def q24_product(j: Tensor, factor: int | Tensor) -> Tensor:
    """j times a factor in Q24, to the nearest, int32: integers far below 2^63."""
    sizes = (j.abs().long() * factor + (1 << 23)) >> 24
    return (j.sign() * sizes).to(torch.int32)


def _packing(array: NDArray[np.int32] | None) -> Packing:
    """The packing of an array (first_bin, by_bin); ModelMismatch for another."""
    if array is None:
        return CODING_ORDER
    if array.dtype != np.int32 or array.shape != (2,) or array[1] not in (0, 1):
        raise ModelMismatch(f"packing is {array.tolist()}; install the weights again")
    if not 0 <= array[0] <= NUM_BINS:
        raise ModelMismatch(f"packing from bin {array[0]} on; install the weights again")
    return Packing(int(array[0]), bool(array[1]))


def counted(counts: Arrays | None, edge: int, axes: int = 1) -> tuple[NDArray[np.int64], Floats]:
    """The arrays of `Tabled.count`, or zeros."""
    if counts is None:
        shape = (NUM_BINS * axes, edge + 1)
        return np.zeros(shape, np.int64), np.zeros(shape)
    return counts["counts"], counts["offsets"]

# SPDX-License-Identifier: Apache-2.0
"""Lattices whose coordinates have an even sum, and what they need: a trellis of parities.

D_n are the integer vectors of an even sum (Conway and Sloane, "Fast quantizing and decoding
algorithms for lattice quantizers and codes", 1982, doi.org/10.1109/TIT.1982.1056484). Give each
coordinate weights w_i, E_i their sum over its even values and O_i over its odd ones, and
r_i = (E_i - O_i) / (E_i + O_i). Of all integer vectors those of an even sum have the share
(1 + r_1 r_2 ... r_n) / 2. So parities are coded one after the other, each given whether those
before are even in sum and given the product of the r_i after it, and the last follows from the
others; then each value, given its parity. That is the exact probability of the vector.

A class is a set of coordinates that has one row for each bin: j = offset (mod period). The row is
over q in j = period q + offset.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import fit_centroids, fit_row, of_class, row_radius
from lvqcodec.coding.rows import (
    BERNOULLI_ROWS,
    NUM_BINS,
    SIGMAS,
    Floats,
    Integers,
    RowTable,
    bernoulli_rows,
)
from lvqcodec.model.lattices.base import Packing
from lvqcodec.model.lattices.tabled import Tabled

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

RATIO_ONE = 1 << 15
"""Parity ratios are Q15."""


@dataclass(frozen=True, eq=False)
class ParityLattice(Tabled):
    """A lattice that the residues of its coordinates tell, in classes over a parity trellis.

    rows: row = len(offsets) * (bin - first_bin) + class; bernoulli: the rows of bits;
    parity_ratio (NUM_BINS - first_bin,) int32: r of each bin in Q15. Both, of one axis after the
    other.
    """

    packing: Packing
    bernoulli: RowTable
    parity_ratio: NDArray[np.int32]

    period: ClassVar[int]
    offsets: ClassVar[tuple[int, ...]]
    """Of every class."""

    num_centroids = 16
    edge = 1024

    @property
    def first_bin(self) -> int:
        """The first bin that is packed into vectors."""
        return self.packing.first_bin

    @property
    def _packed_bins(self) -> int:
        """Of all axes."""
        return (NUM_BINS - self.first_bin) * len(self.axes)

    @abstractmethod
    def pick(self, costs: Tensor) -> Tensor:
        """Residues (V, dim) int64 of the cheapest point, costs (V, dim, period) of each residue."""

    @property
    @abstractmethod
    def class_masses(self) -> Floats:
        """Sum of the weights of each class (classes, packed bins), in any one scale."""

    def _fault(self) -> str | None:
        bins, rows = self._packed_bins, len(self.rows.sizes)
        if (rows, len(self.bernoulli.sizes)) != (len(self.offsets) * bins, BERNOULLI_ROWS):
            return f"{rows} rows, {bins} bins, {len(self.bernoulli.sizes)} bernoulli rows"
        if self.bernoulli.sizes.max() != 2:
            return f"a bernoulli row of {self.bernoulli.sizes.max()} symbols"
        return self._ratio_fault(self.parity_ratio, RATIO_ONE) or super()._fault()

    def _ratio_fault(self, ratio: NDArray[Any], limit: int) -> str | None:
        if ratio.dtype != np.int32 or ratio.shape != (self._packed_bins,):
            return f"ratios of type {ratio.dtype} and shape {ratio.shape}"
        if ratio.min() <= -limit or ratio.max() >= limit:
            return f"ratios of {ratio.min()} to {ratio.max()}, allowed is +-{limit - 1}"
        return None

    # --- choices ----------------------------------------------------------------------------------

    def nearest(self, x: Tensor) -> Tensor:
        """See `Lattice.nearest`."""
        return self._cheapest(x, lambda j: (j * self._units(j) - x[..., None]).square())

    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """See `Lattice.choose`.

        Exact but for one limit: of each residue class only the two values around x compete. Of E8
        the next ones are 4 squared steps worse, or 35 bits at the default rdo_lambda.
        """
        facts = x[..., None], bins[..., None], rdo_lambda[..., None]
        return self._cheapest(x, lambda j: self._loss(j, *facts))

    def _cheapest(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The points around x (V, dim) of least `loss`, which maps j (V, dim, period) to costs."""
        period = self.period
        residues = torch.arange(period, device=x.device)
        scaled = x[..., None] * (1 / self._units(x[..., None]))
        low = (((scaled - residues) / period).floor_() * period + residues).int()
        below, above = loss(low), loss(low + period)
        pick = self.pick(torch.minimum(below, above))[..., None]
        upper = (above < below).gather(-1, pick)
        return (low.gather(-1, pick) + period * upper.int()).squeeze(-1)

    @property
    def costs(self) -> NDArray[np.float32]:
        """See `Tabled.costs`: -log2 w(j), w scaled so that all multiples of the unit sum to 1.

        A point costs their sum plus log2 of the mass of all points, which is the same for all.
        """
        axes = len(self.axes)
        costs = np.full((axes, NUM_BINS, self.edge + 1), np.inf, np.float32)
        bins = np.arange(self._packed_bins)[:, None]
        masses = np.log2(self.class_masses)
        for kind, offset in enumerate(self.offsets):
            sizes = np.arange(self.edge + 1)
            sizes = sizes[of_class(sizes, self.period, offset)]
            j = np.where(sizes % self.period == offset, sizes, -sizes)
            q = np.broadcast_to((j - offset) // self.period, (len(bins), len(j)))
            rows = np.broadcast_to(len(self.offsets) * bins + kind, q.shape)
            bits = self.rows.integer_bits(q, rows) - masses[kind][:, None]
            costs[:, self.first_bin :, sizes] = bits.reshape(axes, -1, len(sizes))
        return costs.reshape(-1, self.edge + 1)

    # --- the trellis ------------------------------------------------------------------------------

    def _index(self, bins: Integers) -> NDArray[np.int16]:
        """Bins (V, dim) from first_bin on, of one axis after the other: (dim, V)."""
        axis = np.arange(len(self.axes), dtype=np.int16)[:, None]
        starts = (NUM_BINS - self.first_bin) * axis - np.int16(self.first_bin)
        return np.ascontiguousarray(bins.astype(np.int16).T) + starts

    def _ratios(self, index: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parity ratios (dim, V) and the products (dim + 1, V) of each and all after it."""
        ratio = self.parity_ratio.take(index).astype(np.int64)
        return ratio, self._products(ratio)

    def _products(self, ratio: Integers) -> Any:
        """Products (dim + 1, V) of parity ratios (dim, V), of each and all after it."""
        suffix = np.full((self.dim + 1, ratio.shape[1]), RATIO_ONE, ratio.dtype)
        for one, rest, product in zip(ratio[::-1], suffix[:0:-1], suffix[-2::-1], strict=True):
            np.multiply(one, rest, out=product)
            product >>= 15
        return suffix

    def _write_parities(
        self,
        parity: Integers,
        ratio: Integers,
        suffix: Integers,
        encoder: SymbolEncoder,
        odd: Any = 0,
    ) -> None:
        """Code all parities (dim, V) but the last; ValueError where their sum is not `odd` (V,)."""
        before = np.zeros_like(parity)
        before[0] = odd
        for one, state, both in zip(parity, before, before[1:], strict=False):
            np.bitwise_xor(one, state, out=both)  # much quicker than to accumulate
        if (before[-1] ^ parity[-1]).any():
            raise ValueError(f"vectors that are no points of {self.name}")
        rows = _parity_rows(ratio[:-1], suffix[1:-1], before[:-1])
        encoder.encode_bits(parity[:-1].ravel(), rows.ravel(), self.bernoulli)

    def _read_parities(
        self, ratio: Integers, suffix: Integers, decoder: SymbolDecoder, odd: Any = 0
    ) -> NDArray[np.int32]:
        """Mirror of _write_parities."""
        parity = np.empty(ratio.shape, np.int32)
        state = np.zeros_like(parity[0]) ^ odd
        for i in range(self.dim - 1):
            rows = _parity_rows(ratio[i], suffix[i + 1], state)
            parity[i] = decoder.decode_bits(rows, self.bernoulli)
            state ^= parity[i]
        parity[-1] = state
        return parity

    def _read_values(self, rows: Integers, decoder: SymbolDecoder) -> Any:
        """Values q of rows (dim, V)."""
        return decoder.decode_integers(rows.ravel(), self.rows).reshape(rows.shape)

    # --- fitting ----------------------------------------------------------------------------------

    @classmethod
    def fitted(
        cls, counts: Integers, offsets: Floats, shape: Floats, packing: Packing, **ratios: Any
    ) -> Self:
        """Tables of counts and offsets as of `count`, shrunk towards weights `shape` over |j|.

        All three are of all bins; ratios: the fields that a lattice finds in its own way.
        """
        rows, radii = [], []
        bins = range(packing.first_bin, NUM_BINS)
        for axis, index in itertools.product(range(len(cls.axes)), bins):
            unit, place = cls.unit * cls.axes[axis], NUM_BINS * axis + index
            radius = int(np.ceil(row_radius(SIGMAS[index]) / (cls.period * unit)))
            for offset in cls.offsets:
                rows.append(fit_row(counts[place], shape[place], cls.period, offset, radius))
                radii.append(radius)
        return cls(
            rows=RowTable.from_rows(rows, radii),
            centroids=fit_centroids(counts, offsets, cls.num_centroids, cls.unit),
            packing=packing,
            bernoulli=bernoulli_rows(),
            **ratios,
        )


def known(j: Integers, decoder: SymbolDecoder) -> Any:
    """Coordinates (dim, V) as vectors (V, dim), 0 where the decoder has ended before them."""
    return (np.where(decoder.known.reshape(j.shape), j, 0) if decoder.ended else j).T


def cheapest_parities(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Parities (V, dim, K) int64 of an even sum that cost least, and their costs (V, K).

    even, odd: costs (V, dim, K) of the parities. Exact: the cheaper parity of every coordinate;
    where the sum is wrong, the coordinate changes that loses least.
    """
    is_odd = odd < even
    loss, place = (odd - even).abs_().min(-2, keepdim=True)
    wrong = is_odd.sum(-2, keepdim=True) & 1
    total = torch.minimum(odd, even).sum(-2, keepdim=True).addcmul_(loss, wrong)
    return is_odd.long().scatter_add_(-2, place, wrong) & 1, total.squeeze(-2)


def _parity_rows(ratio: Integers, suffix: Integers, state: Integers) -> Any:
    """Rows of an odd parity, given the parity `state` before and the product `suffix` after."""
    ratio = ratio.astype(np.int32)  # all products are below 2^32: half as wide, twice as fast
    rest = suffix.astype(np.int32) * (1 - 2 * state.astype(np.int32))
    odd = (RATIO_ONE - ratio).view(np.uint32) * (RATIO_ONE - rest).view(np.uint32)
    even_and_odd = (RATIO_ONE * RATIO_ONE + ratio * rest).view(np.uint32)  # of twice the weight
    return (odd.astype(np.uint64) * (BERNOULLI_ROWS // 2) // even_and_odd).astype(np.int32)


# --- fitting --------------------------------------------------------------------------------------


def weights(unit: float, second_moment: float, edge: int) -> NDArray[np.float64]:
    """Weights of each |j| (NUM_BINS, edge + 1), unscaled: the shape that tables are shrunk to.

    The density at the point of a logistic of standard deviation SIGMAS, widened by the second
    moment of a cell, which makes it nearly the mass of the cell.
    """
    scale = np.sqrt(SIGMAS[:, None] ** 2 + second_moment) * np.sqrt(3) / np.pi
    tail = np.exp(-np.arange(edge + 1) * unit / scale)
    return np.asarray(tail / (1 + tail) ** 2, np.float64)


def signs(shape: Floats) -> Floats:
    """Masses of both signs (..., edge + 1) of masses of either."""
    return shape * np.where(np.arange(shape.shape[-1]) > 0, 2.0, 1.0)


def to_q15(ratios: Floats) -> NDArray[np.int32]:
    """Parity ratios as they are stored."""
    limit = RATIO_ONE - 1
    return np.clip(np.rint(ratios * RATIO_ONE), -limit, limit).astype(np.int32)


def parity_moment(ratio: float, dim: int) -> float:
    """P(even) - P(odd) of one coordinate of `dim` with this ratio and an even sum."""
    return (ratio + ratio ** (dim - 1)) / (1 + ratio**dim)


def ratio_of_moment(moment: float, dim: int) -> float:
    """The ratio that has this `parity_moment`."""
    low, high = -1.0, 1.0
    for _ in range(40):
        ratio = (low + high) / 2
        low, high = (ratio, high) if parity_moment(ratio, dim) < moment else (low, ratio)
    return ratio

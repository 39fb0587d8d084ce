# SPDX-License-Identifier: Apache-2.0
"""E8 = D8 and D8 + 1/2: all coordinates whole or all half-odd, with an even sum.

In half units j = 2 * point that is: the residues j mod 4 are all even or all odd, and the sum of
m = floor(j / 2) is even. With product weights w(j), symmetric in the sign, the mass of a coset is a
product over coordinates; three facts per bin of sigma say all about it:
  parity_ratio  r = (E - O) / (E + O), E and O the sums of w over j = 0 and j = 2 (mod 4)
  coset_ratio   log2 of (sum of w over odd j) / (sum of w over even j)
  three rows    the distribution of j within each class: 0 (mod 4), 2 (mod 4), odd
The odd j need one row and no ratio: the signs are equally likely, and j = 1 and j = 3 (mod 4)
are each other's mirror images. So a row holds q in j = 4 q + (0, 2, 1)[class], where an odd j
that is 3 (mod 4) is coded as -j.

Order in the stream: the coset bits of all vectors; their parities, coordinate by coordinate (the
last follows from the others); their values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import PRIOR, fit_centroids
from lvqcodec.coding.rows import BERNOULLI_ROWS, Floats, Integers, bernoulli_rows
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.parity import (
    RATIO_ONE,
    ParityLattice,
    cheapest_parities,
    fit_classes,
    known,
    parity_moment,
    ratio_of_moment,
    signs,
    to_q15,
    weights,
)
from lvqcodec.model.lattices.tabled import counted

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

LOG_ONE = 1 << 10
"""Coset ratios are Q10."""

SECOND_MOMENT = 0.0717
"""Mean squared error of a coordinate, uniform within a cell, in squared steps."""


@dataclass(frozen=True, eq=False)
class E8(ParityLattice):
    """The densest packing of eight dimensions (Conway & Sloane 1982).

    coset_ratio (NUM_BINS - first_bin,) int32: see above, in Q10.
    """

    coset_ratio: NDArray[np.int32]

    name = "e8"
    dim = 8
    unit = 0.5
    period = 4
    offsets = (0, 2, 1)

    def _fault(self) -> str | None:
        return super()._fault() or self._ratio_fault(self.coset_ratio, 1 << 20)

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`: the better of the cosets, each by its best parities."""
        parity, total = cheapest_parities(costs[..., :2], costs[..., 2:])
        coset = (total[..., 1] < total[..., 0])[..., None]
        return 2 * torch.where(coset, parity[..., 1], parity[..., 0]) + coset

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        index = (bins.long() - self.first_bin).cpu()
        parity = torch.from_numpy(self.parity_ratio / RATIO_ONE)[index]
        coset = torch.from_numpy(self.coset_ratio / LOG_ONE)[index]
        mass = (1 + parity.prod(-1) + coset.sum(-1).exp2()) / 2
        return super().bits(j, bins) + float(mass.log2().sum())

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j, index = j.T, self._index(bins)
        coset, parity = j[0] & 1, j >> 1 & 1
        if ((j & 1) != coset).any():
            raise ValueError("vectors that are no points of e8")
        ratio, suffix = self._ratios(index)
        encoder.encode_bits(coset, self._coset_rows(index, suffix[0]), self.bernoulli)
        ratio, suffix = ratio * (1 - coset), suffix * (1 - coset)
        self._write_parities(parity, ratio, suffix, encoder)
        rows, offset, mirror = _value_rows(index, coset, parity)
        q = (j * mirror - offset) >> 2
        encoder.encode_integers(q.ravel(), rows.ravel(), self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        index = self._index(bins)
        ratio, suffix = self._ratios(index)
        coset = decoder.decode_bits(self._coset_rows(index, suffix[0]), self.bernoulli)
        ratio, suffix = ratio * (1 - coset), suffix * (1 - coset)
        parity = self._read_parities(ratio, suffix, decoder)
        rows, offset, mirror = _value_rows(index, coset, parity)
        return known((4 * self._read_values(rows, decoder) + offset) * mirror, decoder)

    def _coset_rows(self, index: Integers, product: NDArray[np.int64]) -> Any:
        """Rows of the odd coset: its mass 2^sum of coset ratios against 1 + product (V,)."""
        step = LOG_ONE // _ODDS_PER_OCTAVE
        exponent = self.coset_ratio[index].sum(axis=0, dtype=np.int64) // step
        odd = _ODDS[np.clip(exponent + _ODDS_RANGE, 0, len(_ODDS) - 1)]
        even = (RATIO_ONE + product) << 15
        return odd * BERNOULLI_ROWS // (odd + even)

    @property
    def class_masses(self) -> Floats:
        """See `ParityLattice.class_masses`; all even j sum to 1."""
        ratio = self.parity_ratio / RATIO_ONE
        return np.stack(((1 + ratio) / 2, (1 - ratio) / 2, 2.0 ** (self.coset_ratio / LOG_ONE) / 2))

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`: a vector has one bit of coset and seven of parity."""
        return float(self.rows.least_bits.min() + self.bernoulli.least_bits.min())

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`.

        The class masses are moments of whole vectors (the sum rule couples their coordinates); they
        are inverted as if all eight coordinates of a vector were of one bin.
        """
        (seen, offsets), first = counted(counts, cls.edge), packing.first_bin
        shape = weights(cls.unit, SECOND_MOMENT, cls.edge)
        ratios = [
            _fit_ratios(_class_sums(row), _class_sums(signs(prior)))
            for row, prior in zip(seen[first:], shape[first:], strict=True)
        ]
        parity, coset = np.array(ratios).T
        return cls(
            rows=fit_classes(cls, seen, shape, first),
            centroids=fit_centroids(seen, offsets, cls.num_centroids),
            packing=packing,
            bernoulli=bernoulli_rows(),
            parity_ratio=to_q15(parity),
            coset_ratio=np.rint(coset * LOG_ONE).astype(np.int32),
        )


_ODDS_PER_OCTAVE = 32
_ODDS_RANGE = 12 * _ODDS_PER_OCTAVE


def _power(exponent: int) -> int:
    """2^(30 + exponent / 32), rounded down, by integers alone: 32nd root = five square roots."""
    root = 1 << (30 * _ODDS_PER_OCTAVE + exponent)
    for _ in range(5):
        root = math.isqrt(root)
    return root


_ODDS = np.array([_power(step) for step in range(-_ODDS_RANGE, _ODDS_RANGE + 1)], np.int64)
_OFFSETS = np.array(E8.offsets, np.int32)


def _value_rows(index: Integers, coset: Integers, parity: Integers) -> tuple[Any, Any, Any]:
    """Rows (8, V) of the values, and the offset and the sign that turn 4 q + offset into j."""
    kind = np.where(coset, 2, parity)
    return len(_OFFSETS) * index + kind, _OFFSETS[kind], 1 - 2 * (coset & parity)


def _class_sums(masses: Floats | Integers) -> NDArray[np.float64]:
    """Totals of j = 0 (mod 4), j = 2 (mod 4) and odd j, of masses over |j|."""
    return np.array([masses[0::4].sum(), masses[2::4].sum(), masses[1::2].sum()], np.float64)


def _fit_ratios(counts: Floats, shape: Floats) -> tuple[float, float]:
    """(parity ratio, log2 coset ratio) of the classes' counts and parametric masses."""
    even, odd, half = shape
    ratio, coset = (even - odd) / (even + odd), math.log2(half / (even + odd))
    share = (1 + parity_moment(ratio, 8)) / 2
    mass = (1 + ratio**8) / (1 + ratio**8 + 2 ** (8 * coset))
    seen = counts + PRIOR * np.array([mass * share, mass * (1 - share), 1 - mass])

    ratio = ratio_of_moment((seen[0] - seen[1]) / (seen[0] + seen[1]), 8)
    return ratio, math.log2(seen[2] / (seen[0] + seen[1]) * (1 + ratio**8)) / 8

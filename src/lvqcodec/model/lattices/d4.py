# SPDX-License-Identifier: Apache-2.0
"""D4, the integer vectors of four coordinates with an even sum, scaled to volume 1.

The densest packing of four dimensions; its normalised second moment is 0.0766 (Conway and Sloane,
"Fast quantizing and decoding algorithms for lattice quantizers and codes", 1982,
doi.org/10.1109/TIT.1982.1056484). As they stand the vectors have volume 2, so a coordinate is
2^(-1/4) step. There are two classes, even and odd. Order in the stream: the parities of all
vectors, coordinate by coordinate (the last follows from the others); their values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from lvqcodec.coding.fitting import PRIOR, fit_centroids
from lvqcodec.coding.rows import LATENT_UNITS, Floats, Integers, bernoulli_rows
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

_SECOND_MOMENT = 0.0766
_ONE = 1 << 24
_UNIT = math.isqrt(math.isqrt((LATENT_UNITS * _ONE) ** 4 // 2))
"""A coordinate in 1 / LATENT_UNITS step, Q24: 64 * 2^(-1/4), rounded down."""


@dataclass(frozen=True, eq=False)
class D4(ParityLattice):
    """Vectors j of four integers with an even sum."""

    name = "d4"
    dim = 4
    unit = 2**-0.25
    period = 2
    offsets = (0, 1)

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`."""
        return cheapest_parities(costs[..., :1], costs[..., 1:])[0].squeeze(-1)

    def _points(self, j: Tensor) -> Tensor:
        """Points of j in 1 / LATENT_UNITS step, to the nearest: integers far below 2^63."""
        sizes = (j.abs().long() * _UNIT + _ONE // 2) >> 24
        return (j.sign() * sizes).to(torch.int32)

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        index = (bins.long() - self.first_bin).cpu()
        parity = torch.from_numpy(self.parity_ratio / RATIO_ONE)[index]
        return super().bits(j, bins) + float(((1 + parity.prod(-1)) / 2).log2().sum())

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j, index = j.T, self._index(bins)
        parity = j & 1
        self._write_parities(parity, *self._ratios(index), encoder)
        encoder.encode_integers((j >> 1).ravel(), (2 * index + parity).ravel(), self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        index = self._index(bins)
        parity = self._read_parities(*self._ratios(index), decoder)
        return known(2 * self._read_values(2 * index + parity, decoder) + parity, decoder)

    @property
    def class_masses(self) -> Floats:
        """See `ParityLattice.class_masses`."""
        ratio = self.parity_ratio / RATIO_ONE
        return np.stack(((1 + ratio) / 2, (1 - ratio) / 2))

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`: a vector has three bits of parity."""
        return float(self.rows.least_bits.min() + self.bernoulli.least_bits.min() * 3 / 4)

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`; ratios as if all coordinates of a vector were of one bin."""
        (seen, offsets), first = counted(counts, cls.edge), packing.first_bin
        shape = weights(cls.unit, _SECOND_MOMENT, cls.edge)
        ratios = [
            _fit_ratio(_class_sums(row), _class_sums(signs(prior)))
            for row, prior in zip(seen[first:], shape[first:], strict=True)
        ]
        return cls(
            rows=fit_classes(cls, seen, shape, first),
            centroids=fit_centroids(seen, offsets, cls.num_centroids),
            packing=packing,
            bernoulli=bernoulli_rows(),
            parity_ratio=to_q15(np.array(ratios)),
        )


def _class_sums(masses: Floats | Integers) -> tuple[float, float]:
    """Totals of even and of odd j, of masses over |j|."""
    return float(masses[0::2].sum()), float(masses[1::2].sum())


def _fit_ratio(counts: tuple[float, float], shape: tuple[float, float]) -> float:
    """The parity ratio of the classes' counts and parametric masses."""
    prior = parity_moment((shape[0] - shape[1]) / (shape[0] + shape[1]), D4.dim)
    difference = counts[0] - counts[1] + PRIOR * prior
    return ratio_of_moment(difference / (counts[0] + counts[1] + PRIOR), D4.dim)

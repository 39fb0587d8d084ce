# SPDX-License-Identifier: Apache-2.0
"""D_n, the integer vectors of n coordinates with an even sum, scaled to volume 1.

As they stand the vectors have volume 2, so a coordinate is 2^(-1/n) step. The normalised second
moment is (1/12 + 1/(2 n (n + 1))) / 4^(1/n), least for n = 6 (Conway and Sloane, "Voronoi regions
of lattices, second moments of polytopes, and quantization", 1982,
doi.org/10.1109/TIT.1982.1056483). There are two classes, even and odd. Order in the stream: the
parities of all vectors, coordinate by coordinate (the last follows from the others); their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from lvqcodec.coding.fitting import PRIOR
from lvqcodec.coding.rows import NUM_BINS, Floats, Integers
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.parity import (
    RATIO_ONE,
    ParityLattice,
    cheapest_parities,
    known,
    parity_moment,
    ratio_of_moment,
    signs,
    to_q15,
    weights,
)
from lvqcodec.model.lattices.tabled import counted, q24_root

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder


class EvenSum(ParityLattice):
    """Integer vectors j of an even sum, whatever the units of their coordinates."""

    period = 2
    offsets = (0, 1)

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`."""
        return cheapest_parities(costs[..., :1], costs[..., 1:])[0].squeeze(-1)

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        parity = self.parity_ratio[self._index(bins.cpu().numpy())] / RATIO_ONE
        return super().bits(j, bins) + float(np.log2((1 + parity.prod(0)) / 2).sum())

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
        """See `Lattice.least_bits`: a vector has a bit of parity for each coordinate but one."""
        bit = self.bernoulli.least_bits.min()
        return float(self.rows.least_bits.min() + bit * (self.dim - 1) / self.dim)

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`; ratios as if all coordinates of a vector were of one bin."""
        seen, offsets = counted(counts, cls.edge, len(cls.axes))
        units = [cls.unit * axis for axis in cls.axes]
        shape = np.concatenate([weights(unit, cls.second_moment, cls.edge) for unit in units])
        packed = np.arange(len(seen)) % NUM_BINS >= packing.first_bin
        ratios = cls._fit_ratios(*_class_sums(seen[packed]), *_class_sums(signs(shape[packed])))
        return cls.fitted(
            seen,
            offsets,
            shape,
            packing,
            parity_ratio=to_q15(ratios),
        )

    @classmethod
    def _fit_ratios(cls, even: Floats, odd: Floats, prior_even: Floats, prior_odd: Floats) -> Any:
        """Parity ratios (packed bins,) of the classes' counts and parametric masses."""
        ratio = (prior_even - prior_odd) / (prior_even + prior_odd)
        prior = np.array([parity_moment(each, cls.dim) for each in ratio])
        moment = (even - odd + PRIOR * prior) / (even + odd + PRIOR)
        return np.array([ratio_of_moment(each, cls.dim) for each in moment])


class Dn(EvenSum):
    """A family: a subclass has a `name` and a `dim` of 3 or more, and is that lattice."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        n = cls.dim
        cls.unit = 2 ** (-1 / n)
        cls.q24_units = (q24_root(1, 2, n),)
        # to four digits: they make rows that are stored, and so are the same on every machine
        cls.second_moment = round((1 / 12 + 1 / (2 * n * (n + 1))) / 4 ** (1 / n), 4)


class D4(Dn):
    """The densest packing of four dimensions."""

    name = "d4"
    dim = 4


def _class_sums(masses: Floats | Integers) -> tuple[Floats, Floats]:
    """Totals of even and of odd j, of masses over |j| (rows, edge + 1)."""
    return masses[:, 0::2].sum(1) * 1.0, masses[:, 1::2].sum(1) * 1.0

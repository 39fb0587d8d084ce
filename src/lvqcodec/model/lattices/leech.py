# SPDX-License-Identifier: Apache-2.0
"""The Leech lattice, the densest packing of 24 dimensions; its second moment is 0.06577.

    8^(-1/2) { j in Z^24 : all j = m (mod 2), their second bits a word of the Golay code,
                           their sum = 4 m (mod 8) }

(Conway and Sloane, "Soft decoding techniques for codes and lattices, including the Golay code and
the Leech lattice", 1986, doi.org/10.1109/TIT.1986.1057135). The three lowest bits of j, its residue
mod 8, are m + 2 c + 4 p: the coset m, the same for all coordinates; the bit c of a word; a parity
p, and the parities of a vector have the sum m (mod 2).

With product weights w(j), symmetric in the sign, five facts per bin of sigma tell the mass of
everything. Let E, O, H, A and B be the sums of w over j = 0, 4, 2 or 6, 1, and 3 (mod 8), scaled so
that E + O = 1.
  parity_ratio  r = E - O; where c = 1, both parities are equally likely
  word_ratio    log2 of H. In the even coset a word has the mass (product of H where c = 1) / 2, and
                the word 0, which parities skew, (1 + product of all r) / 2.
  coset_ratio   log2 of A + B
  odd_ratio     s = (A - B) / (A + B) where c = 0, of the other sign where c = 1. In the odd coset
                all words weigh the same, (product of A + B) (1 - product of s) / 2, as the weights
                of words are even: the word is twelve equally likely bits.
  five rows     the distribution of j within each class: 0, 4, +-2, +-1, +-3 (mod 8); a row holds q
                in j = 8 q + (0, 4, 2, 1, 3)[class], where a j of the other sign is coded as -j

Order in the stream: the coset bits of all vectors; the words of the even coset, bit by bit of
their digits (see `golay`); those of the odd one, each a symbol, its four digits; the parities of
all vectors, coordinate by coordinate (the last follows from the others); their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import PRIOR
from lvqcodec.coding.rows import Floats, Integers, RowTable
from lvqcodec.model.lattices import golay
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.construction_b import LOG_ONE, bisected, powers
from lvqcodec.model.lattices.parity import (
    RATIO_ONE,
    ParityLattice,
    cheapest_parities,
    known,
    signs,
    to_q15,
    weights,
)
from lvqcodec.model.lattices.tabled import counted, q24_root

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

_WORDS = RowTable(
    np.full((1, 1 << 12), 2.0**-12, np.float32),
    np.array([1 << 12], np.int32),
    np.zeros(1, np.int32),
)
"""The words of the odd coset: equally likely."""

_DIGITS = np.array([[9], [6], [3], [0]])
"""Where the digits of a word are in its number."""

_CLASS = np.array([0, 3, 2, 4, 1, 4, 2, 3])
_MIRROR = np.array([0, 0, 0, 0, 0, -1, -1, -1], np.int32)
"""Of residues; j = 8 q + residue is -j = 8 q' + 8 - residue: q' = -1 - q, which is q ^ -1."""

_LEAST_LOG = -golay.BITS * LOG_ONE
_VECTORS = 1024
"""For which costs of all residues are looked up at a time."""


@dataclass(frozen=True, eq=False)
class Leech(ParityLattice):
    """Vectors j of 24 integers.

    odd_ratio, word_ratio, coset_ratio (NUM_BINS - first_bin,) int32: see above, in Q15, Q10, Q10;
    the logarithms are at most 0.
    """

    odd_ratio: NDArray[np.int32]
    word_ratio: NDArray[np.int32]
    coset_ratio: NDArray[np.int32]

    name = "leech"
    dim = 24
    unit = 8**-0.5
    q24_units = (q24_root(1, 8, 2),)
    period = 8
    offsets = (0, 4, 2, 1, 3)
    second_moment = 0.06577

    def _fault(self) -> str | None:
        fault = super()._fault() or self._ratio_fault(self.odd_ratio, RATIO_ONE)
        for log in (self.word_ratio, self.coset_ratio):
            fault = fault or self._ratio_fault(log, 1 - _LEAST_LOG)
            if not fault and log.max() > 0:
                fault = f"logarithms up to {log.max()}, allowed is 0"
        return fault

    # --- choices ----------------------------------------------------------------------------------

    def nearest(self, x: Tensor) -> Tensor:
        """See `Lattice.nearest`."""
        return _in_parts(super().nearest, x)

    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """See `ParityLattice.choose`: exact as there, the next values 8 squared steps worse."""
        return _in_parts(super().choose, x, bins, rdo_lambda)

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`: the best coset and word, by their best parities."""
        costs = costs.view(-1, 24, 2, 2, 2).permute(2, 3, 1, 4, 0).contiguous()
        bits, coset = golay.cheapest_words(costs)
        odd_coset = coset.bool()
        costs = torch.where(odd_coset, costs[..., 1, :], costs[..., 0, :])
        even, odd = torch.where(bits.bool(), costs[:, 1], costs[:, 0])
        # an odd sum is made an even one: of the first coordinate the parities change places
        even[0], odd[0] = (
            torch.where(odd_coset, odd[0], even[0]),
            torch.where(odd_coset, even[0], odd[0]),
        )
        parity = cheapest_parities(even, odd)[0]
        parity[0] ^= coset
        return (4 * parity + 2 * bits + coset).T

    # --- symbols ----------------------------------------------------------------------------------

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        index = bins.cpu().numpy().T.astype(np.int64) - self.first_bin
        even = golay.total_mass(np.exp2(self.word_ratio / LOG_ONE)[index])
        even += (self.parity_ratio / RATIO_ONE)[index].prod(0)
        odd = np.exp2(12 + (self.coset_ratio / LOG_ONE)[index].sum(0))
        odd *= 1 - (self.odd_ratio / RATIO_ONE)[index].prod(0)
        return super().bits(j, bins) + float(np.log2((even + odd) / 2).sum())

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j, index = np.ascontiguousarray(j.T), self._index(bins)
        residue = (j & 7).astype(np.uint8)
        coset = residue[0] & 1
        digits = golay.to_digits(residue >> 1 & 1)
        if digits is None or ((residue & 1) != coset).any():
            raise ValueError(f"vectors that are no points of {self.name}")
        masses, extra, rows = self._masses(index)
        encoder.encode_bits(coset, rows, self.bernoulli)
        even, odd = np.flatnonzero(coset == 0), np.flatnonzero(coset)

        bits = iter((digits[:, None, even] >> _BITS & 1).reshape(12, -1))

        def write_bit(rows: Integers) -> Any:
            bit = next(bits)
            encoder.encode_bits(bit, rows, self.bernoulli)
            return bit

        masses.word(extra[even], even, write_bit)
        numbers = (digits[:, odd] << _DIGITS).sum(0)
        encoder.encode(numbers, np.zeros_like(numbers), _WORDS)
        ratio, products = self._skews(index, coset, residue >> 1 & 1)
        self._write_parities(residue >> 2, ratio, products, encoder, coset)
        q = (j >> 3) ^ _MIRROR.take(residue)
        encoder.encode_integers(q.ravel(), (5 * index + _CLASS.take(residue)).ravel(), self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        index = self._index(bins)
        masses, extra, rows = self._masses(index)
        coset = decoder.decode_bits(rows, self.bernoulli)
        even, odd = np.flatnonzero(coset == 0), np.flatnonzero(coset)
        digits = np.empty((4, len(coset)), np.int64)
        digits[:, even] = masses.word(
            extra[even], even, lambda rows: decoder.decode_bits(rows, self.bernoulli)
        )
        numbers = decoder.decode(np.zeros_like(odd), _WORDS)
        digits[:, odd] = numbers >> _DIGITS & 7  # of -1, a word that is not there, too
        word = golay.to_bits(digits)
        parity = self._read_parities(*self._skews(index, coset, word), decoder, coset)
        residue = 4 * parity + 2 * word + coset
        q = self._read_values(5 * index + _CLASS.take(residue), decoder)
        return known(8 * (q ^ _MIRROR.take(residue)) + residue, decoder)

    def _masses(self, index: Integers) -> tuple[golay.Masses, Any, Any]:
        """Masses of words in the even coset, what the word 0 has beyond, rows of the odd coset.

        Masses of both cosets are Q42 and below 2^57.
        """
        masses = golay.Masses.of(self._word_masses.take(index))
        extra = self._products(self.parity_ratio.take(index))[0].astype(np.int64) << 27
        product = np.full(index.shape[1], 1 << 40)
        for mass in self._coset_masses.take(index):
            product = product * mass >> golay.BITS
        skew = self._products(self.odd_ratio.take(index))[0].astype(np.int64)
        odd = (product >> 10) * (RATIO_ONE - skew) << 9
        return masses, extra, golay.row_of_one(odd, masses.totals.sum(0) + extra + odd)

    def _skews(self, index: Integers, coset: Any, word: Any) -> tuple[Any, Any]:
        """Parity ratios (24, V), given cosets (V,) and words (24, V), and their products."""
        odd = self.odd_ratio.take(index) * (1 - 2 * word.astype(np.int32))
        ratio = np.where(coset, odd, self.parity_ratio.take(index) * (word == 0))
        return ratio, self._products(ratio)

    @cached_property
    def _word_masses(self) -> NDArray[np.int32]:
        return powers(self.word_ratio.tolist(), LOG_ONE, golay.BITS).astype(np.int32)

    @cached_property
    def _coset_masses(self) -> NDArray[np.int64]:
        return powers(self.coset_ratio.tolist(), LOG_ONE, golay.BITS)

    # --- fitting ----------------------------------------------------------------------------------

    @property
    def class_masses(self) -> Floats:
        """See `ParityLattice.class_masses`; all j = 0 (mod 4) sum to 1."""
        parity, odd = self.parity_ratio / RATIO_ONE, self.odd_ratio / RATIO_ONE
        word, coset = np.exp2(self.word_ratio / LOG_ONE), np.exp2(self.coset_ratio / LOG_ONE)
        both = 1 + parity, 1 - parity, word, coset * (1 + odd), coset * (1 - odd)
        return np.stack(both) / 2

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`: a vector has a bit of coset, twelve of word, 23 of parity."""
        return float(self.rows.least_bits.min() + self.bernoulli.least_bits.min() * 36 / 24)

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`.

        What was counted are shares of coordinates in whole vectors, which word and sum couple; they
        are inverted as if all coordinates of a vector were of one bin.
        """
        (seen, offsets), first = counted(counts, cls.edge), packing.first_bin
        shape = weights(cls.unit, cls.second_moment, cls.edge)
        zero, four, two, one, three = _class_sums(signs(shape[first:]))
        prior = _shares(
            (zero - four) / (zero + four),
            (one - three) / (one + three),
            np.log2(two / (zero + four)),
            np.log2((one + three) / (zero + four) / 2),
        )
        parity, odd, word, coset = _ratios(_class_sums(seen[first:]) + PRIOR * prior)
        return cls.fitted(
            seen,
            offsets,
            shape,
            packing,
            parity_ratio=to_q15(parity),
            odd_ratio=to_q15(odd),
            word_ratio=_to_logs(word),
            coset_ratio=_to_logs(coset),
        )


_BITS = np.array([[2], [1], [0]])
"""Of a digit, in the order of coding."""

_WEIGHTS = np.array([0, 8, 12, 16, 24])[:, None]
_TIMES = np.array([1, 759, 2576, 759, 1])[:, None]
"""How many words have the weight."""


def _in_parts(choose: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """What `choose` gives, some vectors after the other: the costs of residues take memory."""
    if not len(values[0]):
        return values[0].int()
    parts = zip(*(torch.split(value, _VECTORS) for value in values), strict=True)
    return torch.cat([choose(*part) for part in parts])


def _to_logs(logs: Floats) -> NDArray[np.int32]:
    """Logarithms as they are stored."""
    return np.clip(np.rint(logs * LOG_ONE), _LEAST_LOG, 0).astype(np.int32)


def _class_sums(masses: Floats | Integers) -> NDArray[np.float64]:
    """Totals (5, bins) of each class, of masses (bins, |j|)."""
    classes = _CLASS[np.arange(masses.shape[1]) % 8]
    return np.array([masses[:, classes == kind].sum(1) for kind in range(5)], np.float64)


def _sums(word: Floats) -> tuple[Floats, Floats]:
    """Sums over words of (mass * share of zeros, mass * share of ones), without parities."""
    masses = _TIMES * np.exp2(_WEIGHTS * word)
    ones = (_WEIGHTS / 24 * masses).sum(0)
    return masses.sum(0) - ones, ones


def _shares(parity: Floats, odd: Floats, word: Floats, coset: Floats) -> NDArray[np.float64]:
    """Shares (5, bins) of the classes among coordinates of vectors that have these ratios (bins,).

    The moment of a zero in the even coset, E - O, is r, or for the word 0, r + r^23; that of the
    odd coset, A - B, is s - s^23.
    """
    zeros, ones = _sums(word)
    moment = zeros * parity + parity**23
    zeros = zeros + parity**24
    mass = np.exp2(12 + 24 * coset)
    odds, skew = mass * (1 - odd**24), mass * (odd - odd**23)
    shares = np.stack((zeros + moment, zeros - moment, 2 * ones, odds + skew, odds - skew))
    return np.asarray(shares / shares.sum(0), np.float64)


def _ratios(counts: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The parity, odd, word and coset ratios (bins,) with the `_shares` of counts (5, bins)."""
    zero, four, two, one, three = counts
    moment, skew = (zero - four) / (zero + four), (one - three) / (one + three)
    least = np.full_like(moment, -1)

    def parity_of(zeros: Floats) -> Floats:
        return bisected(least, 2.0, lambda r: zeros * r + r**23 > moment * (zeros + r**24))

    def too_large(word: Floats) -> Any:
        zeros, ones = _sums(word)
        return ones * (zero + four) > two * (zeros + parity_of(zeros) ** 24)

    word = bisected(least * golay.BITS, golay.BITS + 1.0, too_large)
    zeros, ones = _sums(word)
    parity = parity_of(zeros)
    odd = bisected(least, 2.0, lambda s: s - s**23 > skew * (1 - s**24))
    mass = (one + three) / (zero + four + two) * (zeros + ones + parity**24) / (1 - odd**24)
    return parity, odd, word, (np.log2(mass) - 12) / 24

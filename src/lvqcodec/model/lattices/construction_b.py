# SPDX-License-Identifier: Apache-2.0
"""Construction B: integer vectors that are words of a binary code mod 2, with a sum of 0 mod 4.

Conway and Sloane, "Sphere Packings, Lattices and Groups", 3rd edition, 1999, chapter 5, section 3.
All weights of the codes here are multiples of 4. So a vector j of integers is a point where
j mod 2 is a word and the sum of m = floor(j / 2) is even.

With product weights w(j), symmetric in the sign, the mass of all points of a word is a product over
coordinates; three facts per bin of sigma say all about it:
  parity_ratio  r = (E - O) / (E + O), E and O the sums of w over j = 0 and j = 2 (mod 4)
  coset_ratio   log2 of h = (sum of w over odd j) / (sum of w over even j)
  three rows    the distribution of j within each class: 0 (mod 4), 2 (mod 4), odd
The odd j need one row and no ratio: the signs are equally likely, and j = 1 and j = 3 (mod 4)
are each other's mirror images. So a row holds q in j = 4 q + (0, 2, 1)[class], where an odd j
that is 3 (mod 4) is coded as -j. Where all even j of a coordinate weigh 1 together,
  the word 0 has the mass (1 + product of all r) / 2,
  any other word the product of the h of its ones / 2: the ratio of an odd coordinate is 0.

Order in the stream: the bits of the word's number, the first of all vectors, then the second, each
by the masses of the words that are left; the parities of m, coordinate by coordinate (the last
follows from the others); the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import PRIOR
from lvqcodec.coding.rows import BERNOULLI_ROWS, Floats, Integers
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.parity import (
    RATIO_ONE,
    ParityLattice,
    cheapest_parities,
    known,
    signs,
    to_q15,
    weights,
)
from lvqcodec.model.lattices.tabled import counted

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

LOG_ONE = 1 << 10
"""Coset ratios are Q10."""


@dataclass(frozen=True, eq=False)
class ConstructionB(ParityLattice):
    """The lattice of a Reed-Muller code of length `dim`, scaled by `unit` to volume 1.

    coset_ratio (NUM_BINS - first_bin,) int32: see above, in Q10.
    """

    coset_ratio: NDArray[np.int32]

    order: ClassVar[int]
    """Of the code, 0 or 1: see `reed_muller`."""

    period = 4
    offsets = (0, 2, 1)

    def _fault(self) -> str | None:
        return super()._fault() or self._ratio_fault(self.coset_ratio, 1 << 20)

    # --- choices ----------------------------------------------------------------------------------

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`: the best of all words, each by its best parities."""
        costs = costs.permute(1, 2, 0).contiguous()
        even, odd = costs[:, :2], costs[:, 2:]
        words = torch.from_numpy(_words(self.order, self.dim)).to(costs.device)
        best = self._totals(even, odd).min(0).indices  # much quicker than argmin
        word = words.T.index_select(1, best)
        of_word = [torch.where(word, each[:, 1], each[:, 0]) for each in (even, odd)]
        return (2 * cheapest_parities(*of_word)[0] + word).T.contiguous()

    def _totals(self, even: Tensor, odd: Tensor) -> Any:
        """Least costs (words, V), of costs (dim, 2, V) of the parities where a word is 0 or 1."""
        total = self._fold(torch.minimum(even, odd), torch.add, torch)
        wrong = self._fold(odd < even, torch.logical_xor, torch)
        loss = self._fold((odd - even).abs_(), torch.minimum, torch)
        return total.add_(loss.mul_(wrong))

    def _fold(self, values: Any, fold: Callable[[Any, Any], Any], library: Any) -> Any:
        """Fold values (dim, 2, V) over the coordinates of every word, which picks from the 2.

        The result is (words, V). Words of twice the length are (u, u) and, if the order is 1,
        (u, not u) for all words u: what their halves come to is found once.
        """
        values = values[:, :, None]
        while len(values) > 1:
            left, right = values[::2], values[1::2]
            values = fold(left, right)
            if self.order:
                other = fold(left, library.flip(right, (1,)))
                values = library.concatenate((values, other), 2)
        return values.reshape(2 * values.shape[2], values.shape[3])

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        index = (bins.long() - self.first_bin).cpu()
        parity = torch.from_numpy(self.parity_ratio / RATIO_ONE)[index]
        coset = torch.from_numpy(self.coset_ratio / LOG_ONE)[index]
        words = torch.from_numpy(_words(self.order, self.dim)).double()
        mass = (parity.prod(-1) + (coset @ words.T).exp2().sum(-1)) / 2
        return super().bits(j, bins) + float(mass.log2().sum())

    # --- symbols ----------------------------------------------------------------------------------

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j, index = np.ascontiguousarray(j.T), self._index(bins)
        residue = (j & 3).astype(np.uint8)
        word, parity = residue & 1, residue >> 1
        number = self._number(word)
        ratio, sums = self._sums(index)
        self._write_number(number, sums, encoder)
        ratio *= 1 - word
        self._write_parities(parity, ratio, self._products(ratio), encoder)
        q = (j >> 2) ^ _mirror(residue)
        encoder.encode_integers(q.ravel(), _value_rows(index, residue).ravel(), self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        index = self._index(bins)
        ratio, sums = self._sums(index)
        word = reed_muller(self.order, self.dim, self._read_number(sums, decoder))
        ratio *= 1 - word
        residue = 2 * self._read_parities(ratio, self._products(ratio), decoder) + word
        q = self._read_values(_value_rows(index, residue), decoder) ^ _mirror(residue)
        return known(4 * q + residue, decoder)

    def _number(self, word: Integers) -> Any:
        """Numbers (V,) of words (dim, V); ValueError for vectors that are none."""
        number = word[0]
        if self.order:
            for digit in reversed(range(self.dim.bit_length() - 1)):
                number = 2 * number + (word[1 << digit] ^ word[0])
        if (word != reed_muller(self.order, self.dim, number)).any():
            raise ValueError(f"vectors that are no points of {self.name}")
        return number

    def _sums(self, index: Integers) -> tuple[NDArray[np.int32], list[NDArray[np.uint64]]]:
        """Parity ratios (dim, V), and sums of the masses of the words that share a beginning.

        Sum i (2^i, V) is over all words whose numbers have the same first i bits.
        """
        ratio, coset = self.parity_ratio.take(index), self.coset_ratio.take(index)
        logs = self._fold(np.stack((np.zeros_like(coset), coset), 1), np.add, np)
        power = logs // (LOG_ONE // _POWERS_PER_OCTAVE) + _POWER_RANGE
        masses = _POWERS.take(power, mode="clip")
        masses[0] = (RATIO_ONE + self._products(ratio)[0]).astype(np.uint64) << 15
        sums = [masses]
        while len(sums[0]) > 1:
            sums.insert(0, sums[0][::2] + sums[0][1::2])
        return ratio, sums

    def _write_number(
        self, number: Integers, sums: list[NDArray[np.uint64]], encoder: SymbolEncoder
    ) -> None:
        """Code the numbers of words (V,), bit by bit from the largest."""
        shifts = range(len(sums) - 2, -1, -1)
        bits = [number >> n & 1 for n in shifts]
        rows = [_rows_of_bit(sums[-n - 2], sums[-n - 1], number >> n + 1) for n in shifts]
        encoder.encode_bits(np.concatenate(bits), np.concatenate(rows), self.bernoulli)

    def _read_number(self, sums: list[NDArray[np.uint64]], decoder: SymbolDecoder) -> Any:
        """Mirror of _write_number."""
        number = np.zeros(sums[0].shape[1], np.uint8)
        for total, parts in pairwise(sums):
            rows = _rows_of_bit(total, parts, number)
            number = 2 * number + decoder.decode_bits(rows, self.bernoulli).astype(np.uint8)
        return number

    # --- fitting ----------------------------------------------------------------------------------

    @property
    def class_masses(self) -> Floats:
        """See `ParityLattice.class_masses`; all even j sum to 1."""
        ratio = self.parity_ratio / RATIO_ONE
        return np.stack(((1 + ratio) / 2, (1 - ratio) / 2, 2.0 ** (self.coset_ratio / LOG_ONE) / 2))

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`: a vector has the bits of its word and all parities but one."""
        bits = len(_words(self.order, self.dim)).bit_length() - 1 + self.dim - 1
        bit = self.bernoulli.least_bits.min()
        return float(self.rows.least_bits.min() + bit * bits / self.dim)

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`.

        What was counted are shares of coordinates in whole vectors, which code and sum couple; they
        are inverted as if all coordinates of a vector were of one bin.
        """
        (seen, offsets), first = counted(counts, cls.edge), packing.first_bin
        shape = weights(cls.unit, cls.second_moment, cls.edge)
        even, odd, half = _class_sums(signs(shape[first:]))
        prior = cls._shares((even - odd) / (even + odd), np.log2(half / (even + odd)))
        parity, coset = cls._ratios_of(_class_sums(seen[first:]) + PRIOR * prior)
        return cls.fitted(
            seen,
            offsets,
            shape,
            packing,
            parity_ratio=to_q15(parity),
            coset_ratio=np.rint(coset * LOG_ONE).astype(np.int32),
        )

    @classmethod
    def _halves(cls, coset: Floats) -> tuple[Floats, Floats]:
        """Sums over words of (mass * share of zeros, mass * share of ones), without parities."""
        ones, times = np.unique(_words(cls.order, cls.dim).sum(1), return_counts=True)
        masses = times[:, None] * 2.0 ** (ones[:, None] * coset)
        odd = ones @ masses / cls.dim
        return masses.sum(0) - odd, odd

    @classmethod
    def _shares(cls, ratio: Floats, coset: Floats) -> NDArray[np.float64]:
        """Shares (3, bins) of the classes among coordinates that have these ratios (bins,).

        An even coordinate has the moment E - O = r; of the word 0, r + r^(dim - 1).
        """
        even, odd = cls._halves(coset)
        moment = even * ratio + ratio ** (cls.dim - 1)
        even = even + ratio**cls.dim
        shares: NDArray[np.float64] = np.stack(((even + moment) / 2, (even - moment) / 2, odd))
        return shares / (even + odd)

    @classmethod
    def _ratios_of(cls, counts: Floats) -> tuple[Floats, Floats]:
        """The parity and coset ratios (bins,) of which counts (3, bins) are the `_shares`."""
        moment = (counts[0] - counts[1]) / (counts[0] + counts[1])
        odds = counts[2] / (counts[0] + counts[1])

        def parity(even: Floats) -> Floats:
            def too_large(ratio: Floats) -> Any:
                power = ratio ** (cls.dim - 1)
                return even * ratio + power > moment * (even + ratio * power)

            return bisected(np.full_like(moment, -1), 2.0, too_large)

        def too_large(coset: Floats) -> Any:
            even, odd = cls._halves(coset)
            return odd > odds * (even + parity(even) ** cls.dim)

        coset = bisected(np.full_like(moment, -_COSET_RANGE), 2 * _COSET_RANGE, too_large)
        return parity(cls._halves(coset)[0]), coset


def reed_muller(order: int, length: int, number: Integers) -> Any:
    """Words (length, V) of the Reed-Muller code of this order, 0 or 1, by their numbers (V,).

    A bit is repeated (order 0) or an affine function of the digits of the coordinate's own number,
    of which there are a power of two (order 1): (u, u) and (u, not u) are the words of twice the
    length (Muller 1954, doi.org/10.1109/IREPGELC.1954.6499441). The first bit of a word's number is
    its first coordinate; the others tell which digits change it, the largest first.
    """
    digits = length.bit_length() - 1
    word = number[None] >> order * digits
    for digit in range(digits):
        change = number >> digit & 1 if order else 0
        word = np.concatenate((word, word ^ change))
    return word


@cache
def _words(order: int, length: int) -> NDArray[np.bool_]:
    """All words (2^k, length) by number."""
    numbers = np.arange(2 * length if order else 2)
    return np.ascontiguousarray(reed_muller(order, length, numbers).T, np.bool_)


# --- powers of two --------------------------------------------------------------------------------

_POWERS_PER_OCTAVE = 32
_POWER_RANGE = 12 * _POWERS_PER_OCTAVE


def powers(exponents: Iterable[int], octave: int, bits: int) -> NDArray[np.int64]:
    """2^(bits + exponent / octave), rounded down, by integers alone: square roots of square roots.

    octave: a power of two.
    """
    roots = [1 << (bits * octave + exponent) for exponent in exponents]
    for _ in range(octave.bit_length() - 1):
        roots = [math.isqrt(root) for root in roots]
    return np.array(roots, np.int64)


_POWERS = powers(range(-_POWER_RANGE, _POWER_RANGE + 1), _POWERS_PER_OCTAVE, 30).view(np.uint64)


# --- residues mod 4 and bits of numbers -----------------------------------------------------------


def _value_rows(index: Integers, residue: Integers) -> Any:
    """Rows of the values: classes 0, 2, 1, 2 of the residues 0 to 3."""
    return 3 * index + ((residue & 1) << 1 | (residue == 2))


def _mirror(residue: Integers) -> Any:
    """-1 for the residue 3, else 0.

    j = 4 q + residue, and -j = 4 q' + 1 where the residue is 3: q' = -1 - q, which is q ^ -1.
    """
    return -(residue == 3).astype(np.int32)


def _rows_of_bit(totals: Integers, parts: Integers, number: Integers) -> Any:
    """Rows of the next bit of numbers (V,), given their first bits: shares of sums of masses."""
    place = number.astype(np.intp) * len(number) + np.arange(len(number))
    ones, total = (sums.ravel().take(place) for sums in (parts[1::2], totals))
    return (ones * BERNOULLI_ROWS // total).astype(np.int32)


# --- inversion of moments -------------------------------------------------------------------------

_BISECTIONS = 30
_COSET_RANGE = 16.0
"""Coset ratios are within 2^-16 and 2^16."""


def _class_sums(masses: Floats | Integers) -> NDArray[np.float64]:
    """Totals (3, bins) of j = 0 (mod 4), j = 2 (mod 4) and odd j, of masses (bins, |j|)."""
    sums = [masses[:, start::step].sum(1) for start, step in ((0, 4), (2, 4), (1, 2))]
    return np.array(sums, np.float64)


def bisected(value: Floats, width: float, too_large: Callable[[Floats], Any]) -> Floats:
    """Where `too_large`, false at first, becomes true within `width` of each value."""
    for _ in range(_BISECTIONS):
        width /= 2
        value = value + np.where(too_large(value + width), 0.0, width)
    return value

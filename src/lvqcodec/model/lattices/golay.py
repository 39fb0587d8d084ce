# SPDX-License-Identifier: Apache-2.0
"""The Golay code, and what a lattice needs of it: the masses of its words, and the cheapest one.

Its 4,096 words of 24 bits are those of Turyn: (a + x, b + x, a + b + x), a and b in the extended
Hamming code H of 8 bits, x in its mirror image, which shares with H the words 0 and 1 alone
(MacWilliams and Sloane, "The Theory of Error-Correcting Codes", 1977, chapter 18, theorem 12).
Any of its three octets is one of the 128 words of an even weight. Of an octet that is told by
(a, x) both words of a pair, one the complement of the other, may stand in any place. So 64 pairs
and a choice within each are a trellis of 64 states (Forney, "Coset codes II", 1988,
doi.org/10.1109/18.21246), and sums and minima over all words run over 8 x 8 x 8 triples of pairs:

    sum over x, a, b of P0[a, x] P1[b, x] P2[a ^ b, x]

which over a and b is a convolution of the group of three bits. A word is four digits of three
bits: x, a, b and, bit by bit from the highest, which word of its pair each octet is.

Octets are bytes, coordinate i of an octet its bit i; halves of octets are 4 bits likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.rows import BERNOULLI_ROWS, Floats, Integers

BITS = 14
"""Masses of coordinates are Q14, at most 1; masses of words, products of three, Q42."""

_CHUNK = 512
"""Vectors whose masses fit a cache."""

_FEW = 256
"""Vectors whose sums of costs do."""

_FIRST = np.array([[0, 3, 5, 6], [1, 2, 4, 7]])
_HALVES = np.stack((_FIRST, 15 - _FIRST))
"""Halves of octets (2 of a pair of complements, 2 parities, 4): two of one parity are an octet."""


def _spanned(basis: list[int]) -> NDArray[np.int64]:
    """All sums of three bytes, the first the highest digit."""
    first, second, third = basis
    return np.array([a ^ b ^ c for a in (0, first) for b in (0, second) for c in (0, third)])


_HAMMING = [0b10001011, 0b10010110, 0b10101100]  # shifts of 1 + x + x^3 and a bit of parity
_MIRRORED = [int(f"{word & 127:07b}"[::-1], 2) | word & 128 for word in _HAMMING]

OCTETS = _spanned(_HAMMING)[:, None, None] ^ _spanned(_MIRRORED)[:, None] ^ np.array([0, 255])
"""Octets (8 of a, 8 of x, 2 of a pair)."""

_DIGITS = np.full(256, -1)
_DIGITS[OCTETS.ravel()] = np.arange(128)

_differ, _parity, _left, _right, _which = np.ogrid[:2, :2, :4, :4, :2]
_FROM_HALVES = (
    _HALVES[_which, _parity, _left] | _HALVES[_which ^ _differ, _parity, _right] << 4
).reshape(64, 2)
"""Octets (64 pairs, 2) in natural order: of halves alike or not, of a parity, left, right."""

_PLACES = np.empty(256, np.int64)
_PLACES[_FROM_HALVES] = np.arange(64)[:, None]
_PAIRS = _PLACES[OCTETS[..., 0]]
"""Places (8 of a, 8 of x) of pairs in natural order."""


def to_digits(bits: Integers) -> NDArray[np.int64] | None:
    """Digits (4, V) of words (24, V), None where one is no word."""
    octets = np.packbits(bits.astype(np.uint8).reshape(3, 8, -1), axis=1, bitorder="little")[:, 0]
    found = _DIGITS[octets]
    (a, b, c), x, which = found >> 4, found >> 1 & 7, found & 1
    if (found < 0).any() or (x != x[0]).any() or (a ^ b != c).any():
        return None
    return np.stack((x[0], a, b, which[0] << 2 | which[1] << 1 | which[2]))


def to_bits(digits: Integers) -> NDArray[np.uint8]:
    """Words (24, V) of digits (4, V)."""
    x, a, b, which = digits
    octets = OCTETS[np.stack((a, b, a ^ b)), x, which >> _WHICH & 1].astype(np.uint8)
    return np.unpackbits(octets[:, None], axis=1, bitorder="little").reshape(24, -1)


_WHICH = np.array([[2], [1], [0]])


# --- masses ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masses:
    """Products of masses of coordinates where a word is 1, all integers.

    halves (6, 16, V) and pairs (3, 8 of a, 8 of x, V): Q14; totals (8 of x, V): of words, Q42.
    Nothing overflows: pairs are at most 2^15, their transforms 2^18, sums of products 2^57.
    """

    halves: NDArray[np.int32]
    pairs: NDArray[np.int32]
    totals: NDArray[np.int64]

    @classmethod
    def of(cls, ones: NDArray[np.int32]) -> Masses:
        """Those of masses (24, V) of coordinates that are 1, Q14, where 0 has the mass 1."""
        count = ones.shape[1]
        halves = np.empty((6, 16, count), np.int32)
        pairs = np.empty((3, 8, 8, count), np.int32)
        totals = np.empty((8, count), np.int64)
        for start in range(0, count, _CHUNK):
            at = np.s_[..., start : start + _CHUNK]
            halves[at] = _half_masses(ones[at], BITS)
            pairs[at] = _pair_masses(halves[at], BITS)
            totals[at] = _totals(pairs[at], np.int64) >> 3
        return cls(halves, pairs, totals)

    def word(self, extra: Integers, at: Integers, bit: Callable[[Any], Any]) -> NDArray[np.int64]:
        """Digits (4, V) of words, each bit of which is what `bit` says to its row number (V,).

        at (V,): which of the vectors; extra (V,): what the word 0 has beyond its product, Q42.
        """
        x = _digit(self.totals[:, at], extra, bit)
        places = x * self.totals.shape[1] + at
        one, two, three = self.pairs.reshape(3, 8, -1).take(places, axis=2).astype(np.int64)
        extra = extra * (x == 0)
        both = _transform(_transform(two) * _transform(three)) >> 3
        a = _digit(one * both, extra, bit)
        extra = extra * (a == 0)
        each = np.arange(len(at))
        b = _digit(one[a, each] * two * three[np.arange(8)[:, None] ^ a, each], extra, bit)
        octets = OCTETS[np.stack((a, b, a ^ b)), x].transpose(2, 0, 1)
        halves, octad = self.halves.reshape(3, 2, 16, -1), np.arange(3)[:, None]
        left, right = halves[octad, 0, octets & 15, at], halves[octad, 1, octets >> 4, at]
        first, second, third = (left * right >> BITS).astype(np.int64).swapaxes(0, 1)
        products = (first[:, None, None] * second[:, None] * third).reshape(8, len(at))
        return np.stack((x, a, b, _digit(products, extra * (b == 0), bit)))


def row_of_one(ones: Integers, total: Integers) -> Any:
    """Rows of a bit that is 1 with the mass `ones` out of a total, which may be 0."""
    return ones // (total // BERNOULLI_ROWS + 1)


def _digit(masses: NDArray[np.int64], extra: Integers, bit: Callable[[Any], Any]) -> Any:
    """Digits (V,) of masses (8, V), of which 0 has some extra (V,); bits from the highest."""
    masses[0] += extra
    digit: Any = 0
    while len(masses) > 1:
        low, high = np.split(masses, 2)
        ones = high.sum(0)
        one = bit(row_of_one(ones, low.sum(0) + ones))
        masses, digit = np.where(one, high, low), 2 * digit + one
    return digit


def total_mass(ones: Floats) -> Floats:
    """Sum over all words of the products of masses (24, V) where they are 1: (V,) float64."""
    sums = np.empty(ones.shape[1])
    for start in range(0, len(sums), _CHUNK):
        at = np.s_[..., start : start + _CHUNK]
        pairs = _pair_masses(_half_masses(ones[at].astype(np.float64), 0), 0)
        sums[at] = _totals(pairs, np.float64).sum(0) / 8
    return sums


def _half_masses(ones: NDArray[Any], bits: int) -> NDArray[Any]:
    """Masses (6, 16, V) of halves of octets, from masses (24, V); of `bits`, or floats for 0."""
    ones = ones.reshape(6, 4, -1)
    masses = np.empty((6, 16, ones.shape[2]), ones.dtype)
    masses[:, 0] = 1 << bits
    for i in range(4):
        masses[:, 1 << i : 2 << i] = _down(masses[:, : 1 << i] * ones[:, i, None], bits)
    return masses


def _pair_masses(halves: NDArray[Any], bits: int) -> NDArray[Any]:
    """Masses (3, 8, 8, V) of pairs, from those of halves."""
    left, right = halves[0::2, _HALVES], halves[1::2, _HALVES]  # (3, 2, 2 parities, 4, V)
    left, right = left[..., None, :], right[..., None, :, :]
    sums = left[:, :1] * right
    sums += left[:, 1:] * right[:, ::-1]
    return np.asarray(_down(sums, bits).reshape(3, 64, -1)[:, _PAIRS])


def _totals(pairs: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Eight times the masses of all words of each x (8, V)."""
    first, second, third = _transform(pairs.swapaxes(0, 1)).swapaxes(0, 1)
    products = np.multiply(first, second, dtype=dtype)
    products *= third
    return np.asarray(products.sum(0))


def _transform(values: NDArray[Any]) -> NDArray[Any]:
    """Walsh-Hadamard transform over the first axis, of 8: products of it are convolutions."""
    for size in (4, 2, 1):
        shaped = values.reshape(4 // size, 2, size, *values.shape[1:])
        out = np.empty_like(shaped)
        np.add(shaped[:, 0], shaped[:, 1], out=out[:, 0])
        np.subtract(shaped[:, 0], shaped[:, 1], out=out[:, 1])
        values = out.reshape(values.shape)
    return values


def _down(values: NDArray[Any], bits: int) -> NDArray[Any]:
    return values >> bits if bits else values


# --- choices --------------------------------------------------------------------------------------


def cheapest_words(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Bits (24, V) of the cheapest word, and which of two codes it is best in (V,), both int64.

    costs (2 parities, 2 bits, 24, 2 codes, V): of each coordinate, by a parity and the bit of the
    word; the sum of parities is even in the first code and odd in the second. Exact.
    """
    scratch = costs.new_empty(16 * 16 * 8 * 2 * min(costs.shape[-1], _FEW))
    parts = [_cheapest(part, scratch) for part in torch.split(costs, _FEW, -1)]
    octets, code = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    bits = octets[:, None] >> torch.arange(8, device=costs.device)[:, None] & 1
    return bits.flatten(0, 1), code


def _cheapest(costs: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a few, the word as octets (3, V).

    In sums over two parts the first axis of each is a group of bits, (parity of the sum, which of
    a pair) or (parity, a): that of the whole is their exclusive or. N = 2 V is (code, vector).
    """
    count, device = costs.shape[-1], costs.device
    costs = costs.flatten(-2)
    costs = _xor_min(costs[:, :, None, 1::2], costs[:, None, :, 0::2], scratch).flatten(1, 2)
    costs = _xor_min(costs[:, :, None, 1::2], costs[:, None, :, 0::2], scratch).flatten(1, 2)
    halves = costs.index_select(1, _HALVES_IN_ORDER.to(device)).view(4, 2, 4, 3, 2, -1)
    left, right = halves.unbind(-2)  # (4, 2 parities, 4, 3, N)
    pairs = _xor_min(left[:, :, :, None], right[:, :, None], scratch).view(384, -1)
    pairs = pairs.index_select(0, _PAIRS_IN_ORDER.to(device)).view(3, 16, 8, -1)

    sums = _xor_min(pairs[0], pairs[1], scratch)
    sums[..., :count] += pairs[2, ..., :count]
    sums[:8, :, count:] += pairs[2, 8:, :, count:]
    sums[8:, :, count:] += pairs[2, :8, :, count:]
    least = sums.amin(0)
    total = least.amin(0)
    code = (total[count:] < total[:count]).long()

    at = code * count + torch.arange(count, device=device)
    x = least.index_select(1, at).min(0).indices
    size, at_x = 8 * 2 * count, 2 * count * x + at
    group = torch.arange(16, device=device)[:, None]
    cells = size * group + at_x
    both = sums.take(cells).min(0).indices
    one = pairs[0].take(cells).add_(pairs[1].take(size * (group ^ both) + at_x)).min(0).indices
    chosen = torch.stack((one, one ^ both, both ^ code << 3))
    pair = torch.from_numpy(_PAIRS).to(device).take(8 * (chosen & 7) + x)
    return _cheapest_octets(halves, pair, chosen >> 3, at), code


def _cheapest_octets(halves: Tensor, pair: Tensor, parity: Tensor, at: Tensor) -> Tensor:
    """Octets (3, V) of pairs (3, V) in natural order and parities of sums (3, V), of vectors at."""
    octad = torch.arange(0, 6, 2, device=pair.device)[:, None]
    group = torch.arange(4, device=pair.device)[:, None, None]
    size = halves.shape[-1]
    left = (6 * (pair >> 2 & 7) + octad) * size + at
    right = (6 * (pair >> 2 & 4) + 6 * (pair & 3) + octad + 1) * size + at
    other = group ^ 2 * parity + (pair >> 5)
    costs = halves.take(48 * size * group + left).add_(halves.take(48 * size * other + right))
    first = costs.min(0).indices & 1
    return torch.from_numpy(_FROM_HALVES).to(pair.device).take(2 * pair + first)


def _xor_min(one: Tensor, two: Tensor, scratch: Tensor) -> Tensor:
    """Least of one[i] + two[i ^ k] for each k: (S, ..., N) of two such, S = 2^s."""
    size = len(one)
    group = torch.arange(size, device=one.device)
    order = (group[:, None] ^ group).flatten()
    shape = size, size, *np.broadcast_shapes(one.shape[1:], two.shape[1:])
    sums = scratch[: math.prod(shape)].view(shape)
    if shape[2:] == two.shape[1:]:
        torch.index_select(two, 0, order, out=sums.view(-1, *shape[2:]))
        sums += one[:, None]
    else:
        others = two.index_select(0, order).view(size, size, *two.shape[1:])
        torch.add(one[:, None], others, out=sums)
    return torch.minimum(sums[0], sums[1]) if size == 2 else sums.amin(0)  # of two much quicker


_HALVES_IN_ORDER = torch.from_numpy(_HALVES.ravel())
_PAIRS_IN_ORDER = torch.from_numpy(
    (_PAIRS + 64 * np.arange(2)[:, None, None]) * 3 + np.arange(3)[:, None, None, None]
).flatten()

# SPDX-License-Identifier: Apache-2.0
"""A trellis-coded quantizer of eight states: a lattice of as many dimensions as a chain is long.

Trellis-coded quantization (Marcellin and Fischer 1990, doi.org/10.1109/26.46532), entropy-coded
(Fischer and Wang 1992, doi.org/10.1109/18.108266) by two unions of points that both hold zero, as
in the dependent quantization of VVC (Schwarz et al. 2019, doi.org/10.1109/DCC.2019.00022). In half
steps j, the points of union 0 are the even j = 2 k and those of union 1 the odd
j = 2 k - sign(k) and zero. A union alone is a scalar quantizer with a step of 1. Which union a
latent has is told by the parities of k before it:

    u[t + 2] = u[t + 1] + u[t - 1] + parity[t]   (mod 2),   u = 0 up to u[1].

So eight states (u[t - 1], u[t], u[t + 1]) follow each other, each by the two parities. This is the
code of eight states for amplitudes of Ungerboeck (1982, doi.org/10.1109/TIT.1982.1056454, table I:
h0 = 13, h1 = 04); of all codes of eight states none gains more at high rate, and their gains at low
rates are the same within 0.3 % of the rate. Two unions are known ahead, so two time steps are
decoded at once.

All latents of a call are one point, of several chains: latent i is at time i // n of chain i % n.
Order in the stream: the parities of all latents; their values, each by the row of its bin, union
and parity, which is over q in k = 2 q + parity.
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

from lvqcodec.coding.fitting import PRIOR, fit_centroids, fit_row, row_radius
from lvqcodec.coding.rows import NUM_BINS, SIGMAS, Floats, Integers, RowTable
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.parity import signs, weights
from lvqcodec.model.lattices.tabled import Tabled, counted

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

LENGTH = 256
"""Latents of a chain, or up to twice as many where the call has no more chains."""


@dataclass(frozen=True, eq=False)
class Trellis(Tabled):
    """Chains j of half steps.

    parities: row 2 (bin - first_bin) + union; rows: row 4 (bin - first_bin) + 2 union + parity.
    """

    packing: Packing
    parities: RowTable

    name = "trellis8"
    dim = 1
    unit = 0.5
    edge = 1024
    num_centroids = 16

    def _fault(self) -> str | None:
        bins = NUM_BINS - self.packing.first_bin
        if (len(self.rows.sizes), len(self.parities.sizes)) != (4 * bins, 2 * bins):
            return f"{len(self.rows.sizes)} rows, {len(self.parities.sizes)} of parities"
        if self.parities.sizes.max() != 2:
            return f"a parity of {self.parities.sizes.max()} symbols"
        return super()._fault()

    # --- choices ----------------------------------------------------------------------------------

    def nearest(self, x: Tensor) -> Tensor:
        """See `Lattice.nearest`."""
        return _cheapest(x, lambda j: (j * self.unit - x).square(), 0.0)

    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """See `Lattice.choose`.

        Exact but for one limit: of each union and parity only zero and the two values around x
        compete.
        """
        zero = rdo_lambda * self._zero_costs.to(x.device)[bins.long()]
        return _cheapest(x, lambda j: self._loss(j, x, bins, rdo_lambda), zero)

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        more = self._zero_costs[bins[_odd_zeros(j)].long().cpu()]
        return super().bits(j, bins) + float(more.double().sum())

    def count(self, j: Tensor, bins: Tensor, x: Tensor) -> dict[str, NDArray[Any]]:
        """See `Tabled.count`; zeros (NUM_BINS,) are those of union 1."""
        zeros = bins[_odd_zeros(j)].long().cpu().numpy()
        return {**super().count(j, bins, x), "zeros": np.bincount(zeros, minlength=NUM_BINS)}

    @property
    def costs(self) -> NDArray[np.float32]:
        """See `Tabled.costs`; zero as in union 0."""
        costs = np.full((NUM_BINS, self.edge + 1), np.inf, np.float32)
        costs[:, 0::2] = self._union_costs[0]
        costs[:, 1::2] = self._union_costs[1, :, 1:]
        return costs

    @cached_property
    def _union_costs(self) -> NDArray[np.float32]:
        """Bits of each |k| (2, NUM_BINS, edge / 2 + 1) in either union."""
        k, first = np.arange(self.edge // 2 + 1), self.packing.first_bin
        costs = np.full((2, NUM_BINS, len(k)), np.inf, np.float32)
        bins, parity = np.arange(NUM_BINS - first)[:, None], k & 1
        for union in (0, 1):
            rows = 4 * bins + 2 * union + parity
            bits = self.rows.integer_bits(np.broadcast_to(k >> 1, rows.shape), rows)
            costs[union, first:] = bits + self.parities.bits[2 * bins + union, parity]
        return costs

    @cached_property
    def _zero_costs(self) -> Tensor:
        """Bits (NUM_BINS,) that a zero of union 1 takes more than one of union 0."""
        even, odd = self._union_costs[:, self.packing.first_bin :, 0]
        return torch.from_numpy(np.pad(odd - even, (self.packing.first_bin, 0)))

    # --- symbols ----------------------------------------------------------------------------------

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j = j.ravel()
        k = np.sign(j) * ((np.abs(j) + 1) >> 1)
        parity = k & 1
        union = _unions(torch.from_numpy(parity)).numpy()
        if ((j & 1) != union)[j != 0].any():
            raise ValueError(f"chains that are no points of {self.name}")
        rows = 2 * self._index(bins) + union
        encoder.encode_bits(parity, rows, self.parities)
        encoder.encode_integers(k >> 1, 2 * rows + parity, self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        rows = 2 * self._index(bins)
        parity, union = self._read_parities(rows, decoder)
        q = decoder.decode_integers(2 * (rows + union) + parity, self.rows)
        k = 2 * q + parity
        j = 2 * k - union * np.sign(k)
        return (np.where(decoder.known, j, 0) if decoder.ended else j)[:, None]

    def _index(self, bins: Integers) -> NDArray[np.intp]:
        return bins.ravel().astype(np.intp) - self.packing.first_bin

    def _read_parities(
        self, rows: Integers, decoder: SymbolDecoder
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Parities and unions (V,), rows (V,) those of union 0; two time steps at once."""
        count = len(rows)
        n = _chains(count)
        parity = np.empty(count, np.int32)
        union = np.zeros(n + count + 4 * n, np.int32)  # from time -1 on
        for start in range(0, count, 2 * n):
            end = min(start + 2 * n, count)
            here = rows[start:end] + union[start + n : end + n]
            parity[start:end] = bits = decoder.decode_bits(here, self.parities)
            if end < count:
                odd = bits ^ union[start : end]
                after = end + n
                np.bitwise_xor(union[end:after], odd[:n], union[after : after + n])
                np.bitwise_xor(union[after : after + n], odd[n:], union[after + n : after + 2 * n])
        return parity, union[n : n + count]

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`."""
        return float(self.rows.least_bits.min() + self.parities.least_bits.min())

    # --- fitting ----------------------------------------------------------------------------------

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`."""
        seen, offsets = counted(counts, cls.edge)
        zeros = np.zeros(NUM_BINS, np.int64) if counts is None else counts["zeros"]
        unions = _by_union(seen, zeros), _shape(cls.edge)
        parities, rows, radii = [], [], []
        for index in range(packing.first_bin, NUM_BINS):
            radius = row_radius(SIGMAS[index]) // 2 + 1
            for union in (0, 1):
                found, prior = unions[0][union, index], unions[1][union, index]
                parities.append(_parity_row(found, prior))
                rows += [fit_row(found, prior, 2, parity, radius) for parity in (0, 1)]
                radii += [radius, radius]
        return cls(
            rows=RowTable.from_rows(rows, radii),
            centroids=fit_centroids(seen, offsets, cls.num_centroids),
            packing=packing,
            parities=RowTable.from_rows(parities, [0] * len(parities)),
        )


def _by_union(counts: Any, zeros: Any) -> Any:
    """Counts or masses (2, NUM_BINS, K) over |k| in either union, of those over |j|."""
    even, odd = counts[:, 0::2].copy(), counts[:, 1::2]
    even[:, 0] -= zeros
    return np.stack((even, np.concatenate((zeros[:, None], odd), 1)))


def _shape(edge: int) -> NDArray[np.float64]:
    """Weights of each |k| (2, NUM_BINS, edge / 2 + 1) in either union."""
    shape = weights(0.5, 1 / 12, edge)
    zeros = shape[:, 0].copy()
    shape[:, 0] *= 2
    return np.asarray(_by_union(shape, zeros), np.float64)


def _parity_row(counts: Integers, shape: Floats) -> Any:
    """Weights of both parities of k, from counts and weights over |k|."""
    shape = signs(shape)
    totals, masses = (np.array([one[0::2].sum(), one[1::2].sum()]) for one in (counts, shape))
    return np.maximum(totals + PRIOR * masses / masses.sum(), 1e-4)


# --- the trellis ----------------------------------------------------------------------------------

_RESIDUES = torch.tensor([0, 2, 3, 1])  # |j| mod 4 of the classes 2 union + parity
_ODD_ZERO = 2  # the class that holds zero besides


def _chains(count: int) -> int:
    return max(1, count // LENGTH)


def _unions(parity: Tensor) -> Tensor:
    """Unions (V,) of latents whose k have these parities (V,).

    (1 + D + D^3) u = D^2 parity, and (1 + D + D^3)(1 + D + D^2 + D^4) = 1 + D^7 (mod 2).
    """
    n = _chains(len(parity))
    steps = -(-len(parity) // (7 * n)) * 7
    p = parity.new_zeros(6 + steps, n)
    p.view(-1)[6 * n : 6 * n + len(parity)] = parity
    sums = p[4:-2] + p[3:-3] + p[2:-4] + p[:-6]
    return (sums.view(-1, 7 * n).cumsum(0, dtype=parity.dtype) & 1).view(-1)[: len(parity)]


def _odd_zeros(j: Tensor) -> Tensor:
    """Which of j (V, 1) are the zero of union 1."""
    parity = (j.abs() + 1 >> 1 & 1).flatten()
    return (j == 0) & (_unions(parity)[:, None] == 1)


def _cheapest(x: Tensor, loss: Callable[[Tensor], Tensor], zero: Tensor | float) -> Tensor:
    """The chains around x (V, 1) of least total `loss`, which maps j (V, K) to costs.

    A zero of union 1 costs `zero` more.
    """
    residues = _RESIDUES.to(x.device)
    low = ((x.abs() * 2 - residues) / 4).floor_().clamp_(min=0) * 4 + residues
    low = (low.int() * torch.where(x < 0, -1, 1)).int()
    high = low + 4 * torch.where(x < 0, -1, 1).int()
    below, above = loss(low), loss(high)
    j = torch.where(above < below, high, low)
    costs = torch.minimum(above, below)
    at_zero = (loss(torch.zeros_like(j[:, :1])) + zero)[:, 0]
    j[:, _ODD_ZERO] = torch.where(at_zero < costs[:, _ODD_ZERO], 0, j[:, _ODD_ZERO])
    costs[:, _ODD_ZERO] = torch.minimum(at_zero, costs[:, _ODD_ZERO])
    classes = torch.from_numpy(_best_classes(costs.cpu().numpy())).to(x.device)
    return j.gather(1, classes[:, None])


_STATES = np.arange(8)
_BRANCH = np.array([2 * b + (c ^ d) for b in (0, 1) for c in (0, 1) for d in (0, 1)])
_BEFORE = np.array([(s >> 1) | ((m >> s & 1) << 2) for m in range(256) for s in range(8)])


def _best_classes(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes (V,) of the chains that cost least, costs (V, 4) (Viterbi 1967)."""
    count = len(costs)
    n = _chains(count)
    steps = -(-count // n)
    padded = np.zeros((steps * n, 4), np.float32)
    padded[:count] = costs
    padded = padded.reshape(steps, n, 4).transpose(0, 2, 1)
    branch = padded[:, _BRANCH].reshape(steps, 2, 2, 2, n)
    flipped = branch[:, :, :, ::-1]
    total = np.full((8, n), np.inf, np.float32)
    total[0] = 0
    one, other = np.empty((2, 2, 2, 2, n), np.float32)
    known = total.reshape(2, 2, 2, 1, n)
    chosen = np.empty((steps, 2, 2, 2, n), bool)
    new = total.reshape(2, 2, 2, n)
    for t in range(steps):
        np.add(known[0], branch[t], out=one)
        np.add(known[1], flipped[t], out=other)
        np.less(other, one, out=chosen[t])
        np.minimum(one, other, out=new)
    masks = np.packbits(chosen.reshape(steps, 8, n), axis=1, bitorder="little")[:, 0]
    masks = masks.astype(np.intp) << 3
    state = total.argmin(0)
    union = np.empty((steps + 3, n), np.int64)  # from time -1 on
    union[steps], union[steps + 1], union[steps + 2] = state >> 2, state >> 1 & 1, state & 1
    for t in range(steps - 1, -1, -1):
        state = _BEFORE.take(masks[t] + state)
        union[t] = state
    union[:steps] >>= 2
    parity = union[:-3] ^ union[2:-1] ^ union[3:]
    return (2 * union[1:-2] + parity).ravel()[:count]

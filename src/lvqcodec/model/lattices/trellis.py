# SPDX-License-Identifier: Apache-2.0
"""A trellis-coded quantizer: a lattice of as many dimensions as a chain of latents is long.

Trellis-coded quantization (Marcellin and Fischer 1990, doi.org/10.1109/26.46532) splits points into
unions, and what came before tells which union a latent has. Entropy-coded by union (Fischer and
Wang, "Entropy-constrained trellis-coded quantization", 1992), with zero in both unions as in the
dependent quantization of VVC (Schwarz et al., "Hybrid video coding with trellis-coded
quantization", 2019), it serves low rates too. In half steps, the points j of union 0 are the even
ones, j = 2 k; those of union 1 are the odd ones and zero, j = 2 k - sign(k). Either alone is a
scalar quantizer whose step is 1. Along a chain, before which all unions and parities are 0,

    union[t + 2] = union[t + 1] + union[t - 1] + parity[t] (mod 2),   parity[t] = k[t] mod 2.

So (union[t - 1], union[t], union[t + 1]) is one of eight states. It is Ungerboeck's code of eight
states for amplitudes (1982, doi.org/10.1109/TIT.1982.1056454, table I: h0 = 13, h1 = 04), which
gains 1.09 dB over scalars at high rate. The other linear codes of eight states gain no more there,
and where latents are a step wide or less the same to within 0.4 % of the rate; this one knows a
union two time steps ahead, so two are decoded at once.

All vectors of a call, of one latent each, are a few chains: latent i is at time i // n in chain
i % n. Order in the stream: the parities of all latents, in the order given; then their values, each
by the row of its bin, union and parity, which is over q in k = 2 q + parity.
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

from lvqcodec.coding.fitting import fit_centroids, fit_row, refit_rows, row_radius
from lvqcodec.coding.rows import NUM_BINS, SIGMAS, Integers, RowTable
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.parity import signs, weights
from lvqcodec.model.lattices.tabled import Tabled, counted

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

LENGTH = 256
"""Time steps of a chain, or more in calls that cannot be cut evenly: part of the format.

Chains of 128 cost up to 0.3 % more of the rate, of 512 as much less; every two time steps are a
call of the decoder, which takes as long as some hundred latents.
"""


@dataclass(frozen=True, eq=False)
class Trellis(Tabled):
    """Chains of half steps j.

    parities: row 2 (bin - first_bin) + union; rows: row 4 (bin - first_bin) + 2 union + parity.
    """

    packing: Packing
    parities: RowTable

    name = "trellis8"
    second_moment = 0.0648  # of long chains, by sampling
    dim = 1
    unit = 0.5
    edge = 1024
    num_centroids = 16

    def _fault(self) -> str | None:
        bins = NUM_BINS - self.packing.first_bin
        if (len(self.rows.sizes), len(self.parities.sizes)) != (4 * bins, 2 * bins):
            return f"{len(self.rows.sizes)} rows, {bins} bins, {len(self.parities.sizes)} parities"
        if self.parities.sizes.max() != 2:
            return f"a parity of {self.parities.sizes.max()} symbols"
        return super()._fault()

    # --- choices ----------------------------------------------------------------------------------

    def nearest(self, x: Tensor) -> Tensor:
        """See `Lattice.nearest`."""
        return _cheapest(x, lambda j: (j * self.unit - x).square(), torch.zeros_like(x))

    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """See `Lattice.choose`.

        Exact but for one limit: of each union and parity only the two values around x compete and,
        in union 1, zero. The next ones are 4 squared steps worse, or 35 bits at the default
        rdo_lambda.
        """
        zero = rdo_lambda * self._zero_costs.to(x.device)[bins.long()]
        return _cheapest(x, lambda j: self._loss(j, x, bins, rdo_lambda), zero)

    def bits(self, j: Tensor, bins: Tensor) -> float:
        """See `Lattice.bits`."""
        more = self._zero_costs[bins[_odd_zeros(j)].long().cpu()]
        return super().bits(j, bins) + float(more.double().sum())

    def count(self, j: Tensor, bins: Tensor, x: Tensor) -> dict[str, NDArray[Any]]:
        """See `Tabled.count`; `zeros` (NUM_BINS,) are those of union 1."""
        zeros = bins[_odd_zeros(j)].long().cpu().numpy()
        return {**super().count(j, bins, x), "zeros": np.bincount(zeros, minlength=NUM_BINS)}

    @property
    def costs(self) -> NDArray[np.float32]:
        """See `Tabled.costs`; zero as in union 0."""
        even, odd = self._union_costs
        costs = np.empty((NUM_BINS, self.edge + 1), np.float32)
        costs[:, 0::2], costs[:, 1::2] = even, odd[:, 1:]
        return costs

    @cached_property
    def _union_costs(self) -> NDArray[np.float32]:
        """Bits of each |k|, its parity included, in either union (2, NUM_BINS, edge / 2 + 1)."""
        k, first = np.arange(self.edge // 2 + 1), self.packing.first_bin
        costs = np.full((2, NUM_BINS, len(k)), np.inf, np.float32)
        parity, rows = k & 1, 2 * np.arange(NUM_BINS - first)[:, None]
        for union in (0, 1):
            values = self.rows.integer_bits(k >> 1, 2 * (rows + union) + parity)
            costs[union, first:] = values + self.parities.bits[rows + union, parity]
        return costs

    @cached_property
    def _zero_costs(self) -> Tensor:
        """Bits (NUM_BINS,) that a zero of union 1 takes more than one of union 0."""
        first = self.packing.first_bin
        even, odd = self._union_costs[:, first:, 0]
        return torch.from_numpy(np.pad(odd - even, (first, 0)))

    # --- symbols ----------------------------------------------------------------------------------

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        j = j.ravel()
        k = np.sign(j) * ((np.abs(j) + 1) >> 1)
        parity = k & 1
        union = _unions(torch.from_numpy(parity)).numpy()
        if ((j != 0) & ((j & 1) != union)).any():
            raise ValueError(f"chains that are no points of {self.name}")
        rows = self._even_rows(bins) + union
        encoder.encode_bits(parity, rows, self.parities)
        encoder.encode_integers(k >> 1, 2 * rows + parity, self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Any:
        """See `Lattice.read`."""
        rows = self._even_rows(bins)
        parity, union = self._read_parities(rows, decoder)
        k = 2 * decoder.decode_integers(2 * (rows + union) + parity, self.rows) + parity
        j = 2 * k - union * np.sign(k)
        return (np.where(decoder.known, j, 0) if decoder.ended else j)[:, None]

    def _even_rows(self, bins: Integers) -> NDArray[np.intp]:
        """Rows (V,) of the parities of latents of these bins (V, 1), were they of union 0."""
        return 2 * (bins.ravel().astype(np.intp) - self.packing.first_bin)

    def _read_parities(
        self, even_rows: Integers, decoder: SymbolDecoder
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Parities and unions (V,), those of two time steps at once."""
        count, n = len(even_rows), _num_chains(len(even_rows))
        parity = np.empty(count, np.int32)
        union = np.zeros(count + 4 * n, np.int32)  # from the time before the first on
        for start in range(0, count, 2 * n):
            now, after = start + n, start + 3 * n
            rows = even_rows[start : start + 2 * n]
            bits = decoder.decode_bits(rows + union[now : now + len(rows)], self.parities)
            parity[start : start + 2 * n] = bits
            if start + 2 * n < count:
                odd = bits ^ union[start : start + 2 * n]
                np.bitwise_xor(union[after - n : after], odd[:n], union[after : after + n])
                np.bitwise_xor(union[after : after + n], odd[n:], union[after + n : after + 2 * n])
        return parity, union[n : n + count]

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`: a parity and a value."""
        return float(self.rows.least_bits.min() + self.parities.least_bits.min())

    # --- fitting ----------------------------------------------------------------------------------

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """See `Lattice.fit`."""
        seen, offsets = counted(counts, cls.edge)
        zeros = np.zeros(NUM_BINS, np.int64) if counts is None else counts["zeros"]
        sizes, shape = _by_union(seen, zeros), _shape(cls.edge)
        rows, radii = [], []
        for index in range(packing.first_bin, NUM_BINS):
            radius = -(-row_radius(SIGMAS[index]) // 2)
            for union in (0, 1):
                for parity in (0, 1):
                    facts = sizes[index, union], shape[index, union]
                    rows.append(fit_row(*facts, period=2, offset=parity, radius=radius))
                    radii.append(radius)
        prior = list(_by_parity(signs(shape[packing.first_bin :])))
        parities = np.pad(_by_parity(sizes[packing.first_bin :]), ((0, 0), (1, 0)))
        return cls(
            rows=RowTable.from_rows(rows, radii),
            centroids=fit_centroids(seen, offsets, cls.num_centroids, cls.unit),
            packing=packing,
            parities=refit_rows(RowTable.from_rows(prior, [0] * len(prior)), parities),
        )


def _by_union(over_j: Any, zeros: Any) -> Any:
    """Counts or masses (bins, 2, K) of each union over |k|, from those over |j|.

    zeros (bins,): the part of those of j = 0 that is of union 1.
    """
    even, odd = over_j[:, 0::2].copy(), over_j[:, 1::2]
    even[:, 0] -= zeros
    return np.stack((even, np.column_stack((zeros, odd))), axis=1)


def _by_parity(over_k: Any) -> Any:
    """Sums (2 * bins, 2) over even and odd |k|, from (bins, 2, K)."""
    sums = np.stack((over_k[..., 0::2].sum(-1), over_k[..., 1::2].sum(-1)), axis=-1)
    return sums.reshape(-1, 2)


def _shape(edge: int) -> NDArray[np.float64]:
    """Weights (NUM_BINS, 2, edge / 2 + 1) that tables are shrunk to: densities at the points.

    Repeating choice and fit leads to one of two habits: zero is common in union 1, or it is not
    used there. The first is better where nearly all is zero, the second elsewhere, by some 1 % of
    the rate; what the fit begins with decides.
    """
    shape = weights(Trellis.unit, 0.0, edge)
    zeros = shape[:, 0] * np.where(SIGMAS < 0.5, 1, 0.01)
    shape[:, 0] += zeros
    return np.asarray(_by_union(shape, zeros), np.float64)


# --- the trellis ----------------------------------------------------------------------------------

_RESIDUES = torch.tensor([0, 2, 3, 1])  # |j| mod 4 of each class; class = 2 union + parity
_ODD_ZERO = 2  # the class that holds zero besides
_BLOCK = 1024  # chains that are searched together: more take no less time, but memory

_BRANCHES = np.array(
    [2 * b + (a ^ c ^ d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
)
"""The class of the latent of union b, between those of unions a before and c, d after it."""

_BEFORE = np.array([state >> 1 | (m >> state & 1) << 2 for m in range(256) for state in range(8)])
"""The state before a state, 8 m + state, if bit `state` of m is the union that then drops out."""


def _num_chains(count: int) -> int:
    return max(1, count // LENGTH)


def _unions(parity: Tensor) -> Tensor:
    """Unions (V,) of latents of these parities (V,).

    With D a delay, (1 + D + D^3) union = D^2 parity; (1 + D + D^3)(1 + D + D^2 + D^4) = 1 + D^7.
    """
    n = _num_chains(len(parity))
    sevens = -(-len(parity) // (7 * n))
    p = parity.new_zeros(6 + 7 * sevens, n)
    p.view(-1)[6 * n : 6 * n + len(parity)] = parity
    sums = p[4:-2] + p[3:-3] + p[2:-4] + p[:-6]
    totals = sums.view(sevens, 7 * n).cumsum(0, dtype=parity.dtype)
    return totals.view(-1)[: len(parity)] & 1


def _odd_zeros(j: Tensor) -> Tensor:
    """Which of j (V, 1) are the zero of union 1."""
    parity = (j.abs() + 1) >> 1 & 1
    return (j == 0) & (_unions(parity.flatten()) == 1)[:, None]


def _cheapest(x: Tensor, loss: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
    """The chains j (V, 1) around x (V, 1) of least total `loss`, which maps j (V, K) to costs.

    zero (V, 1): what a zero of union 1 costs more than one of union 0.
    """
    residues, sign = _RESIDUES.to(x.device), torch.where(x < 0, -1, 1).int()
    low = (x.abs() * 2 - residues).div_(4).floor_().clamp_(min=0).int() * 4 + residues.int()
    below, above = loss(low * sign), loss((low + 4) * sign)
    j, costs = (low + (above < below).int() * 4) * sign, torch.minimum(below, above)
    zeros = (loss(torch.zeros_like(j[:, :1])) + zero).squeeze(1)
    j[:, _ODD_ZERO] *= costs[:, _ODD_ZERO] < zeros
    costs[:, _ODD_ZERO] = torch.minimum(zeros, costs[:, _ODD_ZERO])
    classes = torch.from_numpy(_best_classes(costs.float().cpu().numpy())).to(x.device)
    return j.gather(1, classes[:, None])


def _best_classes(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes (V,) along the chains of least total cost, costs (V, 4)."""
    count = len(costs)
    n = _num_chains(count)
    steps = -(-count // n)
    padded = np.zeros((steps * n, 4), np.float32)
    padded[:count] = costs
    chains = padded.reshape(steps, n, 4)
    blocks = [_best_unions(chains[:, start : start + _BLOCK]) for start in range(0, n, _BLOCK)]
    union = np.concatenate(blocks, axis=1)
    parity = union[:-3] ^ union[2:-1] ^ union[3:]
    return (2 * union[1:-2] + parity).ravel()[:count]


def _best_unions(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Unions (1 + T + 2, n) of the times from -1 on, costs (T, n, 4) of the classes.

    Viterbi's algorithm (1967, doi.org/10.1109/TIT.1967.1054010).
    """
    steps, n, _ = costs.shape
    branches = costs.transpose(0, 2, 1)[:, _BRANCHES].reshape(steps, 2, 2, 2, 2, n)
    total = np.full((2, 2, 2, n), np.inf, np.float32)  # of the best chain to each state
    total[0, 0, 0] = 0
    both = np.empty((2, 2, 2, 2, n), np.float32)
    dropped = np.empty((steps, 2, 2, 2, n), bool)
    for branch, drop in zip(branches, dropped, strict=True):
        np.add(total[:, :, :, None], branch, out=both)
        np.less(both[1], both[0], out=drop)
        np.minimum(both[0], both[1], out=total)

    packed = np.packbits(dropped.reshape(steps, 8, n), axis=1, bitorder="little")
    masks = packed.reshape(steps, n).astype(np.intp) * 8
    states = np.empty((steps + 1, n), np.int64)
    states[steps] = state = total.reshape(8, n).argmin(0)
    for t in reversed(range(steps)):
        states[t] = state = _BEFORE.take(masks[t] + state)
    return np.concatenate((states >> 2, states[-1:] >> 1 & 1, states[-1:] & 1))

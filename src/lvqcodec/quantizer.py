# SPDX-License-Identifier: Apache-2.0
"""From residuals in steps to lattice points, to exact reconstructions, to symbols, and back.

Of the latents of one call, in the order given, those of bin >= LATTICE_MIN_BIN go eight by eight
into vectors of E8; the rest (and, with Z, all) are scalars. Order in the stream: the coset bits of
all vectors; their parities, coordinate by coordinate (the last follows from the others); their
values; the scalars. Encoder choices may use floats; `write` and `read` use stored rows and integer
arithmetic alone, so every machine reads the same.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.tables import (
    BERNOULLI_ROWS,
    CLASS_OFFSET,
    EDGE,
    FRACTION,
    LATTICE_CLASSES,
    LATTICE_MIN_BIN,
    LOG_ONE,
    NUM_BINS,
    NUM_CENTROIDS,
    RATIO_ONE,
    CodingTables,
    Histograms,
    Integers,
)
from lvqcodec.lattices import make_lattice
from lvqcodec.lattices.e8 import E8

if TYPE_CHECKING:  # training quantises, but never loads the range coder
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

RDO_LAMBDA = 0.1155  # squared steps a bit: -dD/dR = 2 ln 2 D at D = 1/12
LIMIT = float(1 << 14)  # steps; residuals beyond are clamped, so the coder always takes them

_SCALAR, _LATTICE = 0, 1


class Quantizer:
    """Lattice `lattice_name` with its tables; `rdo_lambda` in squared steps a bit, 0 = nearest."""

    def __init__(
        self, lattice_name: str, tables: CodingTables, rdo_lambda: float = RDO_LAMBDA
    ) -> None:
        self.lattice = make_lattice(lattice_name)
        self.tables = tables
        self.rdo_lambda = rdo_lambda

    @torch.no_grad()
    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor | None = None) -> Tensor:
        """Coordinates j (M,) int32 in half units for residuals x (M,) in steps, bins (M,).

        Minimises squared error of the reconstruction + rdo_lambda * bits, where rdo_lambda is that
        of the quantizer or one (M,) for each latent.
        """
        x = x.float().clamp(-LIMIT, LIMIT)
        if rdo_lambda is None:
            if self.rdo_lambda == 0:
                return self._nearest(x, bins)
            rdo_lambda = torch.full_like(x, self.rdo_lambda)
        vectors, scalars = self._split(bins)
        j = torch.empty(len(x), dtype=torch.int32, device=x.device)
        parts = x[scalars], bins[scalars], rdo_lambda[scalars]
        j[scalars] = self._choose_scalars(*parts)
        if isinstance(self.lattice, E8):
            parts = x[vectors], bins[vectors], rdo_lambda[vectors]
            j[vectors] = self._choose_vectors(self.lattice, *parts)
        return j

    def _nearest(self, x: Tensor, bins: Tensor) -> Tensor:
        """The points next to x, whatever they cost."""
        j = 2 * x.round().int()
        if isinstance(self.lattice, E8):
            vectors = self._split(bins)[0]
            j[vectors] = (2 * self.lattice.nearest(x[vectors])).int()
        return j

    @torch.no_grad()
    def reconstruct(self, j: Tensor, bins: Tensor) -> Tensor:
        """Reconstructions (M,) int32 in 1/16 step: j / 2, moved to its centroid."""
        cells = _cells(self._kinds(bins), bins, j)
        return FRACTION // 2 * j - j.sign() * self._offsets.to(j.device).take(cells)

    @torch.no_grad()
    def bits(self, j: Tensor, bins: Tensor) -> float:
        """Cost of j in bits by the tables, of all symbols of `write` and their escapes."""
        costs = self._costs.to(j.device).take(_cells(self._kinds(bins), bins, j))
        outliers = (j.abs().clamp(min=EDGE).double() / EDGE).log2()
        total = costs.double().sum() + 2 * outliers.sum()  # as Exp-Golomb codes grow
        index = bins[self._split(bins)[0]].long() - LATTICE_MIN_BIN
        parity = torch.tensor(self.tables.parity_ratio / RATIO_ONE, device=j.device)[index]
        coset = torch.tensor(self.tables.coset_ratio / LOG_ONE, device=j.device)[index]
        mass = (1 + parity.prod(-1) + coset.sum(-1).exp2()) / 2
        return float(total + mass.log2().sum())

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """Code j (M,) given bins (M,); ValueError where j is no lattice point or out of range."""
        vectors, scalars = self._split_array(bins)
        if (j[scalars] & 1).any():
            raise ValueError("odd half units outside of lattice vectors")
        if len(vectors):
            self._write_vectors(j[vectors].T, _index(bins[vectors]), encoder)
        encoder.encode_integers(j[scalars] >> 1, bins[scalars], self.tables.scalar)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> NDArray[np.int32]:
        """Mirror of `write`: j (M,) int32, 0 where the decoder has ended; raises StreamError."""
        if decoder.ended:
            return np.zeros(len(bins), np.int32)
        vectors, scalars = self._split_array(bins)
        j = np.empty(len(bins), np.int32)
        if len(vectors):
            j[vectors] = self._read_vectors(_index(bins[vectors]), decoder).T
        j[scalars] = decoder.decode_integers(bins[scalars], self.tables.scalar) * 2
        return j

    @torch.no_grad()
    def histograms(self, j: Tensor, bins: Tensor, x: Tensor) -> Histograms:
        """Counts of what was chosen for residuals x (M,), to be added up for `fit_tables`."""
        cells = _cells(self._kinds(bins), bins, j).cpu().numpy()
        offsets = (j.sign() * (j.float() / 2 - x)).cpu().numpy()
        shape = (2, NUM_BINS, EDGE + 1)
        counts = np.bincount(cells, minlength=math.prod(shape))
        sums = np.bincount(cells, offsets, minlength=math.prod(shape)).astype(np.float64)
        return Histograms(counts.reshape(shape), sums.reshape(shape))

    def _split_array(self, bins: Integers) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Positions of the vectors (V, 8) and of the scalars (S,), both in coding order."""
        joint = (bins >= LATTICE_MIN_BIN) & isinstance(self.lattice, E8)
        vectors = np.flatnonzero(joint)
        whole = len(vectors) // 8 * 8
        joint[vectors[whole:]] = False
        return vectors[:whole].reshape(-1, 8), np.flatnonzero(~joint)

    def _split(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        vectors, scalars = self._split_array(bins.cpu().numpy())
        return torch.from_numpy(vectors).to(bins.device), torch.from_numpy(scalars).to(bins.device)

    def _kinds(self, bins: Tensor) -> Tensor:
        kinds = torch.zeros(len(bins), dtype=torch.int64, device=bins.device)
        kinds[self._split(bins)[0]] = _LATTICE
        return kinds

    @cached_property
    def _costs(self) -> Tensor:
        """Bits of every cell, float32."""
        return torch.tensor(self.tables.costs)

    @cached_property
    def _offsets(self) -> Tensor:
        """Centroid offset of every cell in 1/16 step, int32."""
        size = np.minimum(np.arange(EDGE + 1), NUM_CENTROIDS - 1)
        return torch.tensor(self.tables.centroids[:, :, size], dtype=torch.int32)

    def _loss(self, kind: int, j: Tensor, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Squared error + rdo_lambda * bits of j, the others broadcast to it."""
        cells = _cells(kind, bins, j)
        bits, offset = (table.to(j.device).take(cells) for table in (self._costs, self._offsets))
        # not of whole numbers: their quotient has the default dtype, which is the caller's
        error = j.float() / 2 - x - (j.sign() * offset).float() / FRACTION
        return error.square_().addcmul_(bits, rdo_lambda)

    def _choose_scalars(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Pick the cheapest of the nearest integer, the next one towards zero, and zero."""
        j = 2 * x.round().int()
        active = j.nonzero().squeeze(-1)  # mostly few
        facts, best = (x[active], bins[active], rdo_lambda[active]), j[active]
        least = self._loss(_SCALAR, best, *facts)
        for other in (best - 2 * best.sign(), torch.zeros_like(best)):
            loss = self._loss(_SCALAR, other, *facts)
            best, least = torch.where(loss < least, other, best), torch.minimum(loss, least)
        j[active] = best
        return j

    def _choose_vectors(self, lattice: E8, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Pick the cheapest points of E8 for x (V, 8), as j.

        Exact but for one limit: of each residue class mod 4 only the two values around x compete.
        The next ones are 4 squared steps worse, or 35 bits at the default rdo_lambda.
        """
        facts = x[..., None], bins[..., None], rdo_lambda[..., None]
        residues = torch.arange(4, device=x.device)
        low = (((2 * facts[0] - residues) / 4).floor_() * 4 + residues).int()
        below, above = (self._loss(_LATTICE, j, *facts) for j in (low, low + 4))
        pick = lattice.choose(torch.minimum(below, above))[..., None]
        upper = (above < below).gather(-1, pick)
        return (low.gather(-1, pick) + 4 * upper.int()).squeeze(-1)

    def _write_vectors(self, j: Integers, index: Integers, encoder: SymbolEncoder) -> None:
        """Vectors j (8, V) of bins `index` from LATTICE_MIN_BIN on, coordinates first."""
        coset, parity = j[0] & 1, j >> 1 & 1
        state = np.cumsum(parity, axis=0) & 1
        if ((j & 1) != coset).any() or state[7].any():
            raise ValueError("vectors that are no points of E8")
        ratio, suffix = self._ratios(index)
        encoder.encode_bits(coset, self._coset_rows(index, suffix[0]), self.tables.bernoulli)
        ratio, suffix = ratio * (1 - coset), suffix * (1 - coset)
        before = np.concatenate((np.zeros_like(state[:1]), state[:6]))
        rows = _parity_rows(ratio[:7], suffix[1:8], before)
        encoder.encode_bits(parity[:7].ravel(), rows.ravel(), self.tables.bernoulli)
        rows, offset, mirror = _value_rows(index, coset, parity)
        q = (j * mirror - offset) >> 2
        encoder.encode_integers(q.ravel(), rows.ravel(), self.tables.lattice)

    def _read_vectors(self, index: Integers, decoder: SymbolDecoder) -> Any:
        """Mirror of _write_vectors: j (8, V)."""
        ratio, suffix = self._ratios(index)
        rows = self._coset_rows(index, suffix[0])
        coset = decoder.decode_bits(rows, self.tables.bernoulli)
        ratio, suffix = ratio * (1 - coset), suffix * (1 - coset)
        parity = np.empty(index.shape, np.int32)
        state = np.zeros_like(coset)
        for i in range(7):
            rows = _parity_rows(ratio[i], suffix[i + 1], state)
            parity[i] = decoder.decode_bits(rows, self.tables.bernoulli)
            state ^= parity[i]
        parity[7] = state
        rows, offset, mirror = _value_rows(index, coset, parity)
        q = decoder.decode_integers(rows.ravel(), self.tables.lattice).reshape(index.shape)
        j = (4 * q + offset) * mirror
        return np.where(decoder.known.reshape(j.shape), j, 0) if decoder.ended else j

    def _ratios(self, index: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parity ratios (8, V) of even cosets and the products (9, V) of each and all after it."""
        ratio = self.tables.parity_ratio[index].astype(np.int64)
        suffix = np.full((9, index.shape[1]), RATIO_ONE, np.int64)
        for i in reversed(range(8)):
            suffix[i] = ratio[i] * suffix[i + 1] // RATIO_ONE
        return ratio, suffix

    def _coset_rows(self, index: Integers, product: NDArray[np.int64]) -> Any:
        """Rows of the odd coset: its mass 2^sum of coset ratios against 1 + product (V,)."""
        step = LOG_ONE // _ODDS_PER_OCTAVE
        exponent = self.tables.coset_ratio[index].sum(axis=0, dtype=np.int64) // step
        odd = _ODDS[np.clip(exponent + _ODDS_RANGE, 0, len(_ODDS) - 1)]
        even = (RATIO_ONE + product) << 15
        return odd * BERNOULLI_ROWS // (odd + even)


_ODDS_PER_OCTAVE = 32
_ODDS_RANGE = 12 * _ODDS_PER_OCTAVE


def _power(exponent: int) -> int:
    """2^(30 + exponent / 32), rounded down, by integers alone: 32nd root = five square roots."""
    root = 1 << (30 * _ODDS_PER_OCTAVE + exponent)
    for _ in range(5):
        root = math.isqrt(root)
    return root


_ODDS = np.array([_power(step) for step in range(-_ODDS_RANGE, _ODDS_RANGE + 1)], np.int64)
_OFFSETS = np.array(CLASS_OFFSET, np.int32)


def _cells(kind: Tensor | int, bins: Tensor, j: Tensor) -> Tensor:
    """Flat indices (int64) into arrays (2, NUM_BINS, EDGE + 1) over |j|."""
    return (kind * NUM_BINS + bins.long()) * (EDGE + 1) + j.abs().clamp(max=EDGE)


def _index(bins: Integers) -> NDArray[np.int64]:
    """Lattice bins of vectors (V, 8), coordinates first: (8, V)."""
    return np.ascontiguousarray(bins.T, np.int64) - LATTICE_MIN_BIN


def _parity_rows(ratio: Integers, suffix: Integers, state: Integers) -> Any:
    """Rows of an odd parity, given the parity `state` before and the product `suffix` after."""
    rest = np.where(state, -suffix, suffix)
    odd = (RATIO_ONE - ratio) * (RATIO_ONE - rest)
    return odd * BERNOULLI_ROWS // (2 * (RATIO_ONE * RATIO_ONE + ratio * rest))


def _value_rows(index: Integers, coset: Integers, parity: Integers) -> tuple[Any, Any, Any]:
    """Rows (8, V) of the values, and the offset and the sign that turn 4 q + offset into j."""
    kind = np.where(coset, 2, parity)
    return LATTICE_CLASSES * index + kind, _OFFSETS[kind], 1 - 2 * (coset & parity)

# SPDX-License-Identifier: Apache-2.0
"""Z, the integers: the lattice of one dimension, which codes every scalar.

Bins of NUM_BINS and more are rows of their own, which a factorised prior has for each channel: any
distributions, which no sigma tells and which need not be symmetric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.fitting import fit_centroids, fit_row, row_radius
from lvqcodec.coding.rows import NUM_BINS, SIGMAS, Integers, RowTable
from lvqcodec.model.lattices.base import CODING_ORDER, Arrays, Packing
from lvqcodec.model.lattices.tabled import Tabled, counted

if TYPE_CHECKING:
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder


@dataclass(frozen=True, eq=False)
class Z(Tabled):
    """The scalars: j is the value in steps, row = bin."""

    name = "z"
    dim = 1
    unit = 1.0
    edge = 512
    num_centroids = 9
    second_moment = 1 / 12
    packing = Packing(NUM_BINS)  # nothing

    def _fault(self) -> str | None:
        if len(self.rows.sizes) < NUM_BINS:
            return f"{len(self.rows.sizes)} rows"
        return super()._fault()

    def nearest(self, x: Tensor) -> Tensor:
        """See `Lattice.nearest`."""
        return x.round().int()

    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Pick the cheapest of the nearest integer, the next one towards the mode, and the mode.

        The mode, the most likely value, is zero but in rows of their own.
        """
        x, bins, rdo_lambda = x.flatten(), bins.flatten(), rdo_lambda.flatten()
        j = self.nearest(x)
        mode = self._modes.to(j.device).take(bins.long()) if self._has_own else torch.zeros_like(j)
        active = (j - mode).nonzero().squeeze(-1)  # mostly few
        facts, best, mode = (x[active], bins[active], rdo_lambda[active]), j[active], mode[active]
        least = self._loss(best, *facts)
        for other in (best - (best - mode).sign(), mode):
            loss = self._loss(other, *facts)
            best, least = torch.where(loss < least, other, best), torch.minimum(loss, least)
        j[active] = best
        return j[:, None]

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """See `Lattice.write`."""
        encoder.encode_integers(j.ravel(), bins.ravel(), self.rows)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> Integers:
        """See `Lattice.read`."""
        return decoder.decode_integers(bins.ravel(), self.rows)[:, None]

    @property
    def costs(self) -> NDArray[np.float32]:
        """See `Tabled.costs`."""
        values = np.arange(self.edge + 1)
        bins = np.arange(NUM_BINS)[:, None]
        return self.rows.integer_bits(*np.broadcast_arrays(values, bins)).astype(np.float32)

    @property
    def least_bits(self) -> float:
        """See `Lattice.least_bits`."""
        return float(self.rows.least_bits.min())

    @classmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """Rows of a logistic of standard deviation SIGMAS, fitted to counts; see `Lattice.fit`."""
        seen, offsets = counted(counts, cls.edge)
        radii = [row_radius(sigma) for sigma in SIGMAS]
        facts = zip(seen, _shape(cls.edge), radii, strict=True)
        rows = [fit_row(row, shape, 1, 0, radius) for row, shape, radius in facts]
        centroids = fit_centroids(seen, offsets, cls.num_centroids, cls.unit)
        return cls(RowTable.from_rows(rows, radii), centroids)

    # --- rows of their own ------------------------------------------------------------------------

    def with_own(self, own: RowTable) -> Self:
        """Z that codes the bins from NUM_BINS on by the rows of `own`."""
        return replace(self, rows=self.rows.then(own))

    @cached_property
    def _has_own(self) -> bool:
        return len(self.rows.sizes) > NUM_BINS

    @cached_property
    def _modes(self) -> Tensor:
        """The most likely value of every row, int32."""
        rows, last = self.rows, self.rows.sizes[:, None] - 1
        inside = np.where(np.arange(rows.probs.shape[1]) < last, rows.probs, 0)
        modes = inside.argmax(1) - rows.offsets
        modes[:NUM_BINS] = 0
        return torch.from_numpy(modes.astype(np.int32))

    def _cells(self, j: Tensor, bins: Tensor) -> Tensor:
        """Behind the cells over |j| follow those of rows of their own, over -edge..edge."""
        cells = super()._cells(j, bins)
        if not self._has_own:
            return cells
        start = NUM_BINS * (self.edge + 1) + self.edge
        own = start + (bins.long() - NUM_BINS) * (2 * self.edge + 1)
        return torch.where(bins < NUM_BINS, cells, own + j.clamp(-self.edge, self.edge))

    def _cell_costs(self) -> NDArray[np.float32]:
        own = np.arange(NUM_BINS, len(self.rows.sizes))[:, None]
        values = np.arange(-self.edge, self.edge + 1)
        costs = self.rows.integer_bits(*np.broadcast_arrays(values, own)).astype(np.float32)
        return np.concatenate((super()._cell_costs(), costs.ravel()))

    def _named_counts(
        self, counts: NDArray[np.int64], offsets: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        """Those of rows of their own are `own` (rows, 2 edge + 1), over -edge..edge."""
        known = NUM_BINS * (self.edge + 1)
        own = counts[known:].reshape(-1, 2 * self.edge + 1)
        return {**super()._named_counts(counts[:known], offsets[:known]), "own": own}


def _shape(edge: int) -> NDArray[np.float64]:
    """Logistic mass of the unit cell around |j|, (NUM_BINS, edge + 1)."""
    scale = SIGMAS[:, None] * math.sqrt(3) / math.pi
    edges = np.exp(-(np.arange(edge + 2) - 0.5) / scale)
    survival = edges / (1 + edges)
    survival[:, 0] = 1 - survival[:, 1]
    return np.asarray(survival[:, :-1] - survival[:, 1:], np.float64)

# SPDX-License-Identifier: Apache-2.0
"""From residuals in steps to lattice points, to exact reconstructions, to symbols, and back.

Of the latents of one call those that the lattice's `packing` names (but not those of rows of their
own) go `dim` by `dim` into vectors, in the order given or sorted by bin, the largest first; the
rest are scalars, points of Z. In the stream the vectors come first, then the scalars. What either
is in coordinates and bits is told in `lattices/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.rows import NUM_BINS, Integers
from lvqcodec.model.lattices.base import Lattice
from lvqcodec.model.lattices.tables import CodingTables

if TYPE_CHECKING:  # training quantises, but never loads the range coder
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

RDO_LAMBDA = 0.1155  # squared steps a bit: -dD/dR = 2 ln 2 D at D = 1/12
LIMIT = float(1 << 14)  # steps; residuals beyond are clamped, so the coder always takes them


class Quantizer:
    """The lattice of a name with the tables of a model; `rdo_lambda` in squared steps a bit.

    Coordinates j (M,) int32 of latents are those of the lattice or of Z, whichever codes them.
    """

    def __init__(
        self, lattice_name: str, tables: CodingTables, rdo_lambda: float = RDO_LAMBDA
    ) -> None:
        self.lattice = tables.lattice(lattice_name)
        self.tables = tables
        self.rdo_lambda = rdo_lambda

    @torch.no_grad()
    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor | None = None) -> Tensor:
        """Coordinates j (M,) int32 for residuals x (M,) in steps, bins (M,).

        Minimises squared error of the reconstruction + rdo_lambda * bits, where rdo_lambda is that
        of the quantizer or one (M,) for each latent.
        """
        x = x.float().clamp(-LIMIT, LIMIT)
        if rdo_lambda is None:
            rdo_lambda = torch.full_like(x, self.rdo_lambda)
        j = torch.empty(len(x), dtype=torch.int32, device=x.device)
        for lattice, at in self._places(bins):
            chosen = lattice.choose(*_vectors(lattice, at, x, bins, rdo_lambda))
            j.index_copy_(0, at, chosen.flatten())
        return j

    @torch.no_grad()
    def reconstruct(self, j: Tensor, bins: Tensor) -> Tensor:
        """Reconstructions (M,) int32 in 1 / LATENT_UNITS step."""
        out = torch.empty_like(j)
        for lattice, at in self._places(bins):
            found = lattice.reconstruct(*_vectors(lattice, at, j, bins))
            out.index_copy_(0, at, found.flatten())
        return out

    @torch.no_grad()
    def bits(self, j: Tensor, bins: Tensor) -> float:
        """Cost of j in bits by the tables, of all symbols of `write` and their escapes."""
        places = self._places(bins)
        return sum(lattice.bits(*_vectors(lattice, at, j, bins)) for lattice, at in places)

    @torch.no_grad()
    def count(self, j: Tensor, bins: Tensor, x: Tensor) -> dict[str, dict[str, NDArray[Any]]]:
        """Count what was chosen for residuals x (M,), by lattice: see `Lattice.count`."""
        places = self._places(bins)
        return {one.name: one.count(*_vectors(one, at, j, bins, x)) for one, at in places}

    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """Code j (M,) given bins (M,); ValueError where j is no lattice point or out of range."""
        for lattice, at in self._split(bins):
            shape = -1, lattice.dim
            lattice.write(j[at].reshape(shape), bins[at].reshape(shape), encoder)

    def read(self, bins: Integers, decoder: SymbolDecoder) -> NDArray[np.int32]:
        """Mirror of `write`: j (M,) int32, 0 where the decoder has ended; raises StreamError."""
        if decoder.ended:
            return np.zeros(len(bins), np.int32)
        j = np.empty(len(bins), np.int32)
        for lattice, at in self._split(bins):
            j[at] = lattice.read(bins[at].reshape(-1, lattice.dim), decoder).ravel()
        return j

    def _split(self, bins: Integers) -> Iterator[tuple[Lattice, NDArray[np.intp]]]:
        """The lattices in the order of the stream, and the positions of the latents of each."""
        packing = self.lattice.packing
        joint = bins >= packing.first_bin
        if self.tables.own is not None:
            joint &= bins < NUM_BINS
        vectors = np.flatnonzero(joint)
        if packing.by_bin:
            vectors = vectors[np.argsort(-bins[vectors], kind="stable")]
        whole = len(vectors) // self.lattice.dim * self.lattice.dim
        joint[vectors[whole:]] = False
        if whole:
            yield self.lattice, vectors[:whole]
        yield self.tables.scalars, np.flatnonzero(~joint)

    def _places(self, bins: Tensor) -> Iterator[tuple[Lattice, Tensor]]:
        """The same for tensors."""
        for lattice, at in self._split(bins.cpu().numpy()):
            yield lattice, torch.from_numpy(at).to(bins.device)


def _vectors(lattice: Lattice, at: Tensor, *values: Tensor) -> Iterator[Tensor]:
    """The part (V, dim) that a lattice codes of each of the values (M,)."""
    for each in values:
        yield each.index_select(0, at).view(-1, lattice.dim)

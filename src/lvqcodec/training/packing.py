# SPDX-License-Identifier: Apache-2.0
"""From which bin on, and in which order, a lattice packs best: found by trying it on latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.rows import LATENT_UNITS
from lvqcodec.model.lattices.base import Packing
from lvqcodec.model.lattices.tables import CodingTables, added
from lvqcodec.model.quantizer import Quantizer

_FIRST_BINS = range(4, 22)


def best_packing(tables: CodingTables, name: str, steps: Steps) -> tuple[CodingTables, float]:
    """Tables whose lattice `name` packs what costs least, fitted anew; and by what share less.

    First whether it sorts by bin, then, going down and up from there, from which bin on.
    """
    tried: dict[Packing, tuple[float, CodingTables]] = {}

    def cost(packing: Packing) -> float:
        if packing not in tried:
            fitted = steps.refitted(tables, name, packing)
            tried[packing] = steps.cost(Quantizer(name, fitted)), fitted
        return tried[packing][0]

    now = tables.others[name].packing
    best = min((now._replace(by_bin=by_bin) for by_bin in (False, True)), key=cost)
    for way in (-1, 1):
        while (other := best._replace(first_bin=best.first_bin + way)).first_bin in _FIRST_BINS:
            if cost(other) >= cost(best):
                break
            best = other
    return tried[best][1], 1 - cost(best) / cost(now)


class Steps:
    """A sink that keeps what is quantised, step by step, to quantise it in other ways.

    That other choices change the contexts of what follows is left out.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        """See `codec_model.Sink`."""
        self._steps.append((residual, bins.to(torch.int16)))

    def refitted(self, tables: CodingTables, name: str, packing: Packing) -> CodingTables:
        """Tables whose lattice packs in another way, fitted to what it then chooses."""
        for _ in range(2):  # the first counts what is chosen by the tables of the old way
            counts = self._count(Quantizer(name, tables))
            new = type(tables.others[name]).fit(counts.get(name), packing)
            tables = replace(tables, others={**tables.others, name: new})
        return tables

    def _count(self, quantizer: Quantizer) -> dict[str, dict[str, NDArray[Any]]]:
        counts: dict[str, dict[str, NDArray[Any]]] = {}
        for residual, narrow in self._steps:
            bins = narrow.long()
            j = quantizer.choose(residual, bins)
            counts = added(counts, quantizer.count(j, bins, residual))
        return counts

    def cost(self, quantizer: Quantizer) -> float:
        """Squared error + rdo_lambda * bits of all steps, in squared steps."""
        total = 0.0
        for residual, narrow in self._steps:
            bins = narrow.long()
            j = quantizer.choose(residual, bins)
            error = residual - quantizer.reconstruct(j, bins) / LATENT_UNITS
            total += float(error.square().sum()) + quantizer.rdo_lambda * quantizer.bits(j, bins)
        return total

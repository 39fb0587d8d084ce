# SPDX-License-Identifier: Apache-2.0
"""Probability rows fitted to what the quantizer really chooses on pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.model.codec_model import CodecModel, LatentQuantizer, Sink
from lvqcodec.model.lattices.tables import CodingTables, added, parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training.packing import Steps, best_packing

FIT_CROPS, FIT_CROP = 202, 256
"""Crops to fit to, two for each quality, and their side in pixels."""

_ROUNDS = 5  # the choice depends on the tables and the tables on the choice
_FULL_ROUNDS = 2  # the last ones; every fourth of the crops will do for those before
_EVERY = 4
_PACKING_EVERY = 12  # packing is one of a few numbers: still less will do


def first_tables(model: CodecModel) -> CodingTables:
    """Return tables for a trained model, of its densities alone: nothing has been counted yet."""
    return replace(parametric_tables(model.config.lattice), own=model.entropy.own_rows())


def fit_to_crops(
    model: CodecModel,
    crops: Tensor,
    report: Callable[[str], None],
    lattices: Collection[str] | None = None,
) -> None:
    """Refit the tables of a frozen model to crops (B, 3, H, W), spread over the qualities.

    lattices: whose, by default all that there are tables for. How these pack is fitted too.
    """
    assert model.tables is not None
    names = model.tables.names if lattices is None else tuple(lattices)
    batches = batches_of(model, crops)
    for index in range(_ROUNDS):
        if index == _ROUNDS - _FULL_ROUNDS:
            model.tables = _packed(model, batches[::_PACKING_EVERY], names, report)
        every = 1 if index >= _ROUNDS - _FULL_ROUNDS else _EVERY
        model.tables, rates = _fit(model, batches[::every], names)
        said = ", ".join(f"{name} {bpp:.4f} bpp" for name, bpp in rates.items())
        report(f"tables {index + 1}/{_ROUNDS}: {said} before this fit")


def _fit(
    model: CodecModel, batches: Sequence[Batch], names: Sequence[str]
) -> tuple[CodingTables, dict[str, float]]:
    """Refit the tables of some lattices to what each chooses by the present ones.

    Also returns the bpp of these. One set of scalar rows serves all lattices; it is fitted to what
    Z chooses, which sees every bin of it.
    """
    assert model.tables is not None
    tallies = {name: _Choices(Quantizer(name, model.tables)) for name in names}
    for tally in tallies.values():
        for batch in batches:
            quantise(model, batch, tally.quantizer, tally)
    counts = {name: tally.counts[name] for name, tally in tallies.items() if name in tally.counts}
    pixels = sum(batch.pixels for batch in batches)
    rates = {name: tally.bits / pixels for name, tally in tallies.items()}
    return model.tables.fitted(counts), rates


def _packed(
    model: CodecModel,
    batches: Sequence[Batch],
    names: Sequence[str],
    report: Callable[[str], None],
) -> CodingTables:
    """The tables, with lattices that pack as is best for the latents of the batches.

    These are quantised once; that another packing changes the contexts a little is left out.
    """
    assert model.tables is not None
    tables, steps = model.tables, Steps()
    for batch in batches:
        quantise(model, batch, Quantizer(tables.names[-1], tables), steps)
    for name in names:
        if name in tables.others:
            tables, saved = best_packing(tables, name, steps)
            packing = tables.others[name].packing
            order = "sorted by bin" if packing.by_bin else "in coding order"
            report(f"{name} packs from bin {packing.first_bin} on, {order}: saves {saved:.2%}")
    return tables


@dataclass(frozen=True)
class Batch:
    """Latents y (B, h * w, C) of crops of `pixels` in all, coded at one quality."""

    y: Tensor
    grid: tuple[int, int]
    quality: int
    pixels: int


@torch.no_grad()
def analyse(model: CodecModel, crops: Tensor, quality: int) -> Batch:
    """Analyse crops (B, 3, H, W); exact networks take as many as share a quality at once."""
    at = torch.full((len(crops),), float(quality), device=crops.device)
    pixels = len(crops) * crops.shape[2] * crops.shape[3]
    return Batch(model.analysis(crops, at), model.grid(*crops.shape[-2:]), quality, pixels)


def batches_of(model: CodecModel, crops: Tensor) -> list[Batch]:
    """Spread crops (B, 3, H, W) evenly over the qualities of the model."""
    qualities = model.config.quality_range
    shares = [crops[place :: len(qualities)] for place in range(len(qualities))]
    return [
        analyse(model, share, q) for q, share in zip(qualities, shares, strict=True) if len(share)
    ]


@torch.no_grad()
def quantise(model: CodecModel, batch: Batch, quantizer: Quantizer, sink: Sink) -> Tensor:
    """Return the latents (B, h * w, C) as the codec would code them."""
    at = torch.full((len(batch.y),), float(batch.quality), device=batch.y.device)
    coder = LatentQuantizer(model.targets(batch.y, batch.grid, at), quantizer, sink)
    return model.entropy.code(coder, *batch.grid, at)


class _Choices:
    """A sink that adds up what a quantizer chooses, and its cost."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.counts: dict[str, dict[str, NDArray[Any]]] = {}
        self.bits = 0.0

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        self.counts = added(self.counts, self.quantizer.count(j, bins, residual))
        self.bits += self.quantizer.bits(j, bins)

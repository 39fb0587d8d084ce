# SPDX-License-Identifier: Apache-2.0
"""Probability rows fitted to what the quantizer really chooses on pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch import Tensor

from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.lattices.tables import CodingTables, parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training.coded import Batch, batches_of, choices_of
from lvqcodec.training.packing import best_packing

FIT_CROPS, FIT_CROP = 202, 256
"""Crops to fit to, two for each quality, and their side in pixels."""

_ROUNDS = 5  # the choice depends on the tables and the tables on the choice
_FULL_ROUNDS = 2  # the last ones; every fourth of the crops will do for those before
_EVERY = 4


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
            model.tables = _packed(model, batches[::_EVERY], names, report)
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
    tallies = {n: choices_of(model, batches, Quantizer(n, model.tables)) for n in names}
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
    """The tables, with lattices that pack as is best for the batches."""
    assert model.tables is not None
    tables = model.tables
    for name in names:
        if name in tables.others:
            tables, saved = best_packing(model, tables, name, batches)
            packing = tables.others[name].packing
            order = "sorted by bin" if packing.by_bin else "in coding order"
            report(f"{name} packs from bin {packing.first_bin} on, {order}: saves {saved:.2%}")
    return tables

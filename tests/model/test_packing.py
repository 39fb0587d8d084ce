# SPDX-License-Identifier: Apache-2.0
"""Which latents go into vectors and in which order, and what damaged streams read as."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from test_quantizer import PACKED, encode, fitted, source

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import NUM_BINS
from lvqcodec.errors import ModelMismatch, StreamError
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.base import CODING_ORDER, Packing
from lvqcodec.model.lattices.tables import CodingTables
from lvqcodec.model.quantizer import LIMIT, Quantizer


def packed(name, packing):
    """A quantizer with the fitted tables of a lattice in another packing from the same bin on."""
    tables = fitted(name).tables
    other = dataclasses.replace(tables.others[name], packing=packing)
    return Quantizer(name, dataclasses.replace(tables, others={name: other}))


@functools.cache
def refitted(name, packing):
    """A quantizer with tables fitted for a packing, to what was chosen in coding order."""
    quantizer = fitted(name)
    x, bins = source(20_000)
    counts = quantizer.count(quantizer.choose(x, bins), bins, x)
    other = LATTICES[name].fit(counts[name], packing)
    return Quantizer(name, dataclasses.replace(quantizer.tables, others={name: other}))


@pytest.mark.parametrize("name", PACKED)
def test_sorted_vectors_are_read_as_they_were_written(name):
    quantizer = packed(name, Packing(14, True))
    for count in (0, 1, 30, 2003):
        x, bins = source(count)
        j = quantizer.choose(x, bins)
        assert quantizer.read(bins.numpy(), SymbolDecoder(encode(quantizer, j, bins))).tolist() == (
            j.tolist()
        )
        assert quantizer.reconstruct(j, bins).shape == j.shape
    assert quantizer.bits(j, bins) != fitted(name).bits(fitted(name).choose(x, bins), bins)


@pytest.mark.parametrize("name", PACKED)
def test_sorted_vectors_are_of_falling_bins(name):
    """Sorting by bin is coding in order what was sorted before, ties as they were."""
    lattice = LATTICES[name]
    x, bins = source(240 * lattice.dim, mean=1.0)
    bins = bins.clamp(14)
    order = torch.sort(bins, descending=True, stable=True).indices
    assert (order != torch.arange(len(order))).any()
    by_bin, in_order = packed(name, Packing(14, True)), fitted(name)
    j = by_bin.choose(x, bins)
    assert torch.equal(j[order], in_order.choose(x[order], bins[order]))
    assert encode(by_bin, j, bins) == encode(in_order, j[order], bins[order])


@pytest.mark.parametrize("first", [12, 17])
@pytest.mark.parametrize("name", PACKED)
def test_vectors_may_begin_at_another_bin(name, first):
    quantizer = refitted(name, Packing(first, name == "e8"))
    x, bins = source(3000)
    j = quantizer.choose(x, bins)
    data = encode(quantizer, j, bins)
    assert quantizer.read(bins.numpy(), SymbolDecoder(data)).tolist() == j.tolist()
    assert quantizer.bits(j, bins) == pytest.approx(8 * len(data), rel=0.002, abs=64)
    seen = quantizer.count(j, bins, x)
    dim, total = quantizer.lattice.dim, int((bins >= first).sum())
    assert seen[name]["counts"].sum() == total // dim * dim > 0
    by_bin = seen[name]["counts"].sum(1).reshape(-1, NUM_BINS).sum(0)
    assert by_bin[first] and not by_bin[:first].any()


@pytest.mark.parametrize("packing", [Packing(14, True), Packing(12), Packing(17, True)])
@pytest.mark.parametrize("name", PACKED)
def test_a_packing_survives_storage(name, packing):
    quantizer = refitted(name, packing)
    arrays = quantizer.tables.to_arrays()
    tables = CodingTables.from_arrays(arrays)
    assert tables.others[name].packing == packing
    x, bins = source(500)
    j = quantizer.choose(x, bins)
    again = Quantizer(name, tables)
    assert torch.equal(again.choose(x, bins), j)
    assert encode(again, j, bins) == encode(quantizer, j, bins)


@pytest.mark.parametrize("name", PACKED)
def test_weights_that_say_nothing_of_packing_are_in_coding_order(name):
    lattice = LATTICES[name]
    arrays = lattice.fit().to_arrays()
    assert "packing" not in arrays
    assert lattice.from_arrays(arrays).packing == CODING_ORDER == Packing(14, False)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(
    "damaged",
    [
        np.array([14, 2], np.int32),
        np.array([-1, 0], np.int32),
        np.array([NUM_BINS + 1, 0], np.int32),
        np.array([NUM_BINS, 0], np.int32),
        np.array([15, 0], np.int32),
        np.array([14, 1], np.int64),
        np.array([14.0, 1.0], np.float32),
        np.array([14], np.int32),
        np.array([[14, 1]], np.int32),
        np.array(14, np.int32),
        np.array([], np.int32),
    ],
    ids=str,
)
def test_damaged_packings_are_refused(name, damaged):
    """Those that are none, and those that the other tables do not fit."""
    lattice = LATTICES[name]
    with pytest.raises(ModelMismatch, match="install the weights again"):
        lattice.from_arrays(lattice.fit().to_arrays() | {"packing": damaged})


def damaged_streams(data):
    """A stream cut everywhere, then twenty mutations of it."""
    yield from (data[:cut] for cut in range(len(data)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        mutated = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            mutated[place] ^= int(rng.integers(1, 256))
        yield bytes(mutated)


@pytest.mark.parametrize("packing", [CODING_ORDER, Packing(12, True)], ids=str)
@pytest.mark.parametrize("name", PACKED)
def test_damaged_streams_read_as_points_or_not_at_all(name, packing):
    """What is read can be written and read again, so it is a point of the lattice."""
    quantizer = refitted(name, packing)
    x, bins = source(400, seed=2, mean=0.0)
    x[::40] *= 100  # escapes
    data = encode(quantizer, quantizer.choose(x, bins), bins)
    known = 0
    for stream in damaged_streams(data):
        try:
            j = quantizer.read(bins.numpy(), SymbolDecoder(stream))
        except StreamError:
            continue
        known += 1
        assert j.dtype == np.int32 and np.abs(j).max() <= 8 * LIMIT + 8
        again = encode(quantizer, torch.from_numpy(j), bins)
        assert quantizer.read(bins.numpy(), SymbolDecoder(again)).tolist() == j.tolist()
        quantizer.reconstruct(torch.from_numpy(j), bins)
    assert known


def test_damaged_streams_of_scalars_read_as_integers_or_not_at_all():
    quantizer = fitted("z")
    x, bins = source(400, seed=2, mean=0.0)
    data = encode(quantizer, quantizer.choose(x, bins), bins)
    for stream in damaged_streams(data):
        try:
            j = quantizer.read(bins.numpy(), SymbolDecoder(stream))
        except StreamError:
            continue
        quantizer.write(j, bins.numpy(), SymbolEncoder())

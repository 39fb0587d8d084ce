# SPDX-License-Identifier: Apache-2.0
"""The trellis-coded quantizer: its code, its search, its symbols."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantizer import RDO_LAMBDA, fitted, rate_and_error, source

from lvqcodec.coding.rangecoder import PartialDecoder, SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import LATENT_UNITS
from lvqcodec.errors import ModelMismatch, StreamError
from lvqcodec.model.lattices.trellis import LENGTH, Trellis

FIRST = Trellis.fit().packing.first_bin


@functools.cache
def trellis():
    """With tables fitted to the source of the quantizer's tests."""
    return fitted("trellis8").lattice


def packed(count, seed=0, **options):
    """Residuals (count, 1) in steps and bins (count, 1) that are packed."""
    x, bins = source(100 + 2 * count, seed, **{"mean": 0.0, **options})
    at = (bins >= FIRST).nonzero().squeeze(-1)[:count]
    assert len(at) == count
    return x[at, None], bins[at, None]


def unions(j):
    """Unions of a path j, state by state as the module's text has it; None where it is none."""
    n = max(1, len(j) // LENGTH)
    parity = [(abs(value) + 1 >> 1) & 1 for value in j]
    union = [0] * (3 * n)  # from the time before the first on
    for i, value in enumerate(j):
        if value and value & 1 != union[n + i]:
            return None
        union.append(union[2 * n + i] ^ union[i] ^ parity[i])
    return union[n : n + len(j)]


def costs(j, bins):
    """Bits of a path j by its own reading of the rows."""
    lattice, total = trellis(), 0.0
    for value, row, union in zip(j, bins, unions(j), strict=True):
        k = (abs(value) + 1 >> 1) * (1 if value > 0 else -1)
        row = 2 * (row - FIRST) + union
        values = lattice.rows.integer_bits(np.array([k >> 1]), np.array([2 * row + (k & 1)]))
        total += lattice.parities.bits[row, k & 1] + values[0]
    return total


# the code


def test_unions_follow_from_the_parities_of_all_that_was_before():
    """Every path of a short chain is one of Ungerboeck's code: (1 + D + D^3) u = D^2 parity."""
    steps = 10
    seen = set()
    for parity in itertools.product((0, 1), repeat=steps):
        j, union = [], [0, 0, 0]
        for odd in parity:
            j.append(1 if odd and union[-2] else 2 * odd)
            union.append(union[-1] ^ union[-3] ^ odd)
        assert unions(j) == union[1 : steps + 1]
        for i in range(3, steps):
            assert union[i + 1] ^ union[i] ^ union[i - 2] == parity[i - 2]
        seen.add(tuple(union[3 : steps + 3]))
    assert len(seen) == 2**steps


@pytest.mark.parametrize("count", [1, 2, 7, LENGTH - 1, 2 * LENGTH - 1, 2 * LENGTH, 3000, 4001])
def test_chosen_chains_are_paths(count):
    x, bins = packed(count)
    lattice = trellis()
    for j in (lattice.nearest(x), lattice.choose(x, bins, torch.full_like(x, RDO_LAMBDA))):
        assert j.dtype == torch.int32 and j.shape == (count, 1)
        assert unions(j.flatten().tolist()) is not None


def test_gain_over_scalars_at_high_rate():
    """Either union has the rate of the integers; 1.09 dB on endless chains."""
    x = torch.rand(300 * LENGTH, 1, generator=torch.Generator().manual_seed(0)) * 200 - 100
    error = (Trellis.fit().nearest(x) / 2 - x).square().mean().item()
    assert 1.05 < 10 * math.log10(1 / 12 / error) < 1.2


# the search


def every_path(length):
    """All paths over small integers, the shortest chains that there are."""
    paths = [[]]
    for _ in range(length):
        paths = [[*path, value] for path in paths for value in range(-4, 5)]
        paths = [path for path in paths if unions(path) is not None]
    return np.array(paths)


def test_the_cheapest_path_of_all_is_chosen():
    """Chains of up to six latents around zero, each against all paths of |j| up to 4."""
    lattice, rng = trellis(), np.random.default_rng(0)
    for length in range(1, 7):
        paths = every_path(length)
        for _ in range(4):
            x = torch.from_numpy(rng.uniform(-1.2, 1.2, (length, 1))).float()
            bins = torch.from_numpy(rng.integers(FIRST, FIRST + 10, (length, 1)))
            moved = lattice.reconstruct(
                torch.from_numpy(paths).int().T, bins.expand(-1, len(paths))
            )
            error = ((moved / LATENT_UNITS - x) ** 2).sum(0)
            union = np.array([unions(path) for path in paths.tolist()])
            k = np.sign(paths) * (np.abs(paths) + 1 >> 1)
            rows = 2 * (bins[:, 0].numpy() - FIRST) + union
            bits = lattice.parities.bits[rows, k & 1].sum(1)
            bits = bits + lattice.rows.integer_bits(k >> 1, 2 * rows + (k & 1)).sum(1)
            for rdo_lambda in (RDO_LAMBDA, 0.5):
                total = error.numpy() + rdo_lambda * bits
                j = lattice.choose(x, bins, torch.full_like(x, rdo_lambda)).flatten()
                place = (paths == j.numpy()).all(1).nonzero()[0]
                assert len(place) == 1
                assert total[place[0]] == pytest.approx(total.min(), abs=1e-4)
            plain = ((paths.T / 2 - x.numpy()) ** 2).sum(0)
            place = (paths == lattice.nearest(x).flatten().numpy()).all(1)
            assert plain[place] == pytest.approx(plain.min(), abs=1e-5)


def test_eight_latents_far_from_zero_by_all_parities():
    """Of each parity and union the nearest value alone can win; all 2^8 parities are tried."""
    x = torch.rand(12, 8, generator=torch.Generator().manual_seed(3)) * 60 - 30
    for values in x:
        least = math.inf
        for parity in itertools.product((0, 1), repeat=8):
            union, error = [0, 0, 0], 0.0
            for value, odd in zip(values.tolist(), parity, strict=True):
                size, residue = 2 * abs(value), ((0, 2), (3, 1))[union[-2]][odd]
                near = max(round((size - residue) / 4), 0) * 4 + residue
                distances = [size - near] + ([size] if residue == 3 else [])
                error += min(d * d for d in distances) / 4
                union.append(union[-1] ^ union[-3] ^ odd)
            least = min(least, error)
        found = (Trellis.fit().nearest(values[:, None]) / 2 - values[:, None]).square().sum()
        assert found.item() == pytest.approx(least, rel=1e-4)


def test_chains_do_not_know_each_other():
    """Two chains of a call are those of two calls, if these are cut as it is."""
    x, bins = packed(2 * LENGTH)
    rdo_lambda = torch.full_like(x, RDO_LAMBDA)
    both = trellis().choose(x, bins, rdo_lambda)
    for chain in (0, 1):
        one = trellis().choose(x[chain::2], bins[chain::2], rdo_lambda[chain::2])
        assert torch.equal(both[chain::2], one)


# symbols


def test_all_paths_have_total_probability_one():
    """Paths of five latents by all parities, each by the values of all rows."""
    bins = torch.tensor([FIRST, FIRST + 3, 20, 16, 30])[:, None]
    total = 0.0
    for parity in itertools.product((0, 1), repeat=5):
        union, j = [0, 0, 0], []
        for odd in parity:
            j.append(2 * odd - (union[-2] & odd))
            union.append(union[-1] ^ union[-3] ^ odd)
        bits = trellis().bits(torch.tensor(j).int()[:, None], bins)
        assert bits == pytest.approx(costs(j, bins.flatten().tolist()), abs=1e-3)
        rows = 4 * (bins.flatten().numpy() - FIRST) + 2 * np.array(union[1:6]) + np.array(parity)
        inside = trellis().rows.integer_bits(np.zeros(5, int), rows).sum()
        total += 2 ** (inside - bits)
    assert total == pytest.approx(1, abs=1e-4)


def test_bytes_are_near_bits():
    x, bins = packed(100_000, mean=-0.2)
    j = trellis().choose(x, bins, torch.full_like(x, RDO_LAMBDA))
    encoder = SymbolEncoder()
    trellis().write(j.numpy(), bins.numpy(), encoder)
    data = encoder.finish()
    assert 8 * len(data) == pytest.approx(trellis().bits(j, bins), rel=0.001, abs=64)
    assert np.array_equal(trellis().read(bins.numpy(), SymbolDecoder(data)), j.numpy())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_whatever_is_read_is_a_path(data, count, seed):
    bins = np.random.default_rng(seed).integers(FIRST, 64, (count, 1))
    try:
        j = trellis().read(bins, SymbolDecoder(data))
    except StreamError:
        return
    assert j.dtype == np.int32 and unions(j.ravel().tolist()) is not None
    encoder = SymbolEncoder()
    trellis().write(j, bins, encoder)
    assert np.array_equal(trellis().read(bins, SymbolDecoder(encoder.finish())), j)


@pytest.mark.parametrize("j", [[1], [0, 1], [2, 0, 2], [0, 0, 3], [4, 2, 0, 1, 2], [1 << 18]])
def test_what_is_no_path_is_the_callers_error(j):
    with pytest.raises(ValueError):
        Trellis.fit().write(np.array(j)[:, None], np.full((len(j), 1), 30), SymbolEncoder())


def test_the_beginning_of_a_stream_is_the_beginning_of_its_values():
    """Values are coded by row: which are there when the stream is cut is told, the rest is zero."""
    x, bins = packed(3000)
    j = trellis().choose(x, bins, torch.full_like(x, RDO_LAMBDA)).numpy()
    encoder = SymbolEncoder()
    trellis().write(j, bins.numpy(), encoder)
    data, found = encoder.finish(), []
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):
        decoder = PartialDecoder(data[: int(share * len(data))])
        part = trellis().read(bins.numpy(), decoder)
        assert decoder.ended
        assert np.array_equal(part[decoder.known], j[decoder.known])
        assert not part[~decoder.known].any()
        found.append(int(decoder.known.sum()))
    assert found[0] == found[1] == 0 < found[3] < found[4] < len(j)
    assert trellis().read(bins.numpy(), PartialDecoder(data + bytes(8))).tolist() == j.tolist()


def test_words_are_pinned():
    j = np.array([0, 2, -4, 0, 0, -3, 6, 0, 3, 351, 0, 1, 0, -7])[:, None]
    assert unions(j.ravel().tolist()) is not None
    encoder = SymbolEncoder()
    bins = np.array([[14, 15, 20, 16, 63, 22, 30, 14, 14, 22, 18, 19, 24, 25]]).T
    Trellis.fit().write(j, bins, encoder)
    assert encoder.finish().hex() == "b3b2e7ba07dbb155bfc8735d"


# tables


def test_zeros_of_both_unions_are_counted():
    x, bins = packed(5000, mean=-0.5)
    j = trellis().choose(x, bins, torch.full_like(x, RDO_LAMBDA))
    union = np.array(unions(j.flatten().tolist()))
    zero, rows = (j == 0).flatten().numpy(), bins.flatten().numpy()
    seen = trellis().count(j, bins, x)
    np.testing.assert_array_equal(seen["zeros"], np.bincount(rows[zero & (union == 1)], None, 64))
    np.testing.assert_array_equal(seen["counts"][:, 0], np.bincount(rows[zero], None, 64))
    assert 0 < seen["zeros"].sum() < zero.sum()


def test_damaged_tables_are_refused():
    arrays = trellis().to_arrays()
    for name in ("parities", "rows"):
        fewer = {key: a[2:] if key.startswith(name) else a for key, a in arrays.items()}
        with pytest.raises(ModelMismatch, match="of trellis8"):
            Trellis.from_arrays(fewer)
    swapped = {
        key.replace("rows", "p").replace("parities", "rows").replace("p.", "parities."): a
        for key, a in arrays.items()
    }
    with pytest.raises(ModelMismatch, match="of trellis8"):
        Trellis.from_arrays(swapped)


@pytest.mark.parametrize(("sigma", "margin"), [(1.0, 0.07), (2.0, 0.045)])
def test_rate_is_saved_at_equal_error(sigma, margin):
    rate, error = rate_and_error("z", sigma, 1.0)
    (fine, low), (coarse, high) = (rate_and_error("trellis8", sigma, s) for s in (1.0, 1.12))
    assert low < error < high
    share = np.log(error / low) / np.log(high / low)
    assert fine + share * (coarse - fine) < (1 - margin) * rate

# SPDX-License-Identifier: Apache-2.0
"""The Golay code and the Leech lattice, against what is counted and searched out in full."""

import functools
import itertools

import numpy as np
import pytest
import torch

from lvqcodec.coding.fitting import centroid_limits
from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import LATENT_UNITS, NUM_BINS, SIGMAS
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.lattices import golay
from lvqcodec.model.lattices.base import Packing
from lvqcodec.model.lattices.construction_b import LOG_ONE
from lvqcodec.model.lattices.leech import Leech
from lvqcodec.model.lattices.parity import RATIO_ONE

NUMBERS = np.arange(4096)
DIGITS = np.stack([NUMBERS >> shift & 7 for shift in (9, 6, 3, 0)])
WORDS = golay.to_bits(DIGITS)  # (24, 4096)
RDO_LAMBDA = 0.1155


def source(vectors, first=14, last=40, seed=0):
    """Residuals and bins (V, 24) of mixed scales."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(first, last, (vectors, 24))
    x = torch.from_numpy(rng.normal(size=bins.shape) * SIGMAS[bins]).float()
    return x, torch.from_numpy(bins)


@functools.cache
def fitted():
    """Tables fitted to their own choices."""
    x, bins = source(2500, seed=1)
    lattice = Leech.fit()
    for _ in range(2):
        j = lattice.choose(x, bins, torch.full_like(x, RDO_LAMBDA))
        lattice = Leech.fit(lattice.count(j, bins, x))
    return lattice


def choose(lattice, x, bins, rdo_lambda=RDO_LAMBDA):
    return lattice.choose(x, bins, torch.full_like(x, rdo_lambda))


def encode(lattice, j, bins):
    encoder = SymbolEncoder()
    lattice.write(np.asarray(j), np.asarray(bins), encoder)
    return encoder.finish()


def least_cost(costs):
    """Least total (V,) of costs (V, 24, 8) by residue, over all 8192 cosets with parities right."""
    words = torch.from_numpy(WORDS).double()
    least = []
    for m in (0, 1):
        costs_of_bits = costs.double()[..., m::2].unflatten(-1, (2, 2)).transpose(-1, -2)
        even, odd = costs_of_bits.unbind(-1)  # (V, 24, bit)
        better, is_odd = torch.minimum(even, odd), (odd < even).double()
        total, number = (
            each[..., 0].sum(1)[:, None] + (each[..., 1] - each[..., 0]) @ words
            for each in (better, is_odd)
        )
        loss = (odd - even).abs()
        change = torch.full_like(total, torch.inf)
        for i, bits in enumerate(WORDS):
            change = torch.minimum(change, loss[:, i][:, bits.astype(int)])
        least.append((total + change * ((number.round() % 2) != m)).amin(1))
    return torch.minimum(*least)


def is_point(j):
    """Which vectors (V, 24) are points, by the definition."""
    odd = j[:, :1] & 1
    words = {word.tobytes() for word in WORDS.T.copy()}
    inside = [row.tobytes() in words for row in (j >> 1 & 1).astype(np.uint8)]
    return ((j & 1) == odd).all(1) & np.array(inside) & (j.sum(1) % 8 == 4 * odd[:, 0])


def test_golay_code_is_linear_and_has_its_weights():
    assert np.bincount(WORDS.sum(0))[[0, 8, 12, 16, 24]].tolist() == [1, 759, 2576, 759, 1]
    every = {word.tobytes() for word in WORDS.T.copy()}
    assert len(every) == 4096
    for one in WORDS.T[[1, 2, 4, 8, 64, 513, 2048]]:
        assert {(word ^ one).tobytes() for word in WORDS.T} == every
    np.testing.assert_array_equal(golay.to_digits(WORDS), DIGITS)
    for at in range(24):
        wrong = WORDS[:, 7:8] ^ (np.arange(24)[:, None] == at)
        assert golay.to_digits(wrong.astype(np.uint8)) is None


@pytest.mark.parametrize("skew", [-0.9, 0.0, 0.8])
def test_masses_of_words_are_products(skew):
    """Digit by digit, whatever the word: what is coded has the probability of its mass."""
    rng = np.random.default_rng(0)
    ones = rng.integers(1 << 12, (1 << 14) + 1, (24, 5))
    logs = np.log2(ones / (1 << 14))
    exact = np.exp2(WORDS.T.astype(float) @ logs)
    exact[0] += skew
    np.testing.assert_allclose(golay.total_mass(np.exp2(logs)) + skew, exact.sum(0))
    masses = golay.Masses.of(ones.astype(np.int32))
    np.testing.assert_allclose(masses.totals.sum(0) / 2.0**42 + skew, exact.sum(0), rtol=2e-3)
    for vector in range(5):
        bits = iter([NUMBERS >> place & 1 for place in reversed(range(12))])
        found = np.ones(4096)

        def bit(rows, bits=bits, found=found):
            now, one = next(bits), (rows + 0.5) / 1024
            found *= np.where(now, one, 1 - one)
            return now

        extra = np.full(4096, int(skew * 2**42))
        digits = masses.word(extra, np.full(4096, vector), bit)
        np.testing.assert_array_equal(golay.to_bits(digits), WORDS)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        share = exact[:, vector] / exact[:, vector].sum()
        loss = (share * np.log2(share / found)).sum()
        assert 0 <= loss < 0.004  # bits a vector


def test_nearest_is_that_of_all_cosets():
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(0)) * 3
    j = Leech.fit().nearest(x)
    assert is_point(j.numpy()).all()
    v = (x * 8**0.5).double()
    residues = torch.arange(8)
    nearest = ((v[..., None] - residues) / 8).round() * 8 + residues
    least = least_cost((nearest - v[..., None]).square())
    assert torch.allclose((j - v).square().sum(1), least, rtol=1e-5)


def test_196560_shortest_vectors():
    octads = WORDS.T[WORDS.sum(0) == 8].astype(int)
    signs = np.array([s for s in itertools.product((2, -2), repeat=8) if np.prod(s) > 0])
    twos = np.zeros((759, 128, 24), int)
    twos[
        np.arange(759)[:, None, None],
        np.arange(128)[:, None],
        np.nonzero(octads)[1].reshape(759, 1, 8),
    ] = signs
    ones = np.repeat(1 - 2 * WORDS.T.astype(int)[:, None], 24, axis=1)
    ones[:, np.arange(24), np.arange(24)] *= -3
    fours = [
        a * np.eye(24, dtype=int)[i] + b * np.eye(24, dtype=int)[k]
        for i, k in itertools.combinations(range(24), 2)
        for a, b in itertools.product((4, -4), repeat=2)
    ]
    parts = twos.reshape(-1, 24), ones.reshape(-1, 24), np.array(fours)
    assert [len(part) for part in parts] == [97152, 98304, 1104]
    shortest = np.concatenate(parts)
    assert ((shortest**2).sum(1) == 32).all()
    assert len(np.unique(shortest.astype(np.int8).view("V24"))) == 196560
    some = shortest[np.random.default_rng(0).integers(0, len(shortest), 5000)]
    assert is_point(some).all()
    points = torch.from_numpy(some).float()
    assert torch.equal(Leech.fit().nearest(points * Leech.unit), points.int())


def test_choice_is_the_cheapest_of_all_cosets():
    lattice, (x, bins) = fitted(), source(150, last=26, seed=5)
    j = choose(lattice, x, bins).numpy()
    assert (j != lattice.nearest(x).numpy()).any(1).mean() > 0.5

    def cost(j):
        at, sizes = bins.numpy().reshape(j.shape[:2] + (1,) * (j.ndim - 2)), np.abs(j)
        error = j * lattice.unit - x.numpy().reshape(at.shape)
        error = error - np.sign(j) * lattice.centroids[at, np.minimum(sizes, 15)] / 16
        return error**2 + RDO_LAMBDA * lattice.costs[at, sizes]

    steps = 8 * np.arange(-2, 3)[:, None] + np.arange(8)
    around = 8 * np.rint(x.numpy() / Leech.unit / 8).astype(int)[..., None, None] + steps
    least = least_cost(torch.from_numpy(cost(around).min(2)))
    np.testing.assert_allclose(cost(j).sum(1), least, rtol=1e-5)


def test_where_bits_cost_nearly_nothing_the_nearest_is_chosen():
    x, bins = source(500, seed=2)
    lattice = Leech.fit()
    assert torch.equal(choose(lattice, x, bins, 1e-9), lattice.nearest(x))


def test_latents_come_back_from_as_many_bytes_as_foreseen():
    lattice, (x, bins) = fitted(), source(10_000, seed=3)
    j = choose(lattice, x, bins)
    data = encode(lattice, j, bins)
    found = lattice.read(bins.numpy(), SymbolDecoder(data))
    np.testing.assert_array_equal(found, j.numpy())
    assert 0.2 < (j[:, 0] & 1).float().mean() < 0.8
    assert abs(8 * len(data) - lattice.bits(j, bins)) < 0.001 * lattice.bits(j, bins) + 64


def test_the_smallest_bins_are_coded_well():
    """Where nearly all vectors are zero, rows of bits are coarse: at most 1 bit in 1024."""
    lattice = Leech.fit(packing=Packing(0))
    x, bins = source(500, first=0, last=10, seed=4)
    j = choose(lattice, x, bins)
    data = encode(lattice, j, bins)
    np.testing.assert_array_equal(lattice.read(bins.numpy(), SymbolDecoder(data)), j.numpy())
    assert 8 * len(data) < lattice.bits(j, bins) + 64 + 500 * 36 / 512


@pytest.mark.parametrize("ratios", [(0.9, 0.7, -0.9, -0.4), (0.2, 0.1, -0.02, -0.01)])
def test_ratios_are_recovered_from_what_they_make(ratios):
    """Shares of the classes in vectors of one bin, by the words' weights and sums over parities."""
    parity, odd, word, coset = ratios
    masses = {}
    for weight, times in ((0, 1), (8, 759), (12, 2576), (16, 759), (24, 1)):
        mass = times * 2.0 ** (word * weight)
        skew = parity**24 if weight == 0 else 0.0
        moment = parity + (parity**23 if weight == 0 else 0.0)
        for kind, share in ((0, (1 + skew + moment) / 2), (4, (1 + skew - moment) / 2), (2, 1)):
            count = weight if kind == 2 else 24 - weight
            masses[kind] = masses.get(kind, 0) + count * mass * share
    total = 24 * 4096 * 2.0 ** (24 * coset)
    masses[1] = total * (1 - odd**24 + odd - odd**23) / 2
    masses[3] = total * (1 - odd**24 - odd + odd**23) / 2
    counts = np.zeros((NUM_BINS, Leech.edge + 1), int)
    for kind, mass in masses.items():
        counts[20, kind] = round(1e9 * mass / sum(masses.values()))
    lattice = Leech.fit({"counts": counts, "offsets": np.zeros(counts.shape)})
    at = 20 - lattice.packing.first_bin
    found = (
        lattice.parity_ratio[at] / RATIO_ONE,
        lattice.odd_ratio[at] / RATIO_ONE,
        lattice.word_ratio[at] / LOG_ONE,
        lattice.coset_ratio[at] / LOG_ONE,
    )
    assert found == pytest.approx(ratios, abs=1e-3)


def test_a_centroid_never_changes_a_sign():
    assert centroid_limits(4, Leech.unit).tolist() == [0, 5, 7, 7]
    counts = np.full((NUM_BINS, Leech.edge + 1), 10**6)
    lattice = Leech.fit({"counts": counts, "offsets": counts * 1.0})
    j = torch.arange(-20, 21).int()
    found = lattice.reconstruct(j, torch.full_like(j, 30))
    assert torch.equal(found.sign(), j.sign())
    exact = j.sign() * ((LATENT_UNITS * Leech.unit * j.abs()).round() - 28)
    assert torch.equal(found[j.abs() > 1], exact[j.abs() > 1].int())


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: {"odd_ratio": arrays["odd_ratio"][1:]},
        lambda arrays: {"odd_ratio": arrays["odd_ratio"] + RATIO_ONE},
        lambda arrays: {"word_ratio": arrays["word_ratio"] + LOG_ONE},
        lambda arrays: {"word_ratio": arrays["word_ratio"] - 15 * LOG_ONE},
        lambda arrays: {"coset_ratio": arrays["coset_ratio"] + 1},
        lambda arrays: {"coset_ratio": arrays["coset_ratio"].astype(np.int64)},
        lambda arrays: {"parity_ratio": arrays["parity_ratio"] + RATIO_ONE},
        lambda arrays: {
            "centroids": arrays["centroids"] + (np.arange(16) == 1).astype(np.int8) * 6
        },
        lambda arrays: {"centroids": arrays["centroids"] + (np.arange(16) == 0).astype(np.int8)},
    ],
)
def test_damaged_tables_are_refused(damage):
    arrays = Leech.fit().to_arrays()
    Leech.from_arrays(arrays)
    with pytest.raises(ModelMismatch, match="tables of leech"):
        Leech.from_arrays(arrays | damage(arrays))


@pytest.mark.parametrize(
    "j", [[1] * 24, [4] + [0] * 23, [2] * 4 + [0] * 20, [1] * 23 + [2], [8 << 16] + [0] * 23]
)
def test_what_is_no_point_is_the_callers_error(j):
    with pytest.raises(ValueError):
        encode(Leech.fit(), [j], np.full((1, 24), 30))


def test_words_are_pinned():
    """An even and an odd vector, with an outlier."""
    even = 2 * WORDS[:, 1234].astype(int)
    even[:2] += [4, 404]
    odd = 1 - 2 * WORDS[:, 4000].astype(int)
    odd[5] *= -3
    bins = np.concatenate((np.arange(14, 38)[None], np.arange(40, 16, -1)[None]))
    assert is_point(np.stack((even, odd))).all()
    assert (
        encode(Leech.fit(), [even, odd], bins).hex() == "6b3d405528e603e6b353321353080c5f6a7a2deb"
    )

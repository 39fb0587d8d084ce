# SPDX-License-Identifier: Apache-2.0
"""BW16, and what E8 has in common with it: words of a code over a trellis of parities."""

import itertools
import math

import numpy as np
import pytest
import torch

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import NUM_BINS
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.lattices.bw16 import BW16
from lvqcodec.model.lattices.construction_b import LOG_ONE, reed_muller
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.parity import RATIO_ONE

LATTICES = [E8, BW16]
LAMBDA = 0.1155
DIGITS = np.array(list(itertools.product((0, 1), repeat=4)))
RM14 = np.array([(DIGITS @ row[1:] + row[0]) % 2 for row in itertools.product((0, 1), repeat=5)])


def words_of(lattice):
    """All words (words, dim), by the definitions of the codes."""
    return RM14 if lattice is BW16 else np.repeat([[0], [1]], 8, axis=1)


def random_vectors(lattice, count, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, lattice.dim, generator=generator) * spread


def random_bins(lattice, count, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(lattice.packing.first_bin, 40, (count, lattice.dim)))


def fitted(lattice, count=4000, rounds=3):
    """Tables fitted to their own choices."""
    tables = lattice.fit()
    bins = random_bins(tables, count, seed=1)
    x = random_vectors(lattice, count, spread=1.0) * 0.11 * 1.1063**bins
    for _ in range(rounds):
        j = tables.choose(x.float(), bins, torch.full(x.shape, LAMBDA))
        tables = lattice.fit(tables.count(j, bins, x.float()))
    return tables


@pytest.fixture(scope="module")
def bw16():
    return fitted(BW16)


def is_point(j, lattice):
    found = (j[:, None] % 2 == words_of(lattice)).all(-1).any(-1)
    return found & (j.sum(-1) % 4 == 0)


def test_numbers_tell_the_words_of_the_code():
    words = reed_muller(1, 16, np.arange(32)).T
    assert {tuple(word) for word in words} == {tuple(word) for word in RM14}
    assert np.bincount(words.sum(1)).nonzero()[0].tolist() == [0, 8, 16]
    assert reed_muller(0, 8, np.arange(2)).T.tolist() == [[0] * 8, [1] * 8]


def test_nearest_by_brute_force(bw16):
    """For each word the nearest values, and where the sum is wrong the cheapest one moved on."""
    x = random_vectors(BW16, 2000).double().numpy()
    v = x * 2**0.75
    best = np.full(len(v), np.inf)
    for word in RM14:
        near = word + 2 * np.rint((v - word) / 2)
        error = v - near
        wrong = near.sum(1) % 4 != 0
        flip = np.where(error > 0, 2, -2)
        loss = (error - flip) ** 2 - error**2
        best = np.minimum(best, (error**2).sum(1) + wrong * loss.min(1))
    j = bw16.nearest(torch.from_numpy(x).float()).numpy()
    assert is_point(j, BW16).all()
    np.testing.assert_allclose(((v - j) ** 2).sum(1), best, rtol=1e-5)


def test_4320_shortest_vectors(bw16):
    pairs = [np.eye(16, dtype=int)[list(at)] for at in itertools.combinations(range(16), 2)]
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    found = [2 * (s[:2] @ pair) for pair in pairs for s in signs[::64]]
    for word in RM14[RM14.sum(1) == 8]:
        vectors = np.zeros((len(signs), 16), int)
        vectors[:, word == 1] = signs
        found.extend(vectors[signs.sum(1) % 4 == 0])
    shortest = np.unique(found, axis=0)
    assert len(shortest) == 4320 and is_point(shortest, BW16).all()
    x = torch.from_numpy(shortest * BW16.unit).float()
    np.testing.assert_array_equal(bw16.nearest(x).numpy(), shortest)
    # none is shorter: in the middle between two points the origin is as near
    assert (bw16.nearest(0.49 * x) == 0).all()
    assert (bw16.nearest(0.51 * x) != 0).any(-1).all()
    assert set((shortest**2).sum(1)) == {8}


def test_volume_is_one():
    """Of 4^16 residues mod 4, whose vectors are points all or none, 2^5 2^15 are points."""
    rng = np.random.default_rng(0)
    word = RM14[rng.integers(0, 32, 4000)]
    j = word + 2 * rng.integers(0, 2, word.shape)
    assert abs(is_point(j, BW16).mean() - 0.5) < 0.03
    assert (
        is_point(j + 4 * rng.integers(-5, 5, j.shape), BW16).tolist() == is_point(j, BW16).tolist()
    )
    assert 4**16 / (32 * 2**16 / 2) * BW16.unit**16 == pytest.approx(1)


def test_second_moment(bw16):
    """Conway and Sloane 1999, table 2.3."""
    x = random_vectors(BW16, 25_000, spread=20.0)
    error = (x - bw16.nearest(x) * bw16.unit).square().mean().item()
    assert error == pytest.approx(0.0683, rel=0.005)


def test_where_bits_cost_almost_nothing_the_nearest_point_is_chosen():
    lattice = BW16.fit()
    x, bins = random_vectors(BW16, 1000), random_bins(lattice, 1000)
    j = lattice.choose(x, bins, torch.full_like(x, 1e-9))
    assert torch.equal(j, lattice.nearest(x))


@pytest.mark.parametrize("lattice", LATTICES)
def test_a_pick_is_the_cheapest_of_all_words_and_parities(lattice):
    """Independently: for every word the least cost of even sums, by a walk over its coordinates."""
    costs = torch.rand(300, lattice.dim, 4, generator=torch.Generator().manual_seed(2)) ** 3
    costs[150:, :, 1::2] += 0.1
    least = np.full(300, np.inf)
    for word in words_of(lattice):
        even, odd = np.zeros(300), np.full(300, np.inf)
        for i, bit in enumerate(word):
            zero, one = costs[:, i, bit].numpy(), costs[:, i, bit + 2].numpy()
            even, odd = (
                np.minimum(even + zero, odd + one),
                np.minimum(odd + zero, even + one),
            )
        least = np.minimum(least, even)
    pick = lattice.fit().pick(costs)
    total = costs.gather(-1, pick[..., None]).sum((1, 2))
    np.testing.assert_allclose(total, least, rtol=1e-5)
    assert is_point(pick.numpy(), lattice).all()
    assert len(np.unique(pick.numpy() % 2, axis=0)) == len(words_of(lattice))


def test_choice_is_exact(bw16):
    """All values within six half units of x, by an own reading of the tables."""
    bins = random_bins(bw16, 60, seed=3)
    x = random_vectors(BW16, 60, seed=4)
    chosen = bw16.choose(x, bins, torch.full_like(x, LAMBDA)).numpy()
    assert (chosen != bw16.nearest(x).numpy()).any()
    vectors, rows = x.double().numpy()[..., None], bins.numpy()[..., None]

    def cost(j):
        size = np.abs(j)
        moved = np.sign(j) * bw16.centroids[rows, np.minimum(size, bw16.num_centroids - 1)] / 16
        error = vectors - j * bw16.unit + moved
        return error**2 + LAMBDA * bw16.costs[rows, size]

    j = np.rint(vectors / bw16.unit).astype(int) + np.arange(-6, 7)
    costs = cost(j)
    of_residue = np.stack([np.where(j % 4 == i, costs, np.inf).min(-1) for i in range(4)], -1)
    for vector, each in zip(cost(chosen[..., None])[..., 0], of_residue, strict=True):
        least = np.inf
        for word in RM14:
            pairs = np.take_along_axis(each, np.stack((word, word + 2), 1), 1)
            total, loss = pairs.min(1).sum(), np.abs(pairs[:, 0] - pairs[:, 1]).min()
            wrong = (pairs[:, 1] < pairs[:, 0]).sum() % 2
            least = min(least, total + wrong * loss)
        assert vector.sum() == pytest.approx(least, rel=1e-5)


class Listener:
    """Instead of an encoder: what the bits of every vector cost, call by call."""

    def __init__(self, count):
        self.count, self.calls = count, []

    def encode_bits(self, bits, rows, table):
        cost = table.bits[rows, bits].astype(float)
        self.calls.append(cost.reshape(-1, self.count).sum(0))

    def encode_integers(self, values, rows, table):
        pass


MIXED = np.array([14, 15, 17, 14, 20, 26, 15, 14, 33, 16, 14, 15, 18, 22, 14, 16])


def alternating(words):
    """The points that have every other one of a word negative."""
    return words * np.where(np.cumsum(words, axis=1) % 2, 1, -1)


def listen(lattice, j, bins):
    listener = Listener(len(j))
    lattice.write(j, np.broadcast_to(bins, j.shape), listener)
    return listener


def weights_of(lattice, bins):
    """Weights (dim, 4) of the residues of coordinates of these bins."""
    zero, two, half = lattice.class_masses[:, bins - lattice.packing.first_bin]
    return np.stack((zero, half, two, half), 1)


def mass_of(weights, word):
    """Sum of the products of weights over all parities of an even sum, by a walk."""
    even, odd = 1.0, 0.0
    for each, bit in zip(weights, word, strict=True):
        zero, one = each[bit], each[bit + 2]
        even, odd = even * zero + odd * one, odd * zero + even * one
    return even


def test_the_mass_of_all_points_is_the_sum_of_their_weights(bw16):
    """And a class weighs what its values do: so the probabilities of all points sum to 1."""
    weights = weights_of(bw16, MIXED)
    mass = sum(mass_of(weights, word) for word in RM14)
    bins = torch.from_numpy(MIXED)[None]
    for word in RM14[[0, 9]]:
        j = alternating(word[None])
        rest = bw16.bits(torch.from_numpy(j).int(), bins) - bw16.costs[MIXED, np.abs(j)].sum()
        assert rest == pytest.approx(math.log2(mass), abs=1e-4)
    sizes = np.abs(np.arange(-1000, 1001))
    values = 2.0 ** -bw16.costs[MIXED].astype(float)[:, sizes]
    for residue in range(4):
        total = values[:, np.arange(-1000, 1001) % 4 == residue].sum(1)
        np.testing.assert_allclose(total, weights[:, residue], rtol=2e-3)


def test_coded_probabilities_are_the_exact_ones(bw16):
    weights, numbers = weights_of(bw16, MIXED), np.arange(32)
    words = reed_muller(1, 16, numbers).T
    masses = np.array([mass_of(weights, word) for word in words])
    coded = 2.0 ** -listen(bw16, alternating(words), MIXED).calls[0]
    assert coded.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(coded, masses / masses.sum(), atol=5 * 2.0**-11)
    parities = np.array(list(itertools.product((0, 1), repeat=15)))
    parities = np.concatenate((parities, parities.sum(1, keepdims=True) % 2), 1)
    for number in (0, 5, 16):
        exact = np.ones(len(parities))
        for i, bit in enumerate(words[number]):
            exact *= weights[i, 2 * parities[:, i] + bit]
        coded = 2.0 ** -listen(bw16, 2 * parities + words[number], MIXED).calls[1]
        assert coded.sum() == pytest.approx(1, abs=1e-4)
        assert np.abs(coded - exact / masses[number]).sum() < 15 * 2.0**-11


@pytest.mark.parametrize(("ratio", "coset"), [(0.95, -0.6), (0.5, -0.1), (-0.05, 0.02)])
def test_ratios_are_recovered_from_vector_moments(ratio, coset):
    h, even, odd = 2.0**coset, (1 + ratio) / 2, (1 - ratio) / 2
    counts = np.zeros(3)
    for moved in range(0, 17, 2):  # of the word 0
        mass = math.comb(16, moved) * even ** (16 - moved) * odd**moved
        counts += mass * np.array([16 - moved, moved, 0])
    counts += 30 * h**8 / 2 * np.array([8 * even, 8 * odd, 8])
    counts += h**16 / 2 * np.array([0, 0, 16])
    seen = np.zeros((NUM_BINS, BW16.edge + 1), int)
    seen[20, [0, 2, 1]] = np.rint(1e9 * counts / counts.sum())
    fit = BW16.fit({"counts": seen, "offsets": np.zeros(seen.shape)})
    index = 20 - fit.packing.first_bin
    assert fit.parity_ratio[index] / RATIO_ONE == pytest.approx(ratio, abs=2e-4)
    assert fit.coset_ratio[index] / LOG_ONE == pytest.approx(coset, abs=2e-3)


def test_words_are_pinned():
    """Of the zero word, of one of weight 8, of all ones, with an escape."""
    j = np.array([[2, 0, -2, 4] + [0] * 12, [1, 0] * 8, [1, -1] * 7 + [3, -403], [0] * 16])
    lattice, bins, encoder = BW16.fit(), np.broadcast_to(MIXED, j.shape), SymbolEncoder()
    lattice.write(j, bins, encoder)
    data = encoder.finish()
    assert data.hex() == "ef01c77ccc3394d700e777f125f895f1"
    assert (
        BW16.fit().read(np.broadcast_to(MIXED, j.shape), SymbolDecoder(data)).tolist() == j.tolist()
    )


def test_points_are_exact_however_far_out():
    """64 * 2^(-3/4) * j to the nearest integer, in integers of any size."""
    j = torch.tensor([0, 1, -1, 2, 3, 15, -16, 1023, 1025, -32769, 131070], dtype=torch.int32)
    found = BW16.fit().reconstruct(j, torch.full((len(j),), 20))
    for value, units in zip(j.tolist(), found.tolist(), strict=True):
        exact = math.isqrt(math.isqrt(value**4 << 61))  # 2^10 times as fine
        assert units == (exact + 512 >> 10) * (1 if value > 0 else -1)


@pytest.mark.parametrize(
    "vector",
    [[1] + [0] * 15, [2] + [0] * 15, [1] * 8 + [0] * 7 + [2], [1, 1, 1, 0] * 4, [1] * 15 + [3]],
)
def test_what_is_no_point_is_the_callers_error(vector):
    with pytest.raises(ValueError, match="no points of bw16"):
        BW16.fit().write(np.array([vector]), np.full((1, 16), 30), SymbolEncoder())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parity_ratio", lambda a: a[1:]),
        ("parity_ratio", lambda a: a + RATIO_ONE),
        ("coset_ratio", lambda a: a.astype(np.int64)),
        ("coset_ratio", lambda a: a - (1 << 21)),
        ("centroids", lambda a: a + np.int8(1)),
        ("bernoulli.sizes", lambda a: a + 1),
        ("rows.sizes", lambda a: a[3:]),
    ],
)
def test_damaged_tables_are_refused(name, change):
    arrays = BW16.fit().to_arrays()
    with pytest.raises(ModelMismatch):
        BW16.from_arrays(arrays | {name: change(arrays[name])})

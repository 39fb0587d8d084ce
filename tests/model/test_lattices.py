# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import torch

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import LATENT_UNITS, NUM_BINS
from lvqcodec.errors import ModelMismatch
from lvqcodec.format import container
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.a2 import A2
from lvqcodec.model.lattices.dn import D4, Dn
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.parity import RATIO_ONE

CORNERS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
BIN = 30  # a standard deviation of 2.3 steps

SECOND_MOMENTS = {
    "z": 1 / 12,
    "a2": 0.08019,
    "d3": 0.07875,
    "d4": 0.07660,
    "d6": 0.07559,
    "e8": 0.07168,
    "bw16": 0.06830,
    "leech": 0.06577,
}
"""Normalised, of lattices of volume 1 (Conway & Sloane 1982, tables I and IV)."""


class D3(Dn):
    name = "d3"
    dim = 3


class D6(Dn):
    name = "d6"
    dim = 6


ALL = {**LATTICES, "d3": D3, "d6": D6}
EVEN_SUMS = (A2, D3, D4, D6)


@pytest.fixture(params=ALL)
def lattice(request):
    return ALL[request.param].fit()


def random_vectors(lattice, *shape, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, lattice.dim, generator=generator) * spread


def place(lattice, j, bin_=BIN):
    """Where j lies, in steps to 1/128: parametric tables have no centroids."""
    return lattice.reconstruct(j, torch.full_like(j, bin_)) / LATENT_UNITS


def units(lattice):
    """Steps between the coordinates (dim,) or (1,), float64."""
    return lattice.unit * torch.tensor(lattice.axes, dtype=torch.float64)


# what holds for all of them


def test_names_are_those_on_the_wire():
    assert [lattice.name for lattice in LATTICES.values()] == list(LATTICES)
    assert tuple(LATTICES) == container.LATTICES


def test_points_are_the_nearest_to_themselves(lattice):
    j = lattice.nearest(random_vectors(lattice, 500, spread=300.0))
    assert j.dtype == torch.int32 and j.shape == (500, lattice.dim)
    assert torch.equal(lattice.nearest(place(lattice, j)), j)
    assert not lattice.nearest(torch.zeros(7, lattice.dim)).any()
    assert lattice.nearest(random_vectors(lattice, 0)).shape == (0, lattice.dim)


def test_no_point_around_is_nearer(lattice):
    """Points that are nearest to places around x; with one dimension all of x is one point."""
    x = random_vectors(lattice, 2000 // lattice.dim)

    def distance(j):
        distances = (x - place(lattice, j)).square().sum(-1)
        return distances.sum() if lattice.dim == 1 else distances

    least = distance(lattice.nearest(x))
    for seed in range(1, 25):
        other = lattice.nearest(x + random_vectors(lattice, len(x), seed=seed, spread=0.4))
        assert (least <= distance(other) + 0.1).all()  # places are known to 1/128


def test_second_moment(lattice):
    if lattice.name not in SECOND_MOMENTS:
        pytest.skip("not a lattice of blocks")
    x = random_vectors(lattice, 400_000 // lattice.dim, spread=20.0)
    error = (x - place(lattice, lattice.nearest(x))).square().mean().item()
    assert error == pytest.approx(SECOND_MOMENTS[lattice.name], rel=0.005)


@pytest.mark.parametrize(
    ("lattice", "length", "number"),
    [
        (A2, (4 / 3) ** 0.5, 6),
        *((kind, 2 * kind.unit**2, 2 * kind.dim * (kind.dim - 1)) for kind in (D3, D4, D6)),
        (E8, 2, 240),
    ],
)
def test_kissing_number(lattice, length, number):
    """Of the coordinates around zero those of the square length of a shortest vector."""
    reach = 1 if issubclass(lattice, Dn) else 2  # a coordinate of a shortest vector
    grid = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=lattice.dim)))
    lengths = (grid * units(lattice)).square().sum(-1)
    grid, lengths = grid[lengths < length * 1.001], lengths[lengths < length * 1.001]
    points = (lattice.fit().nearest((grid * units(lattice)).float()) == grid).all(-1)
    assert points.sum() == number + 1  # and zero
    assert (lengths[points] > length * 0.999).sum() == number


def test_where_bits_cost_next_to_nothing_the_nearest_point_is_chosen(lattice):
    x = random_vectors(lattice, 4000 // lattice.dim)
    chosen = lattice.choose(x, torch.full(x.shape, BIN), torch.full_like(x, 1e-9))
    assert torch.equal(chosen, lattice.nearest(x))


def test_a_million_latents_round_trip(lattice):
    """The same few over and over, for choosing takes longest; one chain cannot be cut."""
    times = 1 if lattice.dim == 1 else 25
    x = random_vectors(lattice, 1_000_000 // times // lattice.dim)
    x[::97] *= 50  # escapes
    bins = torch.randint(14, 40, x.shape, generator=torch.Generator().manual_seed(1))
    j = lattice.choose(x, bins, torch.full_like(x, 0.1155)).repeat(times, 1).numpy()
    bins = bins.repeat(times, 1).numpy()
    assert j.size > 999_000
    encoder = SymbolEncoder()
    lattice.write(j, bins, encoder)
    np.testing.assert_array_equal(lattice.read(bins, SymbolDecoder(encoder.finish())), j)


def test_no_sign_ever_changes(lattice):
    """The smallest point but zero is farther out than any centroid that is not refused."""
    arrays = lattice.to_arrays()
    j = torch.arange(-40, 41, dtype=torch.int32).repeat_interleave(lattice.dim)
    j = j.view(-1, lattice.dim)
    accepted = 0
    for shift in range(1, 10):
        centroids = np.full_like(arrays["centroids"], shift)
        centroids[:, 0] = 0
        try:
            moved = type(lattice).from_arrays(arrays | {"centroids": centroids})
        except ModelMismatch:
            continue
        accepted += 1
        assert torch.equal(moved.reconstruct(j, torch.full_like(j, BIN)).sign(), j.sign())
    assert 0 < accepted < 9


def test_tables_survive_their_storage(lattice):
    arrays = lattice.to_arrays()
    again = type(lattice).from_arrays(arrays)
    assert again.packing == lattice.packing
    for name, array in again.to_arrays().items():
        assert array.dtype == arrays[name].dtype and array.tobytes() == arrays[name].tobytes()


# E8


def test_e8_nearest_by_brute_force():
    """Both cosets: all corners of the cell of D8's cube grid around v that have an even sum."""
    lattice = E8.fit()
    v = random_vectors(lattice, 400, spread=2.0).double()
    best = torch.full((400,), torch.inf, dtype=torch.float64)
    for shift in (0.0, 0.5):
        corners = (v - shift).floor()[:, None] + CORNERS
        distance = (v[:, None] - corners - shift).square().sum(-1)
        distance[corners.sum(-1) % 2 != 0] = torch.inf
        best = torch.minimum(best, distance.min(-1).values)
    p = lattice.nearest(v) / 2
    assert torch.allclose((v - p).square().sum(-1), best)
    whole = (p - p[:, :1]) % 1 == 0
    assert whole.all()
    assert (p.sum(-1) % 2 == 0).all()


def test_e8_choice_is_the_cheapest_codeword():
    codewords = []
    for coset in (0, 1):
        residues = (2 * CORNERS + coset).long()
        codewords.append(residues[CORNERS.sum(-1) % 2 == 0])
    words = torch.cat(codewords)  # 256 of them
    costs = torch.rand(300, 8, 4, generator=torch.Generator().manual_seed(2)) ** 3
    costs[150:, :, 1::2] += 0.1
    total = costs[:, torch.arange(8), words].sum(-1)
    pick = E8.fit().pick(costs)
    assert torch.equal(pick, words[total.argmin(-1)])
    assert len(np.unique(pick[:, 0].numpy())) == 4


# A2 and D_n: integer vectors of an even sum


@pytest.mark.parametrize("kind", EVEN_SUMS)
def test_even_sums_nearest_by_brute_force(kind):
    """All vectors around x that have an even sum."""
    lattice, reach = kind.fit(), 3 if kind is A2 else 1
    x = random_vectors(lattice, 2000, spread=2.0)
    v = x.double() / units(lattice)
    around = itertools.product(range(-reach, reach + 2), repeat=lattice.dim)
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for corner in around:
        point = v.floor() + torch.tensor(corner)
        distance = ((v - point) * units(lattice)).square().sum(-1)
        least = torch.where(point.sum(-1) % 2 == 0, torch.minimum(least, distance), least)
    j = lattice.nearest(x)
    assert (j.sum(-1) % 2 == 0).all()
    found = ((v - j) * units(lattice)).square().sum(-1)
    assert torch.allclose(found, least, atol=1e-6)


@pytest.mark.parametrize("kind", EVEN_SUMS)
def test_even_sums_have_volume_one(kind):
    assert 2 * float(units(kind).expand(kind.dim).prod()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "axis", "power"),
    [(A2, 0, (1, 12, 4)), (A2, 1, (3, 4, 4)), (D3, 0, (1, 2, 3)), (D4, 0, (1, 2, 4))],
)
def test_points_are_exact_however_far_out(kind, axis, power):
    """64 * unit * j to the nearest, found in integers of any size, 2^10 times as fine."""
    sizes = [0, 1, -1, 2, 3, 15, -16, 1023, 1025, -19484, 65537]
    j = torch.tensor(sizes, dtype=torch.int32)[:, None].expand(-1, kind.dim)
    found = kind.fit().reconstruct(j, torch.full_like(j, 20))
    assert found.dtype == torch.int32
    numerator, denominator, degree = power
    for value, units in zip(sizes, found[:, axis].tolist(), strict=True):
        fine = abs(units) << 10
        exact = abs(value << 16) ** degree * numerator
        low, high = max(fine - 512, 0), fine + 513
        assert low**degree * denominator <= exact < high**degree * denominator
        assert units * value >= 0


@pytest.mark.parametrize("ratio", [0.9, 0.3, -0.05])
@pytest.mark.parametrize("kind", [D3, D4, D6])
def test_ratio_is_recovered_from_vector_moments(kind, ratio):
    counts = np.zeros((NUM_BINS, kind.edge + 1), int)
    for parities in itertools.product((0, 1), repeat=kind.dim):
        if sum(parities) % 2 == 0:
            mass = math.prod((1 + ratio * (1 - 2 * parity)) / 2 for parity in parities)
            counts[20, 0] += round(1e9 * mass * parities.count(0))
            counts[20, 1] += round(1e9 * mass * parities.count(1))
    fitted = kind.fit({"counts": counts, "offsets": np.zeros(counts.shape)})
    assert fitted.parity_ratio[20 - fitted.packing.first_bin] / RATIO_ONE == pytest.approx(
        ratio, abs=2e-4
    )


@pytest.mark.parametrize("odds", [0.01, 0.3, 1.1])
def test_ratios_of_a2_give_the_odds_of_the_coset(odds):
    """In a bin the odds of the odd coset are (1 - r) (1 - s) / ((1 + r) (1 + s))."""
    counts = np.zeros((2 * NUM_BINS, A2.edge + 1), int)
    counts[[20, NUM_BINS + 20], 0] = 10**9
    counts[[20, NUM_BINS + 20], 1] = odds * 10**9
    fitted = A2.fit({"counts": counts, "offsets": np.zeros(counts.shape)})
    ratios = fitted.parity_ratio.reshape(2, -1) / RATIO_ONE
    masses = (1 - ratios) / (1 + ratios)
    assert masses[:, 20 - fitted.packing.first_bin].prod() == pytest.approx(odds, rel=1e-3)
    assert (ratios[1] >= ratios[0]).all() and (ratios[1] > ratios[0])[:8].all()


def test_even_sums_refuse_odd_ones_and_damaged_tables():
    for kind in EVEN_SUMS:
        odd = np.eye(1, kind.dim, dtype=int)
        with pytest.raises(ValueError, match=f"no points of {kind.name}"):
            kind.fit().write(odd, np.full_like(odd, BIN), SymbolEncoder())
        arrays = kind.fit().to_arrays()
        for name in ("parity_ratio", "centroids", "rows.probs"):
            with pytest.raises(ModelMismatch):
                kind.from_arrays(arrays | {name: arrays[name][1:]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(lattice):
    x = random_vectors(lattice, 1000)
    assert torch.equal(lattice.nearest(x.cuda()).cpu(), lattice.nearest(x))

# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import torch

from lvqcodec.coding.rangecoder import SymbolEncoder
from lvqcodec.coding.rows import NUM_BINS
from lvqcodec.errors import ModelMismatch
from lvqcodec.format import container
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.d4 import D4
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.parity import RATIO_ONE

CORNERS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))


@pytest.fixture(params=LATTICES)
def lattice(request):
    return LATTICES[request.param].fit()


def random_vectors(lattice, *shape, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, lattice.dim, generator=generator) * spread


def test_names_are_those_on_the_wire():
    assert [lattice.name for lattice in LATTICES.values()] == list(LATTICES)
    assert tuple(LATTICES) == container.LATTICES


def test_nearest_points_are_their_own(lattice):
    j = lattice.nearest(random_vectors(lattice, 500, spread=300.0))
    assert j.dtype == torch.int32 and j.shape == (500, lattice.dim)
    assert torch.equal(lattice.nearest(j * lattice.unit), j)
    assert lattice.nearest(random_vectors(lattice, 0)).shape == (0, lattice.dim)


@pytest.mark.parametrize(
    ("name", "moment"), [("z", 1 / 12), ("e8", 929 / 12960), ("d4", 0.0766), ("leech", 0.06577)]
)
def test_second_moment(name, moment):
    """Normalised: the error of a lattice of volume 1 (Conway & Sloane 1982, table I)."""
    lattice = LATTICES[name].fit()
    x = random_vectors(lattice, 400_000 // lattice.dim, spread=20.0)
    error = (x - lattice.nearest(x) * lattice.unit).square().mean().item()
    assert error == pytest.approx(moment, rel=0.01)


def test_tables_survive_their_storage(lattice):
    arrays = lattice.to_arrays()
    again = type(lattice).from_arrays(arrays)
    assert again.packing == lattice.packing
    for name, array in again.to_arrays().items():
        assert array.dtype == arrays[name].dtype and array.tobytes() == arrays[name].tobytes()


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


def test_e8_has_240_shortest_vectors():
    grid = torch.tensor(list(itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=8)))
    grid = grid[grid.square().sum(-1) == 2]
    assert (E8.fit().nearest(grid) == 2 * grid).all(-1).sum() == 240


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


def test_d4_nearest_by_brute_force():
    """All corners of the cube around x that have an even sum."""
    lattice = D4.fit()
    x = random_vectors(lattice, 2000, spread=2.0)
    v = x.double() / lattice.unit
    corners = v.floor()[:, None] + torch.tensor(
        list(itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=4))
    )
    distance = (v[:, None] - corners).square().sum(-1)
    distance[corners.sum(-1) % 2 != 0] = torch.inf
    j = lattice.nearest(x)
    assert (j.sum(-1) % 2 == 0).all()
    assert torch.allclose((v - j).square().sum(-1), distance.min(-1).values)


def test_d4_has_24_shortest_vectors_of_volume_one():
    grid = torch.tensor(list(itertools.product((-1, 0, 1), repeat=4)))
    grid = grid[grid.square().sum(-1) == 2]
    assert (D4.fit().nearest(grid * D4.unit) == grid).all(-1).sum() == 24
    assert 2 * D4.unit**4 == pytest.approx(1)


def test_d4_points_are_exact_however_far_out():
    """64 * 2^(-1/4) * j to the nearest integer, in integers of any size: 4th root of 2^23 j^4."""
    j = torch.tensor([0, 1, -1, 2, 3, 15, -16, 1023, 1025, -19484, 65537], dtype=torch.int32)
    found = D4.fit().reconstruct(j, torch.full((len(j),), 20))
    assert found.dtype == torch.int32
    for value, units in zip(j.tolist(), found.tolist(), strict=True):
        exact = math.isqrt(math.isqrt(value**4 << 63))  # 2^10 times as fine
        assert units == (exact + 512 >> 10) * (1 if value > 0 else -1)


@pytest.mark.parametrize("ratio", [0.9, 0.3, -0.05])
def test_d4_ratio_is_recovered_from_vector_moments(ratio):
    counts = np.zeros((NUM_BINS, D4.edge + 1), int)
    for parities in itertools.product((0, 1), repeat=4):
        if sum(parities) % 2 == 0:
            mass = math.prod((1 + ratio * (1 - 2 * parity)) / 2 for parity in parities)
            counts[20, 0] += round(1e9 * mass * parities.count(0))
            counts[20, 1] += round(1e9 * mass * parities.count(1))
    fitted = D4.fit({"counts": counts, "offsets": np.zeros(counts.shape)})
    assert fitted.parity_ratio[20 - fitted.packing.first_bin] / RATIO_ONE == pytest.approx(
        ratio, abs=2e-4
    )


def test_d4_refuses_odd_sums_and_damaged_tables():
    with pytest.raises(ValueError, match="no points of d4"):
        D4.fit().write(np.array([[1, 0, 0, 0]]), np.full((1, 4), 30), SymbolEncoder())
    arrays = D4.fit().to_arrays()
    for name, value in (("parity_ratio", arrays["parity_ratio"][1:]), ("centroids", np.zeros(3))):
        with pytest.raises(ModelMismatch, match="of d4"):
            D4.from_arrays(arrays | {name: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(lattice):
    x = random_vectors(lattice, 1000)
    assert torch.equal(lattice.nearest(x.cuda()).cpu(), lattice.nearest(x))

# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch

from lvqcodec.errors import UsageError
from lvqcodec.lattices import LATTICES, make_lattice
from lvqcodec.lattices.e8 import E8
from lvqcodec.lattices.zn import Zn

CORNERS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))


@pytest.fixture(params=LATTICES)
def lattice(request):
    return make_lattice(request.param)


def random_vectors(lattice, *shape, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, lattice.dim, generator=generator) * spread


def test_names_and_unknown_name():
    assert {name: make_lattice(name).name for name in LATTICES} == {"z": "z", "e8": "e8"}
    with pytest.raises(UsageError, match="'leech'"):
        make_lattice("leech")


def test_volume_and_dimension(lattice):
    assert lattice.basis.shape == (lattice.dim, lattice.dim)
    assert lattice.volume == pytest.approx(1)


def test_coordinates_round_trip(lattice):
    p = lattice.nearest(random_vectors(lattice, 3, 500))
    k = lattice.to_coords(p)
    assert k.dtype == torch.int64
    assert torch.equal(lattice.from_coords(k).float(), p)
    k = torch.randint(-1000, 1000, (200, lattice.dim), generator=torch.Generator().manual_seed(1))
    p = lattice.from_coords(k)
    assert torch.equal(lattice.nearest(p), p)
    assert torch.equal(lattice.to_coords(p), k)


def test_shapes_and_types_are_kept(lattice):
    for shape, dtype in (((), torch.float32), ((0,), torch.float32), ((2, 3), torch.float64)):
        v = random_vectors(lattice, *shape).to(dtype)
        p = lattice.nearest(v)
        assert p.shape == v.shape
        assert p.dtype == dtype


@pytest.mark.parametrize(("name", "moment"), [("z", 1 / 12), ("e8", 0.0717)])
def test_second_moment(name, moment):
    lattice = make_lattice(name)
    v = random_vectors(lattice, 100_000, spread=20.0)
    mse = (v - lattice.nearest(v)).square().mean().item()
    normalised = mse / lattice.volume ** (2 / lattice.dim)
    assert normalised == pytest.approx(lattice.second_moment, rel=0.01)
    assert lattice.second_moment == pytest.approx(moment, abs=5e-5)


def test_z_rounds_in_any_dimension():
    v = torch.tensor([[0.4, -1.6, 7.51]])
    assert Zn(3).nearest(v).tolist() == [[0, -2, 8]]
    assert Zn(3).dim == 3


def test_e8_nearest_by_brute_force():
    """Both cosets: all corners of the cell of D8's cube grid around v that have an even sum."""
    lattice = E8()
    v = random_vectors(lattice, 400, spread=2.0).double()
    best = torch.full((400,), torch.inf, dtype=torch.float64)
    for shift in (0.0, 0.5):
        corners = (v - shift).floor()[:, None] + CORNERS
        distance = (v[:, None] - corners - shift).square().sum(-1)
        distance[corners.sum(-1) % 2 != 0] = torch.inf
        best = torch.minimum(best, distance.min(-1).values)
    p = lattice.nearest(v)
    assert torch.allclose((v - p).square().sum(-1), best)
    whole = (p - p[:, :1]) % 1 == 0
    assert whole.all()
    assert (p.sum(-1) % 2 == 0).all()


def test_e8_has_240_shortest_vectors():
    grid = torch.tensor(list(itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=8)))
    grid = grid[grid.square().sum(-1) == 2]
    assert (E8().nearest(grid) == grid).all(-1).sum() == 240


def test_e8_choice_is_the_cheapest_codeword():
    codewords = []
    for coset in (0, 1):
        residues = (2 * CORNERS + coset).long()
        codewords.append(residues[CORNERS.sum(-1) % 2 == 0])
    words = torch.cat(codewords)  # 256 of them
    costs = torch.rand(300, 8, 4, generator=torch.Generator().manual_seed(2)) ** 3
    costs[150:, :, 1::2] += 0.1
    total = costs[:, torch.arange(8), words].sum(-1)
    pick = E8().choose(costs)
    assert torch.equal(pick, words[total.argmin(-1)])
    assert len(np.unique(pick[:, 0].numpy())) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(lattice):
    v = random_vectors(lattice, 1000)
    p = lattice.nearest(v.cuda())
    assert torch.equal(p.cpu(), lattice.nearest(v))
    assert torch.equal(lattice.to_coords(p).cpu(), lattice.to_coords(p.cpu()))

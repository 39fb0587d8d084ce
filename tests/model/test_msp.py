# SPDX-License-Identifier: Apache-2.0
"""The order of coding: how many steps, every latent once, nothing read before it is known."""

import itertools
import math

import pytest
import torch

from lvqcodec.errors import UsageError
from lvqcodec.model.codec_model import RateEstimator
from lvqcodec.model.entropy.base import FRACTION, LATENT_LIMIT, NUM_BINS
from lvqcodec.model.entropy.context import channel_groups, compand_table
from lvqcodec.model.entropy.msp import MultiScaleProgressive
from lvqcodec.model.entropy.order import coding_order, known_offsets, subgroup_places
from lvqcodec.model.integer import ACTIVATION_MAX

GRIDS = [(1, 1), (1, 3), (3, 1), (2, 7), (5, 5), (8, 8), (9, 17)]
BLOCKS = [(2, 2), (2, 4), (4, 2), (4, 4)]
PROFILES = {
    "baseline": (MultiScaleProgressive.Config(scales=3, block=(2, 2)), 10),
    "normal": (MultiScaleProgressive.Config(scales=3, block=(2, 2), seeds=(2, 3)), 28),
    "extra": (MultiScaleProgressive.Config(scales=4, block=(2, 4), seeds=(1, 2, 3, 4)), 121),
}
CHANNELS = 12


def model(scales=3, block=(2, 2), seeds=(), linear=8, seed=0):
    """A frozen model whose means and scales hang on everything they may."""
    torch.manual_seed(seed)
    sizes = {"linear": linear, "hidden": 16, "trunk": 8, "depth": 1}
    config = MultiScaleProgressive.Config(scales=scales, block=block, seeds=seeds, **sizes)
    made = MultiScaleProgressive(config, CHANNELS).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if ".heads." in name and name.endswith("weight"):
            parameter.normal_(std=0.3)
        elif ".linear." in name and name.endswith("weight"):
            parameter.normal_(std=0.1)
        elif name.endswith("bias.rows"):
            parameter.uniform_(0.5, 2)
    made.freeze()
    return made


class Tape:
    """A coder of given latents (1, h * w, C) that records every step."""

    def __init__(self, latents):
        self.latents, self.steps = latents, []

    def __call__(self, plane, positions, channels, mean, scale):
        self.steps.append((positions, channels, mean, scale))
        return self.latents[:, positions, channels]


def walk(made, height, width, latents=None):
    if latents is None:
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, height * width, CHANNELS, generator=generator)
        latents = latents.mul(256).round() / 64
    tape = Tape(latents)
    coded = made.code(tape, height, width, torch.full((1,), 50.0))
    assert torch.equal(coded, latents)
    return tape.steps


# steps and order


@pytest.mark.parametrize("profile", PROFILES)
def test_the_papers_profiles_take_the_papers_number_of_steps(profile):
    config, steps = PROFILES[profile]
    made = model(config.scales, config.block, config.seeds)
    assert made.num_steps == steps
    assert len(walk(made, 32, 64)) == steps
    assert len(walk(made, 33, 50)) == steps


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("block", "seeds"), [((2, 2), ()), ((2, 4), (2, 2)), ((4, 4), (3,))])
def test_every_latent_is_coded_exactly_once(grid, block, seeds):
    made = model(3, block, seeds)
    times = torch.zeros(grid[0] * grid[1], CHANNELS, dtype=torch.int64)
    for positions, channels, mean, scale in walk(made, *grid):
        assert len(positions) == len(set(positions.tolist())) > 0
        assert mean.shape == scale.shape == (1, len(positions), channels.stop - channels.start)
        times[positions, channels] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("scales", [1, 2, 4])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("grid", GRIDS)
def test_indices_point_to_what_is_coded_already(grid, block, scales):
    height, width = grid
    nowhere = height * width
    order = coding_order(height, width, scales, block)
    known = set(order.coarsest.tolist())
    for depth, scale in enumerate(order.scales):
        spacing = 2 ** (scales - 1 - depth)
        coarse = scale.coarse.tolist()
        assert set(coarse) == known
        rows, columns = math.ceil(height / spacing / 2), math.ceil(width / spacing / 2)
        assert len(coarse) == rows * columns and scale.windows.shape == (len(coarse), 9)
        assert torch.equal(scale.windows[:, 4], torch.arange(len(coarse)))
        for centre, window in zip(coarse, scale.windows.tolist(), strict=True):
            i, j = divmod(centre, width)
            offsets = itertools.product((-1, 0, 1), repeat=2)
            for index, (di, dj) in zip(window, offsets, strict=True):
                a, b = i + 2 * spacing * di, j + 2 * spacing * dj
                inside = 0 <= a < height and 0 <= b < width
                assert (coarse[index] == a * width + b) if inside else (index == len(coarse))
        for index, subgroup in enumerate(scale.subgroups):
            positions = subgroup.positions.tolist()
            offsets = known_offsets(block, index)
            assert subgroup.neighbours.shape == (len(positions), len(offsets))
            assert known.isdisjoint(positions)
            for place, parent, around in zip(
                positions, subgroup.parents.tolist(), subgroup.neighbours.tolist(), strict=True
            ):
                i, j = divmod(place, width)
                doubled = 2 * spacing
                assert coarse[parent] == i // doubled * doubled * width + j // doubled * doubled
                for (di, dj), seen in zip(offsets, around, strict=True):
                    mirrored = [(di, dj), (-di, dj), (di, -dj), (-di, -dj)]
                    cells = [(i + spacing * a, j + spacing * b) for a, b in mirrored]
                    inside = [a * width + b for a, b in cells if 0 <= a < height and 0 <= b < width]
                    # the neighbour itself or the first of its mirror images that is known
                    wanted = [cell for cell in inside if cell in known] or [nowhere]
                    assert seen == wanted[0]
            known.update(positions)
    assert known == set(range(nowhere))


@pytest.mark.parametrize("block", BLOCKS)
def test_away_from_borders_every_neighbour_is_the_real_one_and_none_is_left_out(block):
    order = coding_order(20, 20, 1, block)
    coded = torch.full((20, 20), 99)
    coded[::2, ::2] = -1
    for index, subgroup in enumerate(order.scales[0].subgroups):
        coded.view(-1)[subgroup.positions] = index
    for index, subgroup in enumerate(order.scales[0].subgroups):
        for place, around in zip(subgroup.positions.tolist(), subgroup.neighbours, strict=True):
            i, j = divmod(place, 20)
            if 0 < i < 19 and 0 < j < 19:
                window = [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
                wanted = [a * 20 + b for a, b in window if coded[a, b] < index]
                assert around.tolist() == wanted


def test_subgroups_of_the_papers_blocks():
    assert subgroup_places((2, 2)) == [(1, 1), (0, 1), (1, 0)]
    assert len(subgroup_places((2, 4))) == 6
    assert len(known_offsets((2, 2), 0)) == 4  # the four corners
    assert len(known_offsets((2, 2), 2)) == 8  # all of them


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"scales": 0}, "0 scales"),
        ({"block": (1, 2)}, r"\(1, 2\)"),
        ({"block": (2, 3)}, r"\(2, 3\)"),
        ({"block": (0, 2)}, r"\(0, 2\)"),
        ({"seeds": (4, 8)}, "less than 12 in all"),
        ({"seeds": (0, 3)}, "at least 1 each"),
        ({"linear": 0}, "linear = 0"),
    ],
)
def test_orders_that_cannot_be_are_refused(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        model(**settings)


def test_channel_groups_partition_the_channels():
    for seeds, channels in itertools.product(((), (4,), (1, 2), (8, 3, 5)), (17, 33, 192)):
        groups = channel_groups(MultiScaleProgressive.Config(seeds=seeds), channels)
        assert [g.stop - g.start for g in groups[:-1]] == list(seeds)
        assert [c for g in groups for c in range(g.start, g.stop)] == list(range(channels))


# causality


@pytest.mark.parametrize("grid", [(5, 5), (1, 3), (4, 9)])
@pytest.mark.parametrize(("block", "seeds"), [((2, 2), ()), ((2, 2), (2, 2)), ((2, 4), (2,))])
def test_no_mean_or_scale_hangs_on_latents_of_its_own_step_or_of_later_ones(grid, block, seeds):
    made = model(3, block, seeds)
    before = torch.randn(1, grid[0] * grid[1], CHANNELS).mul(256).round() / 64
    original = walk(made, *grid, before)
    later_changes = 0
    for k in range(len(original)):
        latents = before.clone()
        for positions, channels, _, _ in original[k:]:
            change = torch.randint(1, 500, (1, len(positions), channels.stop - channels.start)) / 16
            latents[:, positions, channels] += change
        changed = walk(made, *grid, latents)
        for index, (old, new) in enumerate(zip(original, changed, strict=True)):
            same = torch.equal(old[2], new[2]) and torch.equal(old[3], new[3])
            assert same or index > k
            later_changes += not same
    assert later_changes > len(original) / 2 or len(original) < 3, "nothing hangs on anything"


@pytest.mark.parametrize("seeds", [(), (2, 2)])
def test_every_later_step_makes_use_of_the_step_before(seeds):
    made = model(2, (2, 2), seeds)
    before = torch.randn(1, 64, CHANNELS).mul(256).round() / 64
    original = walk(made, 8, 8, before)
    for k in range(len(original) - 1):
        positions, channels, _, _ = original[k]
        latents = before.clone()
        latents[:, positions, channels] += 333 / 16
        changed = walk(made, 8, 8, latents)
        assert not torch.equal(original[k + 1][2], changed[k + 1][2]), f"step {k + 1} ignores {k}"


def test_orders_made_while_coding_serve_training_too():
    with torch.inference_mode():
        order = coding_order(11, 3, 2, (2, 2))
    x = torch.ones(1, 33, 1, requires_grad=True)
    x.index_select(1, order.coarsest).sum().backward()
    assert x.grad is not None


# companding


def test_compand_table_is_the_rounded_logarithm():
    table = compand_table()
    n = torch.arange(len(table), dtype=torch.float64)
    assert torch.equal(table.double(), torch.round(12 * torch.log2(1 + n / FRACTION)))
    assert len(table) == 2 * LATENT_LIMIT + 1
    assert table[0] == 0 and table[1:].min() >= 1  # nothing is mistaken for zero
    assert table[FRACTION] == 12
    assert (table.diff() >= 0).all() and table[-1] <= ACTIVATION_MAX


def test_companding_is_odd_saturates_and_agrees_in_all_modes():
    config = MultiScaleProgressive.Config(scales=1, hidden=4, trunk=4, depth=1)
    made = MultiScaleProgressive(config, 4)
    x = torch.arange(-2 * LATENT_LIMIT, 2 * LATENT_LIMIT + 1).float()
    in_float = made.compand(x, "float")
    simulated = made.compand(x, "simulate")
    exact = made.compand(x, "exact")
    assert torch.equal(exact, -made.compand(-x, "exact"))
    assert torch.equal(exact, simulated)
    assert (exact - in_float).abs().max() < 0.501
    assert made.compand(torch.tensor([1e6]), "exact") == exact[-1]


def test_scales_stay_within_the_bins():
    made = model(2)
    for _, _, _, scale in walk(made, 8, 8, torch.randn(1, 64, CHANNELS).mul(1250).round()):
        assert scale.min() >= 0 and scale.max() <= FRACTION * (NUM_BINS - 1)


# learning in part


def test_a_part_that_learns_for_all_does_so_on_the_average():
    torch.manual_seed(4)
    sizes = {"linear": 4, "hidden": 16, "trunk": 8, "depth": 1, "seeds": (2,)}
    made = MultiScaleProgressive(MultiScaleProgressive.Config(scales=1, **sizes), CHANNELS)
    for name, parameter in made.named_parameters():
        if (".heads." in name or ".linear." in name) and name.endswith("weight"):
            parameter.data.normal_(std=0.1)
    target = torch.randn(2, 6 * 7, CHANNELS) * 3
    quality = torch.tensor([20.0, 70.0])

    def learn(seed=None):
        made.sparse = None if seed is None else torch.Generator().manual_seed(seed)
        made.zero_grad(set_to_none=True)
        y = target.clone().requires_grad_()
        estimator = RateEstimator({"y": y})
        coded = made.code(estimator, 6, 7, quality)
        estimator.bits.sum().backward()
        grads = {name: p.grad for name, p in made.named_parameters()}
        return estimator.bits.detach(), coded.detach(), {**grads, "y": y.grad}

    bits, coded, whole = learn()
    found = {}
    for seed in range(30):
        some_bits, some_coded, grads = learn(seed)
        assert torch.equal(some_bits, bits) and torch.equal(some_coded, coded)
        (learner,) = {
            n.split(".")[2] for n, g in grads.items() if ".heads.0." in n and g is not None
        }
        found[learner] = grads
    assert set(found) == {"0", "1", "2"}
    for name, wanted in whole.items():
        parts = [grads[name] for grads in found.values() if grads[name] is not None]
        close = {"rtol": 1e-3, "atol": 1e-4 * float(wanted.abs().max())}
        assert torch.allclose(sum(parts) / 3, wanted, **close), name

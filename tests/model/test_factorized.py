# SPDX-License-Identifier: Apache-2.0
"""The factorised prior: densities, rows made of them, and files coded with these."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from conftest import TINY, install, make_model
from PIL import Image

from lvqcodec import codec
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.format.container import Header
from lvqcodec.model.entropy import Factorized
from lvqcodec.model.lattices.tables import CodingTables
from lvqcodec.model.loaded import load_model
from lvqcodec.model.weights import pack_weights, unpack_weights
from lvqcodec.stream import TileCoder
from lvqcodec.training import export as exporting
from lvqcodec.training.checkpoint import read_weights
from lvqcodec.training.coded import analyse
from lvqcodec.training.fit_tables import first_tables, fit_to_crops
from lvqcodec.training.loop import train
from lvqcodec.training.transfer import adapt

CONFIG = dataclasses.replace(TINY, entropy=Factorized.Config(nodes=11))


def alive(model, seed=3):
    """Let the densities differ, as training makes them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.entropy.named_parameters():
        if "log_scale" not in name:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def trained():
    return alive(make_model(CONFIG))


@pytest.fixture
def installed(trained, tmp_path, monkeypatch):
    """A model "prior", and an installed one of another kind."""
    model = alive(make_model(CONFIG))
    install(model, tmp_path, "prior")
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    return model


# densities


def test_masses_of_all_integers_make_one_and_cumulatives_rise(trained):
    values = torch.arange(-20000.0, 20001.0, dtype=torch.float64)[None, :, None]
    densities = trained.entropy.double().cumulative(torch.tensor([50.0], dtype=torch.float64))
    bits = densities(values.expand(-1, -1, trained.entropy.channels))
    assert torch.allclose(torch.exp2(-bits).sum(1), torch.ones(()).double(), atol=1e-6)
    rise = densities.logits(values.expand(-1, -1, trained.entropy.channels)).diff(dim=1)
    assert rise.min() > 0
    trained.entropy.float()


def test_bits_are_finite_and_have_gradients_however_far_away(trained):
    values = (torch.tensor([-1e5, -300.0, 0.0, 0.4, 1e5])[None, :, None]).expand(2, -1, 24).clone()
    values.requires_grad_()
    bits = trained.entropy.cumulative(torch.tensor([0.0, 100.0]))(values)
    bits.sum().backward()
    assert torch.isfinite(bits).all() and (bits >= 0).all()
    assert torch.isfinite(values.grad).all() and values.grad[:, -1].min() > 0


def test_fixed_densities_pass_gradients_to_values_alone(trained):
    model = make_model(CONFIG).requires_grad_(True)
    values = torch.randn(1, 7, 24, requires_grad=True)
    density = model.entropy.cumulative(torch.full((1,), 50.0))
    assert torch.equal(density.fixed()(values), density(values))
    density.fixed()(values).sum().backward()
    assert values.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in model.entropy.parameters())


def test_scales_start_where_all_qualities_look_alike():
    model = make_model(CONFIG).entropy
    uniform = torch.rand(2, 400, 24)
    y = torch.log(uniform / (1 - uniform))  # logistic
    y[0, 0] = 60  # one far out would make a standard deviation 1.5 times as large
    y = y * torch.linspace(0.1, 5, 24) + 3
    steps = torch.linspace(0.02, 0.5, 6)[:, None].expand(-1, 24)
    model.start(y, (20, 20), steps)
    for node, quality in enumerate((0, 20, 40, 60, 80, 100)):
        seen = y / steps[node] * model.cumulative(torch.tensor([float(quality)])).scale
        middle = seen.flatten(0, 1)[1:]
        assert torch.allclose(middle.std(0), torch.ones(24), atol=0.2)


def test_training_finds_a_density_that_no_logistic_has():
    torch.manual_seed(0)
    model = Factorized(Factorized.Config(), 2)

    # half the mass at two steps, half between -3 and 1
    def sample():
        wide = torch.rand(1, 2000, 2) * 4 - 3
        return torch.where(torch.rand(1, 2000, 2) < 0.5, 2.0, wide).round()

    quality = torch.full((1,), 50.0)
    with torch.no_grad():
        model.start(sample(), (40, 50), torch.ones(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = None
    for _ in range(300):
        bits = model.cumulative(quality)(sample()).mean()
        before = before or float(bits.detach())
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    probabilities = torch.tensor([1 / 16, 1 / 8, 1 / 8, 1 / 8, 1 / 16, 1 / 2])
    entropy = float(-(probabilities * probabilities.log2()).sum())
    assert entropy < float(bits.detach()) + 0.05 and float(bits.detach()) < entropy + 0.15 < before


# rows


def test_rows_hold_the_masses_of_the_densities(trained):
    table = trained.entropy.own_rows()
    assert len(table.sizes) == trained.entropy.num_own_rows == 11 * 24
    for node in (0, 3, 10):
        density = trained.entropy.cumulative(torch.tensor([10.0 * node]))
        for channel in range(24):
            row = node * 24 + channel
            values = torch.arange(int(table.sizes[row]) - 1) - int(table.offsets[row])
            bits = density(values[None, :, None].expand(-1, -1, 24))[0, :, channel]
            wanted = torch.exp2(-bits).numpy()
            found = table.probs[row, : len(values)]
            assert np.abs(found - wanted).max() < 1e-4
            assert 1 - found.sum() < 2**-9 or abs(int(values.max())) == 255
    assert len(np.unique(table.sizes)) > 10, "all densities are of one width"


@pytest.mark.parametrize("quality", range(0, 101, 3))
def test_every_quality_uses_the_rows_of_the_nearest_node(trained, quality):
    wanted = min(range(11), key=lambda node: abs(10 * node - quality))
    assert abs(10 * trained.entropy._node(quality) - quality) == abs(10 * wanted - quality)


def test_rows_are_fitted_to_what_is_chosen(installed, photograph):
    crops = torch.from_numpy(photograph(128, 128)).permute(2, 0, 1)[None].float() / 255
    model, said = installed, []
    before = model.tables.own
    fit_to_crops(model, crops.expand(101, -1, -1, -1)[:, :, :64, :64], said.append)
    assert model.tables.own.probs.shape == before.probs.shape
    assert not np.array_equal(model.tables.own.probs, before.probs)
    rates = [float(found[1]) for line in said if (found := re.search(r" z ([\d.]+) bpp", line))]
    assert rates[-1] < 0.9 * rates[0]


# files


@pytest.mark.parametrize("lattice", ["z", "e8"])
@pytest.mark.parametrize("quality", [0, 47, 100])
def test_pictures_are_coded(installed, photograph, lattice, quality):
    picture = photograph(90, 70)
    data = codec.encode(picture, model="prior", quality=quality, lattice=lattice)
    decoded = codec.decode(data)
    error = float(np.square(decoded.astype(float) - picture).mean())
    assert error < {0: 1000, 47: 120, 100: 20}[quality]
    assert codec.encode(picture, model="prior", quality=quality, lattice=lattice, effort=2)
    assert len(codec.encode(picture, model="prior", quality=quality, tile=64)) > len(data) / 2


def test_the_beginning_of_a_tile_is_its_beginning(installed, photograph):
    loaded = load_model("prior", device="cpu")
    coder = TileCoder(Header(88, 72, 3, 60, "e8", loaded.digest), loaded)
    x = torch.from_numpy(photograph(72, 88)).permute(2, 0, 1)[None].float() / 255
    tile = coder.write(loaded.model.analysis(x, coder.quality), (9, 11))
    assert torch.equal(coder.read(tile.payload, (9, 11)), tile.y_hat)
    shares = []
    for share in (0.0, 0.3, 0.7, 1.0):
        found = coder.read_partial(tile.payload[: 4 + int(share * len(tile.payload))], (9, 11))
        assert ((found == tile.y_hat) | (found == 0)).all(), "neither the latent nor zero"
        shares.append(float((found == tile.y_hat).float().mean()))
    assert shares == sorted(shares) and shares[0] < 1 == shares[-1]


def test_a_file_depends_on_the_rows_of_its_quality(installed, photograph):
    loaded = load_model("prior", device="cpu")
    batch = analyse(loaded.model, torch.rand(1, 3, 32, 32), 60)
    bins = []

    def coder_own(plane, positions, channels, rows, density):
        bins.append(rows)
        return batch.y.round()

    coder = type("Coder", (), {"own": staticmethod(coder_own)})()
    for quality in (0.0, 54.0, 56.0):
        loaded.model.entropy.code(coder, *batch.grid, torch.full((1,), quality))
    assert [int(rows[0]) for rows in bins] == [0, 5 * 24, 6 * 24]
    assert all(torch.equal(rows - rows[0], torch.arange(24)) for rows in bins)


def test_weights_hold_rows_and_no_densities(installed):
    weights = pack_weights(installed)
    loaded = unpack_weights(weights)
    assert not list(loaded.entropy.parameters()) and not loaded.entropy.to_integers()
    assert np.array_equal(loaded.tables.own.probs, installed.tables.own.probs)
    assert pack_weights(loaded) == weights
    with pytest.raises(ModelMismatch, match="not densities"):
        loaded.rate(torch.rand(1, 3, 32, 32), torch.full((1,), 50.0))


def test_weights_without_the_rows_they_need_are_refused(installed, new_model):
    own = installed.tables.own
    fewer = dataclasses.replace(own, **{k: v[:-1] for k, v in own.to_arrays().items()})
    for wrong, complaint in ((fewer, "263 rows of their own, not 264"), (None, "lack entropy")):
        installed.tables = dataclasses.replace(installed.tables, own=wrong)
        with pytest.raises(ModelMismatch, match=complaint):
            unpack_weights(pack_weights(installed))
    other = new_model()
    other.entropy.freeze()
    other.tables = dataclasses.replace(first_tables(other), own=own)
    with pytest.raises(ModelMismatch, match="264 rows of their own, not 0"):
        unpack_weights(pack_weights(other))


def test_what_it_starts_from(trained, installed, tmp_path):
    model = make_model(CONFIG)
    state, anew = adapt(trained.state_dict(), model)
    assert not anew
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value)
    assert adapt(read_weights(tmp_path / "prior.safetensors"), model)[1] == ["entropy"]
    assert adapt(make_model().state_dict(), model)[1] == ["entropy"]
    assert adapt(trained.state_dict(), make_model())[1] == ["entropy"]


RECIPE = """
init_crops = 3

[codec.transform]
latent_channels = 24
analysis = [[8, 8, 1]]
synthesis = [[8, 8, 1]]

[codec.entropy]
name = "factorized"
nodes = 6

[[stage]]
name = "prior"
steps = 3
train = ["entropy"]
batch = 2
crop = 64

[[stage]]
name = "joint"
steps = 2
train = ["analysis", "synthesis", "entropy", "steps"]
batch = 2
crop = 64
surrogate = "noise"
simulate = true
"""


def test_a_recipe_is_trained_and_exported(tmp_path, photograph, monkeypatch):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    Image.fromarray(photograph(256, 256)).save(tmp_path / "data" / "0.png")
    summary = train(
        tmp_path / "recipe.toml", data=[tmp_path / "data"], out=tmp_path / "run", device="cpu"
    )
    assert summary["finished"] and summary["steps"] == 5
    for name, value in {"FIT_CROPS": 101, "FIT_CROP": 64}.items():
        monkeypatch.setattr(exporting, name, value)
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    picture = photograph(256, 256)
    sizes = []
    for data in ([], [tmp_path / "data"]):
        exporting.export(
            tmp_path / "run", name=f"prior{len(data)}", out=tmp_path, data=data, device="cpu"
        )
        sizes.append(len(codec.encode(picture, model=f"prior{len(data)}", quality=60)))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("settings", "channels"), [({"nodes": 1}, 4), ({"widths": (3, 0)}, 4), ({"nodes": 101}, 700)]
)
def test_sizes_that_cannot_be_are_refused(settings, channels):
    with pytest.raises(UsageError):
        Factorized(Factorized.Config(**settings), channels)


def test_tables_survive_their_file(installed):
    tables = installed.tables
    again = CodingTables.from_arrays(tables.to_arrays())
    assert np.array_equal(again.own.probs, tables.own.probs)

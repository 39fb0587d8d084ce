# SPDX-License-Identifier: Apache-2.0
"""Models with a plane beside y, and with features for the synthesis: a toy hyperprior."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import TINY, install, make_model, make_photograph
from hypothesis import given
from hypothesis import strategies as st

from lvqcodec import codec
from lvqcodec.coding.rangecoder import SymbolDecoder
from lvqcodec.config import AxisConfig
from lvqcodec.errors import FormatError, StreamError, UsageError
from lvqcodec.format.container import Header
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.model.codec_model import CodecModel, RateEstimator
from lvqcodec.model.entropy import ENTROPY_MODELS, EntropyModel
from lvqcodec.model.entropy.base import LATENT_UNITS, Plane
from lvqcodec.model.entropy.context import SCALE_MAX, head
from lvqcodec.model.integer import ACTIVATION_MAX, IntegerLinear
from lvqcodec.model.loaded import load_model
from lvqcodec.model.transforms import TRANSFORMS, LappedTransform
from lvqcodec.stream import TileCoder

Z = 3
FEATURES = 2


class Hyper(EntropyModel):
    """Scales of y by means of |y| over 2 x 2 positions, which are coded first, as plane z."""

    num_steps = 2
    period = 2

    @dataclass(frozen=True)
    class Config(AxisConfig):
        """Nothing to choose."""

        name: str = "hyper"
        layers = 2

    def __init__(self, config, channels):
        super().__init__(config, channels)
        self.prior = head(1, Z)
        self.expand = IntegerLinear(Z, channels, out_bits=7, low=-16384, high=16384)

    def planes(self, height, width):
        return Plane("z", ((height + 1) // 2, (width + 1) // 2), Z), *super().planes(height, width)

    def side(self, y, grid, quality):
        size = torch.unflatten(y.abs().transpose(1, 2), 2, grid)
        size = torch.nn.functional.avg_pool2d(size, 2, ceil_mode=True)
        groups = torch.stack([part.mean(1) for part in size.tensor_split(Z, dim=1)], -1)
        return {"z": 4 * torch.log2(1 + groups.flatten(1, 2))}

    def code(self, coder, height, width, quality):
        rows, columns = self.planes(height, width)[0].grid
        nothing = quality.new_zeros(len(quality), rows * columns, 1)
        mean, scale = self.prior(nothing, quality).chunk(2, 2)
        everywhere = torch.arange(rows * columns)
        scale = scale.clamp(0, SCALE_MAX)
        z = coder("z", everywhere, slice(0, Z), mean / LATENT_UNITS, scale)
        # whole units, which the layer takes for activations
        seen = (8 * z).round().clamp(-ACTIVATION_MAX, ACTIVATION_MAX)
        seen = z * 8 + (seen - z * 8).detach()
        places = torch.arange(height * width)
        parents = places // width // 2 * columns + places % width // 2
        scale = self.expand(seen, quality)[:, parents].clamp(0, SCALE_MAX)
        zero = torch.zeros_like(scale)
        y = coder("y", places, slice(0, self.channels), zero, scale)
        return torch.cat([y, seen[:, parents, : self.features]], 2)


class HyperWithFeatures(Hyper):
    """The same, which shows the synthesis what it knows of the energy."""

    features = FEATURES

    @dataclass(frozen=True)
    class Config(Hyper.Config):
        """Nothing to choose."""

        name: str = "hyper-features"


class Assisted(LappedTransform):
    """A synthesis that adds what features tell, so that it shows whether it has them."""

    features = FEATURES

    @dataclass(frozen=True)
    class Config(LappedTransform.Config):
        """See `LappedTransform.Config`."""

        name: str = "assisted"

    def synthesis(self, y_hat, quality):
        y, features = y_hat[:, : self.channels], y_hat[:, self.channels :]
        assert features.shape[1] == FEATURES and torch.equal(features, features.round())
        light = torch.nn.functional.interpolate(features.mean(1, keepdim=True), scale_factor=8)
        return super().synthesis(y, quality) + light / 2000


PLAIN = dataclasses.replace(TINY, entropy=Hyper.Config())
ASSISTED = dataclasses.replace(
    TINY,
    transform=Assisted.Config(**dataclasses.asdict(TINY.transform) | {"name": "assisted"}),
    entropy=HyperWithFeatures.Config(),
)
KINDS = {"plain": PLAIN, "assisted": ASSISTED}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Hyper, HyperWithFeatures):
            patch.setitem(ENTROPY_MODELS, kind.Config().name, kind)
        patch.setitem(TRANSFORMS, "assisted", Assisted)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, _registered):
    folder = tmp_path_factory.mktemp("planes")
    for name, config in KINDS.items():
        model = alive(make_model(config))
        install(model, folder, name)
    return folder


def alive(model):
    """Make the scales of y follow z."""
    entropy = model.entropy
    entropy.expand.weight.zero_()
    for group, channels in enumerate(torch.arange(24).tensor_split(Z)):
        entropy.expand.weight[channels, group] = 0.86
    entropy.expand.bias.rows.fill_(1.0)
    entropy.prior.bias.rows[:, :Z] = 1.0
    entropy.prior.bias.rows[:, Z:] = 3.0
    return model


@pytest.fixture(autouse=True)
def _installed(folder, monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(folder))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def tile_of(loaded, quality=60, size=(72, 88)):
    """A coder, the latents of a picture of one tile, and their grid."""
    header = Header(size[1], size[0], 3, quality, "e8", loaded.digest)
    pixels = make_photograph(*size, seed=3)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    coder = TileCoder(header, loaded)
    with torch.inference_mode():
        target = loaded.model.analysis(loaded.model.pad(x), coder.quality)
    return coder, target, loaded.model.grid(*size)


def test_a_tile_comes_back_with_all_its_planes(kind):
    loaded = load_model(kind, device="cpu")
    coder, target, grid = tile_of(loaded)
    tile = coder.write(target, grid)
    found = coder.read(tile.payload, grid)
    assert torch.equal(found, tile.y_hat)
    assert found.shape[2] == 24 + loaded.model.entropy.features
    assert (found[..., :24] - target).abs().mean() < 0.5
    assert coder._count(grid) == 9 * 11 * 24 + 5 * 6 * Z


def test_pictures_are_coded_and_search_makes_them_better(kind, photograph):
    picture = photograph(150, 203)
    sizes = {}
    for effort in (0, 2):
        for tile in (None, 64):
            data = codec.encode(picture, model=kind, quality=50, effort=effort, tile=tile)
            error = np.square(codec.decode(data).astype(float) - picture).mean()
            sizes[effort, tile] = len(data), error
            assert error < 100
    lmbda = load_model(kind, device="cpu").model.config.lmbda(50)
    pixels, gains = picture[..., 0].size, []
    for tile in (None, 64):
        losses = [8 * sizes[e, tile][0] / pixels + lmbda * sizes[e, tile][1] for e in (0, 2)]
        gains.append(1 - losses[1] / losses[0])
    # without contexts and with a nearly orthogonal transform there is nothing to be found
    assert min(gains) >= (0.001 if kind == "assisted" else 0), gains


@pytest.mark.parametrize("options", [{"effort": 1}, {"tune": "ms-ssim", "effort": 1}])
def test_other_searches_take_features_too(kind, photograph, options):
    picture = photograph(180, 190)
    data = codec.encode(picture, model=kind, quality=50, **options)
    assert codec.decode(data).shape == picture.shape


def test_the_estimate_counts_all_planes(kind):
    loaded = load_model(kind, device="cpu")
    coder, target, grid = tile_of(loaded)
    bits = 8 * len(coder.write(target, grid).payload)
    assert coder.estimate_bits(target, grid) == pytest.approx(bits, rel=0.02, abs=64)


def test_scales_follow_the_side_information():
    """Coding y with the z of another picture costs more: z is told and used."""
    loaded = load_model("plain", device="cpu")
    coder, target, grid = tile_of(loaded)
    honest = coder.estimate_bits(target, grid)
    side = loaded.model.entropy.side
    loaded.model.entropy.side = lambda y, *of: side(y * 8, *of)
    try:
        assert coder.estimate_bits(target, grid) > 1.1 * honest
    finally:
        del loaded.model.entropy.side


def test_a_damaged_plane_is_refused_though_y_is_intact(folder, monkeypatch):
    """The checksum covers z as well: here scales do not hang on it, so y is read all the same."""
    model = alive(make_model(PLAIN))
    model.entropy.expand.weight.zero_()
    model.entropy.expand.bias.rows.fill_(2.0)
    install(model, folder, "deaf")
    coder, target, grid = tile_of(load_model("deaf", device="cpu"))
    tile = coder.write(target, grid)
    assert torch.equal(coder.read(tile.payload, grid), tile.y_hat)
    read, calls = coder.quantizer.read, []

    def damaged(bins, decoder):
        calls.append(read(bins, decoder))
        return calls[-1] + (2 if len(calls) == 1 else 0)

    monkeypatch.setattr(coder.quantizer, "read", damaged)
    with pytest.raises(StreamError, match="checksum"):
        coder.read(tile.payload, grid)
    recorded = coder._walk(coder._reading(SymbolDecoder(tile.payload[4:])), grid)
    assert torch.equal(recorded[0], tile.y_hat), "y is not intact"


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_damage_is_refused_or_harmless(place, change):
    loaded = load_model("plain", device="cpu")
    coder, target, grid = tile_of(loaded, size=(24, 40))
    tile = coder.write(target, grid)
    payload = bytearray(tile.payload)
    payload[place % len(payload)] ^= change
    try:
        found = coder.read(bytes(payload), grid)
    except FormatError:
        return
    assert place % len(payload) >= len(payload) - 4, "more than the last word is free"
    assert torch.equal(found, tile.y_hat)


def test_the_beginning_of_a_tile_is_its_beginning(kind):
    loaded = load_model(kind, device="cpu")
    coder, target, grid = tile_of(loaded)
    tile = coder.write(target, grid)
    whole = tile.y_hat[..., :24]
    seen = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        found = coder.read_partial(tile.payload[: 4 + int(share * len(tile.payload))], grid)
        assert found.shape == tile.y_hat.shape
        same = found[..., :24] == whole
        assert (same | (found[..., :24] == 0)).all(), "neither the latent nor its mean"
        seen.append(int(same.sum()))
    assert seen == sorted(seen) and seen[-1] == whole.numel() > seen[0]


def test_the_synthesis_sees_the_features_that_the_decoder_made(photograph):
    picture = photograph(60, 90)
    loaded = load_model("assisted", device="cpu")
    data = codec.encode(picture, model="assisted", quality=70)
    file = open_lvq(data)
    coder = TileCoder(file.header, loaded)
    y_hat = coder.read(file.tiles[0], file.tiling[0].grid)
    assert y_hat[..., 24:].abs().max() > 1
    with torch.inference_mode():
        x_hat = loaded.model.synthesis(y_hat, file.tiling[0].grid, coder.quality)
        dark = torch.cat([y_hat[..., :24], 0 * y_hat[..., 24:]], 2)
        unlit = loaded.model.synthesis(dark, file.tiling[0].grid, coder.quality)
    wanted = (x_hat[0, :, :60, :90].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(codec.decode(data), wanted)
    assert not torch.equal(x_hat, unlit)


@pytest.mark.parametrize("mode", ["float", "simulate"])
def test_training_reaches_all_planes(kind, mode):
    model = alive(make_model(KINDS[kind])).requires_grad_(True)
    model.entropy.set_mode(mode)
    x = torch.rand(2, 3, 40, 48)
    out = model(x, torch.tensor([20.0, 90.0]))
    (out.bits.mean() / 1000 + out.x_hat.square().mean()).backward()
    for name, parameter in model.entropy.named_parameters():
        assert torch.isfinite(parameter.grad).all()
        if name != "prior.weight":  # there is nothing that it could see
            assert parameter.grad.abs().sum() > 0
    estimator = RateEstimator({"y": torch.zeros(1, 2, 24)})
    assert estimator.seen(torch.ones(1, 2, 26)).shape == (1, 2, 26)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(TINY, entropy=HyperWithFeatures.Config()),
        dataclasses.replace(ASSISTED, entropy=Hyper.Config()),
    ],
)
def test_a_pair_that_does_not_agree_on_features_is_refused(config):
    with pytest.raises(UsageError, match="features"):
        CodecModel(config)

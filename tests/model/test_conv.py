# SPDX-License-Identifier: Apache-2.0
"""The convolutional transform, and with it a stride of 16 through the whole codec."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import install, make_model, make_photograph

from lvqcodec.cli import main
from lvqcodec.codec import decode, encode, load_model
from lvqcodec.errors import FormatError, LvqError, UsageError
from lvqcodec.format.container import Section, pack, unpack
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.metrics import psnr
from lvqcodec.model.codec_model import CodecConfig, CodecModel
from lvqcodec.model.entropy import MultiScaleProgressive
from lvqcodec.model.transforms import ConvTransform
from lvqcodec.model.transforms.conv import DivisiveNorm
from lvqcodec.stream import TileCoder
from lvqcodec.training.optimizers import make_optimizers, trainable
from lvqcodec.training.start import initialise

CONFIG = CodecConfig(
    ConvTransform.Config(channels=12, latent_channels=24),
    MultiScaleProgressive.Config(scales=2, seeds=(8,), linear=16, hidden=24, trunk=12, depth=1),
)
TILE = 64  # pixels: four positions
HEIGHT, WIDTH = 150, 203


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conv")
    install(make_model(CONFIG), folder, "conv")
    return folder


@pytest.fixture(autouse=True)
def _installed(folder, monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(folder))


@pytest.fixture(scope="module")
def loaded(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(folder))
        return load_model("conv", device="cpu")


@pytest.fixture(scope="module")
def tiled(loaded):
    """A file of nine tiles, and how it decodes."""
    data = encode(make_photograph(HEIGHT, WIDTH), model=loaded, quality=60, tile=TILE)
    return data, decode(data, model=loaded)


# --- the transform --------------------------------------------------------------------------------


def test_normalisation_is_that_of_the_paper_and_its_inverse():
    norm, inverse = DivisiveNorm(3), DivisiveNorm(3, inverse=True)
    x = torch.randn(2, 3, 4, 5)
    for module in (norm, inverse):
        torch.nn.init.normal_(module.root_beta)
        torch.nn.init.normal_(module.root_gamma)
    inverse.load_state_dict(norm.state_dict())
    gamma, beta = norm.root_gamma**2, norm.root_beta**2 + 1e-3
    energy = torch.einsum("ij,bjhw->bihw", gamma, x**2) + beta[:, None, None]
    assert torch.allclose(norm(x), x / energy.sqrt(), atol=1e-6)
    assert torch.allclose(inverse(x), x * energy.sqrt(), atol=1e-5)


def test_the_layers_see_as_far_as_they_say_and_no_farther():
    torch.manual_seed(0)
    transform = ConvTransform(CONFIG.transform).double()
    quality = torch.tensor([50.0], dtype=torch.float64)
    side, middle, stride = 11, 5, transform.stride

    def reach(gradient, unit):
        rows = gradient.abs().sum((0, 1)).nonzero()[:, 0] // unit
        return max(middle - int(rows.min()), int(rows.max()) - middle)

    size = stride * side
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    y = transform.analysis(x, quality)
    assert y.shape == (1, 24, side, side)
    (gradient,) = torch.autograd.grad(y[:, :, middle, middle].abs().sum(), x)
    assert reach(gradient, stride) == transform.analysis_reach
    y = torch.randn(1, 24, side, side, dtype=torch.float64, requires_grad=True)
    pixels = slice(stride * middle, stride * (middle + 1))
    x_hat = transform.synthesis(y, quality)
    assert x_hat.shape == (1, 3, size, size)
    (gradient,) = torch.autograd.grad(x_hat[:, :, pixels, pixels].abs().sum(), y)
    assert reach(gradient, 1) == transform.synthesis_reach


def crops(count=3):
    pictures = np.stack([make_photograph(128, 128, seed=seed) for seed in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def test_latents_start_with_the_variance_of_the_pixels():
    torch.manual_seed(1)
    model = CodecModel(CONFIG)
    x = crops()
    initialise(model, x)
    y = model.transform.analysis(x, torch.full((3,), 50.0)).detach()
    wanted = 16**2 * x.transpose(0, 1).flatten(1).var(1).sum()
    found = y.transpose(0, 1).flatten(1)
    assert float(found.var(1).sum()) == pytest.approx(float(wanted), rel=1e-3)
    assert float(found.mean(1).abs().max()) < 1e-3


def test_training_from_nothing_has_finite_gradients_and_gets_somewhere():
    torch.manual_seed(2)
    model = CodecModel(CONFIG)
    x, quality = crops(), torch.tensor([5.0, 50.0, 95.0])
    initialise(model, x)
    optimizers = make_optimizers(model, 2e-3)
    losses = []
    for _ in range(25):
        out = model(x, quality)
        distorted = (out.x_hat - x).square().mean((1, 2, 3))
        loss = out.bits.mean() / 128**2 + 2000 * distorted.mean()
        losses.append(float(loss.detach()))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        for optimizer in optimizers:
            optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_stage_may_name_its_halves():
    model = CodecModel(CONFIG)
    groups = trainable(model)
    assert list(groups) == ["analysis", "synthesis", "entropy", "steps"]
    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("name", ["channels", "latent_channels"])
def test_a_transform_without_channels_is_refused(name):
    with pytest.raises(UsageError, match="needs channels"):
        ConvTransform(dataclasses.replace(CONFIG.transform, **{name: 0}))


def test_it_is_loaded_without_the_compiler_of_torch():
    code = "import sys, lvqcodec as l; l.load_model('conv'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"False"]


# --- a stride of 16 -------------------------------------------------------------------------------


def test_tiles_decode_as_the_whole_would(loaded, tiled):
    data, picture = tiled
    file = open_lvq(data)
    header, cut, tiles = file.header, file.tiling, file.tiles
    assert (header.stride, cut.stride, cut.side, len(cut)) == (16, 16, 4, 9)
    coder = TileCoder(header, loaded)
    latents = torch.zeros(1, *cut.size, 24)
    for index, payload in enumerate(tiles):
        y_hat = coder.read(payload, cut[index].grid)
        latents[(slice(None), *cut[index])] = torch.unflatten(y_hat, 1, cut[index].grid)
    x_hat = loaded.model.synthesis(latents.flatten(1, 2), cut.size, coder.quality)
    wanted = x_hat[0, :, :HEIGHT, :WIDTH].permute(1, 2, 0).clamp(0, 1) * 255
    assert np.abs(picture - wanted.numpy()).max() < 0.501


def test_latents_of_tiles_are_those_of_the_whole(loaded):
    picture = make_photograph(HEIGHT, WIDTH)
    files = [encode(picture, model=loaded, quality=60, tile=tile) for tile in (None, TILE)]
    whole, tiled = (psnr(picture, decode(data)) for data in files)
    assert tiled == pytest.approx(whole, abs=0.2)
    assert len(files[1]) < 1.3 * len(files[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 17), (33, 5)])
def test_pictures_of_any_size(loaded, height, width, channels):
    picture = make_photograph(height, width, channels=channels)
    assert decode(encode(picture, model=loaded)).shape == picture.shape


@pytest.mark.parametrize("region", [(0, 0, 1, 1), (70, 60, 90, 80), (40, 3, WIDTH - 40, 60)])
def test_a_region_is_the_crop_of_the_whole(tiled, region):
    data, whole = tiled
    x, y, width, height = region
    found = decode(data, region=region)
    wanted = whole[y : y + height, x : x + width].astype(int)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1


def test_the_beginning_of_a_file_is_a_picture(tiled):
    data, whole = tiled
    assert decode(data[: len(data) // 2], partial=True).shape == whole.shape
    found = decode(data[:-6], partial=True)
    assert np.array_equal(found[:48], whole[:48])


def test_every_truncation_is_refused(tiled):
    data, _ = tiled
    for end in [*range(60), *range(60, len(data), 41), len(data) - 1]:
        with pytest.raises(FormatError):
            decode(data[:end])


@pytest.mark.parametrize("tile", [32, 65536])
def test_sides_of_tiles_are_those_of_the_stride(loaded, tile):
    with pytest.raises(UsageError, match=rf"tiles of {tile} pixels"):
        encode(make_photograph(40, 40), model=loaded, tile=tile)


@pytest.mark.parametrize("effort", [1, 3])
def test_a_search_finds_smaller_or_better_files(loaded, effort):
    picture = make_photograph(96, 80)
    plain, found = (encode(picture, model=loaded, effort=n) for n in (0, effort))
    assert found != plain and decode(found).shape == picture.shape


def test_a_stride_that_is_not_the_models_is_refused(tiled, loaded):
    header, sections = unpack(tiled[0])
    forged = dataclasses.replace(header, stride=8)
    data = pack(forged, [Section(*section) for section in sections.items()])
    with pytest.raises(LvqError):
        decode(data)
    with pytest.raises(FormatError, match="8 pixels a position, its model has 16"):
        TileCoder(forged, loaded)


def test_info_needs_no_weights(tiled, tmp_path, monkeypatch):
    path = tmp_path / "a.lvq"
    path.write_bytes(tiled[0])
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["info", "--json", str(path)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["width"], facts["height"], facts["tiles"]) == (WIDTH, HEIGHT, 9)
    assert facts["model"] is None and os.fspath(path) == facts["file"]

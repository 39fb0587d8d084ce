# SPDX-License-Identifier: Apache-2.0
"""A codec small enough for tests, installed like any other, and pictures to code with it."""

import dataclasses
import hashlib
import socket

import numpy as np
import pytest
import torch

from lvqcodec import codec
from lvqcodec.encoder.original import prepare
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.model.codec_model import CodecConfig, CodecModel
from lvqcodec.model.entropy import MultiScaleProgressive
from lvqcodec.model.transforms import LappedTransform
from lvqcodec.model.weights import pack_parts, pack_weights
from lvqcodec.options import EncodeOptions
from lvqcodec.pictures.picture import Picture
from lvqcodec.stream import TileCoder
from lvqcodec.training.fit_tables import first_tables
from lvqcodec.training.start import initialise

TINY = CodecConfig(
    LappedTransform.Config(
        latent_channels=24, analysis=((4, 6, 1), (8, 8, 1)), synthesis=((8, 8, 1), (4, 6, 1))
    ),
    MultiScaleProgressive.Config(scales=2, seeds=(8,), linear=16, hidden=24, trunk=12, depth=1),
)

CODEC_TABLES = """
[codec.transform]
latent_channels = 24
analysis = [[8, 8, 1]]
synthesis = [[8, 8, 1]]

[codec.entropy]
scales = 2
hidden = 16
trunk = 8
depth = 1
"""
"""A codec that trains in no time, as the tables of a recipe."""


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def make_photograph(height, width, channels=3, seed=0):
    """A picture (H, W, 3) or (H, W) uint8 with slopes, edges and texture, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64
    layers = []
    for _ in range(channels):
        a, b, c = rng.uniform(0.3, 1.2, 3)
        slopes = np.sin(a * x + b * y + c) + 0.5 * np.cos(2 * b * x - a * y)
        disc = (x - 2 * c) ** 2 + (y - 1.5 * a) ** 2 < b
        stripes = (np.sin(9 * (x + a * y)) > 0) & (x + y > 2)
        noise = rng.normal(size=(height + 2, width + 2))
        texture = noise[2:, 2:] + noise[1:-1, 1:-1] + noise[:-2, :-2]
        layers.append(125 + 45 * slopes + 50 * disc - 30 * stripes + 4 * texture * (x < 3))
    grey = np.mean(layers, axis=0)
    picture = np.stack([0.7 * grey + 0.3 * layer for layer in layers], axis=2)
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return picture if channels == 3 else picture[..., 0]


def make_model(config=TINY, seed=0):
    """An unfrozen model: transform and scales as measured, all networks random and alive."""
    torch.manual_seed(seed)
    model = CodecModel(config)
    crops = [make_photograph(256, 256, seed=n) for n in range(3)]
    crops = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    initialise(model, crops)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".heads." in name and name.endswith("weight"):
                parameter.normal_(std=0.02)
            elif ".linear." in name and name.endswith("weight"):
                parameter.normal_(std=0.05)
            elif name.endswith(("bias.rows", "gain.rows")):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("pyramid.out.weight"):
                parameter.normal_(std=0.002)
    return model.requires_grad_(False)


def install(model, folder, name, share=None, tables=None):
    """Freeze a model and put it, card and all, where the catalogue finds it.

    With `share` its transform goes into a file of that name.
    """
    model.entropy.freeze()
    model.tables = tables or first_tables(model)
    parts = pack_parts(model) if share else [pack_weights(model)]
    files = [f"{part}.safetensors" for part in (share, name) if part]
    for file, part in zip(files, parts, strict=True):
        (folder / file).write_bytes(part)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    card = {"name": name, "digest": digest, "profile": "test", "description": "random networks"}
    lines = [f'{key} = "{value}"\n' for key, value in card.items()]
    if share:
        lines.append(f"weights = {files}\n")
    (folder / f"{name}.toml").write_text("".join(lines))


@pytest.fixture(scope="session")
def photograph():
    """See `make_photograph`."""
    return make_photograph


@pytest.fixture(scope="session")
def tiny_config():
    """The configuration of `tiny`."""
    return TINY


@pytest.fixture(scope="session")
def new_model():
    """See `make_model`."""
    return make_model


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory):
    """A folder with the models "tiny" and "other"."""
    folder = tmp_path_factory.mktemp("models")
    install(make_model(), folder, "tiny")
    wider = dataclasses.replace(TINY.entropy, seeds=(), hidden=16)
    install(make_model(dataclasses.replace(TINY, entropy=wider), seed=1), folder, "other")
    return folder


@pytest.fixture
def tiny(models_folder, monkeypatch):
    """The name of a small installed model."""
    monkeypatch.setenv("LVQ_MODEL_PATH", str(models_folder))
    return "tiny"


@pytest.fixture(scope="session")
def sample(models_folder):
    """A small picture and its file by "tiny", at quality 50 with E8."""
    picture = make_photograph(37, 52, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        return picture, codec.encode(picture, model="tiny", quality=50, lattice="e8")


def prepared(image, loaded, **options):
    """Samples as the encoder's searches start from them."""
    return prepare(Picture(image), loaded, EncodeOptions(**options))


def read_latents(data, loaded, tile=0):
    """The latents of a tile of a file; StreamError if their CRC is not the one in the file."""
    file = open_lvq(data)
    return TileCoder(file.header, loaded).read(file.tiles[tile], file.tiling[tile].grid)

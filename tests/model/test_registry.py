# SPDX-License-Identifier: Apache-2.0
"""Every transform with every entropy model and every lattice: trained, frozen, coded, exact."""

import dataclasses
import functools

import pytest
import torch
from conftest import make_photograph
from test_integer import MACHINES

from lvqcodec.format.container import Header
from lvqcodec.model.codec_model import CodecConfig, CodecModel
from lvqcodec.model.entropy import ENTROPY_MODELS
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.loaded import LoadedModel
from lvqcodec.model.transforms import TRANSFORMS, LappedTransform
from lvqcodec.model.weights import pack_weights, unpack_weights
from lvqcodec.stream import TileCoder
from lvqcodec.training.optimizers import make_optimizers, trainable
from lvqcodec.training.start import initialise, solve

LAPPED = {"latent_channels": 20, "analysis": ((8, 8, 1),), "synthesis": ((8, 8, 1),)}
SMALL = {
    "lapped": LAPPED,
    "conv": {"latent_channels": 20, "channels": 8},
    "basis": {"dim": 5, "inner": LappedTransform.Config(**LAPPED)},
    "msp": {"scales": 2, "seeds": (6,), "linear": 8, "hidden": 16, "trunk": 8, "depth": 1},
    "factorized": {"nodes": 5},
}
"""Sizes for tests; a class without is tested at its own."""

HEIGHT, WIDTH = 90, 130


def small(kind):
    return kind.Config(**SMALL.get(kind.Config().name, {}))


def photographs(count, height, width):
    pictures = [torch.from_numpy(make_photograph(height, width, seed=n)) for n in range(count)]
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255


@functools.cache
def trained(transform, entropy):
    """A model after its start and a training step."""
    torch.manual_seed(0)
    model = CodecModel(CodecConfig(small(TRANSFORMS[transform]), small(ENTROPY_MODELS[entropy])))
    initialise(model, photographs(4, 256, 256))
    regression = model.entropy.regression()
    if regression is not None:
        solve(regression, model, photographs(2, 256, 256))
    optimizers = make_optimizers(model, 1e-3)
    out = model(photographs(2, 64, 64), torch.tensor([15.0, 85.0]))
    loss = out.bits.mean() / 64**2 + (out.x_hat - photographs(2, 64, 64)).square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return model


@functools.cache
def loaded(transform, entropy):
    """The same from its weights file, with rows for all lattices."""
    model = trained(transform, entropy)
    model.entropy.freeze()
    model.tables = dataclasses.replace(parametric_tables(*LATTICES), own=model.entropy.own_rows())
    return LoadedModel(unpack_weights(pack_weights(model)), b"test", torch.device("cpu"))


@functools.cache
def written(transform, entropy, lattice):
    """A header, a tile written with it, and its grid."""
    model = loaded(transform, entropy)
    header = Header(WIDTH, HEIGHT, 3, 70, lattice, model.digest, stride=model.model.stride)
    coder = TileCoder(header, model)
    grid = model.model.grid(HEIGHT, WIDTH)
    with MACHINES["two threads"](), torch.inference_mode():
        x = model.model.pad(photographs(1, HEIGHT, WIDTH))
        return header, coder.write(model.model.analysis(x, coder.quality), grid), grid


axes = pytest.mark.parametrize(
    ("transform", "entropy"), [(a, b) for a in TRANSFORMS for b in ENTROPY_MODELS]
)


@axes
def test_a_training_step_has_finite_gradients_and_moves_everything(transform, entropy):
    model = trained(transform, entropy)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
        assert torch.isfinite(parameter).all(), name
    parts = [parameter for part in trainable(model).values() for parameter in part]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len({id(p) for p in parts}), "a parameter is in two parts"


@pytest.mark.parametrize("lattice", LATTICES)
@axes
def test_pictures_come_back(transform, entropy, lattice):
    header, tile, grid = written(transform, entropy, lattice)
    model = loaded(transform, entropy)
    coder = TileCoder(header, model)
    bits = coder.estimate_bits(tile.y_hat[..., : model.model.transform.channels], grid)
    assert bits > 0 and 50 < len(tile.payload) < HEIGHT * WIDTH
    if transform in ("lapped", "basis"):  # what starts as a transform codec is one
        with torch.inference_mode():
            x_hat = model.model.synthesis(tile.y_hat, grid, coder.quality)
        error = (x_hat[..., :HEIGHT, :WIDTH] - photographs(1, HEIGHT, WIDTH)).square().mean()
        assert error < 0.003


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("lattice", LATTICES)
@axes
def test_tiles_are_read_alike_on_every_machine(transform, entropy, lattice, machine):
    header, tile, grid = written(transform, entropy, lattice)
    model = loaded(transform, entropy)
    if machine == "permuted sums" and not list(model.model.entropy.layers()):
        return  # nothing is summed
    with MACHINES[machine]():
        found = TileCoder(header, model).read(tile.payload, grid)
    assert torch.equal(found.double(), tile.y_hat.double())

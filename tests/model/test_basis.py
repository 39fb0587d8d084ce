# SPDX-License-Identifier: Apache-2.0
"""Learned bases: what they are, what they leave alone, and files of real codecs with them."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY, install, make_model, make_photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from lvqcodec.codec import decode, encode, load_model
from lvqcodec.errors import UsageError
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.metrics import psnr
from lvqcodec.model.codec_model import CodecConfig, CodecModel
from lvqcodec.model.entropy import Factorized
from lvqcodec.model.layers import channels_last
from lvqcodec.model.transforms import BasisTransform, ConvTransform
from lvqcodec.model.transforms.basis import Basis
from lvqcodec.model.weights import pack_weights, unpack_weights
from lvqcodec.training.checkpoint import read_weights
from lvqcodec.training.fit_tables import first_tables
from lvqcodec.training.optimizers import make_optimizers, trainable
from lvqcodec.training.transfer import adapt

CONV = ConvTransform.Config(channels=8, latent_channels=24)
DIMS = (8, 0)
HEIGHT, WIDTH = 100, 141


def on(config, dim):
    """The same codec with bases on its transform."""
    return dataclasses.replace(
        config, transform=BasisTransform.Config(dim=dim, inner=config.transform)
    )


def turned(basis, size=0.3, seed=0):
    """Fill the logarithms with something."""
    generator = torch.Generator().manual_seed(seed)
    basis.logarithm.data.normal_(std=size, generator=generator)
    return basis


def eye(dim):
    return torch.eye(dim)


# --- matrices -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 8, 16]), st.floats(0, 0.4), st.integers(0, 2**32))
def test_rows_have_length_one_and_there_is_an_inverse(dim, size, seed):
    basis = turned(Basis(2 * dim, dim), size / dim**0.5, seed).requires_grad_(False)
    matrix = basis.matrix()
    assert matrix.shape == (2, dim, dim)
    assert torch.allclose(matrix.norm(dim=2), torch.ones(2, dim), atol=1e-6)
    assert torch.allclose(matrix @ basis.inverse(), eye(dim).expand(2, -1, -1), atol=1e-5)


def test_it_starts_as_the_identity_exactly():
    basis = Basis(24, 8)
    assert torch.equal(basis.matrix(), eye(8).expand(3, -1, -1))
    assert torch.equal(basis.inverse(), eye(8).expand(3, -1, -1))
    assert basis.penalty() == 0


def test_every_block_of_channels_has_a_basis_of_its_own():
    basis = turned(Basis(12, 4)).requires_grad_(False)
    k = torch.randint(-5, 6, (2, 12, 3, 5)).float()
    v = basis.points(k)
    for block in range(3):
        channels = slice(4 * block, 4 * block + 4)
        wanted = torch.einsum("bihw,ij->bjhw", k[:, channels], basis.matrix()[block])
        assert torch.allclose(v[:, channels], wanted, atol=1e-5)
    assert torch.allclose(basis.coordinates(v), k, atol=1e-4)
    assert torch.equal(torch.round(basis.coordinates(v)), k), "Babai finds the point itself"


def test_the_penalty_is_nothing_for_rotations_and_grows_as_rows_come_together():
    basis = Basis(8, 8).requires_grad_(False)
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    basis.logarithm.copy_((a - a.T)[None])
    assert (basis.matrix() - eye(8)).abs().max() > 0.5
    assert basis.penalty() < 1e-9
    found = []
    for sheared in (0.1, 0.3, 1.0):
        basis.logarithm.zero_()
        basis.logarithm[0, 0, 1] = sheared  # b_0 = (1, s, 0, ...) / length
        found.append(float(basis.penalty()))
        cosine = sheared / (1 + sheared**2) ** 0.5
        assert found[-1] == pytest.approx(2 * cosine**2, rel=1e-5)
    assert found == sorted(found)


def test_an_error_of_a_step_weighs_as_much_in_every_coordinate():
    """Rows of length 1, orthogonal or not: so rounding needs no weights."""
    basis = turned(Basis(8, 8)).requires_grad_(False)
    error = basis.points(torch.eye(8)[:, :, None, None])
    assert torch.allclose(error.square().sum(1), torch.ones(8, 1, 1), atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 65504.0])
def test_no_weights_hang_it(bad):
    basis = Basis(16, 8).requires_grad_(False)
    basis.logarithm.fill_(bad)
    assert basis.points(torch.ones(1, 16, 2, 2)).shape == (1, 16, 2, 2)


# --- the transform --------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("inner", [TINY.transform, CONV])
def test_it_starts_as_the_other_transform_bit_for_bit(inner, dim):
    config = dataclasses.replace(TINY, transform=inner)
    plain = channels_last(make_model(config))  # as they are trained and loaded
    model = channels_last(CodecModel(on(config, dim))).requires_grad_(False)
    state, anew = adapt(plain.state_dict(), model)
    model.load_state_dict(state)
    assert not anew
    assert model.stride == plain.stride and model.transform.channels == plain.transform.channels
    for reach in ("analysis_reach", "synthesis_reach"):
        assert getattr(model.transform, reach) == getattr(plain.transform, reach)
    x = torch.from_numpy(make_photograph(64, 96)).permute(2, 0, 1)[None].float() / 255
    quality = torch.tensor([60.0])
    wanted, found = plain(x, quality), model(x, quality)
    assert torch.equal(model.analysis(x, quality), plain.analysis(x, quality))
    assert torch.equal(found.y_hat, wanted.y_hat) and torch.equal(found.bits, wanted.bits)
    assert torch.equal(found.x_hat, wanted.x_hat)


def test_the_synthesis_undoes_the_bases():
    """Latents that nobody rounded give the same pictures, whatever the bases are."""
    plain = make_model()
    model = CodecModel(on(TINY, 8)).requires_grad_(False)
    model.load_state_dict(adapt(plain.state_dict(), model)[0])
    turned(model.transform.basis)
    x = torch.from_numpy(make_photograph(64, 64)).permute(2, 0, 1)[None].float() / 255
    quality = torch.tensor([60.0])
    y = model.transform.analysis(x, quality)
    assert (y - plain.transform.analysis(x, quality)).abs().max() > 0.1
    same = plain.transform.synthesis(plain.transform.analysis(x, quality), quality)
    assert torch.allclose(model.transform.synthesis(y, quality), same, atol=1e-4)


def test_features_behind_the_latents_pass_by():
    transform = BasisTransform(BasisTransform.Config(dim=8, inner=TINY.transform))
    transform.requires_grad_(False)
    turned(transform.basis)
    seen = []
    transform.features = 2
    transform.inner.synthesis = lambda y_hat, quality: seen.append(y_hat)
    y_hat = torch.randn(1, 26, 2, 3)
    transform.synthesis(y_hat, torch.zeros(1))
    assert torch.equal(seen[0][:, 24:], y_hat[:, 24:])
    assert torch.equal(seen[0][:, :24], transform.basis.points(y_hat[:, :24]))


def test_gradients_reach_the_bases_through_rate_and_distortion():
    model = CodecModel(on(TINY, 8))
    model.load_state_dict(adapt(make_model().state_dict(), model)[0])
    x = torch.from_numpy(make_photograph(64, 64)).permute(2, 0, 1)[None].float() / 255
    logarithm = model.transform.basis.logarithm
    out = model(x, torch.tensor([60.0]))
    for loss in (out.bits.sum(), (out.x_hat - x).square().sum()):
        (gradient,) = torch.autograd.grad(loss, logarithm, retain_graph=True)
        assert gradient.isfinite().all() and (gradient != 0).flatten(1).any(1).all()


def test_the_gradient_of_the_distortion_is_that_of_the_rounding_errors():
    """Of points k B with fixed k - v B^-1 = e the error is e B, and v itself drops out."""
    basis = turned(Basis(4, 4))
    v = 3 * torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    k = basis.coordinates(v)
    rounded = k + (torch.round(k) - k).detach()
    (found,) = torch.autograd.grad(
        (basis.points(rounded) - v).square().sum(), basis.logarithm, retain_graph=True
    )
    error = (torch.round(k) - k).detach()
    (wanted,) = torch.autograd.grad(basis.points(error).square().sum(), basis.logarithm)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_stage_may_name_the_bases():
    model = CodecModel(on(TINY, 8))
    groups = trainable(model)
    assert list(groups) == ["basis", "klt", "analysis", "synthesis", "entropy", "steps"]
    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert groups["basis"] == [model.transform.basis.logarithm]


def test_the_other_transforms_parameters_move_as_they_do_without():
    def scales(model):
        optimizers = make_optimizers(model, 1e-3)
        return {
            id(parameter): (type(optimizer), group["scale"])
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    plain, model = CodecModel(TINY), CodecModel(on(TINY, 8))
    wanted, found = scales(plain), scales(model)
    inner = dict(model.transform.inner.named_parameters())
    for name, parameter in plain.transform.named_parameters():
        assert found[id(inner[name])] == wanted[id(parameter)]


@pytest.mark.parametrize("dim", [7, 48])
def test_blocks_that_leave_channels_over_are_refused(dim):
    with pytest.raises(UsageError, match=f"dim = {dim} does not divide the 24 channels"):
        CodecModel(on(TINY, dim))


def test_a_basis_of_a_basis_is_refused():
    with pytest.raises(UsageError, match="a basis of a basis is one"):
        CodecModel(on(on(TINY, 8), 8))


def test_configurations_come_back():
    config = on(TINY, 8)
    assert CodecConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match=r"unknown setting 'dim' in \[codec.transform.inner\]"):
        CodecConfig.from_dict({"transform": {"name": "basis", "inner": {"dim": 8}}})
    with pytest.raises(UsageError, match="unknown 'dct'"):
        CodecConfig.from_dict({"transform": {"name": "basis", "inner": {"name": "dct"}}})
    assert config.transform.layers == TINY.transform.layers + 1


# --- weights and files ----------------------------------------------------------------------------


def learned(dim, entropy=TINY.entropy, inner=TINY.transform):
    """A model with bases that are no identity."""
    model = make_model(on(dataclasses.replace(TINY, entropy=entropy, transform=inner), dim))
    turned(model.transform.basis, 0.3 / (dim or 24) ** 0.5)
    return model


def test_weights_are_stored_and_read_and_are_a_start(tmp_path):
    model = learned(8)
    model.entropy.freeze()
    model.tables = first_tables(model)
    data = pack_weights(model)
    found = unpack_weights(data)
    assert found.config == model.config
    for name in ("matrix", "inverse"):
        stored, wanted = (getattr(m.transform.basis, name)() for m in (found, model))
        assert torch.allclose(stored, wanted, atol=2e-3)
    basis = found.transform.basis  # what float16 has made of it is a basis still
    assert torch.allclose(basis.matrix() @ basis.inverse(), eye(8).expand(3, -1, -1), atol=1e-5)
    assert pack_weights(found) == data
    (tmp_path / "a.safetensors").write_bytes(data)
    again = CodecModel(model.config)
    state, anew = adapt(read_weights(tmp_path / "a.safetensors"), again)
    assert not anew
    assert torch.equal(state["transform.basis.logarithm"], basis.logarithm)


def test_weights_with_other_bases_are_no_start():
    with pytest.raises(UsageError, match=r"'transform\.basis\.logarithm' differs"):
        adapt(learned(8).state_dict(), CodecModel(on(TINY, 4)))


CODECS = {
    "blocks": (8, TINY.entropy, TINY.transform),
    "free": (0, TINY.entropy, TINY.transform),
    "factorized": (8, Factorized.Config(nodes=5), TINY.transform),
    "conv": (12, TINY.entropy, CONV),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basis")
    for name, codec in CODECS.items():
        install(learned(*codec), folder, name)
    return folder


@pytest.fixture(params=CODECS)
def loaded(request, folder, monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(folder))
    return load_model(request.param, device="cpu")


def test_files_come_back_whole_and_in_tiles_and_regions_and_parts(loaded):
    picture = make_photograph(HEIGHT, WIDTH)
    data = encode(picture, model=loaded, quality=70, lattice="z", tile=64)
    whole = decode(data)
    assert len(open_lvq(data).tiling) == 4
    assert whole.shape == picture.shape
    single = decode(encode(picture, model=loaded, quality=70, lattice="z"))
    assert psnr(picture, whole) == pytest.approx(psnr(picture, single), abs=0.3)
    if loaded.model.stride == 8:  # what starts as a transform codec is one
        assert psnr(picture, whole) > 28
    region = decode(data, region=(50, 40, 60, 50)).astype(int)
    assert np.abs(region - whole[40:90, 50:110]).max() <= 1
    part = decode(data[:-6], partial=True)
    assert part.shape == whole.shape and np.array_equal(part[:32], whole[:32])


def test_other_lattices_and_the_search_work_on_coordinates(loaded):
    picture = make_photograph(64, 72)
    for lattice, effort in (("e8", 0), ("e8", 1)):
        data = encode(picture, model=loaded, quality=60, lattice=lattice, effort=effort)
        assert decode(data).shape == picture.shape

# SPDX-License-Identifier: Apache-2.0
"""Transform, steps, rate estimate, configuration and weights files."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn

from lvqcodec.config import from_table
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.model.codec_model import CodecConfig, CodecModel, theoretical_step
from lvqcodec.model.entropy import ENTROPY_MODELS, MultiScaleProgressive
from lvqcodec.model.entropy.base import FRACTION, NUM_BINS, SIGMAS
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.layers import QualityTable, ResidualBlock, floor_ste, round_ste
from lvqcodec.model.likelihood import Logistic, bin_sigma, logistic_bits, nearest_bin, rdo_round
from lvqcodec.model.quantizer import RDO_LAMBDA
from lvqcodec.model.transforms import TRANSFORMS
from lvqcodec.model.transforms.lapped import (
    STRIDE,
    LappedTransform,
    _shuffle,
    _unshuffle,
    lapped_filter,
)
from lvqcodec.model.weights import pack_parts, pack_weights, unpack_weights

COMPLETE = dataclasses.replace(TINY.transform, latent_channels=192)


def qualities(*values):
    return torch.tensor([float(value) for value in values])


# transform


def test_the_prefilter_is_orthogonal_and_symmetric_about_the_border():
    filter_ = lapped_filter(STRIDE)
    eye = torch.eye(STRIDE, dtype=torch.float64)
    assert (filter_ @ filter_.T - eye).abs().max() < 1e-12
    assert (filter_ - filter_.flip(0, 1)).abs().max() < 1e-12
    assert (filter_ - eye).abs().max() > 0.1


def coding_gain(filter_):
    """Decibels that the KLT of a block gains on AR(1) of correlation 0.95 after a prefilter."""
    size = 5 * STRIDE
    place = torch.arange(size, dtype=torch.float64)
    covariance = 0.95 ** (place[None] - place[:, None]).abs()
    prefilter = torch.eye(size, dtype=torch.float64)
    for border in range(STRIDE, size, STRIDE):
        near = slice(border - STRIDE // 2, border + STRIDE // 2)
        prefilter[near, near] = filter_
    middle = slice(2 * STRIDE, 3 * STRIDE)
    variances = torch.linalg.eigvalsh((prefilter @ covariance @ prefilter.T)[middle, middle])
    return float(10 * variances.mean().log10() - 10 * variances.log10().mean())


def test_the_prefilter_gains_what_a_lapped_transform_should_and_its_transpose_does_not():
    plain = coding_gain(torch.eye(STRIDE, dtype=torch.float64))
    assert abs(plain - 8.838) < 0.01  # 8 points; the DCT is known for 8.83
    assert coding_gain(lapped_filter(STRIDE)) > plain + 0.25
    assert coding_gain(lapped_filter(STRIDE).T) < plain


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (80, 8), (24, 48)])
def test_the_linear_path_alone_is_orthogonal_and_reconstructs(size):
    torch.manual_seed(0)
    transform = LappedTransform(COMPLETE).requires_grad_(False)
    basis = torch.linalg.qr(torch.randn(192, 192, dtype=torch.float64)).Q.float()
    transform.klt.weight.copy_(basis)
    transform.inverse_klt.weight.copy_(basis.T)
    for part in (transform.klt, transform.inverse_klt):
        part.bias.zero_()
    x = torch.rand(2, 3, *size)
    y = transform.analysis(x, qualities(10, 90))
    assert y.shape == (2, 192, size[0] // 8, size[1] // 8)
    assert torch.allclose(y.square().sum(), (x - 0.5).square().sum(), rtol=1e-4)
    assert (transform.synthesis(y, qualities(10, 90)) - x).abs().max() < 1e-4


def test_pixels_move_into_channels_and_back():
    x = torch.rand(2, 3, 32, 48)
    blocks = _unshuffle(x, 8)
    assert blocks.shape == (2, 192, 4, 6)
    assert torch.equal(blocks[1, :, 1, 2], x[1, :, 8:16, 16:24].flatten())
    assert torch.equal(_shuffle(blocks, 8), x)


def test_the_networks_see_the_quality(new_model):
    transform = new_model().transform
    for name, parameter in transform.named_parameters():
        if name.endswith("gain.rows"):
            parameter.copy_(torch.rand(parameter.shape) + 1)
    x = torch.rand(1, 3, 32, 32)
    low, high = (transform.analysis(x, qualities(q)) for q in (0, 100))
    assert not torch.allclose(low, high)
    low, high = (transform.synthesis(low, qualities(q)) for q in (0, 100))
    assert not torch.allclose(low, high)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (16, 16), (17, 31), (50, 3)])
def test_any_size_passes_through_the_padding(new_model, size):
    model = new_model()
    x = torch.rand(1, 3, *size)
    padded = model.pad(x)
    rows, columns = model.grid(*size)
    assert padded.shape == (1, 3, 8 * rows, 8 * columns)
    assert (rows, columns) == (math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    assert torch.equal(padded[..., : size[0], : size[1]], x)
    assert torch.equal(padded[..., -1, -1], x[..., -1, -1])
    y = model.analysis(padded, qualities(50))
    assert y.shape == (1, rows * columns, 24)
    assert model.synthesis(y, (rows, columns), qualities(50)).shape == padded.shape


def test_latents_are_in_steps(new_model):
    model = new_model()
    x = torch.rand(1, 3, 48, 32)
    y = model.analysis(x, qualities(40))
    plain = model.transform.analysis(x, qualities(40))
    step = torch.exp(model.log_step.rows[2])
    assert torch.allclose(y[0, 9], plain[0, :, 2, 1] / step, rtol=1e-4, atol=1e-5)
    model.log_step.rows.add_(math.log(2))
    assert torch.allclose(model.analysis(x, qualities(40)), y / 2, rtol=1e-4, atol=1e-4)


# layers


def test_quality_tables_interpolate_between_their_nodes():
    table = QualityTable(6, 2)
    with torch.no_grad():
        table.rows.copy_(torch.tensor([[0.0, 5], [1, 4], [4, 3], [9, 2], [16, 1], [25, 0]]))
    found = table(qualities(0, 20, 30, 50, 99.999, 100))
    wanted = torch.tensor([[0.0, 5], [1, 4], [2.5, 3.5], [6.5, 2.5], [25, 0], [25, 0]])
    assert torch.allclose(found, wanted, atol=1e-3)
    found.sum().backward()
    assert table.rows.grad.abs().sum() == 12
    single = QualityTable(1, 2, value=3.0)
    assert torch.equal(single(qualities(0, 57)), torch.full((2, 2), 3.0))


def test_rounding_passes_gradients_straight_through():
    for function, values in ((round_ste, [1.0, -2.0, 2.0]), (floor_ste, [0.0, -3.0, 1.0])):
        x = torch.tensor([0.7, -2.2, 1.6], requires_grad=True)
        y = function(x)
        assert y.tolist() == values
        y.sum().backward()
        assert x.grad.tolist() == [1, 1, 1]


def test_residual_blocks_start_near_the_identity():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 12, 12)
    for _ in range(8):
        x = ResidualBlock(16, nodes=2)(x, qualities(50))
    assert 0.8 < x.std() < 2


# rate


@pytest.mark.parametrize("sigma", [0.11, 0.3, 1.0, 7.0, 64.0])
def test_bits_of_all_integers_make_one(sigma):
    residual = torch.arange(-3000, 3001, dtype=torch.float64)
    bits = logistic_bits(residual, torch.tensor(sigma, dtype=torch.float64))
    assert bits.min() >= 0
    assert abs(float(torch.exp2(-bits).sum()) - 1) < 1e-6


def test_bits_equal_the_direct_formula_and_are_stable_where_that_is_not():
    sigma = torch.tensor([0.2, 0.5, 3.0], dtype=torch.float64)[:, None]
    residual = torch.linspace(-4, 4, 33, dtype=torch.float64)
    scale = sigma * math.sqrt(3) / math.pi
    mass = torch.sigmoid((residual + 0.5) / scale) - torch.sigmoid((residual - 0.5) / scale)
    kept = mass > 1e-9  # beyond, the difference of two near ones has lost its digits
    found = logistic_bits(residual, sigma)
    assert kept.sum() > 60
    assert torch.allclose(found[kept], -torch.log2(mass[kept]), rtol=1e-5)
    x = torch.tensor([-2000.0, 0.0, 2000.0], requires_grad=True)
    bits = logistic_bits(x, torch.tensor(0.11))
    bits.sum().backward()
    assert torch.isfinite(bits).all() and torch.isfinite(x.grad).all()
    assert x.grad[0] == -x.grad[2] and x.grad[2] > 10


def test_scales_name_bins():
    scale = torch.arange(0, FRACTION * (NUM_BINS - 1) + 1).float()
    sigma = bin_sigma(scale)
    assert torch.allclose(sigma[::FRACTION], torch.tensor(SIGMAS).float(), rtol=1e-5)
    wanted = np.abs(np.log(sigma.double().numpy())[:, None] - np.log(SIGMAS)).argmin(1)
    off = nearest_bin(scale).numpy() - wanted
    assert np.abs(off).max() <= 1 and (off[scale.numpy() % 16 != 8] == 0).all()  # ties apart


def test_the_estimate_follows_the_rounded_residual(new_model):
    """Bits are those of the latents as coded, and deterministic."""
    model = new_model()
    model.entropy.set_mode("simulate")
    torch.manual_seed(1)
    x = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 64, 64), 5, 1, 2)
    bits, y_hat = model.rate(x, qualities(30, 80))
    assert bits.shape == (2,) and y_hat.shape == (2, 64, 24)
    assert bits[1] > bits[0] > 0
    y = model.analysis(x, qualities(30, 80))
    assert (y_hat - y).abs().max() <= 1.5  # the nearest integer, or the next to zero
    again = model.rate(x, qualities(30, 80))
    assert torch.equal(again.bits, bits)


def test_training_rounds_where_that_is_cheapest():
    residual = torch.linspace(-5, 5, 1001)
    for sigma in (0.11, 0.4, 3.0, 64.0):
        rounded = rdo_round(residual, Logistic(torch.tensor(sigma)))
        assert torch.equal(rounded, rounded.round()) and torch.equal(
            rounded, -rdo_round(-residual, Logistic(torch.tensor(sigma)))
        )
        cost = [
            (residual - j).square() + RDO_LAMBDA * logistic_bits(j, torch.tensor(sigma))
            for j in (rounded, residual.round(), residual.round() - residual.sign())
        ]
        assert (cost[0] <= torch.minimum(cost[1], cost[2]) + 1e-5).all()
    assert rdo_round(torch.tensor(0.6), Logistic(torch.tensor(0.11))) == 0
    assert rdo_round(torch.tensor(0.6), Logistic(torch.tensor(64.0))) == 1


def test_a_training_step_gives_every_parameter_a_finite_gradient(new_model):
    for mode in ("float", "simulate"):
        model = new_model().requires_grad_(True)
        model.entropy.set_mode(mode)
        x = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 64, 64), 5, 1, 2)
        out = model(x, qualities(20, 90))
        assert out.x_hat.shape == x.shape
        loss = out.bits.mean() / 4096 + 100 * (out.x_hat - x).square().mean()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (mode, name)
            assert torch.isfinite(parameter.grad).all(), (mode, name)
        for part in (model.transform.klt, model.transform.synthesis_pyramid.out, model.log_step):
            assert next(part.parameters()).grad.abs().max() > 0
        for name, layer in model.entropy.layers():
            if name == "prior":
                continue  # has a bias alone: there is nothing that it could see
            assert layer.weight.grad.abs().max() > 0, (mode, name)


def test_steps_start_from_theory():
    config = CodecConfig()
    rows = CodecModel(config).log_step.rows.exp()
    assert torch.allclose(rows[0], torch.tensor(theoretical_step(config.lmbda_min)), rtol=1e-4)
    assert torch.allclose(rows[-1], torch.tensor(theoretical_step(config.lmbda_max)), rtol=1e-4)
    assert math.isclose(theoretical_step(0.01), 2 * theoretical_step(0.04))
    # the stationary point of R + lmbda D with dD/dR = -2 ln 2 step^2 / 12 a latent, 3 samples
    step = theoretical_step(0.02)
    assert math.isclose(0.02 * 255**2 * 2 * math.log(2) * step**2 / 12 / 3, 1, rel_tol=1e-9)


# configuration


def test_configurations_survive_plain_data():
    config = CodecConfig(
        LappedTransform.Config(analysis=((8, 7, 1),)),
        MultiScaleProgressive.Config(block=(2, 4), seeds=(3, 4)),
        "z",
        1e-3,
    )
    assert CodecConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CodecConfig.from_dict({}) == CodecConfig()
    assert CodecConfig.from_dict({"lmbda_max": 1}).lmbda(100) == 1.0


@pytest.mark.parametrize("axis", [TRANSFORMS, ENTROPY_MODELS])
def test_a_class_is_found_by_the_name_in_its_own_configuration(axis):
    for name, kind in axis.items():
        assert kind.Config().name == name


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"transform": {"name": "dct"}}, r"unknown 'dct' in \[codec\]; choose one of lapped"),
        ({"entropy": {"name": "dct"}}, r"unknown 'dct' in \[codec\]; choose one of msp"),
        ({"transform": {"latent_channels": 1025}}, r"latent_channels = 1025 is beyond 0\.\.1024"),
        ({"entropy": {"block": [2, 10]}}, r"block = 10 is beyond 0\.\.8"),
        ({"colour": 1}, r"unknown setting 'colour' in \[codec\]"),
        ({"transform": {"widht8": 1}}, r"unknown setting 'widht8' in \[codec.transform\]"),
        ({"transform": 3}, r"\[codec.transform\] must be a table"),
        ({"entropy": {"hidden": 1.5}}, "hidden = 1.5 must be of type int"),
        ({"entropy": {"hidden": True}}, "hidden = True must be of type int"),
        ({"transform": {"name": 3}}, "name = 3 must be of type str"),
        ({"entropy": {"block": [2]}}, r"block = \[2\] must be of type tuple\[int, int\]"),
        ({"entropy": {"block": [2, "2"]}}, "block = '2' must be of type int"),
        ({"entropy": {"block": 2}}, r"block = 2 must be of type tuple\[int, int\]"),
        ({"lmbda_min": "small"}, "lmbda_min = 'small' must be of type float"),
        ({"lmbda_min": True}, "lmbda_min = True must be of type float"),
        ([], r"\[codec\] must be a table"),
    ],
)
def test_wrong_configurations_are_refused(data, complaint):
    with pytest.raises(UsageError, match=complaint):
        CodecConfig.from_dict(data)


def test_missing_settings_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Needy:
        name: str
        size: int = 3

    assert from_table(Needy, {"name": "x"}, "there") == Needy("x")
    with pytest.raises(UsageError, match=r"\[there\] lacks 'name'"):
        from_table(Needy, {"size": 1}, "there")


@pytest.mark.parametrize("axis", ["transform", "entropy"])
def test_unknown_choices_on_an_axis_are_refused(axis):
    with pytest.raises(UsageError, match="unknown 'nosuch' in"):
        CodecModel(CodecConfig.from_dict({axis: {"name": "nosuch"}}))


# weights files


@pytest.fixture(scope="module")
def frozen(new_model):
    model = new_model()
    model.entropy.freeze()
    model.tables = parametric_tables()
    return model


@pytest.fixture(scope="module")
def weights(frozen):
    return pack_weights(frozen)


def test_weights_survive_their_file_bit_by_bit(frozen, weights):
    read = unpack_weights(weights)
    assert read.config == frozen.config
    assert not read.training and not any(p.requires_grad for p in read.parameters())
    stored, original = read.entropy.to_integers(), frozen.entropy.to_integers()
    assert stored.keys() == original.keys() and len(stored) > 50
    for name in stored:
        assert stored[name].dtype == original[name].dtype != torch.float32
        assert torch.equal(stored[name], original[name])
    for name, array in read.tables.to_arrays().items():
        assert array.tobytes() == frozen.tables.to_arrays()[name].tobytes()
    assert torch.equal(read.log_step.rows, frozen.log_step.rows)
    for name, value in read.transform.state_dict().items():
        assert torch.equal(value, frozen.transform.state_dict()[name].half().float())
    assert pack_weights(read) == weights


def test_equal_models_make_equal_files(frozen, weights):
    assert all(pack_weights(frozen) == weights for _ in range(8))


def test_a_model_in_training_cannot_be_stored(new_model):
    with pytest.raises(ModelMismatch, match="export"):
        pack_weights(new_model())


def test_frozen_layers_keep_a_float_twin_for_gradients(frozen, new_model):
    trained = new_model()
    for (name, layer), (_, original) in zip(
        frozen.entropy.layers(), trained.entropy.layers(), strict=True
    ):
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.allclose(layer.weight, original.weight, atol=0.5 / 2**8), name


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(weights, share):
    with pytest.raises(ModelMismatch):
        unpack_weights(weights[: int(share * len(weights))])


def test_damaged_headers_of_weights_are_refused_or_harmless(weights, frozen):
    rng = np.random.default_rng(0)
    end = 8 + int.from_bytes(weights[:8], "little")
    refused = 0
    for place in rng.integers(0, end, 150):
        damaged = bytearray(weights)
        damaged[place] ^= 1 << rng.integers(0, 8)
        try:
            read = unpack_weights(bytes(damaged))
        except ModelMismatch:
            refused += 1
        else:
            # such as another quality range: the digest in the card is what tells those
            assert read.entropy.to_integers().keys() == frozen.entropy.to_integers().keys()
    assert refused > 120


def rewritten(weights, change):
    """A weights file with its tensors and metadata changed by a function."""
    from safetensors.torch import load, save

    end = 8 + int.from_bytes(weights[:8], "little")
    tensors, metadata = load(weights), json.loads(weights[8:end])["__metadata__"]
    change(tensors, metadata)
    return save(tensors, metadata)


def set_item(name, value):
    def change(tensors, metadata):
        target = metadata if isinstance(value, str) else tensors
        assert name in target
        target[name] = value(target[name]) if callable(value) else value

    return change


VERSION = "lvqcodec_weights"
ENTER = "entropy.networks.0.0.enter"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors, _: tensors.pop(f"{ENTER}.weight"), f"lack '{ENTER[8:]}.weight'"),
        (lambda tensors, _: tensors.pop("transform.klt.weight"), "klt.weight"),
        (lambda tensors, _: tensors.pop("log_step.rows"), "log_step"),
        (lambda tensors, _: tensors.pop("tables.centroids"), "centroids"),
        (
            lambda tensors, _: tensors.update({"entropy.more.weight": torch.zeros(1)}),
            "unknown 'more.weight'; upgrade",
        ),
        (set_item(f"{ENTER}.weight", lambda t: t.float()), "float32"),
        (set_item(f"{ENTER}.weight", lambda t: t.bfloat16()), "bfloat16"),
        (set_item(f"{ENTER}.weight", lambda t: t[:, 1:].contiguous()), "not torch.int16"),
        (set_item(f"{ENTER}.bias", lambda t: t[:3].contiguous()), "not torch.int32"),
        (set_item(f"{ENTER}.exponent", lambda t: t[:3].contiguous()), "not torch.int8"),
        (set_item(f"{ENTER}.weight", lambda t: torch.full_like(t, 32767)), "may reach"),
        (set_item(f"{ENTER}.exponent", lambda t: t + 30), "bits"),
        (set_item("tables.scalar.probs", lambda t: t * 2), "sum to"),
        (set_item("tables.scalar.probs", lambda t: t.bfloat16()), "do not fit"),
        (set_item(VERSION, "2"), "version 2"),
        (set_item("config", "{"), "do not fit their configuration"),
        (lambda _, metadata: metadata.pop("config"), "lack their configuration"),
        (set_item("config", "3"), "must be a table"),
        (set_item("config", '{"colour": 1}'), "unknown setting"),
        (set_item("config", '{"entropy": {"block": [3, 3]}}'), "blocks"),
        (lambda _, metadata: metadata.clear(), "no intact"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, change, complaint):
    with pytest.raises(ModelMismatch, match=complaint):
        unpack_weights(rewritten(weights, change))


@pytest.fixture(scope="module")
def parts(frozen):
    return pack_parts(frozen)


def test_a_transform_of_its_own_file_makes_the_same_model(frozen, weights, parts):
    from safetensors.torch import load

    transform, rest = (load(part).keys() for part in parts)
    assert all(name.startswith("transform.") for name in transform)
    assert not transform & rest and transform | rest == load(weights).keys()
    for given in (parts, reversed(parts)):
        assert pack_weights(unpack_weights(*given)) == weights
    assert pack_parts(frozen) == parts == pack_parts(unpack_weights(weights))


def test_models_of_one_transform_share_its_file(parts, new_model):
    narrow = MultiScaleProgressive.Config(hidden=16, trunk=8)
    other = new_model(dataclasses.replace(TINY, entropy=narrow))
    other.transform.load_state_dict(unpack_weights(*parts).transform.state_dict())
    other.entropy.freeze()
    other.tables = parametric_tables()
    shared, rest = pack_parts(other)
    assert shared == parts[0] and rest != parts[1]


@pytest.mark.parametrize(
    ("choose", "complaint"),
    [
        (lambda shared, rest, whole: [], "lack transform, log_step, entropy, tables; give all"),
        (lambda shared, rest, whole: [shared], "lack log_step, entropy, tables; give all"),
        (lambda shared, rest, whole: [rest], "lack transform; give all"),
        (lambda shared, rest, whole: [shared, whole], "'transform.*' is in two"),
        (lambda shared, rest, whole: [rest, whole], "is in two"),
        (lambda shared, rest, whole: [shared, shared, rest], "is in two"),
        (lambda shared, rest, whole: [shared[:-1], rest], "no intact"),
        (lambda shared, rest, whole: [shared, rest[:-1]], "no intact"),
        (
            lambda shared, rest, whole: [rewritten(shared, set_item(VERSION, "2")), rest],
            "version 2",
        ),
        (
            lambda shared, rest, whole: [rewritten(shared, lambda t, _: t.popitem()), rest],
            "do not fit",
        ),
    ],
)
def test_files_that_make_no_model_are_refused(weights, parts, choose, complaint):
    with pytest.raises(ModelMismatch, match=complaint):
        unpack_weights(*choose(*parts, weights))


@pytest.mark.parametrize("pixels", [0, 3, 16])
def test_levels_that_do_not_divide_a_block_are_refused(pixels):
    with pytest.raises(UsageError, match=f"a level of {pixels} pixels does not divide blocks of 8"):
        LappedTransform(LappedTransform.Config(synthesis=((pixels, 8, 1),)))

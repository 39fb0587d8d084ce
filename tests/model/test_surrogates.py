# SPDX-License-Identifier: Apache-2.0
"""What stands for rounding in training."""

import numpy as np
import pytest
import torch

from lvqcodec.coding.rows import LATENT_UNITS, SIGMAS
from lvqcodec.errors import UsageError
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.likelihood import Logistic, logistic_bits, rdo_round
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.model.surrogates import SURROGATES
from lvqcodec.training.data import CropSampler
from lvqcodec.training.recipe import Recipe, Stage
from lvqcodec.training.trainer import Trainer


def made(name, seed=0, lattice="e8"):
    return SURROGATES[name](torch.Generator().manual_seed(seed), 0.5, lattice)


@pytest.fixture
def residuals():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 50, 4, generator=generator) * 2, torch.full((2, 50, 4), 1.3)


def coded(name, residual, sigma):
    return made(name)(residual, Logistic(sigma))


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "lattice"])
def test_contexts_see_what_the_codec_would_round_to(name, residuals):
    found = coded(name, *residuals)
    assert torch.equal(found.rounded, rdo_round(residuals[0], Logistic(residuals[1])))
    assert found.bits.shape == residuals[0].shape and (found.bits > 0).all()


@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_reach_residuals_and_scales(name, residuals):
    residual, sigma = (part.clone().requires_grad_() for part in residuals)
    made(name)(residual, Logistic(sigma)).bits.sum().backward()
    for part in (residual, sigma):
        assert torch.isfinite(part.grad).all() and part.grad.abs().sum() > 1


def test_bits_of_rounded_residuals_are_those_that_are_coded(residuals):
    found = coded("straight-through", *residuals)
    assert torch.allclose(found.bits, logistic_bits(found.rounded, residuals[1]))
    assert found.seen is None


@pytest.mark.parametrize("lattice", LATTICES)
def test_the_lattice_surrogate_codes_as_the_codec_does(residuals, lattice):
    """Up to its tables, parametric ones, which stand for the density; what fills no vector too."""
    sigma = torch.full((2, 49, 4), float(SIGMAS[28]))
    sigma[:, ::3] = float(SIGMAS[13])  # scalars
    residual = residuals[0][:, :-1] * sigma / 2
    found = made("lattice", lattice=lattice)(residual, Logistic(sigma))
    quantizer = Quantizer(lattice, parametric_tables(lattice))
    bins = torch.where(sigma == sigma[0, 0, 0], 13, 28).flatten()
    j = quantizer.choose(residual.flatten(), bins)
    points = quantizer.reconstruct(j, bins).view_as(residual) / LATENT_UNITS
    packed = torch.zeros(bins.shape, dtype=torch.bool)
    places = (bins >= quantizer.lattice.packing.first_bin).nonzero().squeeze(-1)
    packed[places[: len(places) // quantizer.lattice.dim * quantizer.lattice.dim]] = True
    packed = packed.view_as(residual)
    assert torch.equal(found.rounded[packed], points[packed])
    assert torch.equal(found.rounded[~packed], rdo_round(residual, Logistic(sigma))[~packed])
    assert float(found.bits.sum()) == pytest.approx(quantizer.bits(j, bins), rel=0.015)


def test_the_lattice_surrogate_leaves_vectors_that_are_not_full_to_scalars():
    residual, sigma = torch.linspace(-3, 3, 7).view(1, 7, 1), torch.full((1, 7, 1), 2.0)
    plain, found = (coded(name, residual, sigma) for name in ("straight-through", "lattice"))
    assert torch.equal(plain.rounded, found.rounded) and torch.equal(plain.bits, found.bits)


def test_a_density_that_no_sigma_tells_has_no_lattice(residuals):
    def density(values):
        return logistic_bits(values, torch.ones_like(values))

    density.fixed = lambda: density
    found = made("lattice")(residuals[0], density)
    assert torch.equal(found.rounded, rdo_round(residuals[0], density))


def test_noise_is_uniform_and_follows_from_its_seed(residuals):
    residual, sigma = torch.zeros(1, 5000, 4), torch.ones(1, 5000, 4)
    seen = made("noise-for-all")(residual, Logistic(sigma)).seen
    assert -0.5 <= seen.min() < -0.49 and 0.49 < seen.max() < 0.5
    assert abs(float(seen.mean())) < 0.01 and float(seen.var()) == pytest.approx(1 / 12, rel=0.05)
    again, other = (made("noise-for-all", seed)(residual, Logistic(sigma)).seen for seed in (0, 1))
    assert torch.equal(seen, again) and not torch.equal(seen, other)
    assert made("noise")(residual, Logistic(sigma)).seen is None


def test_the_synthesis_sees_what_the_surrogate_shows_it(new_model):
    model = new_model()
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 64, 64), 5, 1, 2)
    quality = torch.full((1,), 60.0)
    plain = model.rate(x, quality)
    mixed, noisy = (model.rate(x, quality, made(name)) for name in ("noise", "noise-for-all"))
    assert torch.equal(plain.y_hat, mixed.y_hat), "contexts and synthesis see the same as ever"
    y = model.analysis(x, quality)
    assert (noisy.y_hat - y).abs().max() <= 0.5 + 1e-4
    assert not torch.equal(noisy.y_hat, plain.y_hat)
    assert plain.bits != mixed.bits and torch.equal(mixed.bits, noisy.bits)


# in a recipe


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"surrogate": "soft"}, "surrogate = 'soft' is unknown"), ({"loss": "ssim"}, "loss = 'ssim'")],
)
def test_what_does_not_exist_is_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        Stage("a", 1, ("entropy",), **changes)


def test_a_loss_of_ms_ssim_needs_crops_that_have_one(tiny_config):
    stage = Stage("a", 1, ("entropy",), crop=128, loss="ms-ssim")
    with pytest.raises(UsageError, match="too small for MS-SSIM"):
        Recipe(tiny_config, (stage,))


@pytest.mark.parametrize("name", SURROGATES)
def test_a_stage_trains_with_its_surrogate_and_its_loss(name, tiny_config, photograph):
    groups = ("klt", "analysis", "synthesis", "entropy", "steps")
    stages = (
        Stage("first", 1, groups, batch=2, crop=64, surrogate=name),
        Stage("last", 1, groups, batch=2, crop=176, surrogate=name, loss="ms-ssim"),
    )
    values = []
    for _ in range(2):
        trainer = Trainer(Recipe(tiny_config, stages, init_crops=4), torch.device("cpu"))
        sampler = CropSampler([photograph(300, 300)], device=torch.device("cpu"))
        trainer.start_from_pictures(sampler)
        for stage in stages:
            trainer.begin_stage(stage)
            values.append(trainer.train_step(sampler, stage))
    assert ["mse" in value for value in values] == [True, False] * 2
    assert all(np.isfinite(float(v)) for value in values for v in value.values())
    assert float(values[0]["loss"]) == float(values[2]["loss"]), "noise follows from the seed"

# SPDX-License-Identifier: Apache-2.0
"""The packing that is fitted to pictures."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lvqcodec.model.lattices.base import CODING_ORDER
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training.coded import Choices, batches_of, log_losses, quantise
from lvqcodec.training.packing import best_packing


@pytest.fixture
def model(new_model):
    made = new_model()
    made.entropy.freeze()
    made.tables = parametric_tables("bw16")
    return made


@pytest.fixture
def batches(model, photograph):
    crops = np.stack([photograph(96, 128, seed=seed) for seed in range(2)])
    crops = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return batches_of(model, crops.repeat(51, 1, 1, 1)[:101])[10::20]


@pytest.mark.parametrize("name", ["e8", "bw16"])
def test_no_packing_next_to_it_is_surely_better(model, batches, name):
    tables, saved = best_packing(model, model.tables, name, batches)
    losses = log_losses(model, batches, Quantizer(name, tables))
    packing = tables.others[name].packing
    assert saved >= 0

    def lost(packing):
        found = model.tables
        for _ in range(2):
            choices = Choices(Quantizer(name, found))
            for batch in batches:
                quantise(model, batch, choices.quantizer, choices)
            new = type(found.others[name]).fit(choices.counts[name], packing)
            found = dataclasses.replace(found, others={**found.others, name: new})
        return log_losses(model, batches, Quantizer(name, found))

    for step in (-2, 2):
        gain = losses - lost(packing._replace(first_bin=packing.first_bin + step))
        assert gain.mean() <= 2 * gain.std(ddof=1) / len(gain) ** 0.5
    assert 1 - math.exp((losses - lost(CODING_ORDER)).mean()) == pytest.approx(saved)
    assert tables.z is model.tables.z
    (other,) = {"e8", "bw16"} - {name}
    assert tables.others[other] is model.tables.others[other]


def test_the_loss_is_that_of_pictures(model, batches):
    quantizer = Quantizer("z", model.tables)
    for batch, loss in zip(batches, log_losses(model, batches, quantizer), strict=True):
        choices = Choices(quantizer)
        y_hat = quantise(model, batch, quantizer, choices)
        assert batch.pixels == 96 * 128 * len(batch.crops)
        shown = model.synthesis(y_hat, batch.grid, batch.qualities).clamp(0, 1)
        mse = ((shown - batch.crops) * 255).square().mean()
        found = choices.bits / batch.pixels + model.config.lmbda(batch.quality) * mse
        assert loss == pytest.approx(math.log(found), rel=1e-5)


def test_what_a_packing_saves_must_be_seen_in_more_than_one_batch(model, batches):
    """A single one says nothing of how much savings differ."""
    tables, saved = best_packing(model, model.tables, "e8", batches[:1])
    assert tables.others["e8"].packing == CODING_ORDER and saved == 0

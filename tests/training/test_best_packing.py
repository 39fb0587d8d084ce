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
from lvqcodec.training.coded import Choices, batches_of, log_loss, quantise
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
def test_no_packing_next_to_it_loses_less(model, batches, name):
    tables, saved = best_packing(model, model.tables, name, batches)
    loss = log_loss(model, batches, Quantizer(name, tables))
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
        return log_loss(model, batches, Quantizer(name, found))

    for step in (-1, 1):
        assert loss <= lost(packing._replace(first_bin=packing.first_bin + step))
    assert 1 - math.exp(loss - lost(CODING_ORDER)) == pytest.approx(saved)
    assert tables.z is model.tables.z
    (other,) = {"e8", "bw16"} - {name}
    assert tables.others[other] is model.tables.others[other]


def test_the_loss_is_that_of_pictures(model, batches):
    quantizer, total = Quantizer("z", model.tables), 0.0
    for batch in batches:
        choices = Choices(quantizer)
        y_hat = quantise(model, batch, quantizer, choices)
        assert batch.pixels == 96 * 128 * len(batch.crops)
        shown = model.synthesis(y_hat, batch.grid, batch.qualities).clamp(0, 1)
        mse = ((shown - batch.crops) * 255).square().mean()
        total += math.log(choices.bits / batch.pixels + model.config.lmbda(batch.quality) * mse)
    assert log_loss(model, batches, quantizer) == pytest.approx(total / len(batches), rel=1e-5)

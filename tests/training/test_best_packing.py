# SPDX-License-Identifier: Apache-2.0
"""The packing that is fitted to latents."""

import numpy as np
import pytest
import torch

from lvqcodec.coding.rows import NUM_BINS, SIGMAS
from lvqcodec.model.lattices.base import CODING_ORDER, Packing
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training.packing import Steps, best_packing


def steps_of(bins, reach, seed=0):
    """Normal residuals of these bins, `reach` times as far as their sigma says."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.from_numpy(SIGMAS).float()[bins] * reach
    steps = Steps()
    for part in (slice(None, None, 2), slice(1, None, 2)):
        residual = torch.randn(len(bins[part]), generator=generator) * sigma[part]
        steps(torch.zeros(len(residual)), bins[part], residual)
    return steps


@pytest.fixture(scope="module")
def mixed():
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(-1.0, 1.0, 40_000))
    return torch.from_numpy(np.abs(np.log(sigma)[:, None] - np.log(SIGMAS)).argmin(-1))


def test_no_other_packing_near_it_costs_less(mixed):
    steps, start = steps_of(mixed, 1.0), parametric_tables()
    tables, saved = best_packing(start, "e8", steps)
    packing = tables.others["e8"].packing
    assert packing != CODING_ORDER and saved > 0
    cost = steps.cost(Quantizer("e8", tables))
    for other in (
        packing._replace(by_bin=not packing.by_bin, first_bin=CODING_ORDER.first_bin),
        packing._replace(first_bin=packing.first_bin - 1),
        packing._replace(first_bin=packing.first_bin + 1),
    ):
        assert cost <= steps.cost(Quantizer("e8", steps.refitted(start, "e8", other)))
    before = steps.cost(Quantizer("e8", steps.refitted(start, "e8", CODING_ORDER)))
    assert 1 - cost / before == pytest.approx(saved)
    assert tables.z is start.z


def test_where_order_makes_no_difference_it_stays():
    """All of one bin, far above the threshold: nothing is better than what there is."""
    steps = steps_of(torch.full((4000,), 40), 1.0)
    tables, saved = best_packing(parametric_tables(), "e8", steps)
    assert tables.others["e8"].packing == CODING_ORDER and saved == 0


def test_latents_with_rows_of_their_own_are_kept_whatever_their_number():
    steps = Steps()
    bins = torch.tensor([NUM_BINS + 900, 3])
    steps(torch.zeros(2), bins, torch.zeros(2))
    assert steps._steps[0][1].tolist() == bins.tolist()


def test_a_lattice_that_nothing_is_packed_for_keeps_what_it_was_made_with():
    steps = steps_of(torch.full((100,), 3), 1.0)
    tables, saved = best_packing(parametric_tables(), "e8", steps)
    assert tables.others["e8"].packing == Packing() and saved == 0

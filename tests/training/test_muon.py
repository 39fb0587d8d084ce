# SPDX-License-Identifier: Apache-2.0
"""Orthogonalised momentum."""

import pytest
import torch

from lvqcodec.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 200), (200, 24), (32, 64)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = torch.logspace(0, -2, min(shape))
    found = orthogonalise(u @ torch.diag(spread) @ v)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.7 and values.max() < 1.2
    # the polynomials are odd: they act on singular values alone
    assert torch.allclose((u.T @ found @ v.T).diagonal().sort().values, values.sort().values)


def test_a_matrix_of_zeros_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (16, 5)])
def test_an_update_is_as_large_as_adams(shape):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Muon([parameter], lr=0.01, momentum=0.9)
    parameter.grad = torch.randn(shape) * 1e-4
    optimizer.step()
    moved = parameter.detach().square().mean().sqrt()
    assert 0.001 < moved < 0.01


def test_it_finds_the_least_squares():
    torch.manual_seed(0)
    wanted, x = torch.randn(8, 12), torch.randn(200, 12)
    parameter = torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([parameter], lr=0.1, momentum=0.9)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        error = (x @ (parameter - wanted).T).square().mean()
        parameter.grad = None
        error.backward()
        optimizer.step()
    assert error < 1e-3


def test_a_skipped_step_leaves_no_trace():
    torch.manual_seed(0)
    plain, skipping = (torch.nn.Parameter(torch.ones(4, 6)) for _ in range(2))
    gradients = torch.randn(3, 4, 6)
    for parameter, skips in ((plain, ()), (skipping, (1, 3))):
        optimizer = Muon([parameter], lr=0.1, momentum=0.9)
        rows = iter(gradients)
        for step in range(3 + len(skips)):
            skipped = step in skips
            parameter.grad = torch.full((4, 6), torch.nan) if skipped else next(rows)
            optimizer.found_inf = torch.tensor(float(skipped))
            optimizer.step()
    assert torch.equal(plain, skipping) and not torch.equal(plain, torch.ones(4, 6))

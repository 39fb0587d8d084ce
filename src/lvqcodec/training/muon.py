# SPDX-License-Identifier: Apache-2.0
"""Momentum with orthogonalised updates, for the weights of convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lvqcodec.training.ranks import Ranks

# Polynomials, one a step, that drive singular values to 1 (Amsel et al., "The Polar Express", 2025,
# https://arxiv.org/abs/2505.16932), the first five; matrices of any spread of singular values.
_POLYNOMIALS = (
    (8.2873, -23.5959, 17.3004),
    (4.1071, -2.9478, 0.5448),
    (3.9487, -2.9089, 0.5518),
    (3.3184, -2.4885, 0.5100),
    (2.3007, -1.6689, 0.4188),
)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix (m, n) = U S V^T, by matrix products alone."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    x: Tensor = matrix / (torch.linalg.matrix_norm(matrix) * 1.01 + 1e-12)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update of every weight matrix is orthogonalised.

    Jordan, 2024, https://kellerjordan.github.io/posts/muon/.

    Weights of more than two dimensions count as (first dimension, all others). The update is scaled
    by 0.2 sqrt(max(m, n)), as in Liu et al. ("Muon is scalable for LLM training", 2025,
    https://arxiv.org/abs/2502.16982), so its entries are about as large as Adam's at the same rate.
    torch.optim.Muon takes matrices only and cannot skip a step on the device. Processes that train
    together orthogonalise a part of the matrices each, and exchange what they have found.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.found_inf: Tensor | None = None
        self._ranks = ranks or Ranks()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the weights; where `found_inf` is 1.0, nothing changes, decided on the device."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            ahead = [self._look_ahead(parameter, group["momentum"]) for parameter in moving]
            for parameter, update in zip(moving, self._orthogonalised(ahead), strict=True):
                size = max(parameter.shape[0], parameter[0].numel())
                parameter.sub_(update * (0.2 * size**0.5 * (group["lr"] * self._sound)))

    @property
    def _sound(self) -> float | Tensor:
        """1.0 for a step that counts."""
        return 1.0 if self.found_inf is None else 1 - self.found_inf

    def _look_ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Take a gradient into the momentum; return where that leads."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        if self.found_inf is not None:
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        mean.add_((gradient - mean) * ((1 - momentum) * self._sound))
        return gradient.lerp(mean, momentum)

    def _orthogonalised(self, matrices: list[Tensor]) -> list[Tensor]:
        """Return the matrices orthogonalised, each by one of the processes."""
        ranks = self._ranks
        found = [
            orthogonalise(matrix.flatten(1)).reshape(matrix.shape)
            if index % ranks.count == ranks.index
            else torch.zeros_like(matrix)
            for index, matrix in enumerate(matrices)
        ]
        ranks.total(found)
        return found

# SPDX-License-Identifier: Apache-2.0
"""Z^n: rounding, coordinate by coordinate."""

import torch
from torch import Tensor

from lvqcodec.lattices.base import Lattice


class Zn(Lattice):
    """The integers of `dim` dimensions, the scalar baseline."""

    name = "z"
    second_moment = 1 / 12

    def __init__(self, dim: int = 1) -> None:
        super().__init__(torch.eye(dim, dtype=torch.float64))

    def nearest(self, v: Tensor) -> Tensor:
        """Nearest integers (..., dim)."""
        return v.round()

# SPDX-License-Identifier: Apache-2.0
"""What a lattice is: points p = k @ basis, k integers, rows of the basis are its vectors."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Lattice(ABC):
    """A lattice of `dim` dimensions; `second_moment` is the normalised one of its Voronoi cell.

    The normalised second moment is MSE per dimension / volume^(2 / dim) (Conway & Sloane 1982).
    """

    name: str
    second_moment: float

    def __init__(self, basis: Tensor) -> None:
        """Basis (dim, dim) float64, rows are the basis vectors."""
        self.basis = basis
        self.dim = len(basis)
        self.volume = float(torch.linalg.det(basis).abs())
        self._inverse = torch.linalg.inv(basis)

    @abstractmethod
    def nearest(self, v: Tensor) -> Tensor:
        """Nearest lattice points p to vectors v, both (..., dim) of one type."""

    def to_coords(self, p: Tensor) -> Tensor:
        """Integer coordinates k (..., dim) int64 of lattice points p, with p = k @ basis."""
        k: Tensor = p.double() @ self._inverse.to(p.device)
        return k.round().long()

    def from_coords(self, k: Tensor) -> Tensor:
        """Lattice points p = k @ basis (..., dim) float64."""
        return k.double() @ self.basis.to(k.device)

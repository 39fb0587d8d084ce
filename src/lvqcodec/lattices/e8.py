# SPDX-License-Identifier: Apache-2.0
"""E8 = D8 and D8 + 1/2: all coordinates whole or all half-odd, with an even sum.

In half units j = 2 p that is: the residues j mod 4 are all even or all odd, and their sum is a
multiple of 4. Whether j is in E8 depends on the residues alone, so the least of any additive cost
is found from the least cost of each residue of each coordinate.
"""

import torch
from torch import Tensor

from lvqcodec.lattices.base import Lattice


class E8(Lattice):
    """The densest packing of eight dimensions (Conway & Sloane 1982); volume 1."""

    name = "e8"
    second_moment = 929 / 12960

    def __init__(self) -> None:
        basis = torch.eye(8, dtype=torch.float64)
        basis[0, 0] = 2
        rows = torch.arange(1, 7)
        basis[rows, rows - 1] = -1
        basis[7] = 0.5
        super().__init__(basis)

    def nearest(self, v: Tensor) -> Tensor:
        """Nearest points (..., 8) of E8 (Conway & Sloane 1982, algorithm 5, by residues)."""
        residue = torch.arange(4, dtype=v.dtype, device=v.device) / 2
        candidates = 2 * ((v[..., None] - residue) / 2).round() + residue
        pick = self.choose((v[..., None] - candidates).square())
        return candidates.gather(-1, pick[..., None]).squeeze(-1)

    def choose(self, costs: Tensor) -> Tensor:
        """Residues j mod 4 (..., 8) int64 of the cheapest point, costs (..., 8, 4) per residue.

        Exact: in each coset the cheaper parity of every coordinate; where the sum is wrong, the
        coordinate changes that loses least.
        """
        odd = costs[..., 2:] < costs[..., :2]  # (..., 8, coset): the better parity
        loss, place = (costs[..., 2:] - costs[..., :2]).abs().min(-2, keepdim=True)
        wrong = odd.sum(-2, keepdim=True) & 1
        total = torch.minimum(costs[..., 2:], costs[..., :2]).sum(-2, keepdim=True) + loss * wrong
        parity = odd.long().scatter_add(-2, place, wrong) & 1
        coset = total[..., 1] < total[..., 0]
        return 2 * torch.where(coset, parity[..., 1], parity[..., 0]) + coset

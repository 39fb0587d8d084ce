# SPDX-License-Identifier: Apache-2.0
"""E8 = D8 and D8 + 1/2: all coordinates whole or all half-odd, with an even sum.

In half units j = 2 * point that is construction B of the code of two words, all zeros and all ones,
which are the two cosets of D8: the coset bit is the word's number. The densest packing of eight
dimensions; its normalised second moment is 929 / 12960 (Conway and Sloane, "Voronoi regions of
lattices, second moments of polytopes, and quantization", 1982, doi.org/10.1109/TIT.1982.1056483).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lvqcodec.model.lattices.construction_b import ConstructionB
from lvqcodec.model.lattices.parity import cheapest_parities


class E8(ConstructionB):
    """Vectors j of eight integers, all even or all odd."""

    name = "e8"
    dim = 8
    unit = 0.5
    order = 0
    second_moment = 0.0717

    def pick(self, costs: Tensor) -> Tensor:
        """See `ParityLattice.pick`: of two words the parities of both are found soonest."""
        parity, total = cheapest_parities(costs[..., :2], costs[..., 2:])
        coset = (total[..., 1] < total[..., 0])[..., None]
        return 2 * torch.where(coset, parity[..., 1], parity[..., 0]) + coset

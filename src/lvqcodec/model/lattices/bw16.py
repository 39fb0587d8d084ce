# SPDX-License-Identifier: Apache-2.0
"""BW16, the lattice of Barnes and Wall: construction B of the Reed-Muller code of order 1.

The densest packing known of 16 dimensions, with 4320 shortest vectors; its normalised second moment
is 0.0683 (Conway and Sloane, "Sphere Packings, Lattices and Groups", 3rd edition, 1999, chapter 4,
section 10, and table 2.3). The 32 words of the code have weights 0, 8 and 16. As it stands a cell
has volume 2^12, so a coordinate is 2^(-3/4) step.
"""

from __future__ import annotations

from lvqcodec.model.lattices.construction_b import ConstructionB
from lvqcodec.model.lattices.tabled import q24_root


class BW16(ConstructionB):
    """Vectors j of 16 integers: j mod 2 is an affine function of the coordinate's four digits."""

    name = "bw16"
    dim = 16
    unit = 2**-0.75
    q24_units = (q24_root(1, 8, 4),)
    order = 1
    second_moment = 0.0683

# SPDX-License-Identifier: Apache-2.0
"""A2, the hexagonal lattice: the best quantizer of two dimensions (Fejes Toth, 1959).

It is two cosets of a rectangular lattice: the corners of the rectangles and their centres. In half
sides the coordinates are both even or both odd, so they are integer vectors of an even sum, as
those of D_n, but of two units, a / 2 and sqrt(3) a / 2; a is the distance of neighbours, and
a^2 sqrt(3) / 2 = 1 makes the volume 1. The parity of the first coordinate is the coset, and that of
the second follows: one bit a vector. The second moment is 5 / (36 sqrt(3)) (Conway and Sloane,
"Voronoi regions of lattices, second moments of polytopes, and quantization", 1982,
doi.org/10.1109/TIT.1982.1056483).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lvqcodec.coding.fitting import PRIOR
from lvqcodec.coding.rows import Floats
from lvqcodec.model.lattices.dn import EvenSum
from lvqcodec.model.lattices.tabled import q24_root


class A2(EvenSum):
    """Vectors j of two integers that are both even or both odd."""

    name = "a2"
    dim = 2
    unit = (1 / 12) ** 0.25
    axes = (1.0, 3**0.5)
    q24_units = (q24_root(1, 12, 4), q24_root(3, 4, 4))
    second_moment = 0.0802

    @classmethod
    def _fit_ratios(cls, even: Floats, odd: Floats, prior_even: Floats, prior_odd: Floats) -> Any:
        """See `EvenSum._fit_ratios`.

        How often the coset is odd tells of both ratios together: their logarithms of even against
        odd, 2 atanh, add up. What they do not sum up to by the parametric masses is halved.
        """
        ratio = ((prior_even - prior_odd) / (prior_even + prior_odd)).reshape(2, -1)
        prior = ratio.sum(0) / (1 + ratio.prod(0))
        counts, difference = (even + odd).reshape(2, -1), (even - odd).reshape(2, -1)
        moment = (difference + PRIOR * prior) / (counts + PRIOR)
        shift = (np.arctanh(moment) - np.arctanh(prior)) / 2
        return np.tanh(np.arctanh(ratio) + shift).ravel()

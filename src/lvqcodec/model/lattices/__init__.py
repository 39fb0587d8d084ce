# SPDX-License-Identifier: Apache-2.0
"""The lattices by name: to add one, a class in its own file and a line here."""

from lvqcodec.model.lattices.a2 import A2
from lvqcodec.model.lattices.base import Lattice
from lvqcodec.model.lattices.bw16 import BW16
from lvqcodec.model.lattices.dn import D4
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.leech import Leech
from lvqcodec.model.lattices.trellis import Trellis
from lvqcodec.model.lattices.z import Z

LATTICES: dict[str, type[Lattice]] = {
    "z": Z,
    "e8": E8,
    "d4": D4,
    "a2": A2,
    "bw16": BW16,
    "leech": Leech,
    "trellis8": Trellis,
}

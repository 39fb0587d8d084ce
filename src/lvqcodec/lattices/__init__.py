# SPDX-License-Identifier: Apache-2.0
"""The lattices by name: to add one, a class in its own file and a line here."""

from collections.abc import Callable

from lvqcodec.errors import UsageError
from lvqcodec.lattices.base import Lattice
from lvqcodec.lattices.e8 import E8
from lvqcodec.lattices.zn import Zn

LATTICES: dict[str, Callable[[], Lattice]] = {"z": Zn, "e8": E8}


def make_lattice(name: str) -> Lattice:
    """The lattice of that name; raises UsageError."""
    if name not in LATTICES:
        raise UsageError(f"unknown lattice {name!r}; choose one of {', '.join(LATTICES)}")
    return LATTICES[name]()

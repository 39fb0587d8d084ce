# SPDX-License-Identifier: Apache-2.0
"""All tables of a model: those of Z, of the other lattices by name, and rows of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec.coding.fitting import refit_rows
from lvqcodec.coding.rows import NUM_BINS, RowTable
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.base import Arrays, Lattice
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.z import Z

Counts = Mapping[str, Arrays]
"""What `Lattice.count` counts, by the name of the lattice."""


@dataclass(frozen=True, eq=False)
class CodingTables:
    """All that the quantizer and the coder look up; nothing of it is computed when decoding.

    z codes the scalars of every model; others: the lattices that it was fitted for, by name; own:
    rows of their own, row i for bin NUM_BINS + i, if the entropy model has a factorised prior.
    """

    z: Z
    others: Mapping[str, Lattice] = field(default_factory=dict)
    own: RowTable | None = None

    @cached_property
    def scalars(self) -> Z:
        """Z with the rows of `own` behind its own."""
        return self.z if self.own is None else self.z.with_own(self.own)

    def lattice(self, name: str) -> Lattice:
        """The lattice of that name; UsageError where there is none or the model has no rows."""
        if name not in LATTICES:
            raise UsageError(f"unknown lattice {name!r}; choose one of {', '.join(LATTICES)}")
        if name == self.z.name:
            return self.scalars
        if name not in self.others:
            raise UsageError(
                f"model has no rows for lattice {name!r}; fit them: lvq refit NAME --data DIR"
                f" --lattice {name}"
            )
        return self.others[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all lattices that there are rows for."""
        return self.z.name, *self.others

    @cached_property
    def least_bits(self) -> float:
        """Bits of a stream that a latent takes at the least, whatever its bin and lattice."""
        return min(lattice.least_bits for lattice in (self.scalars, *self.others.values()))

    def fitted(self, counts: Counts) -> CodingTables:
        """Tables for what each lattice chose, and rows of their own for what Z chose.

        The tables of a lattice that chose nothing stay as they are.
        """
        others = {
            name: type(one).fit(counts[name], one.packing) if name in counts else one
            for name, one in self.others.items()
        }
        if self.z.name not in counts:
            return replace(self, others=others)
        own = None if self.own is None else refit_rows(self.own, counts[self.z.name]["own"])
        return CodingTables(Z.fit(counts[self.z.name]), others, own)

    def including(self, names: Iterable[str]) -> CodingTables:
        """The same with parametric tables for those of the lattices that it has none for."""
        new = {name: LATTICES[name].fit() for name in names if name not in self.names}
        return replace(self, others={**self.others, **new})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for storage."""
        tables: dict[str, Any] = {self.z.name: self.z, **self.others}
        if self.own is not None:
            tables["own"] = self.own
        return _to_stored(
            {f"{name}.{key}": a for name, t in tables.items() for key, a in t.to_arrays().items()}
        )

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CodingTables:
        """Reverse of to_arrays; raises ModelMismatch."""
        groups: dict[str, dict[str, NDArray[Any]]] = {Z.name: {}}
        for key, array in _from_stored(arrays).items():
            name, _, rest = key.partition(".")
            groups.setdefault(name, {})[rest] = array
        z = Z.from_arrays(groups.pop(Z.name))
        own = RowTable.from_arrays(groups.pop("own")) if "own" in groups else None
        unknown = groups.keys() - LATTICES.keys()
        if unknown:
            raise ModelMismatch(f"the weights hold an unknown {min(unknown)!r}; upgrade lvqcodec")
        others = {name: LATTICES[name].from_arrays(group) for name, group in groups.items()}
        return cls(z, others, own)


def parametric_tables(*names: str) -> CodingTables:
    """Tables of logistics of standard deviation SIGMAS: a start, before anything was counted.

    Those of Z, E8 and the lattices of these names.
    """
    others = [name for name in dict.fromkeys((E8.name, *names)) if name != Z.name]
    return CodingTables(Z.fit(), {name: LATTICES[name].fit() for name in others})


def added(one: Counts, other: Counts) -> dict[str, dict[str, Any]]:
    """Sums of counts by lattice and name; what one of them lacks is taken from the other."""
    total: dict[str, dict[str, Any]] = {name: dict(counts) for name, counts in one.items()}
    for name, counts in other.items():
        mine = total.setdefault(name, {})
        for key, array in counts.items():
            mine[key] = mine[key] + array if key in mine else array
    return total


# --- names in weights files from before lattices had tables of their own: those of Z and E8 ------

_STORED = {
    "z.rows": "scalar",
    "e8.rows": "lattice",
    "e8.bernoulli": "bernoulli",
    "e8.parity_ratio": "parity_ratio",
    "e8.coset_ratio": "coset_ratio",
}
_NAMES = {stored: name for name, stored in _STORED.items()}
_CENTROIDS = "centroids"  # of both, Z's first, over |2 j| to fit E8's
_Z_PLACES = [*range(0, 15, 2), 15]


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` or `name.part` after `names`."""
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _to_stored(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Arrays by the names in weights files; of models without E8 they have none of their own."""
    if "e8.centroids" not in arrays:
        return dict(arrays)
    stored = {_renamed(name, _STORED): array for name, array in arrays.items()}
    e8 = stored.pop("e8.centroids")
    z = np.zeros_like(e8)
    z[:, _Z_PLACES] = stored.pop("z.centroids")
    return {**stored, _CENTROIDS: np.stack((z, e8))}


def _from_stored(stored: Arrays) -> dict[str, NDArray[Any]]:
    """Reverse of _to_stored."""
    arrays = {_renamed(name, _NAMES): array for name, array in stored.items()}
    both = arrays.pop(_CENTROIDS, None)
    if both is not None:
        if both.shape != (2, NUM_BINS, E8.num_centroids):
            raise ModelMismatch(f"centroids of shape {both.shape}; install the weights again")
        arrays["z.centroids"], arrays["e8.centroids"] = both[0][:, _Z_PLACES], both[1]
    return arrays

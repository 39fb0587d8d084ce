# SPDX-License-Identifier: Apache-2.0
"""Tables of rows to train and compare: what `ablate.py` takes.

A table is a TOML file:

    minutes = 10                  # of training steps, for each row
    qualities = [5, 35, 65, 95]   # at which files are made
    base = "plain"                # the row that all others are compared with
    recipe = "normal.toml"        # beside the table; or a [recipe], as `lvq train` takes it

    [[row]]
    name = "plain"

    [[row]]
    name = "wide, noise"
    lattice = "e8"                # what it is coded on; by default the lattice of its recipe
    recipe.codec.entropy.hidden = 96
    recipe.stage."*".surrogate = "noise"     # in every stage
    recipe.stage.context.lr = 1e-3           # in the one of this name, after those in every stage

    [[row]]
    name = "plain refitted"
    refit = "plain"               # no training: that row's model, its rows fitted to
    lattices = ["bw16", "leech"]  # these, and coded on each

What a row says of the recipe is merged over that of the table, table by table; other values, lists
too, replace what is there. So does a table with a `name` other than the one there: it is another
class, whose settings are its own. Learning rates follow the steps of a stage, not the minutes, so
that a row whose steps do not fit into the minutes stops before its rates have fallen: the result
says how many of its steps each row has done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lvqcodec.catalog import is_plain_name
from lvqcodec.config import QUALITIES, from_table
from lvqcodec.errors import UsageError
from lvqcodec.format.container import LATTICES
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.training.recipe import Recipe, read_toml
from lvqcodec.training.trainer import Trainer

Plain = dict[str, Any]
"""Plain data, as TOML and JSON have them."""

EVERY = "*"
SEED = "{}, another seed"


@dataclass(frozen=True)
class Row:
    """A [[row]]; once the table is loaded, `recipe` is all that the row trains by."""

    name: str
    recipe: dict = field(default_factory=dict)
    lattice: str = ""
    refit: str = ""
    lattices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_plain_name(self.model):
            raise UsageError(f"row {self.name!r} has no name for a file; begin it with a letter")
        if bool(self.refit) != bool(self.lattices):
            raise UsageError(f"row {self.name!r}: give both refit and lattices, or none of them")
        if self.refit and (self.recipe or self.lattice):
            raise UsageError(f"row {self.name!r} is a refit: it takes lattices alone")
        for lattice in (*self.lattices, *filter(None, [self.lattice])):
            if lattice not in LATTICES:
                known = ", ".join(LATTICES)
                raise UsageError(f"row {self.name!r}: unknown {lattice!r}; choose from {known}")

    @property
    def model(self) -> str:
        """The name as that of a model."""
        return re.sub(r"[^\w.+-]+", "-", self.name)

    def titles(self, curves: Sequence[str]) -> dict[str, str]:
        """What the curves of the row's evaluation are called in the result."""
        names = [f"{self.name}, {lattice}" for lattice in self.lattices] or [self.name]
        return dict(zip(curves, names, strict=True))


@dataclass(frozen=True)
class Table:
    """A table; see the module."""

    recipe: dict
    minutes: float
    qualities: tuple[int, ...]
    base: str
    row: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UsageError(f"minutes = {self.minutes:g} must be above 0")
        if not self.qualities or not set(self.qualities) <= set(QUALITIES):
            raise UsageError(f"qualities = {list(self.qualities)}: give some of 0 to 100")
        trained = [row.name for row in self.row if not row.refit]
        wanted = {"base": self.base} | {f"refit of {r.name!r}": r.refit for r in self.row}
        for what, name in wanted.items():
            if name and name not in trained:
                known = ", ".join(trained)
                raise UsageError(f"{what}: no row {name!r} is trained; choose from {known}")

    @classmethod
    def load(cls, path: str | Path, steps: int | None = None) -> Table:
        """Read a table, add the other seed, and check all rows; raises UsageError.

        steps: of each stage, instead of the recipes'.
        """
        data = read_toml(path, "table")
        if isinstance(data.get("recipe"), str):
            data["recipe"] = read_toml(Path(path).parent / data["recipe"], "recipe")
        table = from_table(cls, data, "table")
        few = {} if steps is None else {"stage": {EVERY: {"steps": steps}}}
        rows = []
        for row in table.row:
            if row.refit:
                rows.append(row)
                continue
            with _of(row):
                changed = replace(row, recipe=merged(merged(table.recipe, row.recipe), few))
                rows.append(changed)
                seed = _check(changed).seed
            if row.name == table.base:
                other = merged(changed.recipe, {"seed": seed + 1})
                rows.append(replace(row, name=SEED.format(row.name), recipe=other))
        models = [row.model for row in rows]
        for row in rows:
            if models.count(row.model) > 1:
                raise UsageError(f"two rows are called {row.name!r}, or like the same file")
        return replace(table, row=tuple(rows))


def merged(recipe: Plain, change: Plain) -> Plain:
    """A recipe with a change over it; see the module."""
    change = dict(change)
    stages = recipe.get("stage", [])
    if isinstance(change.get("stage"), dict):
        named = change.pop("stage")
        known = [EVERY, *(stage["name"] for stage in stages)]
        for name in named:
            if name not in known:
                raise UsageError(f"no stage {name!r}; choose from {', '.join(known)}")
        for key in sorted(named, key=lambda name: name != EVERY):
            stages = [
                _over(stage, named[key]) if key in (EVERY, stage["name"]) else stage
                for stage in stages
            ]
        recipe = {**recipe, "stage": stages}
    return _over(recipe, change)


def _over(table: Any, change: Any) -> Any:
    if not isinstance(table, dict) or not isinstance(change, dict):
        return change
    if change.get("name", table.get("name")) != table.get("name"):
        return change
    return table | {key: _over(table.get(key), value) for key, value in change.items()}


@contextmanager
def _of(row: Row) -> Iterator[None]:
    """Name the row in errors."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"row {row.name!r}: {error}") from None


def _check(row: Row) -> Recipe:
    """Return the recipe of a row, of which all that can be wrong shows now, not after hours."""
    recipe = Recipe.from_dict(row.recipe, "its recipe")
    Trainer(recipe, torch.device("cpu"))
    known = parametric_tables(recipe.codec.lattice).names
    if row.lattice and row.lattice not in known:
        raise UsageError(
            f"it will have no tables for {row.lattice!r}, but for {', '.join(known)}; name it in"
            " recipe.codec.lattice or refit the row"
        )
    return recipe

# SPDX-License-Identifier: Apache-2.0
"""The order of coding of the multi-scale progressive model, and what it makes known to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lvqcodec.model.entropy.schedule import Schedule, Step, windows_of

Device = torch.device | str


@dataclass(frozen=True)
class Subgroup:
    """Positions coded in parallel: flat indices (P,), known neighbours (P, N), parents (P,)."""

    positions: Tensor
    neighbours: Tensor
    parents: Tensor

    def to(self, device: Device) -> Subgroup:
        """Return the same indices on `device`."""
        indices = (self.positions, self.neighbours, self.parents)
        return Subgroup(*(index.to(device) for index in indices))


@dataclass(frozen=True)
class Scale:
    """One scale: the coarser grid (Q,), its 3x3 windows (Q, 9) (Q: outside) and the subgroups."""

    coarse: Tensor
    windows: Tensor
    subgroups: tuple[Subgroup, ...]

    def to(self, device: Device) -> Scale:
        """Return the same indices on `device`."""
        subgroups = tuple(subgroup.to(device) for subgroup in self.subgroups)
        return Scale(self.coarse.to(device), self.windows.to(device), subgroups)


@dataclass(frozen=True)
class CodingOrder:
    """The whole order for an h x w grid; index h * w stands for "no such neighbour"."""

    coarsest: Tensor
    scales: tuple[Scale, ...]

    def steps(self, groups: Sequence[slice]) -> Schedule:
        """Return the same as steps, for channel groups; the coarsest grid is one for all of them.

        What a step knows of the channels before its own is at its own positions.
        """
        nothing = self.coarsest.new_empty(len(self.coarsest), 0)
        first = Step(self.coarsest, slice(0, groups[-1].stop), nothing, nothing)
        rest = (
            Step(s.positions, group, s.neighbours, s.positions[:, None][:, : group.start])
            for scale in self.scales
            for s in scale.subgroups
            for group in groups
            if len(s.positions)
        )
        return (first, *rest)

    def to(self, device: Device) -> CodingOrder:
        """Return the same indices on `device`."""
        return CodingOrder(self.coarsest.to(device), tuple(s.to(device) for s in self.scales))


def subgroup_places(block: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (row, column) places of a block in coding order, without the coarser scales' one.

    Places on odd rows and odd columns come first: later ones then have neighbours on all sides.
    """
    rows, columns = block
    places = [(i, j) for i in range(rows) for j in range(columns) if i % 2 or j % 2]
    rank = {(1, 1): 0, (0, 1): 1, (1, 0): 2}
    return sorted(places, key=lambda p: (rank[p[0] % 2, p[1] % 2], p))


def known_offsets(block: tuple[int, int], subgroup: int) -> list[tuple[int, int]]:
    """Return the offsets of the 3x3 window that are decoded before `subgroup`, borders apart."""
    places = subgroup_places(block)
    row, column = places[subgroup]

    def known(i: int, j: int) -> bool:
        if i % 2 == 0 and j % 2 == 0:
            return True
        return places.index((i % block[0], j % block[1])) < subgroup

    window = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return [(i, j) for i, j in window if known(row + i, column + j)]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the indices are kept, and training may be the next to use them
def coding_order(
    height: int, width: int, scales: int, block: tuple[int, int], device: Device = "cpu"
) -> CodingOrder:
    """Return the order of coding of an h x w grid."""
    grid = torch.arange(height * width).reshape(height, width)
    spacings = [2**scale for scale in reversed(range(scales))]
    return CodingOrder(
        grid[:: 2**scales, :: 2**scales].flatten(),
        tuple(_scale(grid[::s, ::s], block, nowhere=height * width) for s in spacings),
    ).to(device)


def _scale(fine: Tensor, block: tuple[int, int], nowhere: int) -> Scale:
    """Order what the grid `fine` (h, w) of flat indices adds to every second row and column."""
    coarse = fine[::2, ::2]
    subgroups = range(len(subgroup_places(block)))
    return Scale(
        coarse.flatten(),
        windows_of(*coarse.shape),
        tuple(_subgroup(fine, block, index, nowhere) for index in subgroups),
    )


def _subgroup(fine: Tensor, block: tuple[int, int], index: int, nowhere: int) -> Subgroup:
    """Return the positions of `fine` (h, w) in subgroup `index` and what is known around them."""
    turns = _turns(fine.shape[0], fine.shape[1], block)
    rows, columns = torch.nonzero(turns == index, as_tuple=True)
    known = F.pad(fine.where(turns < index, nowhere), (1, 1, 1, 1), value=nowhere)

    def look(i: int, j: int) -> Tensor:
        return known[rows + 1 + i, columns + 1 + j]

    neighbours = []
    for i, j in known_offsets(block, index):
        found = look(i, j)
        for mirrored in ((-i, j), (i, -j), (-i, -j)):
            # beyond the border of the grid a neighbour's mirror image stands in for it
            found = torch.where(found == nowhere, look(*mirrored), found)
        neighbours.append(found)
    parents = (rows // 2) * -(-fine.shape[1] // 2) + columns // 2
    return Subgroup(fine[rows, columns], torch.stack(neighbours, 1), parents)


def _turns(height: int, width: int, block: tuple[int, int]) -> Tensor:
    """Return the subgroup (h, w) of every position; -1 for those of coarser scales."""
    turns = torch.full(block, -1)
    for turn, place in enumerate(subgroup_places(block)):
        turns[place] = turn
    rows, columns = block
    return turns.repeat(-(-height // rows), -(-width // columns))[:height, :width]

# SPDX-License-Identifier: Apache-2.0
"""Coding orders as data: lists of parallel steps, and what each of them may look at.

An entropy model walks such a list in `code`. `Teacher` makes one step of it in training, where all
latents are known and masked convolutions compute at once what is expected of all of them. `msp` has
an order of its own (`entropy.order`), whose steps are of this kind too.

Every order here is a table of turns, (h * w, G) for G groups of channels: latents of one turn are
coded in parallel, and know those of earlier turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ParamSpec, cast

import torch
from torch import Tensor

from lvqcodec.model.entropy.base import Channels, Density, LatentCoder
from lvqcodec.model.layers import round_ste

_P = ParamSpec("_P")


@dataclass(frozen=True, eq=False)
class Step:
    """Latents of a plane that are coded in parallel.

    positions, channels: which, see `entropy.base.Channels`.
    neighbours: (P, N) flat indices of positions where the same channels are known already.
    earlier: (P, M) those where all channels before these are.
    In both h * w stands for what is outside of the grid or not known: a row of zeros behind the
    latents, so to speak. In the orders here N = M = 9, the 3x3 window in raster order.
    """

    positions: Tensor
    channels: Channels
    neighbours: Tensor
    earlier: Tensor

    def to(self, device: torch.device | str) -> Step:
        """Return the same indices on `device`."""
        channels = self.channels.to(device) if isinstance(self.channels, Tensor) else self.channels
        neighbours, earlier = self.neighbours.to(device), self.earlier.to(device)
        return Step(self.positions.to(device), channels, neighbours, earlier)


Schedule = tuple[Step, ...]
"""All steps of a plane, in the order of coding."""


def _kept(make: Callable[_P, Schedule]) -> Callable[_P, Schedule]:
    """Keep schedules; those made while coding serve training too."""
    kept = lru_cache(maxsize=16)(torch.inference_mode(False)(make))
    return cast(Callable[_P, Schedule], kept)


@_kept
def factorized(height: int, width: int, channels: int) -> Schedule:
    """All in one step that knows nothing (Ballé et al., 2018, https://arxiv.org/abs/1802.01436)."""
    return _schedule(torch.zeros(height, width, 1), (channels,))


@_kept
def channel_wise(height: int, width: int, groups: tuple[int, ...]) -> Schedule:
    """One group of channels after the other, everywhere; groups: their sizes.

    Minnen and Singh (2020), https://arxiv.org/abs/2007.08739.
    """
    turns = torch.arange(float(len(groups))).expand(height, width, -1)
    return _schedule(turns, groups)


@_kept
def checkerboard(height: int, width: int, channels: int) -> Schedule:
    """First the positions whose row and column have an even sum, then the rest, which know them.

    He et al. (2021), https://arxiv.org/abs/2103.15306.
    """
    rows, columns = _places(height, width)
    return _schedule((rows + columns) % 2, (channels,))


@_kept
def wavefront(height: int, width: int, channels: int) -> Schedule:
    """Raster order for masked 3x3 convolutions, all latents that need no other at a time.

    A position waits for the three above it and the one before it: its turn is 2 row + column, so
    there are width + 2 (height - 1), of two columns or more. That holds for stacked layers as well:
    what the next one reaches is two rows above, two columns ahead. Masked convolutions: van den
    Oord et al. (2016), https://arxiv.org/abs/1606.05328.
    """
    rows, columns = _places(height, width)
    return _schedule(2 * rows + columns, (channels,))


@_kept
def wavefront_3d(height: int, width: int, groups: tuple[int, ...]) -> Schedule:
    """The wavefront for masked 3x3x3 convolutions over rows, columns and groups of channels.

    A group sees all of the 3x3 positions in the one before it, so it comes four turns later: there
    are width + 2 (height - 1) + 4 (groups - 1). groups: their sizes, which are all the same.
    """
    rows, columns = _places(height, width)
    return _schedule(2 * rows + columns + 4 * torch.arange(float(len(groups))), groups)


def _places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return rows (h, 1, 1) and columns (w, 1) of a grid."""
    return torch.arange(float(height))[:, None, None], torch.arange(float(width))[:, None]


def _schedule(turns: Tensor, sizes: Sequence[int]) -> Schedule:
    """Return the steps of a table of turns (h, w, G), for groups of channels of these sizes."""
    windows = windows_of(*turns.shape[:2])
    never = turns.new_full((1, len(sizes)), torch.inf)
    table = torch.cat([turns.flatten(0, 1), never])  # what is outside is never known
    # the turn after which all groups before one are known; there are none before the first
    before = torch.cat([never[:, :1].expand(len(table), 1), table.cummax(1).values[:, :-1]], 1)
    starts = [0, *accumulate(sizes)]
    steps = []
    for turn in torch.unique(table[:-1]).tolist():
        positions, groups = (table == turn).nonzero(as_tuple=True)
        around, of = windows[positions], groups[:, None]
        known = [around.where(when[around, of] < turn, len(windows)) for when in (table, before)]
        if bool((groups == groups[0]).all()):
            channels: Channels = slice(starts[int(groups[0])], starts[int(groups[0]) + 1])
        else:
            channels = torch.tensor(starts)[of] + torch.arange(sizes[0])
            positions = positions[:, None]
        steps.append(Step(positions, channels, *known))
    return tuple(steps)


def windows_of(height: int, width: int) -> Tensor:
    """Return the flat indices (h * w, 9) of every 3x3 window of a grid; h * w where outside."""
    padded = torch.full((height + 2, width + 2), height * width)
    padded[1:-1, 1:-1] = torch.arange(height * width).reshape(height, width)
    views = [padded[i : i + height, j : j + width].flatten() for i in range(3) for j in range(3)]
    return torch.stack(views, 1)


class Teacher:
    """A coder that knows the answers: latents are the rounded targets, whatever is asked.

    targets: (B, h * w, C) in steps, of every plane. A model whose contexts are masked convolutions
    can take `answers` before it asks: then it computes what is expected of all latents at once and
    has them coded in a single step. The coder behind is asked all the same, for the rate.
    """

    def __init__(self, coder: LatentCoder, targets: Mapping[str, Tensor]) -> None:
        self._coder = coder
        self.answers = {name: round_ste(target) for name, target in targets.items()}

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        self._coder(plane, positions, channels, mean, scale)
        return self.answers[plane][:, positions, channels]

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        self._coder.own(plane, positions, channels, rows, density)
        return self.answers[plane][:, positions, channels]

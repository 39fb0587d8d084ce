# SPDX-License-Identifier: Apache-2.0
"""Rows and columns: of positions of the latent grid, and of pixels."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Window(NamedTuple):
    """Rows and columns of latent positions (or of anything else)."""

    rows: slice
    columns: slice

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def seen_from(self, outer: Window) -> Window:
        """The same positions, counted from the first ones of another window."""
        pairs = zip(self, outer, strict=True)
        return Window(*(slice(s.start - o.start, s.stop - o.start) for s, o in pairs))

    def shifted(self, origin: Window) -> Window:
        """The same positions, counted from where those of `origin` are; undoes `seen_from`."""
        pairs = zip(self, origin, strict=True)
        return Window(*(slice(s.start + o.start, s.stop + o.start) for s, o in pairs))

    def common(self, other: Window) -> Window:
        """What is in both windows."""
        pairs = zip(self, other, strict=True)
        return Window(*(slice(max(s.start, o.start), min(s.stop, o.stop)) for s, o in pairs))

    def grown(self, margin: int, grid: tuple[int, int]) -> Window:
        """The window with a margin on each side, as far as the grid goes."""
        pairs = zip(self, grid, strict=True)
        return Window(*(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in pairs))

    def pixels(self, height: int, width: int, stride: int) -> Window:
        """Rows and columns of pixels of a window of positions, as far as a picture goes."""
        pairs = zip(self, (height, width), strict=True)
        return Window(*(slice(s.start * stride, min(s.stop * stride, n)) for s, n in pairs))


def covering(pixels: Window, stride: int) -> Window:
    """The positions that some rows and columns of pixels lie in."""
    return Window(*(slice(s.start // stride, -(-s.stop // stride)) for s in pixels))


def pieces(part: slice, side: int) -> list[slice]:
    """Cut a slice into pieces of `side`, but for the last: that takes half a side more or less."""
    length = part.stop - part.start
    if length < 1:
        return []
    count = max((2 * length + side) // (2 * side), 1)
    edges = [*(part.start + side * index for index in range(count)), part.stop]
    return [slice(start, stop) for start, stop in pairwise(edges)]

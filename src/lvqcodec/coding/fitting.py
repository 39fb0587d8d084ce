# SPDX-License-Identifier: Apache-2.0
"""How rows and centroids are fitted to counts: shrunk towards a shape where little was counted."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec.coding.rows import FRACTION, Floats, Integers, RowTable

PRIOR = 32.0
"""Observations that the shape to which a fit is shrunk is worth."""

MAX_CENTROID = 7
"""In 1/16 step."""

_MAX_RADIUS = 255
_FLOOR = 2.0**-20  # no symbol is less likely: an outlier costs bits, never the stream


def row_radius(sigma: float) -> int:
    """Steps that a row spans to either side: less than a thousandth, which escapes, is beyond."""
    return min(math.ceil(4.5 * sigma) + 3, _MAX_RADIUS)


def of_class(sizes: Integers, period: int, offset: int) -> NDArray[np.bool_]:
    """Which of the sizes |j| are those of a j = offset (mod period)."""
    found: NDArray[np.bool_] = (sizes % period == offset) | (-sizes % period == offset)
    return found


def fit_row(counts: Integers, shape: Floats, period: int, offset: int, radius: int) -> Floats:
    """Fit a row to counts over |j|, shrunk towards masses `shape` over |j|, both (edge + 1,).

    The row is over q = -radius..radius with j = period q + offset, and the escape.
    """
    sizes = np.abs(period * np.arange(-radius, radius + 1) + offset)
    members, place, times = np.unique(sizes, return_inverse=True, return_counts=True)
    beyond = np.arange(members[-1] + 1, len(shape))
    beyond = beyond[of_class(beyond, period, offset)]
    total = shape[members] @ times + 2 * shape[beyond].sum()

    prior = np.maximum(shape[members] * times / total, _FLOOR**2)
    masses = _pooled(counts[members].astype(np.float64), PRIOR * prior)
    escape = counts[beyond].sum() + PRIOR * 2 * shape[beyond].sum() / total
    row = np.append((masses / times)[place], escape)
    floored: Floats = np.maximum(row / row.sum(), _FLOOR)
    return floored


def _pooled(counts: Floats, prior: Floats) -> Floats:
    """Counts + prior, their ratio to the prior pooled over windows that widen outwards."""
    index = np.arange(len(counts))
    low, high = index - index // 4, np.minimum(index + index // 4 + 1, len(counts))
    tails = np.zeros((2, len(counts) + 1))
    tails[:, :-1] = np.cumsum((counts[::-1], prior[::-1]), axis=1)[:, ::-1]
    windows = tails[:, low] - tails[:, high]  # of sums from the small end: nothing cancels
    masses: Floats = prior * (1 + windows[0] / windows[1])
    return masses


def centroid_limits(entries: int, unit: float) -> NDArray[np.int8]:
    """The largest centroid of each |j| (entries,), in 1/16 step, points being unit * j.

    Less than the point, so that no sign ever changes.
    """
    below = np.ceil(FRACTION * unit * np.arange(entries)) - 1
    return np.asarray(np.clip(below, 0, MAX_CENTROID), np.int8)


def fit_centroids(counts: Integers, offsets: Floats, entries: int, unit: float) -> NDArray[np.int8]:
    """Mean offsets towards zero (bins, entries) in 1/16 step; the last entry is of all larger |j|.

    counts: how often each |j| was chosen; offsets: sums of its distance from x towards zero, in
    steps; both (bins, edge + 1). unit: steps between points, see `centroid_limits`.
    """
    last, limits = entries - 1, centroid_limits(entries, unit)

    def capped(sums: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((sums[..., :last], sums[..., last:].sum(-1, keepdims=True)), -1)

    mean = FRACTION * capped(offsets) / (capped(counts) + PRIOR)
    return np.asarray(np.clip(np.rint(mean), -limits, limits), np.int8)


def refit_rows(table: RowTable, counts: Integers) -> RowTable:
    """Rows shrunk towards those of a table, fitted to counts (R, 2 edge + 1) of -edge..edge.

    The outermost counts are of all values beyond as well, which take the escape.
    """
    edge, rows = counts.shape[1] // 2, []
    for probs, size, offset, seen in zip(*_columns(table), counts, strict=True):
        values = np.arange(size - 1) - offset
        inside = np.where(np.abs(values) < edge, seen[np.clip(values + edge, 0, 2 * edge)], 0)
        row = PRIOR * probs[:size] + np.append(inside, seen.sum() - inside.sum())
        rows.append(np.maximum(row / row.sum(), _FLOOR))
    return RowTable.from_rows(rows, table.offsets.tolist())


def _columns(table: RowTable) -> tuple[Any, list[int], list[int]]:
    return table.probs.astype(np.float64), table.sizes.tolist(), table.offsets.tolist()

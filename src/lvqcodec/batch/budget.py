# SPDX-License-Identifier: Apache-2.0
"""A budget of bits over many pictures: which quality each is coded at.

The mean of the pictures' bpp is to be at most the budget, and the mean of their scores (PSNR in dB
or MS-SSIM) as high as can be. Each picture has points (bpp, score), one a quality; on their upper
convex hull every further bit is worth less than the one before, so the bits go where they are worth
most, until the budget is spent (Shoham and Gersho, 1988): one slope for all pictures.

Points are measured with real files, first at the fixed quality that keeps the budget and on the way
to it. Between and beyond them bpp (its logarithm) and score are taken as linear in the quality,
and what is then chosen is measured in its turn, until what is chosen is known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lvqcodec.config import QUALITIES
from lvqcodec.errors import UsageError

Measured = tuple[float, float]
"""bpp and score of a picture at a quality."""

Measure = Callable[[Iterable[tuple[str, int]]], Mapping[tuple[str, int], Measured]]
"""Measures pictures at qualities; what cannot be measured is left out, at every quality."""

Column = NDArray[np.float64]

_PER_QUALITY = 0.045  # of ln bpp: a guess to begin with
_SPREAD = 20  # qualities below and above the fixed one that are measured first
_ROUNDS = 6


@dataclass(frozen=True)
class Level:
    """Mean bpp and mean score over the pictures."""

    bpp: float
    score: float


@dataclass(frozen=True)
class Allocation:
    """The quality of each picture, and what that is worth.

    fixed: what the one quality `fixed_quality`, the best that keeps the budget, gives all pictures.
    gain: score over that of a fixed quality at the same mean bpp, between `fixed_quality` and the
    next one.
    """

    qualities: dict[str, int]
    points: dict[str, Measured]
    selected: Level
    fixed_quality: int
    fixed: Level
    gain: float


class _Pictures:
    """What has been measured so far."""

    def __init__(self, names: Sequence[str], measure: Measure, there: range) -> None:
        self._measure = measure
        self.there = there
        self.points: dict[str, dict[int, Measured]] = {name: {} for name in names}

    def measure(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Measure what is not known yet; pictures that cannot be measured drop out."""
        new = [(name, q) for name, q in wanted if q not in self.points[name]]
        found = self._measure(new) if new else {}
        for name, quality in new:
            if (name, quality) not in found:
                self.points.pop(name, None)
            elif name in self.points:
                self.points[name][quality] = found[name, quality]
        if not self.points:
            raise UsageError("none of the pictures can be coded, so there is no budget to share")

    def level(self, quality: int) -> Level:
        """Measure all at one quality."""
        self.measure([(name, quality) for name in self.points])
        return self.level_of(dict.fromkeys(self.points, quality))

    def level_of(self, qualities: Mapping[str, int]) -> Level:
        """Return the means over measured points."""
        chosen = [self.points[name][quality] for name, quality in qualities.items()]
        bpps, scores = zip(*chosen, strict=True)
        return Level(statistics.fmean(bpps), statistics.fmean(scores))


def allocate(
    names: Sequence[str], budget: float, measure: Measure, there: range = QUALITIES
) -> Allocation:
    """Choose a quality of those `there` for each picture; UsageError if the least is too much."""
    pictures = _Pictures(names, measure, there)
    fixed_quality, above = _best_fixed(pictures, budget)
    for quality in (fixed_quality - _SPREAD, fixed_quality + _SPREAD):
        pictures.level(min(max(quality, there[0]), there[-1]))
    for _ in range(_ROUNDS):
        expected = {name: _expected(points, there) for name, points in pictures.points.items()}
        qualities = select(expected, budget)
        missing = [(n, q) for n, q in qualities.items() if q not in pictures.points[n]]
        if not missing:
            break
        pictures.measure(missing)
    else:
        qualities = select(pictures.points, budget)
    selected = pictures.level_of(qualities)
    fixed = pictures.level_of(dict.fromkeys(pictures.points, fixed_quality))
    return Allocation(
        qualities,
        {name: pictures.points[name][quality] for name, quality in qualities.items()},
        selected,
        fixed_quality,
        fixed,
        selected.score - _score_at(selected.bpp, fixed, above),
    )


def _best_fixed(pictures: _Pictures, budget: float) -> tuple[int, Level | None]:
    """Return the highest quality for all that keeps the budget, and what the next would give."""
    levels: dict[int, Level] = {}
    low, high = pictures.there[0] - 1, pictures.there[-1] + 1
    quality = (low + high) // 2
    while high - low > 1:
        level = levels[quality] = pictures.level(quality)
        if level.bpp <= budget:
            low = quality
        else:
            high = quality
        slope = _PER_QUALITY
        if low in levels and high in levels:
            slope = math.log(levels[high].bpp / levels[low].bpp) / (high - low)
        step = math.log(budget / level.bpp) / max(slope, 1e-3)
        quality = min(max(math.floor(quality + step), low + 1), high - 1)
    if low not in levels:
        raise UsageError(
            f"a mean of {budget:g} bpp is out of reach: at quality {high} it is "
            f"{levels[high].bpp:.4f}; allow for more, or make the pictures smaller"
        )
    return low, levels.get(high)


def select(curves: Mapping[str, Mapping[int, Measured]], budget: float) -> dict[str, int]:
    """Choose a quality for each picture from its points, so that the mean bpp keeps the budget.

    Steps along the hulls are taken in the order of what a bit is worth there, as long as they fit.
    """
    chosen: dict[str, int] = {}
    steps: list[tuple[float, str, int, float]] = []
    spent = 0.0
    for name, points in curves.items():
        hull = _hull(points)
        chosen[name] = hull[0][0]
        spent += hull[0][1]
        for (_, bpp, score), (quality, more, better) in pairwise(hull):
            steps.append(((score - better) / (more - bpp), name, quality, more - bpp))
    room = budget * len(curves) - spent
    full: set[str] = set()
    for _, name, quality, cost in sorted(steps):
        if name in full:
            continue
        if cost > room:
            full.add(name)
            continue
        room -= cost
        chosen[name] = quality
    return chosen


def _hull(points: Mapping[int, Measured]) -> list[tuple[int, float, float]]:
    """Return (quality, bpp, score) of the upper convex hull, bpp and score rising."""
    hull: list[tuple[int, float, float]] = []
    for quality, (bpp, score) in sorted(points.items(), key=lambda p: (p[1][0], -p[1][1])):
        if hull and score <= hull[-1][2]:
            continue
        while len(hull) > 1:
            (_, bpp0, score0), (_, bpp1, score1) = hull[-2:]
            if (score1 - score0) * (bpp - bpp1) > (score - score1) * (bpp1 - bpp0):
                break
            hull.pop()
        hull.append((quality, bpp, score))
    return hull


def _expected(points: Mapping[int, Measured], there: range) -> dict[int, Measured]:
    """Return the points at all qualities, those that are not measured as expected."""
    known = np.array(sorted(points))
    values = np.array([(math.log(points[q][0]), points[q][1]) for q in known.tolist()])
    wanted = np.array(there)
    columns = [_line(wanted, known, values[:, column]) for column in (0, 1)]
    bpps, scores = np.exp(columns[0]).tolist(), columns[1].tolist()
    return {q: points.get(q, (bpps[i], scores[i])) for i, q in enumerate(wanted.tolist())}


def _line(x: NDArray[np.int_], known: NDArray[np.int_], values: Column) -> Column:
    """Interpolate linearly, and go on beyond the ends as between points some way apart."""
    inside: Column = np.interp(x, known, values)
    low = _slope(known - known[0], values - values[0])
    high = _slope(known[::-1] - known[-1], values[::-1] - values[-1])
    inside += low * np.minimum(x - known[0], 0) + high * np.maximum(x - known[-1], 0)
    return inside


def _slope(distance: NDArray[np.int_], change: Column) -> float:
    """Return the slope from an end to the first point that is far enough for noise not to count."""
    far = int(np.argmax(np.abs(distance) >= _SPREAD // 2)) or len(distance) - 1
    return float(change[far] / distance[far]) if far else 0.0


def _score_at(bpp: float, fixed: Level, above: Level | None) -> float:
    """Return the score of a fixed quality at this mean bpp, between two qualities."""
    if above is None or above.bpp <= fixed.bpp:
        return fixed.score
    share = (bpp - fixed.bpp) / (above.bpp - fixed.bpp)
    return fixed.score + share * (above.score - fixed.score)

# SPDX-License-Identifier: Apache-2.0
"""Probability rows that are stored with the weights, and how they are fitted to counts.

Coordinates are integers j = 2 * value in half units. Z^n uses even j only; E8 in half units is
8-tuples that are all even or all odd and whose sum is a multiple of 4, that is (Conway & Sloane
1982) D8 and D8 + 1/2. With product weights w(j), symmetric in the sign, the mass of a coset is a
product over coordinates, and the sum rule is a two-state trellis over the parities of
m = floor(j / 2). Three facts per bin of sigma say all about it:
  parity_ratio  r = (E - O) / (E + O), E and O the sums of w over j = 0 and j = 2 (mod 4)
  coset_ratio   log2 of (sum of w over odd j) / (sum of w over even j)
  three rows    the distribution of j within each class: 0 (mod 4), 2 (mod 4), odd
The odd j need one row and no ratio: the signs are equally likely, and j = 1 and j = 3 (mod 4)
are each other's mirror images. So a row holds q in j = 4 q + (0, 2, 1)[class], where an odd j
that is 3 (mod 4) is coded as -j.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec.errors import ModelMismatch

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

NUM_BINS = 64
SIGMAS = np.geomspace(0.11, 64.0, NUM_BINS)  # in steps
LATTICE_MIN_BIN = 14  # first sigma >= 0.42; below, a lattice costs more than it gains
LATTICE_BINS = NUM_BINS - LATTICE_MIN_BIN
LATTICE_CLASSES = 3
CLASS_OFFSET = (0, 2, 1)  # j - 4 q
FRACTION = 16  # reconstructions are integers in 1 / FRACTION step

RATIO_ONE = 1 << 15  # parity_ratio is Q15
LOG_ONE = 1 << 10  # coset_ratio is Q10
BERNOULLI_ROWS = 1024  # row i: the symbol is 1 with probability (i + 1/2) / 1024
NUM_CENTROIDS = 16  # entries over |j|; the last one serves all larger ones
MAX_CENTROID = 7  # in 1/16 step: less than the smallest |j| / 2, so no sign ever changes
EDGE = 1024  # the largest |j| that histograms and costs tell from larger ones

_MAX_RADIUS = 255
_CODER_ERROR = 2.0**-18  # the coder's probabilities have 24 bits; sums of float32 add to that
_FLOOR = 2.0**-20  # no symbol is less likely: an outlier costs bits, never the stream
_PRIOR = 32.0  # observations that the parametric shape is worth
_E8_SECOND_MOMENT = 0.0717


@dataclass(frozen=True, eq=False)
class RowTable:
    """Ragged probability rows, float32 as the coder gets them; each row's last symbol may escape.

    probs (R, S) padded with zeros, sizes (R,) symbols per row, offsets (R,): symbol - offset is
    the integer that the symbol stands for. Raises ModelMismatch on rows that are none.
    """

    probs: NDArray[np.float32]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ModelMismatch(f"probability rows {fault}; install the weights again")

    def _fault(self) -> str | None:
        probs, sizes, offsets = self.probs, self.sizes, self.offsets
        if probs.dtype != np.float32 or sizes.dtype != np.int32 or offsets.dtype != np.int32:
            return f"are of type {probs.dtype}, {sizes.dtype}, {offsets.dtype}"
        if probs.ndim != 2 or len(probs) == 0 or sizes.shape != probs.shape[:1]:
            return f"are of shape {probs.shape} with {sizes.shape} sizes"
        if len(probs) >= 1 << 16 or sizes.shape != offsets.shape:
            return f"number {len(probs)} with {offsets.shape} offsets"
        if sizes.min() < 2 or sizes.max() > probs.shape[1]:
            return f"have {sizes.min()} to {sizes.max()} symbols of at most {probs.shape[1]}"
        if np.abs(offsets.astype(np.int64)).max() > 1 << 15:
            return "are offset by more than 32768"
        used = np.arange(probs.shape[1]) < sizes[:, None]
        if not np.isfinite(probs).all() or (probs[used] <= 0).any() or probs[~used].any():
            return "hold values that are no probabilities"
        totals = probs.sum(axis=1, dtype=np.float64)
        if np.abs(totals - 1).max() > 1e-4:
            return f"sum to {totals.min():.6f} to {totals.max():.6f} instead of 1"
        return None

    @classmethod
    def from_rows(cls, rows: Sequence[Floats], offsets: Sequence[int]) -> "RowTable":
        """Rows of any positive weights (escape last) and the offset of each, normalised."""
        sizes = np.array([len(row) for row in rows], np.int32)
        probs = np.zeros((len(rows), sizes.max()), np.float32)
        for padded, row in zip(probs, rows, strict=True):
            padded[: len(row)] = row / row.sum()
        return cls(probs, sizes, np.array(offsets, np.int32))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The three arrays by name, for storage."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "RowTable":
        """Reverse of to_arrays; raises ModelMismatch."""
        return cls(**_named(cls, arrays))

    @cached_property
    def bits(self) -> NDArray[np.float32]:
        """Cost of every symbol (R, S) in bits, infinite where a row has no such symbol."""
        probs = self.probs / self.probs.sum(axis=1, keepdims=True, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log2(probs), np.float32)

    @cached_property
    def least_bits(self) -> NDArray[np.float32]:
        """Bits of a stream that every symbol (R, S) takes at the least."""
        return np.asarray(-np.log2(np.minimum(self.probs + _CODER_ERROR, 1)), np.float32)

    def integer_bits(self, values: Integers, rows: Integers) -> NDArray[np.float64]:
        """Cost of each integer in bits, escapes included, as SymbolEncoder.encode_integers."""
        symbols, last = values + self.offsets[rows], self.sizes[rows] - 1
        excess = np.maximum(-1 - symbols, symbols - last)
        escaped = excess >= 0
        golomb = 2.0 * (np.floor(np.log2(np.maximum(excess, 0) + 1)) + 1)
        bits = self.bits[rows, np.where(escaped, last, symbols)]
        return np.asarray(bits + np.where(escaped, golomb, 0.0), np.float64)


@dataclass(frozen=True, eq=False)
class Histograms:
    """What a quantizer chose: sums over pictures, both (2 = scalar | lattice, bins, EDGE + 1).

    counts: how often each |j| (capped at EDGE); offsets: sums of |j| / 2 - x sign(j) in steps.
    """

    counts: NDArray[np.int64]
    offsets: NDArray[np.float64]

    @classmethod
    def empty(cls) -> "Histograms":
        """Nothing seen yet."""
        shape = (2, NUM_BINS, EDGE + 1)
        return cls(np.zeros(shape, np.int64), np.zeros(shape))

    def __add__(self, other: "Histograms") -> "Histograms":
        return Histograms(self.counts + other.counts, self.offsets + other.offsets)


@dataclass(frozen=True, eq=False)
class CodingTables:
    """All that the quantizer and the coder look up; nothing of it is computed when decoding.

    scalar: row = bin, over value = j / 2. lattice: row = 3 (bin - LATTICE_MIN_BIN) + class, over
    q. parity_ratio (Q15) and coset_ratio (Q10): (LATTICE_BINS,). centroids: (2 = scalar |
    lattice, NUM_BINS, NUM_CENTROIDS) over |j|, in 1/16 step towards zero. bernoulli: the two
    symbol rows of coset and parity bits. Raises ModelMismatch.
    """

    scalar: RowTable
    lattice: RowTable
    bernoulli: RowTable
    parity_ratio: NDArray[np.int32]
    coset_ratio: NDArray[np.int32]
    centroids: NDArray[np.int8]

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise ModelMismatch(f"coding tables: {fault}; install the weights again")

    def _fault(self) -> str | None:
        rows = len(self.scalar.sizes), len(self.lattice.sizes), len(self.bernoulli.sizes)
        if rows != (NUM_BINS, LATTICE_CLASSES * LATTICE_BINS, BERNOULLI_ROWS):
            return f"{rows} scalar, lattice, bernoulli rows"
        if self.bernoulli.sizes.max() != 2:
            return f"a bernoulli row of {self.bernoulli.sizes.max()} symbols"
        for ratio, limit in ((self.parity_ratio, RATIO_ONE), (self.coset_ratio, 1 << 20)):
            if ratio.dtype != np.int32 or ratio.shape != (LATTICE_BINS,):
                return f"ratios of type {ratio.dtype} and shape {ratio.shape}"
            if ratio.min() <= -limit or ratio.max() >= limit:
                return f"ratios of {ratio.min()} to {ratio.max()}, allowed is +-{limit - 1}"
        centroids = self.centroids
        if centroids.dtype != np.int8 or centroids.shape != (2, NUM_BINS, NUM_CENTROIDS):
            return f"centroids of type {centroids.dtype} and shape {centroids.shape}"
        if centroids.min() < -MAX_CENTROID or centroids.max() > MAX_CENTROID:
            return f"centroids of {centroids.min()} to {centroids.max()}"
        return "a centroid that moves zero" if centroids[:, :, 0].any() else None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name (`scalar.probs`, ... `parity_ratio`, ...), for storage."""
        arrays: dict[str, NDArray[Any]] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, RowTable):
                arrays |= {f"{field.name}.{key}": part for key, part in value.to_arrays().items()}
            else:
                arrays[field.name] = value
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "CodingTables":
        """Reverse of to_arrays; raises ModelMismatch."""
        parts: dict[str, Any] = dict(arrays)
        for name in ("scalar", "lattice", "bernoulli"):
            prefix = f"{name}."
            keys = [key for key in parts if key.startswith(prefix)]
            parts[name] = RowTable.from_arrays({key[len(prefix) :]: parts.pop(key) for key in keys})
        return cls(**_named(cls, parts))

    @cached_property
    def least_bits(self) -> float:
        """Bits of a stream that a latent takes at the least, whatever its bin and lattice."""
        flip = self.bernoulli.least_bits.min()  # a vector has one of coset, seven of parity
        return float(min(self.scalar.least_bits.min(), self.lattice.least_bits.min() + flip))

    @cached_property
    def costs(self) -> NDArray[np.float32]:
        """Bits of each |j| (2 = scalar | lattice, NUM_BINS, EDGE + 1), of either sign.

        Lattice costs are -log2 w(j) with w scaled to sum to 1 over even j: a point costs their
        sum plus log2 of the mass of all points, which is the same for all.
        """
        costs = np.full((2, NUM_BINS, EDGE + 1), np.inf, np.float32)
        even = np.arange(0, EDGE + 1, 2)
        for index in range(NUM_BINS):
            row = np.full(len(even), index)
            costs[0, index, even] = self.scalar.integer_bits(even // 2, row)
        ratio = self.parity_ratio / RATIO_ONE
        mass = np.stack(((1 + ratio) / 2, (1 - ratio) / 2, 2.0 ** (self.coset_ratio / LOG_ONE) / 2))
        for kind, offset in enumerate(CLASS_OFFSET):
            sizes = np.arange(offset, EDGE + 1, 2 if offset == 1 else 4)
            q = (np.where(sizes % 4 == 3, -sizes, sizes) - offset) // 4
            for index in range(LATTICE_BINS):
                row = np.full(len(q), LATTICE_CLASSES * index + kind)
                bits = self.lattice.integer_bits(q, row) - np.log2(mass[kind, index])
                costs[1, LATTICE_MIN_BIN + index, sizes] = bits
        return costs


def parametric_tables() -> CodingTables:
    """Tables of a logistic of standard deviation SIGMAS: a start, before anything was counted."""
    return fit_tables(Histograms.empty())


def fit_tables(seen: Histograms) -> CodingTables:
    """Tables for what a quantizer chose, shrunk towards the parametric ones where it chose little.

    The class masses are moments of whole vectors (the sum rule couples their coordinates); they
    are inverted as if all eight coordinates of a vector were of one bin.
    """
    shapes = _scalar_shape(), _lattice_shape()
    rows, offsets = [], []
    for index, sigma in enumerate(SIGMAS):
        radius = _radius(sigma)
        rows.append(_fit_row(seen.counts[0, index], shapes[0][index], 2, 0, radius))
        offsets.append(radius)
    scalar = RowTable.from_rows(rows, offsets)

    rows, offsets, ratios = [], [], []
    for index in range(LATTICE_MIN_BIN, NUM_BINS):
        radius = (_radius(SIGMAS[index]) + 1) // 2
        counts, shape = seen.counts[1, index], shapes[1][index]
        for offset in CLASS_OFFSET:
            rows.append(_fit_row(counts, shape, 4, offset, radius))
            offsets.append(radius)
        ratios.append(_fit_ratios(_class_sums(counts), _class_sums(shape * _signs(shape))))
    parity, coset = np.array(ratios).T
    limit = RATIO_ONE - 1
    return CodingTables(
        scalar=scalar,
        lattice=RowTable.from_rows(rows, offsets),
        bernoulli=_bernoulli(),
        parity_ratio=np.clip(np.rint(parity * RATIO_ONE), -limit, limit).astype(np.int32),
        coset_ratio=np.rint(coset * LOG_ONE).astype(np.int32),
        centroids=_fit_centroids(seen),
    )


def _named(cls: type, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `cls` out of `arrays`, no more and no fewer."""
    names = {field.name for field in fields(cls)}
    if names != set(arrays):
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ModelMismatch(f"{cls.__name__} needs {', '.join(sorted(names))}, found {found}")
    return dict(arrays)


def _radius(sigma: float) -> int:
    """Largest value of a row: beyond is less than a thousandth, and the escape takes it."""
    return min(math.ceil(4.5 * sigma) + 3, _MAX_RADIUS)


def _scalar_shape() -> NDArray[np.float64]:
    """Logistic mass of the unit cell around |j| / 2, (NUM_BINS, EDGE + 1); 0 at odd j."""
    scale = SIGMAS[:, None] * math.sqrt(3) / math.pi
    edges = np.exp(-(np.arange(EDGE // 2 + 2) - 0.5) / scale)
    survival = edges / (1 + edges)
    survival[:, 0] = 1 - survival[:, 1]
    shape = np.zeros((NUM_BINS, EDGE + 1))
    shape[:, ::2] = survival[:, :-1] - survival[:, 1:]
    return shape


def _lattice_shape() -> NDArray[np.float64]:
    """Logistic density at |j| / 2, widened by the second moment of a cell: w(j), unscaled."""
    scale = np.sqrt(SIGMAS[:, None] ** 2 + _E8_SECOND_MOMENT) * math.sqrt(3) / math.pi
    tail = np.exp(-np.arange(EDGE + 1) / 2 / scale)
    return np.asarray(tail / (1 + tail) ** 2, np.float64)


def _bernoulli() -> RowTable:
    ones = (np.arange(BERNOULLI_ROWS) + 0.5) / BERNOULLI_ROWS
    return RowTable.from_rows(list(np.stack((1 - ones, ones), 1)), [0] * BERNOULLI_ROWS)


def _signs(sizes: Floats) -> Floats:
    """How many j have each |j|."""
    return np.where(np.arange(len(sizes)) > 0, 2.0, 1.0)


def _class_sums(masses: Floats | Integers) -> NDArray[np.float64]:
    """Totals of j = 0 (mod 4), j = 2 (mod 4) and odd j, of masses over |j|."""
    return np.array([masses[0::4].sum(), masses[2::4].sum(), masses[1::2].sum()], np.float64)


def _fit_row(counts: Integers, shape: Floats, step: int, offset: int, radius: int) -> Floats:
    """Row over q = -radius..radius and the escape, j = step q + offset, from masses over |j|."""
    sizes = np.abs(step * np.arange(-radius, radius + 1) + offset)
    members, place, times = np.unique(sizes, return_inverse=True, return_counts=True)
    beyond = np.arange(members[-1] + 1, len(shape))
    beyond = beyond[(beyond % step == offset) | (beyond % step == step - offset)]
    total = shape[members] @ times + 2 * shape[beyond].sum()

    prior = np.maximum(shape[members] * times / total, _FLOOR**2)
    masses = _pooled(counts[members].astype(np.float64), _PRIOR * prior)
    escape = counts[beyond].sum() + _PRIOR * 2 * shape[beyond].sum() / total
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


def _fit_ratios(counts: Floats, shape: Floats) -> tuple[float, float]:
    """(parity ratio, log2 coset ratio) of the classes' counts and parametric masses."""
    even, odd, half = shape
    ratio, coset = (even - odd) / (even + odd), math.log2(half / (even + odd))
    share = (1 + _parity_moment(ratio)) / 2
    mass = (1 + ratio**8) / (1 + ratio**8 + 2 ** (8 * coset))
    seen = counts + _PRIOR * np.array([mass * share, mass * (1 - share), 1 - mass])

    moment = (seen[0] - seen[1]) / (seen[0] + seen[1])
    low, high = -1.0, 1.0
    for _ in range(40):
        ratio = (low + high) / 2
        low, high = (ratio, high) if _parity_moment(ratio) < moment else (low, ratio)
    return ratio, math.log2(seen[2] / (seen[0] + seen[1]) * (1 + ratio**8)) / 8


def _parity_moment(ratio: float) -> float:
    """P(even) - P(odd) of one coordinate of eight with this ratio and an even sum."""
    return (ratio + ratio**7) / (1 + ratio**8)


def _fit_centroids(seen: Histograms) -> NDArray[np.int8]:
    """Mean offset from |j| / 2 towards zero, in 1/16 step."""
    last = NUM_CENTROIDS - 1

    def capped(sums: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((sums[..., :last], sums[..., last:].sum(-1, keepdims=True)), -1)

    mean = FRACTION * capped(seen.offsets) / (capped(seen.counts) + _PRIOR)
    mean[..., 0] = 0
    return np.clip(np.rint(mean), -MAX_CENTROID, MAX_CENTROID).astype(np.int8)

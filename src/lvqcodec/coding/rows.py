# SPDX-License-Identifier: Apache-2.0
"""Probability rows as they are stored with the weights, and the bins that choose among them."""

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
FRACTION = 16  # scales are in sixteenths of a bin, centroids in sixteenths of a step

LATENT_UNITS = 64
"""Units of a step: latents as they are decoded are whole multiples of 1/64 step.

Most latents at low rates are their means. Whole sixteenths cost 3 % of the rate at 26 dB, because
steps are large there and the rounding of 192 small means adds up.
"""

BERNOULLI_ROWS = 1024  # row i: the symbol is 1 with probability (i + 1/2) / 1024

_CODER_ERROR = 2.0**-18  # the coder's probabilities have 24 bits; sums of float32 add to that


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
        return cls(**named(cls, arrays))

    def then(self, other: "RowTable") -> "RowTable":
        """These rows and, numbered on, those of another table."""
        width = max(self.probs.shape[1], other.probs.shape[1])
        probs = [np.pad(t.probs, ((0, 0), (0, width - t.probs.shape[1]))) for t in (self, other)]
        return RowTable(
            np.concatenate(probs),
            np.concatenate((self.sizes, other.sizes)),
            np.concatenate((self.offsets, other.offsets)),
        )

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


def named(cls: type, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the dataclass `cls` out of `arrays`, no more and no fewer; ModelMismatch."""
    names = {field.name for field in fields(cls)}
    if names != set(arrays):
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ModelMismatch(f"{cls.__name__} needs {', '.join(sorted(names))}, found {found}")
    return dict(arrays)


def bernoulli_rows() -> RowTable:
    """The rows of bits, BERNOULLI_ROWS of them."""
    ones = (np.arange(BERNOULLI_ROWS) + 0.5) / BERNOULLI_ROWS
    return RowTable.from_rows(list(np.stack((1 - ones, ones), 1)), [0] * BERNOULLI_ROWS)

# SPDX-License-Identifier: Apache-2.0
"""The contract of a lattice: its points, and the stored tables that code them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.coding.rows import Integers

if TYPE_CHECKING:  # training quantises, but never loads the range coder
    from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder

Arrays = Mapping[str, NDArray[Any]]


class Packing(NamedTuple):
    """Which of the latents that are coded together a lattice takes, and in which order.

    Those of bin >= first_bin go into vectors, `dim` at a time; what fills no vector is scalar.
    """

    first_bin: int = 14
    """Below about 0.42 step a lattice costs more than it gains."""
    by_bin: bool = False
    """Sorted, the largest bins first, and not in the order of coding."""


CODING_ORDER = Packing()
"""What held for all lattices before there was a choice."""


class Lattice(ABC):
    """A lattice of `dim` dimensions and volume 1, together with the tables that were fitted to it.

    x are residuals in steps, vectors (V, dim) of them; bins (V, dim) say how far each is expected
    to reach: a bin is an index into `coding.rows.SIGMAS`. A point is told by integer coordinates
    j (V, dim), whatever integers suit the lattice; j = 0 is the origin and a coordinate of 0 means
    that the latent is its mean. Vectors may hold coordinates of several bins. A quantizer without
    blocks has dim = 1 and takes all vectors of a call for one point.

    `choose` and `bits` may use floats: they are the encoder's own affair. `write`, `read` and
    `reconstruct` are the same on every machine: rows that are stored and integer arithmetic alone.
    Lattices are immutable. To add one: a class in a file of its own, a line in `LATTICES` of this
    package, a number on the wire in `container`.
    """

    name: ClassVar[str]
    dim: ClassVar[int]

    second_moment: ClassVar[float]
    """Mean squared error of a coordinate that is uniform within a cell, in squared steps."""

    packing: Packing
    """Which latents are packed into vectors; stored with the tables."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """Coordinates (V, dim) int32 of the points next to x (V, dim) float32."""

    @abstractmethod
    def choose(self, x: Tensor, bins: Tensor, rdo_lambda: Tensor) -> Tensor:
        """Coordinates (V, dim) int32 of the points that cost least.

        The cost of a point is the squared error of its reconstruction, in squared steps, plus its
        bits times rdo_lambda (V, dim) float32, latent by latent.
        """

    @abstractmethod
    def reconstruct(self, j: Tensor, bins: Tensor) -> Tensor:
        """What j decodes to, (V, dim) int32 in 1 / LATENT_UNITS step: exact integer arithmetic.

        The point, rounded where the lattice is irrational, and moved to where x is found on average
        if the tables know. 0 stays 0. j may be any integers of `read`.
        """

    @abstractmethod
    def bits(self, j: Tensor, bins: Tensor) -> float:
        """Bits that `write` takes for all of j, by the tables."""

    @abstractmethod
    def write(self, j: Integers, bins: Integers, encoder: SymbolEncoder) -> None:
        """Code j (V, dim); ValueError where it is no point of the lattice or out of range."""

    @abstractmethod
    def read(self, bins: Integers, decoder: SymbolDecoder) -> Integers:
        """Mirror of `write`: j (V, dim) int32, whatever the stream holds; raises StreamError.

        Once the decoder has `ended`, coordinates that are not `known` are 0.
        """

    @abstractmethod
    def count(self, j: Tensor, bins: Tensor, x: Tensor) -> dict[str, NDArray[Any]]:
        """Count what was chosen for x: arrays by name, to be added up element by element."""

    @classmethod
    @abstractmethod
    def fit(cls, counts: Arrays | None = None, packing: Packing = CODING_ORDER) -> Self:
        """Fit tables to sums of `count`, shrunk towards parametric ones; without counts just these.

        The encoder's choice depends on the tables and the tables on the choice: repeat both.
        """

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The tables by name, for storage; names are the lattice's own."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reverse of `to_arrays`, bit for bit; ModelMismatch for arrays that are no such tables."""

    @property
    @abstractmethod
    def least_bits(self) -> float:
        """Bits of a stream that a latent takes at the least: shorter streams are refused."""

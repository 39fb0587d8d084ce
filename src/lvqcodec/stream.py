# SPDX-License-Identifier: Apache-2.0
"""The latents of a tile to bytes and back, with a loaded model.

to bytes: write = entropy.code(quantise and write)
back: read = entropy.code(read) -> CRC check
Both directions walk the same `entropy.code`, so they cannot drift apart. `encoder` says what is
to be written, and `reconstruction` makes pixels of what was read.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvqcodec.coding.rangecoder import (
    PartialDecoder,
    SymbolDecoder,
    SymbolEncoder,
    most_bits,
    require,
)
from lvqcodec.errors import FormatError, StreamError
from lvqcodec.format.container import Header
from lvqcodec.model.codec_model import (
    LatentQuantizer,
    Recorder,
    Sink,
    own_bins,
    reconstruct,
)
from lvqcodec.model.entropy.base import LATENT_UNITS, Channels, Density, LatentCoder
from lvqcodec.model.likelihood import nearest_bin
from lvqcodec.model.loaded import LoadedModel
from lvqcodec.model.quantizer import Quantizer

_CRC = struct.Struct("<I")
_MOST_BYTES = 16  # more than all symbols of a latent can take: 24 + 34 bits, and 14 in a vector


def quality_of(header: Header, loaded: LoadedModel) -> Tensor:
    """The quality (1,) of a file, for the networks."""
    return torch.full((1,), float(header.quality), dtype=torch.float32, device=loaded.device)


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile as it is in the file, CRC and words, and its latents (1, h * w, C)."""

    payload: bytes
    y_hat: Tensor


class TileCoder:
    """Turns the latents of tiles into bytes and back, as the header of their file says.

    Latents are (1, h * w, C), in steps; `grid` is (h, w). Raises FormatError for a header with
    another stride than the model's.
    """

    def __init__(self, header: Header, loaded: LoadedModel) -> None:
        if header.stride != loaded.model.stride:
            raise FormatError(
                f"the file says {header.stride} pixels a position, its model has"
                f" {loaded.model.stride}: it is damaged, get it again"
            )
        self.model = loaded.model
        self.quality = quality_of(header, loaded)
        self.quantizer = Quantizer(header.lattice, loaded.tables)
        self._least_bits = loaded.tables.least_bits

    @torch.inference_mode()
    def write(
        self, target: Tensor, grid: tuple[int, int], rdo_lambda: Tensor | None = None
    ) -> Tile:
        """Quantise a target and write it.

        rdo_lambda: for each latent, (1 or h * w, C), by default the quantizer's for all.
        """
        encoder = SymbolEncoder()

        def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
            self.quantizer.write(j.cpu().numpy(), bins.cpu().numpy(), encoder)

        y_hat, planes = self._walk(self._quantising(target, grid, sink, rdo_lambda), grid)
        return Tile(_CRC.pack(_crc(planes)) + encoder.finish(), y_hat)

    @torch.inference_mode()
    def estimate_bits(self, target: Tensor, grid: tuple[int, int]) -> float:
        """Return the model's own estimate of the bits that `write` takes, the CRC left out."""
        total = 0.0

        def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
            nonlocal total
            total += self.quantizer.bits(j, bins)

        self._walk(self._quantising(target, grid, sink), grid)
        return total

    def _quantising(
        self,
        target: Tensor,
        grid: tuple[int, int],
        sink: Sink,
        rdo_lambda: Tensor | None = None,
    ) -> LatentCoder:
        targets = self.model.targets(target, grid, self.quality)
        return LatentQuantizer(targets, self.quantizer, sink, rdo_lambda)

    @torch.inference_mode()
    def read(self, payload: bytes | memoryview, grid: tuple[int, int]) -> Tensor:
        """Read the latents of a tile and check their CRC.

        Raises FormatError for a payload that is too short, StreamError if the integers are wrong.
        """
        self.check_length(payload, grid)
        y_hat, planes = self._walk(self._reading(SymbolDecoder(bytes(payload[_CRC.size :]))), grid)
        if _crc(planes) != _CRC.unpack_from(payload)[0]:
            raise StreamError(
                "the decoded integers do not match their checksum: the file is damaged or was"
                " written with other weights"
            )
        return y_hat

    @torch.inference_mode()
    def read_partial(self, payload: bytes | memoryview, grid: tuple[int, int]) -> Tensor:
        """Do as `read` with the beginning of a payload: latents that are not there are their means.

        The others are the very ones of the whole payload if this is the beginning of one; there is
        no CRC that could tell. Raises StreamError for words that no encoder writes.
        """
        most = _MOST_BYTES * self._count(grid)
        reading = self._reading(PartialDecoder(bytes(payload[_CRC.size :][:most])))
        return self._walk(reading, grid)[0]

    def check_length(self, payload: bytes | memoryview, grid: tuple[int, int]) -> None:
        """Raise FormatError for a payload that is too short for its tile, whatever is in it.

        Nothing is read or allocated for that: a few bytes can claim any size.
        """
        if len(payload) < _CRC.size:
            raise FormatError(
                f"latents section of {len(payload)} bytes is too short; get the file again"
            )
        require(self._count(grid) * self._least_bits, most_bits(len(payload) - _CRC.size))

    def _reading(self, decoder: SymbolDecoder) -> LatentCoder:
        return _Reader(self.quantizer, decoder, self.quality)

    def _walk(self, coder: LatentCoder, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Return the latents of a tile, features behind them, and all planes that were coded."""
        recorder = Recorder(coder, self.model.entropy.planes(*grid))
        y_hat = self.model.entropy.code(recorder, *grid, self.quality)
        y = y_hat[..., : self.model.transform.channels]
        return y_hat, [*recorder.coded, y]

    def _count(self, grid: tuple[int, int]) -> int:
        """Number of latents of a tile, of all planes."""
        planes = self.model.entropy.planes(*grid)
        return sum(plane.channels * math.prod(plane.grid) for plane in planes)


class _Reader:
    """A coder that reads what a `LatentQuantizer` wrote; quality: (1,), as latents are made."""

    def __init__(self, quantizer: Quantizer, decoder: SymbolDecoder, quality: Tensor) -> None:
        self._quantizer, self._decoder, self._quality = quantizer, decoder, quality

    def __call__(
        self, plane: str, positions: Tensor, channels: Channels, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        return self._read(mean, nearest_bin(scale).flatten())

    def own(
        self, plane: str, positions: Tensor, channels: Channels, rows: Tensor, density: Density
    ) -> Tensor:
        """See `entropy.base.LatentCoder`."""
        zero = self._quality.new_zeros(1, positions.shape[0], rows.shape[0])
        return self._read(zero, own_bins(rows, zero))

    def _read(self, mean: Tensor, bins: Tensor) -> Tensor:
        j = torch.from_numpy(self._quantizer.read(bins.cpu().numpy(), self._decoder))
        return reconstruct(self._quantizer, j.to(bins.device), bins, mean)


def _crc(planes: Sequence[Tensor]) -> int:
    """CRC-32 of latents as little-endian 32-bit integers, plane by plane, position by position."""
    crc = 0
    for plane in planes:
        whole = (plane.cpu() * LATENT_UNITS).to(torch.int32)
        crc = zlib.crc32(whole.numpy().astype("<i4").tobytes(), crc)
    return crc

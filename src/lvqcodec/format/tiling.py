# SPDX-License-Identifier: Apache-2.0
"""How a large picture is cut into tiles of latents, and the bytes that hold them.

Positions are those of the latent grid, a stride of pixels each way. Tiles are coded one by one; the
transforms overlap them: analysis and synthesis of a window look at a margin around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lvqcodec.errors import FormatError, UsageError
from lvqcodec.format.container import SECTION_LATENTS, SECTION_TILES, STRIDES, Header, Section
from lvqcodec.format.fields import CHECK_BYTES, checked, read_varint, to_varint, verify_crc
from lvqcodec.format.geometry import Window, pieces

TILE = 1024
"""Side of tiles in pixels, unless asked for otherwise."""

LEAST_WINDOW = 256
"""Side in pixels of the windows of several tiles."""

WHOLE_PIXELS = 2**21
"""Pictures of no more pixels are coded whole, unless asked for otherwise."""

_EXPONENTS = range(2, 13)  # of the side of a tile in positions
SIDES = [STRIDES[0] << exponent for exponent in _EXPONENTS]
"""The sides in pixels that tiles may have."""

_MIN_TILE = 4  # bytes: the CRC of its integers


@dataclass(frozen=True)
class Tiling:
    """A grid of `size` (h, w) positions cut into tiles of `side`, in raster order.

    `stride` is the pixels per position and direction.
    What is left over makes tiles of their own where it is at least half a side, else it belongs to
    the last ones.
    """

    size: tuple[int, int]
    side: int
    stride: int = STRIDES[0]

    @cached_property
    def rows(self) -> list[slice]:
        """Rows of positions of every row of tiles."""
        return pieces(slice(0, self.size[0]), self.side)

    @cached_property
    def columns(self) -> list[slice]:
        """Columns of positions of every column of tiles."""
        return pieces(slice(0, self.size[1]), self.side)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Window:
        """The positions of a tile."""
        row, column = divmod(index, len(self.columns))
        return Window(self.rows[row], self.columns[column])

    @property
    def everything(self) -> Window:
        """The positions of all tiles."""
        return Window(slice(0, self.size[0]), slice(0, self.size[1]))

    @property
    def window(self) -> int:
        """Side of the windows, in positions, in which latents are to be looked at as pixels.

        Several tiles are in one where they are small: the margin around each would cost more.
        """
        height, width = self.size
        if len(self) > 1:
            return max(self.side, LEAST_WINDOW // self.stride)
        whole = height * width * self.stride**2 <= WHOLE_PIXELS
        return self.side if whole else TILE // self.stride

    @property
    def held(self) -> int:
        """Rows of positions, but for those around windows, that wait to be looked at at most."""
        return self.largest[0] + (self.window if self.window > self.side else 0)

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest tile."""
        rows, columns = (max(s.stop - s.start for s in cut) for cut in (self.rows, self.columns))
        return rows, columns


def _grid(header: Header) -> tuple[int, int]:
    return -(-header.height // header.stride), -(-header.width // header.stride)


def untiled(header: Header) -> Tiling:
    """A picture as one tile."""
    grid = _grid(header)
    return Tiling(grid, max(grid), header.stride)


def choose(header: Header, tile: int | None = None) -> Tiling:
    """Say how to code a picture; `tile` is the side in pixels, by default TILE if it is large.

    Raises UsageError for a side that the format does not have.
    """
    if tile is None:
        if header.width * header.height <= WHOLE_PIXELS:
            return untiled(header)
        tile = TILE
    side = check_side(tile, header.stride) // header.stride
    tiling = Tiling(_grid(header), side, header.stride)
    return tiling if len(tiling) > 1 else untiled(header)


def check_side(tile: int, stride: int = STRIDES[0]) -> int:
    """Return a side of tiles in pixels; raises UsageError for one that is not of `SIDES`.

    The smallest are too small for a larger stride.
    """
    sides = [side for side in SIDES if side // stride >= 1 << _EXPONENTS[0]]
    if tile not in sides:
        raise UsageError(
            f"tiles of {tile} pixels do not exist: give a power of two from {sides[0]}"
            f" to {sides[-1]}"
        )
    return int(tile)


def region(header: Header, wanted: tuple[int, int, int, int] | None) -> Window:
    """Rows and columns of pixels of (x, y, width, height), by default of the whole picture.

    Raises UsageError for what is not in the picture.
    """
    wanted = wanted or (0, 0, header.width, header.height)
    if len(wanted) != 4 or any(number != int(number) for number in wanted):
        raise UsageError(f"region {wanted} is none: give four whole numbers, X, Y, W and H")
    x, y, width, height = map(int, wanted)
    if min(x, y) < 0 or min(width, height) < 1:
        raise UsageError(
            f"region {x},{y},{width},{height} is none: give X,Y,W,H with W and H of at least 1"
        )
    if x + width > header.width or y + height > header.height:
        raise UsageError(
            f"region {x},{y},{width},{height} is not in the picture, which is"
            f" {header.width}x{header.height}"
        )
    return Window(slice(y, y + height), slice(x, x + width))


def to_section(tiling: Tiling, tiles: Sequence[bytes]) -> Section:
    """Return the section of tiles, each of them CRC and range coder words, in raster order."""
    if len(tiles) == 1:
        return Section(SECTION_LATENTS, tiles[0])
    lengths = b"".join(to_varint(len(tile)) for tile in tiles)
    table = checked(bytes([tiling.side.bit_length() - 1]) + lengths)
    return Section(SECTION_TILES, b"".join([table, *tiles]))


def find_tiles(
    header: Header, sections: Mapping[int, bytes], missing: int = 0
) -> tuple[Tiling, list[memoryview], int]:
    """Return the tiling of a file, its tiles and how many of these are whole.

    missing: as `container.unpack_partial` returns it; of the tiles at most one is cut then, and
    those after it are empty. Nothing is allocated for more tiles than the payload has room for.
    Raises FormatError, also where the table of tiles is not whole or nothing follows it.
    """
    cut, tiles, whole = _cut_payload(header, sections, _lost(missing))
    if not whole and max(map(len, tiles)) <= _MIN_TILE:
        raise FormatError("the file ends before its latents; fetch the file again")
    return cut, tiles, whole


def share(sections: Mapping[int, bytes], missing: int) -> float:
    """How much of the bytes of the latents there is, of what `container.unpack_partial` returns."""
    there = max(len(sections.get(kind, b"")) for kind in (SECTION_LATENTS, SECTION_TILES))
    return there / max(there + _lost(missing), 1)


def _lost(missing: int) -> int:
    """Bytes of the payload among those missing of a file, whose last ones are a check."""
    return max(missing - CHECK_BYTES, 0)


def _cut_payload(
    header: Header, sections: Mapping[int, bytes], lost: int
) -> tuple[Tiling, list[memoryview], int]:
    if SECTION_LATENTS in sections:
        return untiled(header), [memoryview(sections[SECTION_LATENTS])], int(not lost)
    payload = sections[SECTION_TILES]
    size = len(payload) + lost
    exponent = payload[0] if payload else -1
    if exponent not in _EXPONENTS:
        raise FormatError(
            f"tiles of 2^{exponent} positions are not known: upgrade lvqcodec"
            if payload
            else "the section of tiles is empty; fetch the file again"
        )
    tiling = Tiling(_grid(header), 1 << exponent, header.stride)
    if size < 1 + len(tiling) * (1 + _MIN_TILE) + CHECK_BYTES:
        raise FormatError(f"{len(tiling)} tiles do not fit into {size} bytes; fetch the file again")
    what = "the table of tiles"
    lengths, at = [], 1
    for _ in range(len(tiling)):
        length, at = read_varint(payload, at, what)
        lengths.append(length)
    at = verify_crc(payload, 0, at, what)
    if min(lengths) < _MIN_TILE or sum(lengths) != size - at:
        raise FormatError(
            f"tiles of {min(lengths)} bytes and more, {sum(lengths)} in all, are not what"
            f" {size - at} bytes hold; fetch the file again"
        )
    view, tiles, whole = memoryview(payload), [], 0
    for length in lengths:
        tiles.append(view[at : at + length])
        at += length
        whole += at <= len(payload)
    return tiling, tiles, whole

# SPDX-License-Identifier: Apache-2.0
"""An lvq file, opened: parsed and checked once, and handed on to whoever needs something of it."""

from __future__ import annotations

from dataclasses import dataclass

from lvqcodec.files import Source, read_source
from lvqcodec.format import tiling
from lvqcodec.format.container import Header, read_header, unpack, unpack_partial
from lvqcodec.format.geometry import Window
from lvqcodec.format.limits import MAX_PIXELS, check_limit
from lvqcodec.format.tiling import Tiling


@dataclass(frozen=True, eq=False)
class LvqFile:
    """What an lvq file says without being decoded; every length and checksum of it is right.

    tiles: what there is of each tile, CRC and range coder words, in raster order; whole: how many
    are there whole, all but in a file that is cut. sections: the payloads by their kind, those of
    the picture among them. received: the share of the latents' bytes that is there. size: bytes of
    the file.
    """

    header: Header
    tiling: Tiling
    tiles: list[memoryview]
    whole: int
    sections: dict[int, bytes]
    received: float
    size: int

    def region(self, wanted: tuple[int, int, int, int] | None = None) -> Window:
        """Rows and columns of pixels of a region; see `tiling.region`."""
        return tiling.region(self.header, wanted)


def open_lvq(source: Source, *, partial: bool = False, max_pixels: int = MAX_PIXELS) -> LvqFile:
    """Open an lvq file: bytes, a path or a binary file, see `files.read_source`.

    partial: take one whose end is missing, too, see `container.unpack_partial`. Nothing is
    allocated by what a file claims to hold. Raises FormatError for damage, UnsupportedImage for a
    picture of more than max_pixels, UsageError for what cannot be read.
    """
    data = read_source(source, look=read_header)  # what is none, and may never end, is not read
    header, sections, missing = unpack_partial(data) if partial else (*unpack(data), 0)
    check_limit(header.width, header.height, max_pixels)
    cut, tiles, whole = tiling.find_tiles(header, sections, missing)
    received = tiling.share(sections, missing)
    return LvqFile(header, cut, tiles, whole, sections, received, len(data))

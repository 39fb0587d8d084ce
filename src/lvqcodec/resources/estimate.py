# SPDX-License-Identifier: Apache-2.0
"""What memory coding a picture takes, told beforehand.

The figures are of a CPU, rounded up; what is on a GPU does not count. They were measured as peaks
of whole processes (VmHWM).
"""

from __future__ import annotations

from dataclasses import dataclass

from lvqcodec.errors import UsageError
from lvqcodec.format.container import Header
from lvqcodec.format.geometry import Window
from lvqcodec.format.tiling import Tiling, choose
from lvqcodec.options import EncodeOptions

_MOST = 2**40
_FILE = 10  # bytes a pixel, the copies on the way to a picture file
_SOURCE = {1: 16, 2: 24, 3: 16, 4: 24}  # the same from one, by its channels; grey may have 16 bits


@dataclass(frozen=True)
class MemoryFigures:
    """What coding with a model takes; its card may say so in a table [memory].

    In bytes: `base`, interpreter, torch and weights. In bytes a pixel: `tile`, of a tile or window
    at work; `latents`, four times the channels by the squared stride; `moves`, what a search has
    found, half of that; `search`, of the part at work with efforts above 1; `correction`, the same
    with effort 1. In pixels: `part`, the largest part; `overlap`, the height of the latents that
    are held beside a row of tiles, 2 * reach * stride. The defaults are those of the largest of the
    shipped models. Raises UsageError for numbers below 0 or beyond 2^40.
    """

    base: int = 420 * 2**20
    tile: int = 320
    latents: int = 12
    moves: int = 6
    search: int = 2048
    correction: int = 200
    part: int = 1024**2
    overlap: int = 2 * 128

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= _MOST:
                raise UsageError(f"[memory] {name} = {value} is beyond 0..{_MOST}")


LARGEST = MemoryFigures()
"""The figures of the largest shipped model, for models whose card has none."""


def decoding(
    header: Header, tiling: Tiling, region: Window, figures: MemoryFigures = LARGEST
) -> int:
    """Bytes that decoding a region takes, picture file included."""
    height, width = region.grid
    pixels = height * width
    work = _work(tiling, figures) + _band(tiling, width, figures)
    return figures.base + header.channels * pixels + max(work, _FILE * pixels)


def encoding(
    header: Header,
    tiling: Tiling,
    effort: int = 0,
    *,
    weighed: bool = False,
    alpha: bool = False,
    figures: MemoryFigures = LARGEST,
) -> int:
    """Bytes that encoding takes, picture file included; weighed: our file is decoded as well.

    alpha: whether there is transparency.
    """
    pixels = header.width * header.height
    channels = header.channels + alpha
    work = _work(tiling, figures)
    if weighed:
        work += _band(tiling, header.width, figures)
    if effort:
        each = figures.search if effort > 1 else figures.correction
        work += each * min(pixels, figures.part) + figures.moves * pixels
    return figures.base + max(channels * pixels + work, _SOURCE[channels] * pixels)


def encoding_of(
    width: int,
    height: int,
    channels: int,
    options: EncodeOptions,
    *,
    weighed: bool = False,
    figures: MemoryFigures = LARGEST,
) -> int:
    """Do as `encoding` by what is known of a picture before it is decoded.

    channels: 1 to 4, alpha included; weighed: as of `encoding`, whatever the options need.
    """
    header = _header_of(width, height, channels)
    weighed = weighed or options.weighed
    cut, effort = choose(header, options.tile), options.chosen_effort
    alpha = channels in (2, 4)
    return encoding(header, cut, effort, weighed=weighed, alpha=alpha, figures=figures)


def _header_of(width: int, height: int, channels: int) -> Header:
    return Header(width, height, 1 if channels < 3 else 3, 0, "z", bytes(4))  # of any quality


def _work(tiling: Tiling, figures: MemoryFigures) -> int:
    wide = 3 * tiling.window // 2 if len(tiling) > 1 else 0
    height, width = (
        max(side, min(wide, whole)) for side, whole in zip(tiling.largest, tiling.size, strict=True)
    )
    return figures.tile * tiling.stride**2 * height * width


def _band(tiling: Tiling, width: int, figures: MemoryFigures) -> int:
    sides = (tiling.held, tiling.largest[1])
    rows, columns = (tiling.stride * side + figures.overlap for side in sides)
    return figures.latents * rows * (width + columns)

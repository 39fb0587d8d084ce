# SPDX-License-Identifier: Apache-2.0
"""A picture ready to be encoded, prepared once: what the encoder's searches start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.distortion import weight
from lvqcodec.errors import UsageError
from lvqcodec.format import tiling
from lvqcodec.format.container import Header, Section, pack
from lvqcodec.format.geometry import Window
from lvqcodec.format.tiling import Tiling
from lvqcodec.metrics import MS_SSIM_MIN_SIDE
from lvqcodec.model.loaded import LoadedModel
from lvqcodec.options import EncodeOptions
from lvqcodec.pictures.picture import Picture
from lvqcodec.pictures.sections import pack_sections
from lvqcodec.stream import Tile, TileCoder


@dataclass(frozen=True, eq=False)
class Original:
    """Samples at a quality, uint8 (H, W, 3) or (H, W), ready to be coded tile by tile.

    sections: those of alpha and metadata; tune: one of `config.TUNES`, what the file is to be good
    for.
    """

    image: NDArray[np.uint8]
    header: Header
    tiling: Tiling
    loaded: LoadedModel
    sections: Sequence[Section] = ()
    tune: str = "psnr"

    def at(self, quality: int) -> Original:
        """The same at another quality."""
        return replace(self, header=replace(self.header, quality=quality))

    @cached_property
    def coder(self) -> TileCoder:
        """What writes the tiles."""
        return TileCoder(self.header, self.loaded)

    def sources(self) -> Iterator[Source]:
        """The tiles in raster order, each analysed when it is its turn; a single one is kept."""
        if len(self.tiling) == 1:
            yield self._only
        else:
            yield from (_analyse(self, index) for index in range(len(self.tiling)))

    @cached_property
    def _only(self) -> Source:
        return _analyse(self, 0)

    @property
    def weight(self) -> float:
        """What the distortion of the tune costs in bits a pixel, at this quality."""
        return weight(self.tune, self.loaded.model.config.lmbda(self.header.quality))

    def assemble(self, payloads: Sequence[bytes]) -> bytes:
        """Return the file of tiles in raster order, with all that belongs into it."""
        return pack(self.header, [*self.sections, tiling.to_section(self.tiling, payloads)])


@dataclass(frozen=True, eq=False)
class Source:
    """A tile of a picture, ready to be written as often as one likes.

    core: its positions; around: these and the margin that the analysis looks at. x: the pixels of
    `around` (1, 3, 8h, 8w) in [0, 1], padded; surroundings: the latents of `around`; target: those
    of the tile, (1, h * w, C) in steps.
    """

    original: Original
    index: int
    core: Window
    around: Window
    x: Tensor
    surroundings: Tensor
    target: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the tile in positions."""
        return self.core.grid

    def write(self, target: Tensor | None = None, rdo_lambda: Tensor | None = None) -> Tile:
        """Write a target, by default the tile's own; see `TileCoder.write`."""
        target = self.target if target is None else target
        return self.original.coder.write(target, self.grid, rdo_lambda)


def prepare(picture: Picture, loaded: LoadedModel, options: EncodeOptions) -> Original:
    """Make a picture ready to be coded, at the quality to begin with.

    Raises UsageError for a quality that the model is not for and for what cannot be tuned for
    MS-SSIM, UnsupportedImage for metadata larger than the format takes.
    """
    height, width = picture.pixels.shape[:2]
    header = Header(
        width=width,
        height=height,
        channels=1 if picture.pixels.ndim == 2 else 3,
        quality=_quality(options, loaded.model.config.quality_range),
        lattice=options.lattice or loaded.lattice,
        model=loaded.digest,
        stride=loaded.model.stride,
    )
    tiles = tiling.choose(header, options.tile)
    narrowest = header.stride * min(s.stop - s.start for s in [*tiles.rows, *tiles.columns])
    if options.tune == "ms-ssim" and min(height, width, narrowest) < MS_SSIM_MIN_SIDE:
        raise UsageError(
            f"MS-SSIM takes pictures and tiles of at least {MS_SSIM_MIN_SIDE} x {MS_SSIM_MIN_SIDE}"
            f" pixels, not {width} x {height}: tune for psnr"
        )
    sections = pack_sections(picture, options.alpha_quality)
    return Original(picture.pixels, header, tiles, loaded, sections, options.tune)


def _quality(options: EncodeOptions, there: range) -> int:
    """Return the quality that is wanted, by default the nearest to the usual one."""
    if options.quality is not None and options.quality not in there:
        raise UsageError(
            f"quality {options.quality} is not one that this model is for:"
            f" give {there[0]} to {there[-1]}, or another model"
        )
    return min(max(options.chosen_quality, there[0]), there[-1])


@torch.inference_mode()
def _analyse(original: Original, index: int) -> Source:
    """Compute the latents of a tile; the pixels around it make them those of the whole picture."""
    header, model = original.header, original.loaded.model
    core = original.tiling[index]
    around = core.grown(model.transform.analysis_reach, original.tiling.size)
    pixels = around.pixels(header.height, header.width, header.stride)
    # a copy, because numpy arrays may be read-only or of negative strides
    x = torch.from_numpy(np.array(original.image[pixels])).to(original.loaded.device)
    x = x[None].expand(3, -1, -1) if header.channels == 1 else x.permute(2, 0, 1)
    x = model.pad(x[None].float() / 255).contiguous(memory_format=torch.channels_last)
    surroundings = model.analysis(x, original.coder.quality)
    target = cut(surroundings, around.grid, core.seen_from(around))
    return Source(original, index, core, around, x, surroundings, target)


def cut(y: Tensor, grid: tuple[int, int], window: Window) -> Tensor:
    """Return a window's part of latents (1, h * w, C) of a grid."""
    whole = torch.unflatten(y, 1, grid)
    return whole[:, window.rows, window.columns].flatten(1, 2)

# SPDX-License-Identifier: Apache-2.0
"""From latents, tile by tile, to pixels, window by window, without a seam.

The synthesis of a window looks at the latents around it, those of neighbouring tiles too, as far as
a pixel depends on them: what it gives is what the synthesis of the whole picture would give. Of the
latents only a row of tiles or windows and the overlap with the one before are held.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.format.container import Header
from lvqcodec.format.geometry import Window, covering, pieces
from lvqcodec.format.lvqfile import LvqFile
from lvqcodec.format.tiling import Tiling
from lvqcodec.progress import OnProgress, Progress
from lvqcodec.stream import TileCoder

Put = Callable[[Window, NDArray[np.uint8]], None]
"""Takes rows and columns of pixels of the picture, and what is there."""


class Reconstruction:
    """Takes the latents of `tiles`, in that order, and puts the pixels of a region.

    region: rows and columns of pixels, by default the whole picture.
    """

    def __init__(
        self,
        header: Header,
        coder: TileCoder,
        tiling: Tiling,
        put: Put,
        region: Window | None = None,
    ) -> None:
        self._header, self._coder, self._tiling, self._put = header, coder, tiling, put
        size = header.height, header.width
        self._region = region or tiling.everything.pixels(*size, tiling.stride)
        self._shown = covering(self._region, tiling.stride)
        self._reach = coder.model.transform.synthesis_reach
        seen = self._shown.grown(self._reach, tiling.size)
        rows, columns = (
            [i for i, part in enumerate(parts) if part.start < s.stop and s.start < part.stop]
            for parts, s in zip((tiling.rows, tiling.columns), seen, strict=True)
        )
        self.tiles = [row * len(tiling.columns) + column for row in rows for column in columns]
        """The tiles that the region depends on."""
        self._columns = slice(tiling.columns[columns[0]].start, tiling.columns[columns[-1]].stop)
        self._first = self._filled = tiling.rows[rows[0]].start  # rows that the band holds
        self._done = self._shown.rows.start
        self._band = torch.empty(0)

    @torch.inference_mode()
    def add(self, index: int, y_hat: Tensor) -> None:
        """Take a tile's latents (1, h * w, C) in steps; put what they complete."""
        tile = self._tiling[index]
        if index == self.tiles[0]:
            height = 2 * self._reach + self._tiling.held
            width = self._columns.stop - self._columns.start
            self._band = y_hat.new_empty(1, height, width, y_hat.shape[-1])
        self._held(tile).copy_(torch.unflatten(y_hat, 1, tile.grid))
        if tile.columns.stop == self._columns.stop:
            self._filled = tile.rows.stop
            self._complete()

    def _complete(self) -> None:
        """Put all windows whose surroundings are there, and forget what no other needs."""
        last = self._filled == self._tiling.size[0]
        ready = min(self._filled - (0 if last else self._reach), self._shown.rows.stop)
        whole = self._tiling.window - self._reach
        if ready - self._done < whole and ready < self._shown.rows.stop and not last:
            return
        for rows in pieces(slice(self._done, ready), self._tiling.window):
            for columns in pieces(self._shown.columns, self._tiling.window):
                self._show(Window(rows, columns))
        self._done = max(self._done, ready)
        overlap = slice(max(self._done - self._reach, self._first), self._filled)
        kept = self._held(Window(overlap, self._columns)).clone()
        self._first = overlap.start
        self._held(Window(overlap, self._columns)).copy_(kept)

    def _held(self, window: Window) -> Tensor:
        """The band's part (1, h, w, C) for a window of positions."""
        place = window.seen_from(Window(slice(self._first, 0), self._columns))
        return self._band[:, place.rows, place.columns]

    def _show(self, window: Window) -> None:
        header, coder = self._header, self._coder
        around = window.grown(self._reach, self._tiling.size)
        y_hat = self._held(around).flatten(1, 2)
        x_hat = coder.model.synthesis(y_hat, around.grid, coder.quality)
        size = header.height, header.width, self._tiling.stride
        pixels = window.pixels(*size).common(self._region)
        here = pixels.seen_from(around.pixels(*size))
        x_hat = x_hat[0, :, here.rows, here.columns]
        if header.channels == 1:
            x_hat = x_hat.mean(0, keepdim=True)
        found = torch.round(x_hat.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        self._put(pixels, found[..., 0] if header.channels == 1 else found)


def decode_tiles(
    file: LvqFile,
    coder: TileCoder,
    region: Window,
    on_progress: OnProgress | None = None,
) -> NDArray[np.uint8]:
    """Return rows and columns of pixels, uint8 (H, W, 3) or (H, W), reading what they depend on.

    Of tiles that are not there whole no checksum is looked at. Raises FormatError (StreamError) for
    tiles that are damaged.
    """
    colour = file.header.channels == 3
    image = np.empty((*region.grid, 3) if colour else region.grid, np.uint8)

    def put(pixels: Window, decoded: NDArray[np.uint8]) -> None:
        image[pixels.seen_from(region)] = decoded

    synthesis = Reconstruction(file.header, coder, file.tiling, put, region)
    for count, index in enumerate(synthesis.tiles, 1):
        read = coder.read if index < file.whole else coder.read_partial
        synthesis.add(index, read(file.tiles[index], file.tiling[index].grid))
        if on_progress is not None:
            on_progress(Progress(count / len(synthesis.tiles)))
    return image

# SPDX-License-Identifier: Apache-2.0
"""How long to search for the latents of a picture, and whether what was found is worth writing.

Efforts above 0 spend time on `refine.refine`, part by part where a picture is large, and keep the
result only if the file is better: bpp + weight * distortion, of the bytes as they are and of the
picture as it decodes. The distortion is the mean squared error, or with the tune "ms-ssim" 1 -
MS-SSIM (of large pictures the mean over windows); the quantizer then spends less where it is busy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec import metrics
from lvqcodec.distortion import distortion
from lvqcodec.encoder.original import Original, Source, cut
from lvqcodec.encoder.refine import (
    LONG,
    SHORT,
    Cost,
    Objective,
    Round,
    measured_curvature,
    mse_curvature,
    refine,
)
from lvqcodec.format.geometry import Window
from lvqcodec.model.quantizer import RDO_LAMBDA
from lvqcodec.progress import OnProgress, Progress
from lvqcodec.reconstruction import Reconstruction
from lvqcodec.stream import Tile

ROUNDS = (0, 1, 1, 2, 4, 8, 16, 32, 64, 96)
"""Rounds of every effort of `config.EFFORTS`; that of effort 1 looks at the distortion alone.

The last would double too, but for that it is to end within three minutes for 0.4 megapixels.
"""

_FEW = 4  # rounds of the longest search for which moves that hardly get shorter are better

PART = 768
"""Side of the parts, margins left out, in which tiles of more than 1.5 such are searched."""


@dataclass(frozen=True, eq=False)
class Refinement:
    """What to write.

    moves: for every tile how far its target (1, h * w, C) is from what the analysis gives, None:
    nowhere. rdo_lambda: for every tile (1 or h * w, C), None: the quantizer's. ease: what these are
    to be multiplied by.
    """

    moves: Sequence[Tensor] | None = None
    rdo_lambda: Sequence[Tensor] | None = None
    ease: float = 1.0

    def write(self, source: Source) -> Tile:
        """Write a tile."""
        target, rdo_lambda = source.target, None
        if self.moves is not None:
            target = target + self.moves[source.index]
        if self.rdo_lambda is not None:
            rdo_lambda = self.rdo_lambda[source.index].float() * self.ease
        elif self.ease != 1:
            rdo_lambda = torch.full_like(target[0, :1], RDO_LAMBDA * self.ease)
        return source.write(target, rdo_lambda)


PLAIN = Refinement()
"""The refinement of effort 0."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A file, how it was made, and what it is worth.

    y_hat: its latents (1, h * w, C) if it is one tile, else None: they would take much memory.
    """

    refinement: Refinement
    data: bytes
    y_hat: Tensor | None
    mse: float
    loss: float

    @property
    def psnr(self) -> float:
        """PSNR of the decoded picture in dB."""
        return metrics.psnr_of_mse(self.mse)


def encode_refinement(original: Original, refinement: Refinement) -> Candidate:
    """Write a refinement and weigh the file: the bytes as they are, the picture as it decodes."""
    header, squared, distorted, payloads = original.header, 0, 0.0, []

    def weigh(pixels: Window, decoded: NDArray[np.uint8]) -> None:
        nonlocal squared, distorted
        image = original.image[pixels]
        error = metrics.squared_error(image, decoded)
        squared += error
        if original.tune == "psnr":
            distorted += error / 255**2 / original.image.size
        else:
            similarity = metrics.ms_ssim(image, decoded)
            assert similarity is not None  # `original.prepare` has seen to the sizes
            distorted += (1 - similarity) * image.size / original.image.size

    reconstruction = Reconstruction(header, original.coder, original.tiling, weigh)
    for source in original.sources():
        tile = refinement.write(source)
        payloads.append(tile.payload)
        reconstruction.add(source.index, tile.y_hat)
    data = original.assemble(payloads)
    error = squared / original.image.size
    loss = metrics.bpp(len(data), header.width, header.height) + original.weight * distorted
    return Candidate(refinement, data, tile.y_hat if len(payloads) == 1 else None, error, loss)


def write_plain(original: Original, on_progress: OnProgress | None = None) -> bytes:
    """Return the file of effort 0, without looking at what it decodes to."""
    payloads = []
    for count, source in enumerate(original.sources(), 1):
        payloads.append(source.write().payload)
        if on_progress is not None:
            on_progress(Progress(count / len(original.tiling)))
    return original.assemble(payloads)


def search(
    original: Original,
    effort: int,
    *,
    deadline: float = math.inf,
    on_progress: OnProgress | None = None,
) -> Candidate:
    """Return the best file that an effort of EFFORTS finds before `deadline` (time.monotonic)."""
    start = time.monotonic()
    first = encode_refinement(original, PLAIN)
    if effort == 0:
        return first
    last_call = deadline - 1.2 * (time.monotonic() - start)  # the time that a file takes
    if time.monotonic() >= last_call:
        return first
    # of what inference made, autograd takes only copies
    with torch.inference_mode(False), torch.enable_grad():
        refined = _Refinery(original, effort, last_call, on_progress).run(first.y_hat)
    return min(first, encode_refinement(original, refined), key=lambda candidate: candidate.loss)


@dataclass(frozen=True)
class Part:
    """What of a tile is searched at a time: a core, and the window around it that is looked at.

    place: which of all parts of the picture it is, and of how many.
    """

    core: Window
    window: Window
    place: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.window.grid


class _Refinery:
    """The search for one picture, tile by tile and part by part, with the time it has."""

    def __init__(
        self, original: Original, effort: int, deadline: float, on_progress: OnProgress | None
    ) -> None:
        self._original = original
        self._effort = effort
        self._deadline = deadline
        self._on_progress = on_progress
        self._parts = _cut_into_parts(original)

    def run(self, y_hat: Tensor | None) -> Refinement:
        """Return what to write, given the latents of effort 0 if they are at hand."""
        single = len(self._parts) == 1
        # for the move of effort 1, or the curvature
        needed = self._effort == 1 or self._original.tune != "psnr"
        moves, lambdas = [], []
        for source in self._original.sources():
            coded = source.write().y_hat if needed and y_hat is None else y_hat
            target, curvature = self._search_tile(source, coded)
            # those of a large picture are many: sixteen bits each are enough
            found = target - source.target, 2 / curvature
            move, rdo_lambda = found if single else (each.half() for each in found)
            moves.append(move)
            lambdas.append(rdo_lambda)
        return Refinement(moves, lambdas)

    def _search_tile(self, source: Source, y_hat: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the target (1, h * w, C) found for a tile, and its curvature (1 or h * w, C).

        y_hat: the latents of effort 0, None where they are not looked at.
        """
        target = source.target.clone()
        whole = torch.unflatten(target, 1, source.grid)
        curvatures = torch.empty_like(whole)
        for part in self._parts[source.index]:
            start = cut(source.target.clone(), source.grid, part.window)
            coded = start if y_hat is None else cut(y_hat.clone(), source.grid, part.window)
            objective = objective_of(source, part.window, coded)
            found = self._search_part(part, objective, start, coded)
            inner, curvature = part.core.seen_from(part.window), objective.curvature
            for everywhere, here in ((whole, found), (curvatures, curvature.expand_as(found))):
                piece = torch.unflatten(cut(here, part.grid, inner), 1, part.core.grid)
                everywhere[:, part.core.rows, part.core.columns] = piece
        return target, curvature if len(curvature) == 1 else curvatures.flatten(0, 2)

    def _search_part(
        self, part: Part, objective: Objective, target: Tensor, y_hat: Tensor
    ) -> Tensor:
        """Return the best target, of those that the effort and the time allow for."""
        if self._effort == 1:
            return objective.corrected(target, y_hat, LONG[0])
        index, count = part.place
        rounds, start = ROUNDS[self._effort], time.monotonic()
        until = start + (self._deadline - start) / (count - index)
        number = 0

        def elapsed() -> float:
            spent = (time.monotonic() - start) / max(until - start, 1e-9)
            return min(max(number / max(rounds - 1, 1), spent), 1.0)

        best: Round | None = None
        shares = LONG if rounds > _FEW else SHORT
        for number, found in enumerate(refine(objective, target, shares, elapsed)):
            if best is None or found.loss < best.loss:
                best = found
            now = time.monotonic()
            self._tell(best, part, min(number / rounds, 1.0))
            if number == rounds or now + (now - start) / (number + 1) > until:
                break
        assert best is not None
        return best.target

    def _tell(self, best: Round, part: Part, done: float) -> None:
        """Report on the part at hand."""
        if self._on_progress is None:
            return
        height, width = part.grid
        pixels = height * width * self._original.loaded.model.stride**2
        index, count = part.place
        distorted = best.cost / (self._original.weight * pixels)
        self._on_progress(Progress((index + done) / count, best.bits / pixels, distorted))


def objective_of(source: Source, window: Window, y_hat: Tensor) -> Objective:
    """Return what the latents in a window of a tile cost; y_hat: about what they will be."""
    original = source.original
    coder = original.coder
    quality, cost = coder.quality.clone(), _cost_of(source, window)
    if original.tune == "psnr":
        curvature = mse_curvature(coder.model, quality, original.weight)
    else:
        channels = coder.model.transform.channels
        y, features = y_hat[..., :channels], y_hat[..., channels:]
        curvature = measured_curvature(lambda y: cost(torch.cat([y, features], 2)), y, window.grid)
    return Objective(coder.model, coder.quantizer, quality, window.grid, cost, curvature)


def _cost_of(source: Source, window: Window) -> Cost:
    """What the decoded pixels of a window cost in bits, those beyond the edges left out."""
    original = source.original
    header, model = original.header, original.loaded.model
    place = window.shifted(source.core.seen_from(source.around))
    # beyond the tile, what the analysis found stands for what the neighbours will be
    ends = zip(window, source.grid, place, source.around.grid, strict=True)
    outer = Window(
        *(
            slice(p.start if s.start else 0, p.stop if s.stop < size else end)
            for s, size, p, end in ends
        )
    )
    inside = place.seen_from(outer)
    background = cut(source.surroundings.clone(), source.around.grid, outer)
    background = F.pad(background, (0, model.entropy.features))  # nobody has coded these there
    shown = window.shifted(source.core).pixels(header.height, header.width, model.stride)
    height, width = shown.grid
    weight, quality = original.weight * height * width, original.coder.quality.clone()
    distorted = distortion(original.tune)

    def seen(x: Tensor) -> Tensor:
        x = x[..., :height, :width]
        return x.mean(1, keepdim=True) if header.channels == 1 else x

    x = seen(source.x[..., *_pixels(place, source.x, model.stride)].clone())

    def cost(y_hat: Tensor) -> Tensor:
        if outer != place:
            canvas = torch.unflatten(background.clone(), 1, outer.grid)
            canvas[:, inside.rows, inside.columns] = torch.unflatten(y_hat, 1, window.grid)
            y_hat = canvas.flatten(1, 2)
        x_hat = model.synthesis(y_hat, outer.grid, quality)
        x_hat = x_hat[..., *_pixels(inside, x_hat, model.stride)]
        spent: Tensor = weight * distorted(seen(x_hat.clamp(0, 1)), x).sum()
        return spent

    return cost


def _pixels(window: Window, x: Tensor, stride: int) -> Window:
    """Rows and columns of a picture (B, 3, H, W) for a window of its positions."""
    height, width = x.shape[-2:]
    return window.pixels(height, width, stride)


def _cut_into_parts(original: Original) -> list[list[Part]]:
    """Cut every tile of a picture into parts."""
    tiles = (original.tiling[index] for index in range(len(original.tiling)))
    period = original.loaded.model.entropy.period
    side = max(PART // original.tiling.stride // period, 1) * period
    windows = [list(_windows(tile.grid, side, period)) for tile in tiles]
    count = sum(map(len, windows))
    places = iter(range(count))
    return [[Part(*pair, (next(places), count)) for pair in pairs] for pairs in windows]


def _windows(grid: tuple[int, int], side: int, period: int) -> Iterator[tuple[Window, Window]]:
    """Cut a tile into cores, each with the window of the tile around it that is looked at.

    Windows begin at multiples of `period`, where the order of coding repeats itself, and reach as
    far beyond their cores as the networks see much.
    """
    height, width = grid
    everything = Window(slice(0, height), slice(0, width))
    if 2 * height * width <= 3 * side * side:
        yield everything, everything
        return
    for top in range(0, height, side):
        for left in range(0, width, side):
            core = Window(slice(top, top + side), slice(left, left + side)).common(everything)
            yield core, core.grown(period, grid)

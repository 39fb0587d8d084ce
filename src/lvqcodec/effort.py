# SPDX-License-Identifier: Apache-2.0
"""How long to search for the latents of a picture, and whether what was found is worth writing.

Efforts above 0 spend time on `overfit.refine`, part by part where a picture is large, and keep the
result only if the file is better: bpp + weight * distortion, of the bytes as they are and of the
picture as it decodes. The distortion is the mean squared error, or with the tune "ms-ssim" 1 -
MS-SSIM (of large pictures the mean over windows); the quantizer then spends less where it is busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec import metrics
from lvqcodec.distortion import distortion
from lvqcodec.overfit import (
    LONG,
    SHORT,
    Cost,
    Round,
    measured_curvature,
    moved,
    mse_curvature,
    refine,
)
from lvqcodec.quantizer import RDO_LAMBDA
from lvqcodec.stream import Original, Source, Tile, assemble, cut, write
from lvqcodec.synthesis import Synthesis
from lvqcodec.tiling import Window

ROUNDS = (0, 1, 1, 2, 4, 8, 16, 32, 64, 96)
"""Rounds of every effort of `config.EFFORTS`; that of effort 1 looks at the distortion alone.

The last would double too, but for that it is to end within three minutes for 0.4 megapixels.
"""

_FEW = 4  # rounds of the longest search for which moves that hardly get shorter are better

PART = 768
"""Side of the parts, margins left out, in which tiles of more than 1.5 such are searched."""


@dataclass(frozen=True)
class Progress:
    """How far work is: share done in 0..1, and where known bpp and distortion of what it has.

    The distortion is MSE or 1 - MS-SSIM by the tune, samples in 0..1.
    """

    done: float
    bpp: float | None = None
    distortion: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Plan:
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
        return write(source, target, rdo_lambda)


PLAIN = Plan()
"""The plan of effort 0."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A file, how it was made, and what it is worth.

    y_hat: its latents (1, h * w, C) if it is one tile, else None: they would take much memory.
    """

    plan: Plan
    data: bytes
    y_hat: Tensor | None
    mse: float
    loss: float

    @property
    def psnr(self) -> float:
        """PSNR of the decoded picture in dB."""
        return metrics.psnr_of_mse(self.mse)


def encode_plan(original: Original, plan: Plan) -> Candidate:
    """Write a plan and weigh the file: the bytes as they are, the picture as it decodes."""
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
            assert similarity is not None  # `stream.prepare` has seen to the sizes
            distorted += (1 - similarity) * image.size / original.image.size

    synthesis = Synthesis(header, original.loaded, original.tiling, weigh)
    for source in original.sources():
        tile = plan.write(source)
        payloads.append(tile.payload)
        synthesis.add(source.index, tile.y_hat)
    data = assemble(original, payloads)
    error = squared / original.image.size
    loss = metrics.bpp(len(data), header.width, header.height) + original.weight * distorted
    return Candidate(plan, data, tile.y_hat if len(payloads) == 1 else None, error, loss)


def search(
    original: Original, effort: int, *, deadline: float = float("inf"), report: Report | None = None
) -> Candidate:
    """Return the best file that an effort of EFFORTS finds before `deadline` (time.monotonic)."""
    start = time.monotonic()
    first = encode_plan(original, PLAIN)
    if effort == 0:
        return first
    last_call = deadline - 1.2 * (time.monotonic() - start)  # the time that a file takes
    if time.monotonic() >= last_call:
        return first
    # of what inference made, autograd takes only copies
    with torch.inference_mode(False), torch.enable_grad():
        refined = _Refinery(original, last_call, report).run(effort, first.y_hat)
    return min(first, encode_plan(original, refined), key=lambda candidate: candidate.loss)


class _Refinery:
    """The search for one picture, tile by tile and part by part, with the time it has."""

    def __init__(self, original: Original, deadline: float, report: Report | None) -> None:
        self.original = original
        self.model = original.loaded.model
        self.deadline = deadline
        self.report = report
        self.quality = original.quality.clone()
        self.distortion = distortion(original.tune)
        tiles = (original.tiling[index] for index in range(len(original.tiling)))
        sizes = self.model.entropy.period, self.model.stride
        self.parts = [list(_parts(tile.grid, *sizes)) for tile in tiles]

    def run(self, effort: int, y_hat: Tensor | None) -> Plan:
        """Return what to write, given the latents of effort 0 if they are at hand."""
        single = len(self.parts) == 1
        needed = effort == 1 or self.original.tune != "psnr"  # for a move, or the curvature
        moves, lambdas = [], []
        for source in self.original.sources():
            coded = write(source).y_hat if needed and y_hat is None else y_hat
            target, curve = self._search(source, effort, coded)
            # those of a large picture are many: sixteen bits each are enough
            found = target - source.target, 2 / curve
            move, rdo_lambda = found if single else (part.half() for part in found)
            moves.append(move)
            lambdas.append(rdo_lambda)
        return Plan(moves, lambdas)

    def _search(self, source: Source, effort: int, y_hat: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the target (1, h * w, C) found for a tile, and its curvature (1 or h * w, C).

        y_hat: the latents of effort 0, None where they are not looked at.
        """
        target = source.target.clone()
        whole = torch.unflatten(target, 1, source.grid)
        curves = torch.empty_like(whole)
        before = sum(len(parts) for parts in self.parts[: source.index])
        count = sum(len(parts) for parts in self.parts)
        for index, (core, part) in enumerate(self.parts[source.index], before):
            now = time.monotonic()
            self.until = now + (self.deadline - now) / (count - index)
            start, cost = cut(source.target.clone(), source.grid, part), self._cost(source, part)
            coded = start if y_hat is None else cut(y_hat.clone(), source.grid, part)
            curve = self._curve(coded, part, cost)
            self.place = index, count
            if effort == 1:
                found = self._correct(start, coded, cost, curve)
            else:
                found = self._refine(start, part, cost, curve, ROUNDS[effort])
            inner = core.seen_from(part)
            for everywhere, here in ((whole, found), (curves, curve.expand_as(found))):
                piece = torch.unflatten(cut(here, part.grid, inner), 1, core.grid)
                everywhere[:, core.rows, core.columns] = piece
        return target, curve if len(curve) == 1 else curves.flatten(0, 2)

    def _curve(self, y_hat: Tensor, part: Window, cost: Cost) -> Tensor:
        """Second derivative of the cost by each latent, (1 or h * w, C)."""
        if self.original.tune == "psnr":
            return mse_curvature(self.model, self.quality, self.original.weight)
        return measured_curvature(cost, y_hat, part.grid)

    def _correct(self, target: Tensor, y_hat: Tensor, cost: Cost, curve: Tensor) -> Tensor:
        """One move by the gradient of the distortion alone, which is cheap."""
        y_hat = y_hat.requires_grad_()
        (gradient,) = torch.autograd.grad(cost(y_hat), y_hat)
        return moved(target, y_hat.detach(), gradient, curve, LONG[0])

    def _refine(
        self, target: Tensor, part: Window, cost: Cost, curve: Tensor, rounds: int
    ) -> Tensor:
        """Move `rounds` times or until time is up; return the best target."""
        start = time.monotonic()
        number = 0

        def progress() -> float:
            spent = (time.monotonic() - start) / max(self.until - start, 1e-9)
            return min(max(number / max(rounds - 1, 1), spent), 1.0)

        search = refine(
            self.model,
            self.original.quantizer,
            target,
            part.grid,
            self.quality,
            cost,
            curve,
            LONG if rounds > _FEW else SHORT,
            progress,
        )
        best: Round | None = None
        for number, found in enumerate(search):
            if best is None or found.loss < best.loss:
                best = found
            now = time.monotonic()
            self._tell(best, part, min(number / rounds, 1.0))
            if number == rounds or now + (now - start) / (number + 1) > self.until:
                break
        assert best is not None
        return best.target

    def _cost(self, source: Source, part: Window) -> Cost:
        """What the decoded pixels of a part cost in bits, those beyond the edges left out."""
        header = self.original.header
        origin = source.core.seen_from(source.around)
        place = part.shifted(origin)
        # beyond the tile, what the analysis found stands for what the neighbours will be
        ends = zip(part, source.grid, place, source.around.grid, strict=True)
        outer = Window(
            *(
                slice(p.start if s.start else 0, p.stop if s.stop < size else end)
                for s, size, p, end in ends
            )
        )
        inside = place.seen_from(outer)
        background = cut(source.surroundings.clone(), source.around.grid, outer)
        stride = self.model.stride
        shown = part.shifted(source.core).pixels(header.height, header.width, stride)
        height, width = shown.grid
        weight = self.original.weight * height * width

        def seen(x: Tensor) -> Tensor:
            x = x[..., :height, :width]
            return x.mean(1, keepdim=True) if header.channels == 1 else x

        x = seen(
            source.x[..., *place.pixels(source.x.shape[-2], source.x.shape[-1], stride)].clone()
        )

        def cost(y_hat: Tensor) -> Tensor:
            if outer != place:
                canvas = torch.unflatten(background.clone(), 1, outer.grid)
                canvas[:, inside.rows, inside.columns] = torch.unflatten(y_hat, 1, part.grid)
                y_hat = canvas.flatten(1, 2)
            x_hat = self.model.synthesis(y_hat, outer.grid, self.quality)
            x_hat = x_hat[..., *inside.pixels(x_hat.shape[-2], x_hat.shape[-1], stride)]
            spent: Tensor = weight * self.distortion(seen(x_hat.clamp(0, 1)), x).sum()
            return spent

        return cost

    def _tell(self, best: Round, part: Window, done: float) -> None:
        """Report on the part at hand."""
        if self.report is None:
            return
        height, width = part.grid
        pixels = height * width * self.model.stride**2
        index, count = self.place
        distorted = best.cost / (self.original.weight * pixels)
        self.report(Progress((index + done) / count, best.bits / pixels, distorted))


def _parts(grid: tuple[int, int], period: int, stride: int) -> Iterator[tuple[Window, Window]]:
    """Cut a tile into cores, each with the part of the tile around it that is looked at.

    Parts begin at multiples of `period`, where the order of coding repeats itself, and reach as far
    beyond their cores as the networks see much.
    """
    height, width = grid
    side = PART // stride // period * period
    everything = Window(slice(0, height), slice(0, width))
    if 2 * height * width <= 3 * side * side:
        yield everything, everything
        return
    for top in range(0, height, side):
        for left in range(0, width, side):
            core = Window(slice(top, top + side), slice(left, left + side)).common(everything)
            yield core, core.grown(period, grid)

# SPDX-License-Identifier: Apache-2.0
"""How long to search for the latents of a picture, and whether what was found is worth writing.

Efforts above 0 spend time on `overfit.refine`, part by part where a picture is large, and keep the
result only if the file is better: bpp + lmbda * 255^2 * MSE, of the bytes as they are and of the
picture as it decodes.
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
from lvqcodec.overfit import FIRST_MOVE, Cost, Round, curvature, moved, refine
from lvqcodec.stream import Picture, Source, assemble, cut, write
from lvqcodec.synthesis import Synthesis
from lvqcodec.tiling import STRIDE, Window

ROUNDS = (0, 1, 1, 2, 4, 8, 16, 32, 64, 128)
"""Rounds of every effort; that of effort 1 looks at the distortion alone."""

MAX_EFFORT = len(ROUNDS) - 1

PART = 768
"""Side of the parts, margins left out, in which tiles of more than 1.5 such are searched."""


@dataclass(frozen=True)
class Progress:
    """How far work is: share done in 0..1, and where known bpp and PSNR in dB of what it has."""

    done: float
    bpp: float | None = None
    psnr: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to write, tile by tile: how far the targets (1, h * w, C) are from the analysis.

    None: nowhere. rdo_lambda: (C,), or None for the quantizer's.
    """

    moves: Sequence[Tensor] | None
    rdo_lambda: Tensor | None

    def target(self, source: Source) -> Tensor:
        """The target of a tile."""
        return source.target if self.moves is None else source.target + self.moves[source.index]


PLAIN = Plan(None, None)
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


def encode_plan(picture: Picture, plan: Plan) -> Candidate:
    """Write a plan and weigh the file: the bytes as they are, the picture as it decodes."""
    header, squared, payloads = picture.header, 0, []

    def weigh(pixels: Window, decoded: NDArray[np.uint8]) -> None:
        nonlocal squared
        squared += metrics.squared_error(picture.image[pixels], decoded)

    synthesis = Synthesis(header, picture.loaded, picture.tiling, weigh)
    for source in picture.sources():
        tile = write(source, plan.target(source), plan.rdo_lambda)
        payloads.append(tile.payload)
        synthesis.add(source.index, tile.y_hat)
    data = assemble(picture, payloads)
    error = squared / picture.image.size
    loss = metrics.bpp(len(data), header.width, header.height) + picture.lmbda * error
    return Candidate(plan, data, tile.y_hat if len(payloads) == 1 else None, error, loss)


def search(
    picture: Picture, effort: int, *, deadline: float = float("inf"), report: Report | None = None
) -> Candidate:
    """Return the best file that an effort of 0..9 finds before `deadline` (time.monotonic)."""
    start = time.monotonic()
    first = encode_plan(picture, PLAIN)
    if effort == 0:
        return first
    last_call = deadline - 1.2 * (time.monotonic() - start)  # the time that a file takes
    if time.monotonic() >= last_call:
        return first
    # of what inference made, autograd takes only copies
    with torch.inference_mode(False), torch.enable_grad():
        refined = _Refinery(picture, last_call, report).run(effort, first.y_hat)
    return min(first, encode_plan(picture, refined), key=lambda candidate: candidate.loss)


class _Refinery:
    """The search for one picture, tile by tile and part by part, with the time it has."""

    def __init__(self, picture: Picture, deadline: float, report: Report | None) -> None:
        self.picture = picture
        self.model = picture.loaded.model
        self.deadline = deadline
        self.report = report
        self.quality = picture.quality.clone()
        self.weight = 255**2 * picture.lmbda
        self.curve = curvature(self.model, self.quality, self.weight)
        tiles = (picture.tiling[index] for index in range(len(picture.tiling)))
        self.parts = [list(_parts(tile.grid, self.model.entropy.period)) for tile in tiles]

    def run(self, effort: int, y_hat: Tensor | None) -> Plan:
        """Return what to write, given the latents of effort 0 if they are at hand."""
        single = len(self.parts) == 1
        moves = []
        for source in self.picture.sources():
            coded = write(source).y_hat if effort == 1 and y_hat is None else y_hat
            move = self._search(source, effort, coded) - source.target
            # moves are small, and those of a large picture many: sixteen bits each are enough
            moves.append(move if single else move.half())
        return Plan(moves, 2 / self.curve)

    def _search(self, source: Source, effort: int, y_hat: Tensor | None) -> Tensor:
        """Return the target (1, h * w, C) that is found for a tile."""
        target = source.target.clone()
        whole = torch.unflatten(target, 1, source.grid)
        before = sum(len(parts) for parts in self.parts[: source.index])
        count = sum(len(parts) for parts in self.parts)
        for index, (core, part) in enumerate(self.parts[source.index], before):
            now = time.monotonic()
            self.until = now + (self.deadline - now) / (count - index)
            start, cost = cut(source.target.clone(), source.grid, part), self._cost(source, part)
            self.place = index, count
            if effort == 1:
                assert y_hat is not None
                found = self._correct(start, cut(y_hat.clone(), source.grid, part), cost)
            else:
                found = self._refine(start, part, cost, ROUNDS[effort])
            inner = cut(found, part.grid, core.seen_from(part))
            whole[:, core.rows, core.columns] = torch.unflatten(inner, 1, core.grid)
        return target

    def _correct(self, target: Tensor, y_hat: Tensor, cost: Cost) -> Tensor:
        """One move by the gradient of the distortion alone, which is cheap."""
        y_hat = y_hat.requires_grad_()
        (gradient,) = torch.autograd.grad(cost(y_hat), y_hat)
        return moved(target, y_hat.detach(), gradient, self.curve, FIRST_MOVE)

    def _refine(self, target: Tensor, part: Window, cost: Cost, rounds: int) -> Tensor:
        """Move `rounds` times or until time is up; return the best target."""
        start = time.monotonic()
        number = 0

        def progress() -> float:
            spent = (time.monotonic() - start) / max(self.until - start, 1e-9)
            return min(max(number / max(rounds - 1, 1), spent), 1.0)

        search = refine(
            self.model,
            self.picture.quantizer,
            target,
            part.grid,
            self.quality,
            cost,
            self.curve,
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
        """What the decoded pixels of a part cost, those beyond the picture's edges left out."""
        header = self.picture.header
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
        x = source.x[..., *place.pixels(*source.x.shape[-2:])].clone()
        visible = part.shifted(source.core).pixels(header.height, header.width).grid
        grey = header.channels == 1

        def cost(y_hat: Tensor) -> Tensor:
            if outer != place:
                canvas = torch.unflatten(background.clone(), 1, outer.grid)
                canvas[:, inside.rows, inside.columns] = torch.unflatten(y_hat, 1, part.grid)
                y_hat = canvas.flatten(1, 2)
            x_hat = self.model.synthesis(y_hat, outer.grid, self.quality)
            x_hat = x_hat[..., *inside.pixels(*x_hat.shape[-2:])]
            error = (x_hat.clamp(0, 1) - x)[..., : visible[0], : visible[1]]
            if grey:
                error = error.mean(1)
            squared: Tensor = error.square().sum()
            return squared * (self.weight / (1 if grey else 3))

        return cost

    def _tell(self, best: Round, part: Window, done: float) -> None:
        """Report on the part at hand."""
        if self.report is None:
            return
        height, width = part.grid
        pixels = height * width * self.model.stride**2
        error = 255**2 * best.cost / (self.weight * pixels)
        index, count = self.place
        psnr = metrics.psnr_of_mse(error)
        self.report(Progress((index + done) / count, best.bits / pixels, psnr))


def _parts(grid: tuple[int, int], period: int) -> Iterator[tuple[Window, Window]]:
    """Cut a tile into cores, each with the part of the tile around it that is looked at.

    Parts begin at multiples of `period`, where the order of coding repeats itself, and reach as far
    beyond their cores as the networks see much.
    """
    height, width = grid
    side = PART // STRIDE // period * period
    everything = Window(slice(0, height), slice(0, width))
    if 2 * height * width <= 3 * side * side:
        yield everything, everything
        return
    for top in range(0, height, side):
        for left in range(0, width, side):
            core = Window(slice(top, top + side), slice(left, left + side)).common(everything)
            yield core, core.grown(period, grid)

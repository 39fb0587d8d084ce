# SPDX-License-Identifier: Apache-2.0
"""How long to search for the latents of a picture, and whether what was found is worth writing.

Efforts above 0 spend time on `overfit.refine`, tile by tile where a picture is large, and keep the
result only if the file is better: bpp + lmbda * 255^2 * MSE, of the bytes as they are and of the
picture as it decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lvqcodec import metrics
from lvqcodec.overfit import FIRST_MOVE, Cost, Round, curvature, moved, refine
from lvqcodec.stream import Encoded, Source, reconstruct, write

ROUNDS = (0, 1, 1, 2, 4, 8, 16, 32, 64, 128)
"""Rounds of every effort; that of effort 1 looks at the distortion alone."""

MAX_EFFORT = len(ROUNDS) - 1

TILE = 768
"""Side of the tiles, margins left out, in which pictures of more than 1.5 such are searched."""


@dataclass(frozen=True)
class Progress:
    """How far a search is: share done in 0..1, bpp and PSNR in dB of the best so far."""

    done: float
    bpp: float
    psnr: float


Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to write: a target (1, h * w, C), with rdo_lambda (C,) or None for the quantizer's."""

    target: Tensor
    rdo_lambda: Tensor | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A file, how it was made, and what it is worth."""

    plan: Plan
    encoded: Encoded
    mse: float
    loss: float

    @property
    def psnr(self) -> float:
        """PSNR of the decoded picture in dB."""
        return metrics.psnr_of_mse(self.mse)


def encode_plan(source: Source, plan: Plan) -> Candidate:
    """Write a plan and weigh the file: the bytes as they are, the picture as it decodes."""
    encoded = write(source, plan.target, plan.rdo_lambda)
    picture = reconstruct(source.header, source.loaded, encoded.y_hat)
    error = metrics.mse(source.image, picture)
    bpp = metrics.bpp(len(encoded.data), source.header.width, source.header.height)
    return Candidate(plan, encoded, error, bpp + source.lmbda * error)


def plain(source: Source) -> Plan:
    """The plan of effort 0."""
    return Plan(source.target, None)


def search(
    source: Source, effort: int, *, deadline: float = float("inf"), report: Report | None = None
) -> Candidate:
    """Return the best file that an effort of 0..9 finds before `deadline` (time.monotonic)."""
    start = time.monotonic()
    first = encode_plan(source, plain(source))
    if effort == 0:
        return first
    last_call = deadline - 1.2 * (time.monotonic() - start)  # the time that a file takes
    if time.monotonic() >= last_call:
        return first
    # of what inference made, autograd takes only copies
    with torch.inference_mode(False), torch.enable_grad():
        refined = _Refinery(source, last_call, report).run(effort, first.encoded.y_hat.clone())
    return min(first, encode_plan(source, refined), key=lambda candidate: candidate.loss)


class _Window(NamedTuple):
    """Rows and columns of latent positions."""

    rows: slice
    columns: slice

    def cut(self, y: Tensor, grid: tuple[int, int]) -> Tensor:
        """The window's part of latents (1, h * w, C)."""
        whole = torch.unflatten(y, 1, grid)
        return whole[:, self.rows, self.columns].flatten(1, 2)

    def seen_from(self, outer: _Window) -> _Window:
        """The same positions, counted from the first ones of another window."""
        pairs = zip(self, outer, strict=True)
        return _Window(*(slice(s.start - o.start, s.stop - o.start) for s, o in pairs))

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class _Refinery:
    """The search for one picture, tile by tile, with the time it has."""

    def __init__(self, source: Source, deadline: float, report: Report | None) -> None:
        self.source = source
        self.model = source.loaded.model
        self.deadline = deadline
        self.report = report
        self.quality = source.quality.clone()
        self.weight = 255**2 * source.lmbda
        self.curve = curvature(self.model, self.quality, self.weight)

    def run(self, effort: int, y_hat: Tensor) -> Plan:
        """Return what to write, given the latents (1, h * w, C) of effort 0."""
        source = self.source
        target = source.target.clone()
        whole = torch.unflatten(target, 1, source.grid)
        tiles = list(_tiles(source.grid, self.model.stride, self.model.entropy.period))
        for index, (core, tile) in enumerate(tiles):
            now = time.monotonic()
            self.until = now + (self.deadline - now) / (len(tiles) - index)
            start, cost = tile.cut(source.target.clone(), source.grid), self._cost(tile)
            self.place = index, len(tiles)
            if effort == 1:
                found = self._correct(start, tile.cut(y_hat, source.grid), tile, cost)
            else:
                found = self._refine(start, tile, cost, ROUNDS[effort])
            inner = core.seen_from(tile).cut(found, tile.grid)
            whole[:, core.rows, core.columns] = torch.unflatten(inner, 1, core.grid)
        return Plan(target, 2 / self.curve)

    def _correct(self, target: Tensor, y_hat: Tensor, tile: _Window, cost: Cost) -> Tensor:
        """One move by the gradient of the distortion alone, which is cheap."""
        y_hat = y_hat.requires_grad_()
        spent = cost(self.model.synthesis(y_hat, tile.grid, self.quality))
        (gradient,) = torch.autograd.grad(spent, y_hat)
        return moved(target, y_hat.detach(), gradient, self.curve, FIRST_MOVE)

    def _refine(self, target: Tensor, tile: _Window, cost: Cost, rounds: int) -> Tensor:
        """Move `rounds` times or until time is up; return the best target."""
        start = time.monotonic()
        number = 0

        def progress() -> float:
            spent = (time.monotonic() - start) / max(self.until - start, 1e-9)
            return min(max(number / max(rounds - 1, 1), spent), 1.0)

        search = refine(
            self.model,
            self.source.quantizer,
            target,
            tile.grid,
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
            self._tell(best, tile, min(number / rounds, 1.0))
            if number == rounds or now + (now - start) / (number + 1) > self.until:
                break
        assert best is not None
        return best.target

    def _cost(self, tile: _Window) -> Cost:
        """What the decoded pixels of a tile cost, those beyond the picture's edges left out."""
        source, stride = self.source, self.model.stride
        rows, columns = (slice(part.start * stride, part.stop * stride) for part in tile)
        x = source.x[..., rows, columns].clone()
        height = min(rows.stop, source.header.height) - rows.start
        width = min(columns.stop, source.header.width) - columns.start
        grey = source.header.channels == 1

        def cost(x_hat: Tensor) -> Tensor:
            error = (x_hat.clamp(0, 1) - x)[..., :height, :width]
            if grey:
                error = error.mean(1)
            squared: Tensor = error.square().sum()
            return squared * (self.weight / (1 if grey else 3))

        return cost

    def _tell(self, best: Round, tile: _Window, done: float) -> None:
        """Report on the tile at hand."""
        if self.report is None:
            return
        height, width = tile.grid
        pixels = height * width * self.model.stride**2
        error = 255**2 * best.cost / (self.weight * pixels)
        index, count = self.place
        psnr = metrics.psnr_of_mse(error)
        self.report(Progress((index + done) / count, best.bits / pixels, psnr))


def _tiles(grid: tuple[int, int], stride: int, period: int) -> Iterator[tuple[_Window, _Window]]:
    """Cut a grid into cores, each with the tile around it that is looked at.

    Tiles begin at multiples of `period`, where the order of coding repeats itself, and reach as far
    beyond their cores as the networks see much.
    """
    height, width = grid
    side = TILE // stride // period * period
    if 2 * height * width <= 3 * side * side:
        everything = _Window(slice(0, height), slice(0, width))
        yield everything, everything
        return
    for top in range(0, height, side):
        for left in range(0, width, side):
            cores, around = [], []
            for begin, size in ((top, height), (left, width)):
                end = min(begin + side, size)
                cores.append(slice(begin, end))
                around.append(slice(max(begin - period, 0), min(end + period, size)))
            yield _Window(*cores), _Window(*around)

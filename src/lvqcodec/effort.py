# SPDX-License-Identifier: Apache-2.0
"""How long to search for the latents of a picture, and whether what was found is worth writing.

Efforts above 0 spend time on `overfit.refine`, tile by tile where a picture is large, and keep the
result only if the file is better: bpp + weight * distortion, of the bytes as they are and of the
picture as it decodes. The distortion is the mean squared error, or with the tune "ms-ssim" 1 -
MS-SSIM, and then the quantizer spends less where the picture is busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lvqcodec import metrics
from lvqcodec.distortion import distortion
from lvqcodec.overfit import (
    FIRST_MOVE,
    Cost,
    Round,
    measured_curvature,
    moved,
    mse_curvature,
    refine,
)
from lvqcodec.stream import Encoded, Source, reconstruct, write

ROUNDS = (0, 1, 1, 2, 4, 8, 16, 32, 64, 128)
"""Rounds of every effort; that of effort 1 looks at the distortion alone."""

MAX_EFFORT = len(ROUNDS) - 1

TILE = 768
"""Side of the tiles, margins left out, in which pictures of more than 1.5 such are searched."""


@dataclass(frozen=True)
class Progress:
    """How far a search is: share done in 0..1, bpp and distortion of the best so far.

    The distortion is MSE or 1 - MS-SSIM by the tune, samples in 0..1.
    """

    done: float
    bpp: float
    distortion: float


Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to write: a target (1, h * w, C) rdo_lambda (1 or h * w, C), None for the usual."""

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
    distorted = error / 255**2
    if source.tune == "ms-ssim":
        similarity = metrics.ms_ssim(source.image, picture)
        assert similarity is not None  # `stream.check` has seen to the size
        distorted = 1 - similarity
    return Candidate(plan, encoded, error, bpp + source.weight * distorted)


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
        self.distortion = distortion(source.tune)

    def run(self, effort: int, y_hat: Tensor) -> Plan:
        """Return what to write, given the latents (1, h * w, C) of effort 0."""
        source = self.source
        target = source.target.clone()
        whole = torch.unflatten(target, 1, source.grid)
        curves = torch.empty_like(whole)
        tiles = list(_tiles(source.grid, self.model.stride, self.model.entropy.period))
        for index, (core, tile) in enumerate(tiles):
            now = time.monotonic()
            self.until = now + (self.deadline - now) / (len(tiles) - index)
            begin, cost = tile.cut(source.target.clone(), source.grid), self._cost(tile)
            coded = tile.cut(y_hat, source.grid)
            curve = self._curve(coded, tile, cost)
            self.place = index, len(tiles)
            if effort == 1:
                found = self._correct(begin, coded, tile, cost, curve)
            else:
                found = self._refine(begin, tile, cost, curve, ROUNDS[effort])
            inner = core.seen_from(tile)
            for everywhere, here in ((whole, found), (curves, curve.expand_as(found))):
                part = torch.unflatten(inner.cut(here, tile.grid), 1, core.grid)
                everywhere[:, core.rows, core.columns] = part
        return Plan(target, 2 / curves.flatten(0, 2))

    def _curve(self, y_hat: Tensor, tile: _Window, cost: Cost) -> Tensor:
        """Second derivative of the cost by each latent, (1 or h * w, C)."""
        if self.source.tune == "psnr":
            return mse_curvature(self.model, self.quality, self.source.weight)
        return measured_curvature(self.model, self.quality, cost, y_hat, tile.grid)

    def _correct(
        self, target: Tensor, y_hat: Tensor, tile: _Window, cost: Cost, curve: Tensor
    ) -> Tensor:
        """One move by the gradient of the distortion alone, which is cheap."""
        y_hat = y_hat.requires_grad_()
        spent = cost(self.model.synthesis(y_hat, tile.grid, self.quality))
        (gradient,) = torch.autograd.grad(spent, y_hat)
        return moved(target, y_hat.detach(), gradient, curve, FIRST_MOVE)

    def _refine(
        self, target: Tensor, tile: _Window, cost: Cost, curve: Tensor, rounds: int
    ) -> Tensor:
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
            curve,
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
        """What the decoded pixels of a tile cost in bits, those beyond the edges left out."""
        source, stride = self.source, self.model.stride
        rows, columns = (slice(part.start * stride, part.stop * stride) for part in tile)
        height = min(rows.stop, source.header.height) - rows.start
        width = min(columns.stop, source.header.width) - columns.start
        weight = source.weight * height * width

        def seen(x: Tensor) -> Tensor:
            x = x[..., :height, :width]
            return x.mean(1, keepdim=True) if source.header.channels == 1 else x

        x = seen(source.x[..., rows, columns].clone())
        return lambda x_hat: weight * self.distortion(seen(x_hat.clamp(0, 1)), x).sum()

    def _tell(self, best: Round, tile: _Window, done: float) -> None:
        """Report on the tile at hand."""
        if self.report is None:
            return
        height, width = tile.grid
        pixels = height * width * self.model.stride**2
        index, count = self.place
        distorted = best.cost / (self.source.weight * pixels)
        self.report(Progress((index + done) / count, best.bits / pixels, distorted))


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

# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: as a table to read, as JSON, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Curve = tuple[Sequence[float], Sequence[float]]  # bpp, dB
Anchors = dict[str, dict[str, Any]]

WIDTH = 100  # of the printed tables
CELL = 8
NONE = "- "
SHORT = 3.0  # dB; a BD-rate over less says little about the curves


@dataclass(frozen=True)
class Point:
    """One picture at one quality of one curve, or (picture None) that quality over all pictures.

    Over all pictures: means, but the median of the seconds, and no size. psnr in dB; ms_ssim is
    None where the picture is too small to have one.
    """

    curve: str
    quality: int
    picture: str | None
    num_bytes: int | None
    width: int | None
    height: int | None
    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float


@dataclass(frozen=True)
class BdRate:
    """Rate of `curve` over `anchor` in percent at equal PSNR, and at equal MS-SSIM in dB.

    Each is taken over the range in dB that both cover. None if they share no range, do not rise
    with the rate, or have no MS-SSIM.
    """

    curve: str
    anchor: str
    percent: float | None
    psnr_range: tuple[float, float] | None
    ms_ssim_percent: float | None
    ms_ssim_range: tuple[float, float] | None

    def __str__(self) -> str:
        if self.percent is None or self.psnr_range is None:
            text = "none: no common PSNR range, or PSNR does not rise with rate"
        else:
            low, high = self.psnr_range
            text = f"{self.percent:+8.2f} % over {low:.1f}-{high:.1f} dB"
        at_ms_ssim = self.ms_ssim_percent
        return text if at_ms_ssim is None else f"{text}; at equal MS-SSIM {at_ms_ssim:+.2f} %"


@dataclass(frozen=True)
class Ranking:
    """The pictures on which `curve` does worst, and best, from the extreme inwards.

    In % as BD-rate over the curve `against`; or in dB as PSNR over that of the mean curve at equal
    bpp, averaged over log bpp. `unranked` pictures have no such figure.
    """

    curve: str
    against: str
    unit: str
    worst: list[tuple[str, float]]
    best: list[tuple[str, float]]
    unranked: int


@dataclass(frozen=True)
class Memory:
    """Peak resident sets in bytes of one curve at one picture (see `memory.peak_memory`)."""

    curve: str
    quality: int
    picture: str
    encode_bytes: int
    decode_bytes: int


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation and its settings.

    `curves` says what was measured for each: {"model", "lattice"} of ours, or {"format",
    "settings", "qualities", "library"} of another codec. `anchors` were read, not measured.
    """

    command: str
    machine: dict[str, Any]
    curves: dict[str, dict[str, Any]]
    pictures: list[Point]
    points: list[Point]
    bd_rates: list[BdRate]
    anchors: Anchors
    ranking: Ranking | None
    memory: list[Memory]

    def table(self) -> str:
        """Points, BD-rates and the best and worst pictures, as lines of text."""
        machine = self.machine
        lines = [
            f"{len({point.picture for point in self.pictures})} pictures, "
            f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads"
        ]
        for curve in self.curves:
            lines += ["", *self._points(curve)]
        if len(self.curves) == 1:
            lines += [f"BD-rate against {rate.anchor:<24} {rate}" for rate in self.bd_rates]
        else:
            lines += self._matrix("PSNR", lambda rate: (rate.percent, rate.psnr_range))
            lines += self._matrix(
                "MS-SSIM", lambda rate: (rate.ms_ssim_percent, rate.ms_ssim_range)
            )
        return "\n".join(lines + self._ranking())

    def to_json(self) -> dict[str, Any]:
        """Everything in the report as plain JSON values (a PSNR of infinity becomes null)."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def to_csv(self) -> str:
        """A line for each picture, curve and quality, below a line of names."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        columns = ["picture", "curve", "quality", "num_bytes", "width", "height", "bpp", "psnr"]
        columns += ["ms_ssim", "encode_s", "decode_s"]
        rows.writerow(["bytes" if column == "num_bytes" else column for column in columns])
        rows.writerows([getattr(point, column) for column in columns] for point in self.pictures)
        return text.getvalue()

    def plot(self, path: str | os.PathLike[str], measure: str = "psnr") -> None:
        """Draw all curves over bpp in "psnr" or "ms-ssim", and write a .png, .svg or .pdf."""
        from lvqcodec.evaluation import plotting

        plotting.draw(self, path, measure)

    def _points(self, curve: str) -> list[str]:
        lines = [f"{curve:<20} bpp  PSNR dB  MS-SSIM  encode s  decode s"]
        for p in self.points:
            if p.curve == curve:
                similar = "-" if p.ms_ssim is None else f"{p.ms_ssim:.5f}"
                lines.append(
                    f"quality {p.quality:>3} {p.bpp:>12.4f} {p.psnr:>8.3f} {similar:>8} "
                    f"{p.encode_s:>9.3f} {p.decode_s:>9.3f}"
                )
        return lines + [
            f"peak memory for {peak.picture}: {peak.encode_bytes / 2**20:.0f} MiB to encode, "
            f"{peak.decode_bytes / 2**20:.0f} MiB to decode"
            for peak in self.memory
            if peak.curve == curve
        ]

    def _matrix(
        self,
        measure: str,
        value: Callable[[BdRate], tuple[float | None, tuple[float, float] | None]],
    ) -> list[str]:
        """BD-rates of the curves (columns) over curves and anchors (rows)."""
        cells = {(rate.anchor, rate.curve): _cell(*value(rate)) for rate in self.bd_rates}
        rows = {name: f"{number} {name}" for number, name in enumerate(self.curves, 1)}
        rows |= {name: name for name in self.anchors}
        shown = [
            name for name in rows if any(cells.get((name, c), NONE) != NONE for c in self.curves)
        ]
        if not shown:
            return []
        missing = ", ".join(name for name in rows if name not in shown)
        wide = max(len(rows[name]) for name in shown)
        lines = [
            "",
            f"BD-rate at equal {measure} in %: of the column's curve over the row's"
            f" (~ over less than {SHORT:g} dB)",
        ]
        curves, fit = list(self.curves), max(1, (WIDTH - wide) // CELL)
        for start in range(0, len(curves), fit):
            block = curves[start : start + fit]
            numbers = "".join(f"{start + at:>{CELL - 1}} " for at in range(1, len(block) + 1))
            lines.append(" " * wide + numbers)
            for name in shown:
                row = "".join(f"{cells.get((name, curve), '. '):>{CELL}}" for curve in block)
                lines.append(f"{rows[name]:<{wide}}{row}")
        lines += textwrap.wrap(f"no BD-rate over {missing}", WIDTH) if missing else []
        return [line.rstrip() for line in lines]

    def _ranking(self) -> list[str]:
        rank = self.ranking
        if rank is None:
            return []
        what = "BD-rate" if rank.unit == "%" else "PSNR at equal bpp"
        left = f", {rank.unranked} pictures without one" if rank.unranked else ""
        lines = ["", f"{what} of {rank.curve} over {rank.against}, picture by picture{left}"]
        for kind, found in (("worst", rank.worst), ("best", rank.best)):
            lines += [f"{kind:<6}{name:<24} {value:+8.2f} {rank.unit}" for name, value in found]
        return lines


def rd_curves(points: Sequence[Point], measure: str = "psnr") -> dict[str, Curve]:
    """bpp and dB of every curve among `points`; for "ms-ssim" only where all have it."""
    curves: dict[str, Curve] = {}
    for name in dict.fromkeys(point.curve for point in points):
        own = [point for point in points if point.curve == name]
        similar = [point.ms_ssim for point in own if point.ms_ssim is not None]
        bpp = [point.bpp for point in own]
        if measure == "psnr":
            curves[name] = (bpp, [point.psnr for point in own])
        elif len(similar) == len(own):
            curves[name] = (bpp, [ms_ssim_db(value) for value in similar])
    return curves


def anchor_curves(anchors: Anchors, measure: str = "psnr") -> dict[str, Curve]:
    """bpp and dB of every anchor; for "ms-ssim" only of those that have it."""
    if measure == "psnr":
        return {name: (anchor["bpp"], anchor["psnr"]) for name, anchor in anchors.items()}
    return {
        name: (anchor["bpp"], [ms_ssim_db(value) for value in anchor["ms_ssim"]])
        for name, anchor in anchors.items()
        if anchor.get("ms_ssim")
    }


def ms_ssim_db(ms_ssim: float) -> float:
    """-10 log10(1 - MS-SSIM), the scale that published curves use; inf for 1."""
    return -10 * math.log10(1 - ms_ssim) if ms_ssim < 1 else math.inf


def _cell(percent: float | None, common: tuple[float, float] | None) -> str:
    if percent is None or common is None:
        return NONE
    return f"{percent:+.1f}{'~' if common[1] - common[0] < SHORT else ' '}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures to rate-distortion points, BD-rates and times, through real files.

Every picture is encoded, written, read back and decoded at every quality. bpp is the size on disk;
bpp, PSNR and MS-SSIM of a quality are means over the pictures, as published curves are made.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import torch

from lvqcodec import __version__, codec, imageio, metrics
from lvqcodec.errors import UsageError

SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PACKAGES = ("torch", "numpy", "constriction", "pillow", "bjontegaard", "pytorch-msssim")
Curve = tuple[Sequence[float], Sequence[float]]  # bpp, PSNR


@dataclass(frozen=True)
class Point:
    """One picture at one quality of one curve, or (picture None) that quality over all pictures.

    Over all pictures: means, but the median of the seconds. psnr in dB; ms_ssim is None where the
    picture is too small to have one.
    """

    curve: str
    quality: int
    picture: str | None
    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float


@dataclass(frozen=True)
class BdRate:
    """Rate of `curve` over `anchor` at equal PSNR, over the PSNR range (dB) that both cover."""

    curve: str
    anchor: str
    percent: float | None
    psnr_range: tuple[float, float] | None

    def __str__(self) -> str:
        if self.percent is None or self.psnr_range is None:
            return "none: no common PSNR range, or PSNR does not rise with rate"
        return f"{self.percent:+8.2f} % over {self.psnr_range[0]:.1f}-{self.psnr_range[1]:.1f} dB"


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and with what: shown by `table()`, `to_json()` and `plot(path)`."""

    command: str
    machine: dict[str, Any]
    pictures: list[Point]
    points: list[Point]
    bd_rates: list[BdRate]
    anchors: dict[str, dict[str, Any]]

    def table(self) -> str:
        """The points of every curve and its BD-rates, as lines of text."""
        machine = self.machine
        lines = [
            f"{len({point.picture for point in self.pictures})} pictures, "
            f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads"
        ]
        for curve in _curves(self.points):
            lines += ["", f"{curve:<20} bpp  PSNR dB  MS-SSIM  encode s  decode s"]
            for p in self.points:
                if p.curve == curve:
                    similar = "-" if p.ms_ssim is None else f"{p.ms_ssim:.5f}"
                    lines.append(
                        f"quality {p.quality:>3} {p.bpp:>12.4f} {p.psnr:>8.3f} {similar:>8} "
                        f"{p.encode_s:>9.3f} {p.decode_s:>9.3f}"
                    )
            lines += [
                f"BD-rate against {rate.anchor:<24} {rate}"
                for rate in self.bd_rates
                if rate.curve == curve
            ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything in the report as plain JSON values (a PSNR of infinity becomes null)."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw PSNR over bpp (log axis), ours thick, and write it to a .png, .svg or .pdf."""
        figure = metrics.extra("matplotlib.figure").Figure(figsize=(11, 6.5), layout="constrained")
        kind = Path(path).suffix[1:].lower()
        if kind not in figure.canvas.get_supported_filetypes():
            raise UsageError(f"cannot draw a plot as `{path}`: end the name in .png, .svg or .pdf")
        _draw(figure, self)
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=150)
        imageio.atomic_write(Path(path), data.getvalue())


def evaluate(
    folder: str | os.PathLike[str],
    *,
    qualities: Sequence[int],
    model: str = "baseline",
    lattice: str | None = None,
    device: str = "auto",
    anchors: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Code every picture of `folder` at every quality (0..100) and report what that took.

    `lattice` may name several ("z,e8"): one curve each, compared with the first. `anchors` is a
    JSON file {"NAME": {"bpp": [...], "psnr": [...]}, ...} of other codecs' means over the same
    pictures. `limit` takes only the first pictures by name, no longer those of the anchors then.
    `progress` is told how many files are done, of how many, and the picture at hand; by default
    stderr is, where it is a terminal.
    """
    paths, levels = list_pictures(folder, limit), sorted(set(qualities))
    if not levels or not all(0 <= level <= 100 for level in levels):
        raise UsageError(f"qualities are {list(qualities)}: give one or more from 0 to 100")
    others = _read_anchors(Path(anchors)) if anchors is not None else {}
    for package in ("pytorch_msssim", "bjontegaard"):
        metrics.extra(package)  # a missing one shows now, not after an hour of coding
    tell = progress or (_meter if sys.stderr.isatty() else lambda done, total, name: None)
    weights = codec.load_model(model, device=device)
    lattices = [name.strip() for name in lattice.split(",")] if lattice else [None]
    jobs = [
        (f"{model} {name}" if name else model, name, level)
        for name in dict.fromkeys(lattices)
        for level in levels
    ]
    pictures: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="lvq-eval-") as scratch:
        file = Path(scratch) / "picture.lvq"

        def measure(curve: str, name: str | None, level: int, path: Path, x: Any) -> Point:
            start = time.perf_counter()
            data = codec.encode(x, model=weights, quality=level, lattice=name, device=device)
            encode_s = time.perf_counter() - start
            file.write_bytes(data)
            data = file.read_bytes()
            start = time.perf_counter()
            x_hat = codec.decode(data, device=device)
            decode_s = time.perf_counter() - start
            rate = metrics.bpp(file.stat().st_size, x.shape[1], x.shape[0])
            distortion = (metrics.psnr(x, x_hat), metrics.ms_ssim(x, x_hat))
            return Point(curve, level, path.name, rate, *distortion, encode_s, decode_s)

        for path in paths:
            x = imageio.load(path)
            if path == paths[0]:
                measure(*jobs[0], path, x)  # warm-up: kernels chosen, caches filled
            for job in jobs:
                tell(len(pictures), len(paths) * len(jobs), path.name)
                pictures.append(measure(*job, path, x))
    tell(len(pictures), len(pictures), "done")
    points = [
        _mean([point for point in pictures if (point.curve, point.quality) == (curve, level)])
        for curve, _, level in jobs
    ]
    settings = {
        "qualities": ",".join(map(str, levels)),
        "model": model,
        "lattice": lattice,
        "device": device,
        "anchors": anchors,
        "limit": limit,
    }
    options = ((f"--{key}", str(value)) for key, value in settings.items() if value is not None)
    return Report(
        command=shlex.join(["lvq", "eval", str(folder), *chain(*options)]),
        machine=_machine(device),
        pictures=pictures,
        points=points,
        bd_rates=_compare(_curves(points), others),
        anchors=others,
    )


def list_pictures(folder: str | os.PathLike[str], limit: int | None = None) -> list[Path]:
    """The picture files of a folder by name, only the first `limit`; UsageError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder: give one that holds pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:limit]
    if not found:
        raise UsageError(f"no pictures in `{folder}`: put some there ({', '.join(SUFFIXES)})")
    return found


def _read_anchors(path: Path) -> dict[str, dict[str, Any]]:
    try:
        anchors = json.loads(path.read_text("utf-8"))
        for anchor in anchors.values():  # wrong lists fail here, before anything is coded
            curve = ([float(rate) for rate in anchor["bpp"]], [float(db) for db in anchor["psnr"]])
            metrics.common_range(*curve, *curve)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise UsageError(
            f"no anchors in `{path}` ({type(error).__name__}: {error}): "
            'give a JSON file {"NAME": {"bpp": [...], "psnr": [...]}, ...}'
        ) from error
    return dict(anchors)


def _mean(points: list[Point]) -> Point:
    similar = [point.ms_ssim for point in points if point.ms_ssim is not None]
    return Point(
        points[0].curve,
        points[0].quality,
        None,
        statistics.fmean(point.bpp for point in points),
        statistics.fmean(point.psnr for point in points),
        statistics.fmean(similar) if similar else None,
        statistics.median(point.encode_s for point in points),
        statistics.median(point.decode_s for point in points),
    )


def _curves(points: list[Point]) -> dict[str, Curve]:
    names = dict.fromkeys(point.curve for point in points)
    chosen = {name: [point for point in points if point.curve == name] for name in names}
    return {name: ([p.bpp for p in own], [p.psnr for p in own]) for name, own in chosen.items()}


def _compare(curves: dict[str, Curve], anchors: dict[str, dict[str, Any]]) -> list[BdRate]:
    """Every curve against the first of them and against every anchor."""
    first = next(iter(curves))
    references = {first: curves[first]}
    references |= {name: (anchor["bpp"], anchor["psnr"]) for name, anchor in anchors.items()}
    return [
        BdRate(
            curve, name, metrics.bd_rate(*reference, *own), metrics.common_range(*reference, *own)
        )
        for curve, own in curves.items()
        for name, reference in references.items()
        if name != curve
    ]


def _machine(device: str) -> dict[str, Any]:
    """What times and, by a level or two of a sample, PSNR hang on."""
    versions = {"lvqcodec": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # importable without having been installed
            continue
    try:
        named = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:  # not Linux
        named = None
    gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "system": platform.platform(),
        "versions": versions,
    }


def _draw(figure: Any, report: Report) -> None:
    """Our curves thick; the anchors thin, the strongest first in legend and colour."""
    curves, axes = _curves(report.points), figure.add_subplot()
    rates = {(rate.anchor, rate.curve): rate.percent for rate in report.bd_rates}

    def label(name: str) -> str:
        percents = [rates.get((name, curve)) for curve in curves]
        told = ", ".join("-" if value is None else f"{value:+.1f} %" for value in percents)
        return f"{name}   {told}" if any(anchor == name for anchor, _ in rates) else name

    for (name, curve), colour in zip(curves.items(), cycle(("crimson", "darkorange", "deeppink"))):
        style = {"color": colour, "linewidth": 3, "marker": "o", "zorder": 3}
        axes.plot(*curve, label=label(name), **style)
    first = next(iter(curves))
    ranked = sorted(report.anchors, key=lambda name: rates[name, first] or 0, reverse=True)
    colours = metrics.extra("matplotlib").colormaps["viridis"]
    for index, (name, dashes) in enumerate(zip(ranked, cycle(("-", "--", "-.")))):
        style = {"color": colours(0.95 * index / len(ranked)), "linestyle": dashes, "linewidth": 1}
        anchor = report.anchors[name]
        axes.plot(anchor["bpp"], anchor["psnr"], label=label(name), **style)

    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    bpp = [rate for curve in curves.values() for rate in curve[0]]
    psnr = [db for curve in curves.values() for db in curve[1] if math.isfinite(db)]
    axes.set_xlim(min(bpp) / 1.4, max(bpp) * 1.4)
    axes.set_ylim(min(psnr, default=20) - 1, max(psnr, default=50) + 2)
    axes.set_xlabel("bits per pixel, from file sizes")
    axes.set_ylabel("PSNR [dB]")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"BD-rate of {', '.join(curves)} over" if rates else None
    figure.legend(title=title, loc="outside right center", frameon=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _meter(done: int, total: int, name: str) -> None:
    end = "\n" if done == total else ""
    print(f"\r\x1b[K{done}/{total} {name}", end=end, file=sys.stderr, flush=True)

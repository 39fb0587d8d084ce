# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion curves of a report as a picture (matplotlib, of the extra `lvqcodec[eval]`)."""

from __future__ import annotations

import io
import math
import os
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from lvqcodec import files, metrics
from lvqcodec.errors import UsageError
from lvqcodec.evaluation.report import Curve, EvaluationReport, anchor_curves, rd_curves

MEASURES = {"psnr": "PSNR [dB]", "ms-ssim": "MS-SSIM [dB], -10 log10(1 - MS-SSIM)"}
OURS = ("crimson", "darkorange", "deeppink", "saddlebrown", "gold", "darkmagenta")
PEERS = ("black", "royalblue", "seagreen", "slategrey", "darkturquoise")
BPP = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
LEGEND_LINES = 32  # that fit beside the axes


def new_figure(path: str | os.PathLike[str]) -> Any:
    """An empty figure that can be written to `path`; UsageError if it could not be written."""
    figure = metrics.extra("matplotlib.figure").Figure(figsize=(11, 6.5), layout="constrained")
    if Path(path).suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"cannot draw a plot as `{path}`: end the name in .png, .svg or .pdf")
    return figure


def draw(report: EvaluationReport, path: str | os.PathLike[str], measure: str = "psnr") -> None:
    """Write "psnr" or "ms-ssim" over bpp (log axis): ours thick, peers medium, anchors thin.

    The legend has the BD-rate of the first curve over each other one. Raises UsageError for a kind
    of file that cannot be written, and if no picture is large enough for MS-SSIM.
    """
    figure = new_figure(path)
    curves = rd_curves(report.points, measure)
    if not curves:
        raise UsageError(
            f"no pictures of at least {metrics.MS_SSIM_MIN_SIDE} pixels a side to plot MS-SSIM of: "
            "plot PSNR instead"
        )
    first = next(iter(curves))
    rates = {
        rate.anchor: rate.percent if measure == "psnr" else rate.ms_ssim_percent
        for rate in report.bd_rates
        if rate.curve == first
    }
    axes = figure.add_subplot()
    ours = {name: curve for name, curve in curves.items() if "model" in report.curves[name]}
    peers = {name: curve for name, curve in curves.items() if name not in ours}
    anchors = anchor_curves(report.anchors, measure)
    ranked = sorted(anchors, key=lambda name: rates[name] or 0, reverse=True)
    colours = metrics.extra("matplotlib").colormaps["viridis"]
    thin = ((colours(0.95 * index / len(ranked)), name) for index, name in enumerate(ranked))

    def line(name: str, curve: Curve, **style: Any) -> None:
        percent = rates.get(name)
        told = "-" if percent is None else f"{percent:+.1f} %"
        axes.plot(*curve, label=f"{name}   {told}" if name in rates else name, **style)

    for (name, curve), colour in zip(ours.items(), cycle(OURS)):
        line(name, curve, color=colour, linewidth=3, marker="o", zorder=4)
    for (name, curve), colour in zip(peers.items(), cycle(PEERS)):
        line(name, curve, color=colour, linewidth=1.8, marker="s", markersize=4, zorder=3)
    for (colour, name), dashes in zip(thin, cycle(("-", "--", "-."))):
        line(name, anchors[name], color=colour, linestyle=dashes, linewidth=0.9)
    _frame(axes, curves, MEASURES[measure])
    small = len(curves) + len(anchors) > LEGEND_LINES - 2
    figure.legend(
        title=f"BD-rate of {first} over" if rates else None,
        loc="outside right center",
        frameon=False,
        fontsize="x-small" if small else "medium",
    )
    data = io.BytesIO()
    figure.savefig(data, format=Path(path).suffix[1:].lower(), dpi=150)
    files.write(path, data.getvalue())


def _frame(axes: Any, curves: dict[str, Curve], ylabel: str) -> None:
    """Axes that fit the measured curves; anchors may leave them."""
    bpp = list(chain.from_iterable(curve[0] for curve in curves.values()))
    db = [value for curve in curves.values() for value in curve[1] if math.isfinite(value)]
    axes.set_xscale("log")
    axes.set_xticks(BPP, [f"{tick:g}" for tick in BPP])
    axes.minorticks_off()
    axes.set_xlim(min(bpp) / 1.4, max(bpp) * 1.4)
    axes.set_ylim(min(db, default=20) - 1, max(db, default=50) + 2)
    axes.set_xlabel("bits per pixel, from file sizes")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)

# SPDX-License-Identifier: Apache-2.0
"""What the efforts bring and cost, from a report of `lvq eval --efforts 0,... --json report.json`.

    python bench/effort.py report.json [--plot effort.png]

Prints, for every curve, the BD-rate (PSNR) over that of effort 0 and the mean seconds that encoding
a picture took, and draws the one over the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean


def main() -> None:
    """Read a report, print a table, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("report", help="JSON file of lvq eval")
    parser.add_argument("--plot", help="picture file to draw into")
    options = parser.parse_args()
    report = json.loads(Path(options.report).read_text(encoding="utf-8"))
    base = next(name for name, facts in report["curves"].items() if facts.get("effort") == 0)
    rates = {
        rate["curve"]: rate["percent"] for rate in report["bd_rates"] if rate["anchor"] == base
    }
    print(f"{'effort':>6}  {'BD-rate %':>9}  {'encode s':>8}")
    points = []
    for name, facts in report["curves"].items():
        if "effort" not in facts:
            continue
        seconds = fmean(p["encode_s"] for p in report["points"] if p["curve"] == name)
        points.append((seconds, rates.get(name, 0.0), facts["effort"]))
        print(f"{facts['effort']:>6}  {points[-1][1]:>9.2f}  {seconds:>8.2f}")
    if options.plot:
        draw(points, options.plot, report["machine"])


def draw(points: list[tuple[float, float, int]], path: str, machine: dict) -> None:
    """Draw BD-rates over seconds, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color="crimson")
    for seconds, percent, effort in points:
        axes.annotate(f" {effort}", (seconds, percent), va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds a picture, {machine['threads']} threads of {machine['processor']}")
    axes.set_ylabel("BD-rate over effort 0, PSNR [%]")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What a picture is like while its file arrives: PSNR over the part of the file that is there.

    python bench/preview.py FOLDER [--quality 50] [--plot preview.png] [--save FOLDER]

Encodes every picture, cuts the file at shares from 5 to 100 per cent and decodes what is left as
`lvq decode --partial` does. Prints means over the pictures and exits 1 if the mean PSNR falls by
more than 0.2 dB anywhere as more of the files arrives.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from lvqcodec import codec, metrics
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.evaluation.evaluate import list_pictures
from lvqcodec.pictures import load, save
from lvqcodec.pictures.picture import Picture

PERCENT = (5, *range(10, 100, 10), 95, 98, 100)
TOLERANCE = 0.2  # dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--limit", type=int, help="the first so many pictures only")
    parser.add_argument("--plot", help="picture file to draw into")
    parser.add_argument("--save", type=Path, help="folder for the pictures of every share")
    options = parser.parse_args()
    paths = list_pictures(options.folder)[: options.limit]
    model = codec.load_model(options.model, device="cpu")
    decibels = []
    for path in paths:
        picture = load.load(path)
        data = codec.encode(picture, model=model, quality=options.quality)
        decibels.append([])
        for percent in PERCENT:
            part = data[: len(data) * percent // 100]
            found = codec.decode(part, partial=True, device="cpu")
            decibels[-1].append(metrics.psnr(picture, found))
            if options.save:
                options.save.mkdir(parents=True, exist_ok=True)
                save.save(Picture(found), options.save / f"{path.stem}-{percent:03}.png")
        print(path.name, *(f"{value:.2f}" for value in decibels[-1]), file=sys.stderr, flush=True)
    table = np.array(decibels)
    print(f"{len(paths)} pictures, {options.model}, quality {options.quality}")
    print(f"{'file %':>6}  {'PSNR dB':>7}  {'worst':>6}  {'best':>6}")
    for percent, column in zip(PERCENT, table.T, strict=True):
        print(f"{percent:>6}  {column.mean():>7.2f}  {column.min():>6.2f}  {column.max():>6.2f}")
    if options.plot:
        draw(table, options.plot)
    sys.exit(any(later < earlier - TOLERANCE for earlier, later in pairwise(table.mean(0))))


def draw(table: np.ndarray, path: str) -> None:
    """Draw PSNR over the share of the file: each picture thin, the mean thick."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row in table:
        axes.plot(PERCENT, row, color="slategrey", linewidth=0.6, alpha=0.6)
    axes.plot(PERCENT, table.mean(0), "o-", color="crimson", label=f"mean of {len(table)}")
    axes.set_xlabel("part of the file that is there [%]")
    axes.set_ylabel("PSNR [dB]")
    axes.set_xlim(0, 101)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

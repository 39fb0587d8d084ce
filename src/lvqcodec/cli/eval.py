# SPDX-License-Identifier: Apache-2.0
"""`lvq eval`: what models are worth on pictures, beside other codecs."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from lvqcodec import files
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.io import display_name
from lvqcodec.cli.options import device_option, threads_option, tune_option
from lvqcodec.cli.progress import display
from lvqcodec.config import EFFORTS, METRICS, QUALITIES
from lvqcodec.format.container import LATTICES


def _numbers(allowed: range) -> Callable[..., list[int]]:
    """Return a callback for options like 10,30,50."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
        try:
            numbers = sorted({int(item) for item in value.split(",")})
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of numbers like 10,30,50") from None
        if not all(number in allowed for number in numbers):
            raise click.BadParameter(f"{value!r} goes beyond {allowed[0]}..{allowed[-1]}")
        return numbers

    return parse


@click.command("eval")
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--qualities",
    default="10,30,50,70,90",
    show_default=True,
    callback=_numbers(QUALITIES),
    metavar="Q,...",
    help="Rate points to measure, each 0..100.",
)
@click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME,...",
    help="One or more that `lvq models` lists: a curve each.",
)
@click.option(
    "--lattice",
    metavar="NAME,...",
    help=f"One or more of {', '.join(LATTICES)}: a curve each.  [default: as encode]",
)
@click.option(
    "--efforts",
    default="0",
    show_default=True,
    callback=_numbers(EFFORTS),
    metavar="N,...",
    help="One or more of 0..9: a curve each; effort 0 is tuned for nothing.",
)
@tune_option
@click.option(
    "--codecs",
    metavar="NAME,...",
    help="Measure others on the same pictures: some of jpeg, webp, avif, heic, jxl.",
)
@device_option
@threads_option
@click.option("--anchors", metavar="FILE", help="Other codecs' points (JSON) to compare with.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.")
@click.option("--json", "json_path", metavar="OUT", help="Write everything measured as JSON.")
@click.option("--csv", "csv_path", metavar="OUT", help="Write a line for each file as CSV.")
@click.option("--plot", "plot_path", metavar="OUT", help="Draw the curves (.png, .svg or .pdf).")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default=METRICS[0],
    show_default=True,
    help="What the plot shows over bpp.",
)
@click.option("--memory", is_flag=True, help="Measure peak memory at the largest picture too.")
def evaluate(
    folder: str,
    qualities: list[int],
    model: str,
    lattice: str | None,
    efforts: list[int],
    tune: str,
    codecs: str | None,
    device: str,
    threads: int | None,
    anchors: str | None,
    limit: int | None,
    json_path: str | None,
    csv_path: str | None,
    plot_path: str | None,
    metric: str,
    memory: bool,
) -> None:
    """Measure rate, distortion and time over the pictures in FOLDER, through real files.

    Prints bpp, PSNR, MS-SSIM and seconds for each quality, the BD-rate of every curve over every
    other and over the anchors, and the pictures that went worst and best. Needs the extra
    `lvqcodec[eval]`; heic and jxl need `lvqcodec[bench]`.
    """
    # what cannot be written shows now, not after an hour of coding
    for path in (json_path, csv_path, plot_path):
        if path is not None:
            files.check(path)
    set_up_torch(device, threads)
    from lvqcodec.evaluation.evaluate import evaluate
    from lvqcodec.evaluation.plotting import new_figure

    if plot_path is not None:
        new_figure(plot_path)

    with display(display_name(folder)) as show:
        show(0.0, step="loading")
        report = evaluate(
            folder,
            qualities=qualities,
            model=model,
            lattice=lattice,
            efforts=efforts,
            tune=tune,
            device=device,
            anchors=anchors,
            limit=limit,
            codecs=codecs,
            memory=memory,
            progress=lambda done, total, name: show(done / total, f"{done}/{total}", step=name),
        )
    click.echo(report.table())
    if json_path is not None:
        files.write(json_path, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    if csv_path is not None:
        files.write(csv_path, report.to_csv().encode())
    if plot_path is not None:
        report.plot(plot_path, metric)

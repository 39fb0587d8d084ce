# SPDX-License-Identifier: Apache-2.0
"""`lvq train`, `lvq export` and `lvq eval`: models, and what they are worth."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import click

from lvqcodec import files
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.cli.common import interrupted_by, set_up_torch
from lvqcodec.cli.io import display_name
from lvqcodec.cli.options import PositiveType, device_option, threads_option, tune_option
from lvqcodec.cli.progress import display
from lvqcodec.config import EFFORTS, METRICS, QUALITIES
from lvqcodec.container import LATTICES
from lvqcodec.errors import UsageError

_START = time.monotonic()  # when the process began, about: torch is yet to be imported


@click.command()
@click.option("--config", required=True, metavar="FILE", help="Recipe: codec and stages, as TOML.")
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="DIR",
    help="Folder or tar of pictures; may be given several times.",
)
@click.option("--out", required=True, metavar="DIR", help="Where checkpoint and log go.")
@click.option(
    "--minutes",
    type=PositiveType(),
    metavar="N",
    help="Be done in this time, all included.  [default: when the recipe is done]",
)
@click.option("--resume", is_flag=True, help="Go on where the run in --out stopped.")
@click.option(
    "--validation",
    metavar="DIR",
    help="Estimate rate and distortion on these, at the end and as often as the recipe says.",
)
@device_option
@threads_option
def train(
    config: str,
    data: tuple[str, ...],
    out: str,
    minutes: float | None,
    resume: bool,
    validation: str | None,
    device: str,
    threads: int | None,
) -> None:
    """Train a codec on pictures, as a recipe says; `lvq export` makes a model of it.

    On N GPUs: torchrun --nproc-per-node N -m lvqcodec train ...
    """
    set_up_torch(device, threads)
    from lvqcodec.training import loop

    with display(display_name(out), keep=True) as show:
        show(0.0, step="starting")
        summary = loop.train(
            config,
            data=data,
            out=out,
            minutes=math.inf if minutes is None else minutes,
            device=device,
            resume=resume,
            validation=validation,
            report=(lambda done, step, facts: show(done, facts, step=step)) if show.shown else None,
            started=_START,
        )
    if "stopped" in summary:
        interrupted_by(summary["stopped"], f"the same command with --resume goes on from {out}")


@click.command()
@click.argument("run_dir", metavar="RUN_DIR")
@click.option("--name", required=True, help="What `lvq encode --model` will call it.")
@click.option(
    "--share",
    metavar="NAME",
    help="Put the transform into a file of this name, for several models to have in common.",
)
@click.option("--out", default="models", show_default=True, metavar="DIR", help="Folder of models.")
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    help="Pictures (folder or tar) to fit the probability tables to; may be given several times.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, 10**6),
    default=0.0,
    show_default=True,
    metavar="N",
    help="Then train the synthesis network so long on --data as really quantised.",
)
@device_option
@threads_option
def export(
    run_dir: str,
    name: str,
    share: str | None,
    out: str,
    data: tuple[str, ...],
    minutes: float,
    device: str,
    threads: int | None,
) -> None:
    """Turn the training run in RUN_DIR into an installable model: weights and card.

    The training history on a card that is there already is kept and extended. A shared transform
    that another model in the folder needs is never changed.
    """
    if minutes and not data:
        raise UsageError("--minutes needs pictures to train on: give --data")
    set_up_torch(device, threads)
    from lvqcodec.training.export import export

    export(run_dir, name=name, share=share, out=out, data=data, minutes=minutes, device=device)


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
    from lvqcodec.evaluate import evaluate
    from lvqcodec.plotting import new_figure

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

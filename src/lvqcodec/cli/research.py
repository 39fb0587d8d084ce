# SPDX-License-Identifier: Apache-2.0
"""`lvq train`, `lvq export` and `lvq eval`: models, and what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import click

from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.cli.common import device_option, set_up_torch, threads_option, tune_option, write_file
from lvqcodec.errors import UsageError


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
    type=click.FloatRange(min=0, min_open=True),
    default=math.inf,
    metavar="N",
    help="Stop after this time, loading included.  [default: when the recipe is done]",
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
    minutes: float,
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

    loop.train(
        config,
        data=data,
        out=out,
        minutes=minutes,
        device=device,
        resume=resume,
        validation=validation,
    )


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
    type=click.FloatRange(min=0),
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


def _numbers(lowest: int, highest: int) -> Callable[..., list[int]]:
    """Return a callback for options like 10,30,50."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
        try:
            numbers = sorted({int(item) for item in value.split(",")})
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of numbers like 10,30,50") from None
        if not lowest <= numbers[0] <= numbers[-1] <= highest:
            raise click.BadParameter(f"{value!r} goes beyond {lowest}..{highest}")
        return numbers

    return parse


@click.command("eval")
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--qualities",
    default="10,30,50,70,90",
    show_default=True,
    callback=_numbers(0, 100),
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
    help="One or more of z, e8: a curve each.  [default: as encode]",
)
@click.option(
    "--efforts",
    default="0",
    show_default=True,
    callback=_numbers(0, 9),
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
    type=click.Choice(["psnr", "ms-ssim"]),
    default="psnr",
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
    set_up_torch(device, threads)
    from lvqcodec.evaluate import evaluate
    from lvqcodec.plotting import new_figure

    if plot_path is not None:
        new_figure(plot_path)  # a wrong name shows now, not after an hour of coding

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
    )
    click.echo(report.table())
    if json_path is not None:
        write_file(json_path, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    if csv_path is not None:
        write_file(csv_path, report.to_csv().encode())
    if plot_path is not None:
        report.plot(plot_path, metric)

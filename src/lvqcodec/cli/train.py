# SPDX-License-Identifier: Apache-2.0
"""`lvq train`, `lvq export` and `lvq eval`: models, and what they are worth."""

from __future__ import annotations

import math
import time

import click

from lvqcodec.cli.app import interrupted_by
from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.io import display_name
from lvqcodec.cli.options import PositiveType, device_option, threads_option
from lvqcodec.cli.progress import display

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

# SPDX-License-Identifier: Apache-2.0
"""`lvq export`: a training run to an installable model."""

from __future__ import annotations

import click

from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.options import device_option, threads_option
from lvqcodec.errors import UsageError


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

# SPDX-License-Identifier: Apache-2.0
"""`lvq refit`: the probability rows of an installed model, fitted anew."""

from __future__ import annotations

import click

from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.options import device_option, threads_option
from lvqcodec.format.container import LATTICES


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--name", required=True, help="What `lvq encode --model` will call the new model.")
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="DIR",
    help="Pictures (folder or tar) to fit to; may be given several times.",
)
@click.option(
    "--lattice",
    metavar="NAME,...",
    help=f"Whose rows to fit, of {', '.join(LATTICES)}.  [default: all that MODEL has rows for]",
)
@click.option("--out", default="models", show_default=True, metavar="DIR", help="Folder of models.")
@device_option
@threads_option
def refit(
    model: str,
    name: str,
    data: tuple[str, ...],
    lattice: str | None,
    out: str,
    device: str,
    threads: int | None,
) -> None:
    """Fit the probability rows of the installed MODEL anew, to pictures of your own or a lattice.

    The result is another model with the same networks; no training run is needed. MODEL stays as it
    is, and so do the files that it wrote.
    """
    set_up_torch(device, threads)
    from lvqcodec.training.refit import refit

    names = None if lattice is None else lattice.split(",")
    refit(model, name=name, data=data, lattices=names, out=out, device=device)

# SPDX-License-Identifier: Apache-2.0
"""`lvq decode`: an lvq file to a picture."""

from __future__ import annotations

import io
import math
import time

import click

from lvqcodec.cli.common import (
    _one,
    refuse_json_beside_data,
    set_up_torch,
    summarise,
)
from lvqcodec.cli.io import (
    Output,
    is_picture,
    read_file,
)
from lvqcodec.cli.options import (
    background_option,
    device_option,
    json_option,
    max_pixels_option,
    memory_option,
    overwrite_option,
    parents_option,
    preserve_option,
    quiet_option,
    threads_option,
)
from lvqcodec.cli.progress import display
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.suffixes import WRITTEN

_LEAST = 20
"""Pixels of a byte in the smallest picture files, of which the disk is to have room."""


def _parse_region(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int, int, int] | None:
    """Four whole numbers; whether they are in the picture shows later."""
    if value is None:
        return None
    try:
        x, y, width, height = (int(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no region like 0,0,640,480 (X,Y,W,H)") from None
    return x, y, width, height


@click.command()
@click.argument("source", metavar="IN")
@click.argument("outs", metavar="[OUT]", nargs=-1)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(list(WRITTEN)),
    help="Picture format.  [default: by OUT's suffix; png on stdout]",
)
@background_option
@click.option(
    "--region",
    callback=_parse_region,
    metavar="X,Y,W,H",
    help="Only these pixels: W x H of them from column X and row Y on, counted from 0.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Take a file whose end is missing, and predict what is not there.",
)
@memory_option
@device_option
@threads_option
@max_pixels_option
@overwrite_option
@parents_option
@preserve_option
@quiet_option
@json_option
def decode(
    source: str,
    outs: tuple[str, ...],
    file_format: str | None,
    background: str | None,
    region: tuple[int, int, int, int] | None,
    partial: bool,
    max_memory: int | None,
    device: str,
    threads: int | None,
    max_pixels: int,
    overwrite: bool,
    parents: bool,
    preserve: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode the .lvq file IN to the picture OUT.

    OUT defaults to IN with the suffix .png, if there is no such file yet. A picture that is named
    as OUT is replaced, another file only with --overwrite. `-` is stdin or stdout. The format
    follows OUT's suffix.
    """
    named = _one(outs, "decode")
    data = read_file(source)
    out = Output(
        source,
        named,
        f".{file_format or 'png'}",
        # one that is not named is most often the very picture that the file was made from
        ours=is_picture if named is not None else lambda head: False,
        overwrite=overwrite,
        parents=parents,
        preserve=preserve,
    )
    refuse_json_beside_data(as_json, out.path)
    # a broken file is refused before torch is loaded
    file = open_lvq(data, partial=partial, max_pixels=max_pixels)
    shown = file.region(region)
    out.expect(math.prod(shown.grid) // _LEAST)
    from lvqcodec.pictures import save

    form = file_format or out.suffix
    save.check_format(form)
    set_up_torch(device, threads)
    from lvqcodec import codec

    start = time.perf_counter()
    with display(out.name, quiet=quiet) as show:
        picture = codec.decode_picture(
            file,
            region=region,
            max_memory=max_memory,
            device=device,
            report=(lambda at: show(at.done)) if show.shown else None,
        )
    seconds = time.perf_counter() - start
    target = io.BytesIO()
    left_out = save.save(picture, target, format=form, background=background)
    out.write(target.getvalue())
    height, width = picture.pixels.shape[:2]
    facts = {
        "width": width,
        "height": height,
        "channels": file.header.channels,
        "received": file.received,
        "left_out": list(left_out),
        "seconds": seconds,
    }
    words = [f"{width}x{height}", f"{seconds:.2f} s"]
    if file.received < 1:
        words.append(f"from {100 * file.received:.1f} % of the latents' bytes")
    if left_out:
        words.append(f"without {' and '.join(left_out)}")
    summarise(source, out.path, words, facts if as_json else None, quiet)

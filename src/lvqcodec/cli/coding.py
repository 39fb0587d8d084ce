# SPDX-License-Identifier: Apache-2.0
"""`lvq encode` and `lvq decode`: one picture to one file, and back."""

from __future__ import annotations

import io
import math
import time

import click

from lvqcodec import footprint
from lvqcodec.catalog import find_model
from lvqcodec.cli.common import (
    refuse_json_beside_data,
    set_up_torch,
    size_facts,
    summarise,
)
from lvqcodec.cli.io import (
    Output,
    display_name,
    is_lvq,
    is_picture,
    read_file,
    refuse_lvq,
    standard,
)
from lvqcodec.cli.options import (
    background_option,
    device_option,
    encode_options,
    frame_option,
    json_option,
    max_pixels_option,
    memory_option,
    model_option,
    overwrite_option,
    parents_option,
    preserve_option,
    quiet_option,
    strip_option,
    threads_option,
    to_srgb8_option,
)
from lvqcodec.cli.progress import display
from lvqcodec.container import read_header
from lvqcodec.errors import UsageError
from lvqcodec.lvqfile import open_lvq
from lvqcodec.options import EncodeOptions
from lvqcodec.progress import Progress
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


def _one(outs: tuple[str, ...], command: str) -> str | None:
    """Return OUT, if there is one; UsageError for several pictures on the command line."""
    if len(outs) > 1:
        raise UsageError(
            f"{command} takes IN and OUT, and here are {1 + len(outs)} names: for many pictures"
            f" there is `lvq batch FOLDER OUT{' --decode' if command == 'decode' else ''}`"
        )
    return outs[0] if outs else None


@click.command()
@click.argument("source", metavar="IN")
@click.argument("outs", metavar="[OUT]", nargs=-1)
@encode_options()
@model_option
@device_option
@threads_option
@max_pixels_option
@strip_option
@to_srgb8_option
@frame_option
@click.option("--psnr", is_flag=True, help="Report the PSNR over all samples, but not of alpha.")
@overwrite_option
@parents_option
@preserve_option
@quiet_option
@json_option
def encode(
    source: str,
    outs: tuple[str, ...],
    options: EncodeOptions,
    model: str,
    device: str,
    threads: int | None,
    max_pixels: int,
    strip: bool,
    to_srgb8: bool,
    frame: int | None,
    psnr: bool,
    overwrite: bool,
    parents: bool,
    preserve: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Encode the picture IN to the file OUT, with its transparency and metadata.

    OUT defaults to IN with the suffix .lvq; an .lvq file of that name is replaced, any other only
    with --overwrite. `-` is stdin or stdout. PNG, JPEG, WebP, AVIF, BMP, PPM, TIFF and GIF are
    read, HEIC and JPEG XL with the extra `lvqcodec[formats]`. One summary line goes to stderr, and
    what of IN is left out.
    """
    named = _one(outs, "encode")
    refuse_lvq(source)
    out = Output(
        source,
        named,
        ".lvq",
        ours=is_lvq,
        overwrite=overwrite,
        parents=parents,
        preserve=preserve,
    )
    refuse_json_beside_data(as_json, out.path)
    if options.target_bytes is not None:
        out.expect(options.target_bytes)
    from lvqcodec import imageio

    picture = imageio.load_picture(
        standard("stdin") if source == "-" else source,
        frame=frame,
        to_srgb8=to_srgb8,
        stripped=strip,
        max_pixels=max_pixels,
        admit=footprint.admission(options, find_model(model).memory),
    )
    for remark in () if quiet else picture.remarks:
        click.echo(f"lvq: note: {display_name(source, 'stdin')}: {remark}", err=True)
    height, width = picture.pixels.shape[:2]
    set_up_torch(device, threads)
    from lvqcodec import codec

    start = time.perf_counter()
    with display(out.name, quiet=quiet) as show:
        found = codec.encode_image(
            picture,
            options,
            model=model,
            device=device,
            report=(lambda at: show(at.done, _facts(at, options.tune))) if show.shown else None,
        )
    seconds = time.perf_counter() - start
    words = size_facts(len(found.data), width, height)
    decibels = found.psnr
    if psnr and decibels is None:
        from lvqcodec import metrics

        back = codec.decode_picture(found.data, max_memory=options.max_memory, device=device)
        decibels = metrics.psnr(picture.pixels, back.pixels)
    if decibels is not None:
        words.append(f"{decibels:.2f} dB")
    out.write(found.data)
    header = read_header(found.data)
    facts = {
        "bytes": len(found.data),
        "width": width,
        "height": height,
        "channels": header.channels,
        "bpp": 8 * len(found.data) / (width * height),
        "psnr": decibels,
        "quality": header.quality,
        "lattice": header.lattice,
        "model": model,
        "remarks": list(picture.remarks),
        "seconds": seconds,
    }
    summarise(source, out.path, [*words, f"{seconds:.2f} s"], facts if as_json else None, quiet)


def _facts(progress: Progress, tune: str) -> str:
    """What a search has come to, in words."""
    facts = []
    if progress.bpp is not None:
        facts.append(f"{progress.bpp:.4f} bpp")
    if progress.distortion is not None:
        bad = max(progress.distortion, 1e-9)
        facts.append(
            f"{-10 * math.log10(bad):.2f} dB" if tune == "psnr" else f"MS-SSIM {1 - bad:.4f}"
        )
    return ", ".join(facts)


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
    from lvqcodec import imageio

    form = file_format or out.suffix
    imageio.check_format(form)
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
    left_out = imageio.save(picture, target, format=form, background=background)
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

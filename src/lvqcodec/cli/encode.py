# SPDX-License-Identifier: Apache-2.0
"""`lvq encode` and `lvq decode`: one picture to one file, and back."""

from __future__ import annotations

import math
import time

import click

from lvqcodec.catalog import find_model
from lvqcodec.cli.common import (
    _one,
    refuse_json_beside_data,
    set_up_torch,
    size_facts,
    summarise,
)
from lvqcodec.cli.io import (
    Output,
    display_name,
    is_lvq,
    refuse_lvq,
    standard,
)
from lvqcodec.cli.options import (
    device_option,
    encode_options,
    frame_option,
    json_option,
    max_pixels_option,
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
from lvqcodec.format.container import read_header
from lvqcodec.options import EncodeOptions
from lvqcodec.progress import Progress
from lvqcodec.resources import admission


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
    from lvqcodec.pictures import load

    picture = load.load_picture(
        standard("stdin") if source == "-" else source,
        frame=frame,
        to_srgb8=to_srgb8,
        stripped=strip,
        max_pixels=max_pixels,
        admit=admission.admission(options, find_model(model).memory),
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

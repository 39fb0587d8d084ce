# SPDX-License-Identifier: Apache-2.0
"""`lvq encode` and `lvq decode`: one picture to one file, and back."""

from __future__ import annotations

import io
import math
import time
from typing import Any

import click

from lvqcodec import footprint, tiling
from lvqcodec.cli.common import (
    FORMATS,
    Positive,
    alpha_quality_option,
    background_option,
    device_option,
    effort_option,
    json_option,
    lattice_option,
    max_pixels_option,
    max_seconds_option,
    memory_option,
    model_option,
    overwrite_option,
    parents_option,
    preserve_option,
    quality_option,
    quiet_option,
    refuse_json_beside_data,
    set_up_torch,
    size_facts,
    strip_option,
    summarise,
    target_psnr_option,
    target_size_option,
    threads_option,
    to_srgb8_option,
    tune_option,
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
from lvqcodec.cli.progress import display
from lvqcodec.config import default_effort
from lvqcodec.container import check_limit, read_header, unpack, unpack_partial
from lvqcodec.errors import UsageError

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
@quality_option
@target_size_option
@click.option(
    "--target-bpp",
    type=Positive(),
    metavar="BPP",
    help="The same, in bits a pixel.",
)
@target_psnr_option
@effort_option
@tune_option
@max_seconds_option
@model_option
@lattice_option
@memory_option
@device_option
@threads_option
@max_pixels_option
@alpha_quality_option
@strip_option
@to_srgb8_option
@click.option(
    "--frame",
    type=click.IntRange(min=1),
    metavar="N",
    help="Which frame or page of several, from 1.",
)
@click.option("--psnr", is_flag=True, help="Report the PSNR over all samples, but not of alpha.")
@overwrite_option
@parents_option
@preserve_option
@quiet_option
@json_option
def encode(
    source: str,
    outs: tuple[str, ...],
    quality: int | None,
    target_size: int | None,
    target_bpp: float | None,
    target_psnr: float | None,
    effort: int | None,
    tune: str,
    max_seconds: float | None,
    model: str,
    lattice: str | None,
    max_memory: int | None,
    device: str,
    threads: int | None,
    max_pixels: int,
    alpha_quality: int,
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
    rates = {
        "--quality": quality,
        "--target-size": target_size,
        "--target-bpp": target_bpp,
        "--target-psnr": target_psnr,
    }
    given = [name for name, value in rates.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
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
    if target_size is not None:
        out.expect(target_size)
    from lvqcodec import imageio

    picture = imageio.load_picture(
        standard("stdin") if source == "-" else source,
        frame=frame,
        to_srgb8=to_srgb8,
        stripped=strip,
        max_pixels=max_pixels,
        admit=footprint.admission(
            max_memory,
            default_effort(tune, max_seconds) if effort is None else effort,
            weighed=bool(effort or target_size or target_bpp or target_psnr),
        ),
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
            model=model,
            quality=quality,
            target_bytes=target_size,
            target_bpp=target_bpp,
            target_psnr=target_psnr,
            alpha_quality=alpha_quality,
            lattice=lattice,
            tune=tune,
            effort=effort,
            max_seconds=max_seconds,
            max_memory=max_memory,
            device=device,
            report=(lambda at: show(at.done, _facts(at, tune))) if show.shown else None,
        )
    seconds = time.perf_counter() - start
    words = size_facts(len(found.data), width, height)
    decibels = found.psnr
    if psnr and decibels is None:
        from lvqcodec import metrics

        back = codec.decode_picture(found.data, max_memory=max_memory, device=device)
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


def _facts(progress: Any, tune: str) -> str:
    """What a search has come to (`effort.Progress`), in words."""
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
    type=click.Choice(FORMATS),
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
    header, sections, missing = unpack_partial(data) if partial else (*unpack(data), 0)
    check_limit(header.width, header.height, max_pixels)
    tiling.from_partial(header, sections, missing)
    share = tiling.share(sections, missing)
    shown = tiling.region(header, region)
    out.expect(math.prod(shown.grid) // _LEAST)
    from lvqcodec import imageio

    form = file_format or out.suffix
    imageio.check_format(form)
    set_up_torch(device, threads)
    from lvqcodec import codec

    start = time.perf_counter()
    with display(out.name, quiet=quiet) as show:
        picture = codec.decode_picture(
            data,
            region=region,
            partial=partial,
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
        "channels": header.channels,
        "received": share,
        "left_out": list(left_out),
        "seconds": seconds,
    }
    words = [f"{width}x{height}", f"{seconds:.2f} s"]
    if share < 1:
        words.append(f"from {100 * share:.1f} % of the latents' bytes")
    if left_out:
        words.append(f"without {' and '.join(left_out)}")
    summarise(source, out.path, words, facts if as_json else None, quiet)

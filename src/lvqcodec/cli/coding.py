# SPDX-License-Identifier: Apache-2.0
"""`lvq encode` and `lvq decode`: one picture to one file, and back."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from lvqcodec.cli.common import (
    device_option,
    display_name,
    lattice_option,
    model_option,
    output_path,
    read_file,
    set_up_torch,
    size_facts,
    summarise,
    threads_option,
    write_file,
)
from lvqcodec.container import unpack
from lvqcodec.errors import UsageError

FORMATS = ["png", "jpg", "webp", "avif", "bmp", "ppm", "tiff"]


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes; k and M stand for a thousand and a million."""
    if value is None:
        return None
    factor = {"k": 1000, "K": 1000, "M": 1_000_000}.get(value[-1:], 1)
    digits = value if factor == 1 else value[:-1]
    try:
        size = float(digits) * factor
    except ValueError:
        size = math.nan
    if not 1 <= size < math.inf:
        raise click.BadParameter(f"{value!r} is no size like 20000, 20k or 1.5M")
    return int(size)


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="[OUT]", required=False)
@click.option(
    "-q",
    "--quality",
    type=click.IntRange(0, 100),
    help="Rate point: more is better and larger.  [default: 50]",
)
@click.option(
    "--target-size",
    callback=parse_size,
    metavar="BYTES",
    help="The best file of at most so many bytes (20000, 20k, 1.5M), instead of a quality.",
)
@click.option(
    "--target-bpp",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BPP",
    help="The same, in bits a pixel.",
)
@click.option(
    "--target-psnr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DB",
    help="The smallest file of at least so many dB, instead of a quality.",
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, 9),
    help="How long to search for a smaller file, 0 (not at all) to 9.  [default: 0]",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Write the best file found in this time; the effort is 9 then unless given.",
)
@model_option
@lattice_option
@device_option
@threads_option
@click.option("--psnr", is_flag=True, help="Report the PSNR over all samples.")
def encode(
    source: str,
    out: str | None,
    quality: int | None,
    target_size: int | None,
    target_bpp: float | None,
    target_psnr: float | None,
    effort: int | None,
    max_seconds: float | None,
    model: str,
    lattice: str | None,
    device: str,
    threads: int | None,
    psnr: bool,
) -> None:
    """Encode the picture IN (8-bit RGB or greyscale) to the file OUT.

    OUT defaults to IN with the suffix .lvq and replaces a file of that name. `-` is stdin or
    stdout. PNG, JPEG, WebP, AVIF, BMP, PPM and TIFF are read. One summary line goes to stderr.
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
    out = output_path(source, out, ".lvq")
    from lvqcodec import imageio

    image = imageio.load(sys.stdin.buffer if source == "-" else source)
    height, width = image.shape[:2]
    if target_bpp is not None:
        target_size = max(int(target_bpp * height * width / 8), 1)
    set_up_torch(device, threads)
    from lvqcodec import codec

    start = time.perf_counter()
    found = codec.encode_image(
        image,
        model=model,
        quality=quality,
        target_bytes=target_size,
        target_psnr=target_psnr,
        lattice=lattice,
        effort=effort,
        max_seconds=max_seconds,
        device=device,
        report=_meter() if sys.stderr.isatty() else None,
    )
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)  # what the meter showed last
    seconds = time.perf_counter() - start
    facts = size_facts(len(found.data), width, height)
    if psnr or found.psnr is not None:
        decibels = found.psnr
        if decibels is None:
            from lvqcodec import metrics

            decibels = metrics.psnr(image, codec.decode(found.data, device=device))
        facts.append(f"{decibels:.2f} dB")
    write_file(out, found.data)
    summarise(source, out, [*facts, f"{seconds:.2f} s"])


def _meter() -> Callable[[Any], None]:
    """Show on the terminal how a search goes (`effort.Progress`), and when it will be over."""
    start = time.monotonic()

    def show(progress: Any) -> None:
        left = (time.monotonic() - start) * (1 / max(progress.done, 1e-3) - 1)
        text = f"{progress.done:4.0%}  {progress.bpp:.4f} bpp  {progress.psnr:.2f} dB"
        click.echo(f"\r\033[K{text}  {left:.0f} s left", nl=False, err=True)

    return show


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="[OUT]", required=False)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Picture format.  [default: by OUT's suffix; png on stdout]",
)
@device_option
@threads_option
def decode(
    source: str, out: str | None, file_format: str | None, device: str, threads: int | None
) -> None:
    """Decode the .lvq file IN to the picture OUT.

    OUT defaults to IN with the suffix .png, if there is no such file yet. `-` is stdin or stdout.
    The format follows OUT's suffix.
    """
    implied, out = out is None, output_path(source, out, f".{file_format or 'png'}")
    if implied and out != "-" and os.path.exists(out):
        # most often the very picture that the file was made from
        raise UsageError(f"{display_name(out)} exists already: name it as OUT to replace it")
    data = read_file(source)
    unpack(data)  # a broken file is refused before torch is loaded
    set_up_torch(device, threads)
    from lvqcodec import codec, imageio

    start = time.perf_counter()
    image = codec.decode(data, device=device)
    seconds = time.perf_counter() - start
    if out == "-":
        picture = io.BytesIO()
        imageio.save(image, picture, format=file_format)
        write_file(out, picture.getvalue())
    else:
        imageio.save(image, out, format=file_format)
    height, width = image.shape[:2]
    summarise(source, out, [f"{width}x{height}", f"{seconds:.2f} s"])

# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, files and pipes, errors as one line and an exit code."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import click

from lvqcodec import files
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.container import MAX_HEADER_BYTES, MAX_PIXELS, read_header
from lvqcodec.errors import LvqError, UsageError
from lvqcodec.threads import quiet

FORMATS = ["png", "jpg", "webp", "avif", "bmp", "ppm", "pgm", "tiff"]
"""Of pictures that are written, by suffix."""

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Cli(click.Group):
    """Turns what bad input or a full machine raises into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever is not a defect of lvq itself ends in one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly: the reader has had enough
        except (LvqError, OSError) as error:
            fail(*explain(error))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            fail("not enough memory for a picture of this size", LvqError.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", _INTERRUPTED)


def explain(error: LvqError | OSError) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if isinstance(error, LvqError):
        return str(error), error.exit_code
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    where = "" if error.filename is None else f"{click.format_filename(error.filename)}: "
    return where + reason, UsageError.exit_code


def _out_of_memory(error: Exception) -> bool:
    # torch has no class for it on the CPU, and its wording differs between versions.
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def complain(message: str) -> None:
    """Say one line of an error on stderr."""
    click.echo(f"lvq: error: {' '.join(message.split())}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """Say what was wrong and exit."""
    complain(message)
    sys.exit(code)


def read_file(path: str) -> bytes:
    """Read an lvq file whose header is intact; `-` is stdin. Raises FormatError, OSError."""
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
        read_header(head)  # what is none, and may never end, is not read to its end
        return head + file.read()


def write_file(path: str, data: bytes) -> None:
    """Write a file, whole or not at all; `-` is stdout."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        files.write(path, data)


def output_path(source: str, out: str | None, suffix: str) -> str:
    """OUT as given, else IN with `suffix`, else stdout; UsageError where that cannot be meant."""
    if out is None:
        out = "-" if source == "-" else os.path.splitext(source)[0] + suffix
    if out == "-" and sys.stdout.isatty():
        raise UsageError(
            "binary data is not written to a terminal: name an output file or redirect stdout"
        )
    if "-" not in (source, out) and os.path.exists(out) and os.path.samefile(source, out):
        raise UsageError(f"{display_name(out)} is both input and output: name another output file")
    return out


def refuse_json_beside_data(as_json: bool, out: str) -> None:
    """Raise UsageError where both a picture and JSON would go to stdout."""
    if as_json and out == "-":
        raise UsageError("--json writes to stdout, and so does OUT: name an output file")


def display_name(path: str, std: str = "-") -> str:
    """Return a path as it can be printed, `std` for `-`."""
    return std if path == "-" else click.format_filename(path)


def summarise(
    source: str, out: str, words: Sequence[str], facts: Mapping[str, Any] | None, quiet: bool
) -> None:
    """Say what was made of what: `words` on stderr unless quiet, or `facts` on stdout as JSON."""
    if facts is not None:
        names = {"source": display_name(source), "file": display_name(out)}
        click.echo(json.dumps({**names, **facts}))
        return
    if quiet:
        return
    way = f"{display_name(source, 'stdin')} -> {display_name(out, 'stdout')}"
    click.echo(f"{way}: {', '.join(words)}", err=True)


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes; k, M and G stand for a thousand, a million and a milliard."""
    if value is None:
        return None
    factor = {"k": 1000, "K": 1000, "M": 10**6, "G": 10**9}.get(value[-1:], 1)
    digits = value if factor == 1 else value[:-1]
    try:
        size = float(digits) * factor
    except ValueError:
        size = math.nan
    if not 1 <= size < math.inf:
        raise click.BadParameter(f"{value!r} is no size like 20000, 20k or 1.5M")
    return int(size)


def set_up_torch(device: str, threads: int | None) -> None:
    """Import torch with threads that let others run; UsageError if the device is absent."""
    os.environ.update(quiet())  # and so those of processes that this one starts
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is at hand: use --device auto or --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)


def size_facts(num_bytes: int, width: int, height: int) -> list[str]:
    """Return bytes and bits a pixel, in words."""
    return [f"{num_bytes:,} bytes", f"{8 * num_bytes / (width * height):.3f} bpp"]


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes a GPU if there is one.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: all cores]"
)
memory_option = click.option(
    "--max-memory",
    callback=parse_size,
    metavar="SIZE",
    help="Refuse a picture that takes more (800M, 2G).  [default: half of what is available]",
)
max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    metavar="N",
    help="Refuse a larger picture before it takes memory.  [default: 2^28, as the format does]",
)
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but errors.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Say on stdout, as one JSON object, what was done."
)
model_option = click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Codec to use: one that `lvq models` lists.",
)
tune_option = click.option(
    "--tune",
    type=click.Choice(["psnr", "ms-ssim"]),
    default="psnr",
    show_default=True,
    help="What a search is for; ms-ssim takes an effort, by default 3.",
)
lattice_option = click.option(
    "--lattice",
    type=click.Choice(["z", "e8"]),
    help="Lattice to quantise to: z is scalar, e8 packs eight values.  [default: the model's own]",
)
alpha_quality_option = click.option(
    "--alpha-quality",
    type=click.IntRange(0, 100),
    default=100,
    show_default=True,
    help="Of the transparency: 100 is lossless, less is smaller.",
)
strip_option = click.option(
    "--strip",
    is_flag=True,
    help="Leave metadata out; the picture is turned upright and keeps a profile that is not sRGB.",
)
to_srgb8_option = click.option(
    "--to-srgb8",
    is_flag=True,
    help="Convert other colours and more bits to 8-bit sRGB, instead of refusing them.",
)
background_option = click.option(
    "--background",
    metavar="COLOUR",
    help="Colour to put behind transparent pixels, as CSS names it: white, #ffe0c0.",
)
quality_option = click.option(
    "-q",
    "--quality",
    type=click.IntRange(0, 100),
    help="Rate point: more is better and larger.  [default: 50]",
)
target_size_option = click.option(
    "--target-size",
    callback=parse_size,
    metavar="BYTES",
    help="The best file of at most so many bytes (20000, 20k, 1.5M), instead of a quality.",
)
target_psnr_option = click.option(
    "--target-psnr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DB",
    help="The smallest file of at least so many dB, instead of a quality.",
)
effort_option = click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, 9),
    help="How long to search for a smaller file, 0 (not at all) to 9.  [default: 0]",
)
max_seconds_option = click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Write the best file found in this time; the effort is 9 then unless given.",
)

# SPDX-License-Identifier: Apache-2.0
"""The options that several commands have; those of encoding are made from `EncodeOptions`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container
from typing import Any, TypeVar

import click

from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.format.limits import MAX_PIXELS
from lvqcodec.options import (
    OPTIONS,
    RATES,
    EncodeOptions,
    Kind,
    OneOf,
    Positive,
    Size,
    Whole,
    refuse_several,
)
from lvqcodec.threads import MAX_THREADS

Command = TypeVar("Command", bound=Callable[..., Any])


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


class PositiveType(click.FloatRange):
    """A number above 0, neither NaN nor infinite."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def encode_options(*, without: Container[str] = ()) -> Callable[[Command], Command]:
    """Give a command the options of encoding, but for some; it is handed `options` made of them."""
    names = [name for name in OPTIONS if name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(*args: Any, **given: Any) -> Any:
            chosen = {name: given.pop(name) for name in names}
            refuse_several([_flags(n)[-1] for n in RATES if chosen.get(n) is not None])
            return command(*args, options=EncodeOptions(**chosen), **given)

        for name in reversed(names):
            gathered = encode_option(name)(gathered)
        return gathered  # type: ignore[return-value]

    return decorate


def encode_option(name: str) -> Callable[[Command], Command]:
    """Return the option of this name of `EncodeOptions` for a command."""
    option, default = OPTIONS[name], getattr(EncodeOptions, name)
    spelled = "  [20000, 20k, 1.5M, 2G]" if isinstance(option.kind, Size) else ""
    unset = f"  [default: {option.unset}]" if option.unset else ""
    return click.option(
        *_flags(name),
        name,
        **_parser(option.kind),
        default=default,
        show_default=default is not None,
        metavar=option.metavar,
        help=option.meaning + spelled + unset,
    )


def _flags(name: str) -> tuple[str, ...]:
    return OPTIONS[name].flags or (f"--{name.replace('_', '-')}",)


def _parser(kind: Kind) -> dict[str, Any]:
    """Return what makes click parse the values of an option."""
    match kind:
        case Whole(range):
            return {"type": click.IntRange(range[0], range[-1])}
        case OneOf(names):
            return {"type": click.Choice(names)}
        case Size():
            return {"callback": parse_size}
        case Positive():
            return {"type": PositiveType()}
    raise TypeError(f"the command line has no parser for {kind}")


memory_option = encode_option("max_memory")
tune_option = encode_option("tune")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes a GPU if there is one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    help="CPU threads, no more than there are cores.  [default: all cores]",
)
max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    metavar="N",
    help="Refuse a larger picture before it takes memory.  [default: 2^28, as the format does]",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace OUT, whatever it is, but never IN."
)
parents_option = click.option(
    "-p", "--parents", is_flag=True, help="Make the folders that OUT lies in, if they are missing."
)
preserve_option = click.option(
    "--preserve", is_flag=True, help="Give OUT the mode and the modification time of IN."
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
frame_option = click.option(
    "--frame",
    type=click.IntRange(min=1),
    metavar="N",
    help="Which frame or page of several, from 1.",
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

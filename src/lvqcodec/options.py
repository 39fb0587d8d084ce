# SPDX-License-Identifier: Apache-2.0
"""What may be asked of encoding: every option once, with its default, its check and its meaning.

The keywords of `lvqcodec.encode`, the options of `lvq encode` and `lvq batch`, the settings of a
batch and what Pillow passes on are all made from the fields of `EncodeOptions`. To add an option
takes a field here and the code that heeds it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from numbers import Real
from typing import Any, ParamSpec, Protocol, TypeVar

from lvqcodec.config import EFFORTS, QUALITIES, TUNES
from lvqcodec.errors import UsageError
from lvqcodec.format.container import LATTICES
from lvqcodec.format.tiling import SIDES, check_side

DEFAULT_QUALITY = 50

LOSSLESS = 100
"""The alpha quality that changes nothing."""

_TUNED_EFFORT = 3

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Kind(Protocol):
    """What values an option takes."""

    def check(self, name: str, value: Any) -> Any:
        """Return the value as it is meant; raises UsageError for one that is not taken."""


@dataclass(frozen=True)
class Whole:
    """A whole number of a range, of whatever type: 70.0 is one, and so are those of numpy."""

    range: range

    def check(self, name: str, value: Any) -> int:
        """See `Kind`."""
        if value not in self.range:
            ends = f"{self.range[0]}..{self.range[-1]}"
            raise UsageError(f"{name.replace('_', ' ')} {value!r} is not a whole number in {ends}")
        return int(value)


@dataclass(frozen=True)
class TileSide(Whole):
    """A side in pixels that tiles may have."""

    def check(self, name: str, value: Any) -> int:
        """See `Kind`."""
        return check_side(value)


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: Sequence[str]
    complaint: str = "{name} {value!r} is unknown"

    def check(self, name: str, value: Any) -> str:
        """See `Kind`."""
        if value not in self.names:
            said = self.complaint.format(name=name, value=value)
            raise UsageError(f"{said}; choose one of {', '.join(self.names)}")
        return str(value)


@dataclass(frozen=True)
class Positive:
    """A number above 0, finite unless `endless`."""

    endless: bool = False

    def check(self, name: str, value: Any) -> Any:
        """See `Kind`."""
        number = float(value) if isinstance(value, Real) else math.nan
        if not number > 0 or (number == math.inf and not self.endless):
            finite = "" if self.endless else " and finite"
            raise UsageError(f"{name} = {value} must be more than 0{finite}")
        return value


class Size(Positive):
    """A number of bytes, which the command line takes as 20k or 1.5M too."""


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its default.

    flags: what the command line calls it, by default as Python does. unset: what holds where it is
    None. rate: whether it says how large the file is to be, which only one may.
    """

    kind: Kind
    meaning: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    unset: str | None = None
    rate: bool = False


def _option(default: Any, kind: Kind, meaning: str, **facts: Any) -> Any:
    return field(default=default, metadata={"option": Option(kind, meaning, **facts)})


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a picture is to be encoded; see `OPTIONS` for each. UsageError for what cannot be."""

    quality: int | None = _option(
        None,
        Whole(QUALITIES),
        "Rate point: more is better and larger.",
        flags=("-q", "--quality"),
        unset=str(DEFAULT_QUALITY),
        rate=True,
    )
    target_bytes: int | None = _option(
        None,
        Size(),
        "The best file of at most so many bytes, instead of a quality.",
        flags=("--target-size",),
        metavar="BYTES",
        rate=True,
    )
    target_bpp: float | None = _option(
        None,
        Positive(),
        "The best file of at most so many bits a pixel, instead of a quality.",
        metavar="BPP",
        rate=True,
    )
    target_psnr: float | None = _option(
        None,
        Positive(),
        "The smallest file of at least so many dB over the pixels, instead of a quality.",
        metavar="DB",
        rate=True,
    )
    effort: int | None = _option(
        None,
        Whole(EFFORTS),
        "How long to search for a smaller file, 0 (not at all) to 9.",
        flags=("-e", "--effort"),
        unset="0",
    )
    tune: str = _option(
        "psnr",
        OneOf(TUNES),
        f"What a search is for; ms-ssim takes an effort, by default {_TUNED_EFFORT}.",
    )
    max_seconds: float | None = _option(
        None,
        Positive(endless=True),
        "Write the best file found in this time; the effort is 9 then unless given.",
        metavar="S",
    )
    lattice: str | None = _option(
        None,
        OneOf(LATTICES, "unknown {name} {value!r}"),
        "Lattice to quantise to: z is scalar, a2 packs two values, "
        "d4 four, e8 eight, bw16 16, leech 24, trellis8 chains.",
        unset="the model's own",
    )
    alpha_quality: int = _option(
        LOSSLESS,
        Whole(range(LOSSLESS + 1)),
        "Of the transparency, whatever the quality: 100 is lossless, less is smaller.",
    )
    tile: int | None = _option(
        None,
        TileSide(range(SIDES[0], SIDES[-1] + 1)),
        f"Side of the tiles that are coded on their own, a power of two from {SIDES[0]}.",
        metavar="PIXELS",
        unset="1024 for more than 2^21 pixels",
    )
    max_memory: int | None = _option(
        None,
        Size(),
        "Refuse a picture that takes more bytes of memory.",
        metavar="SIZE",
        unset="half of what is available",
    )

    def __post_init__(self) -> None:
        """Hold every option to its kind, and all to what goes together; raises UsageError."""
        refuse_several([name for name in RATES if getattr(self, name) is not None])
        for entry in fields(EncodeOptions):
            value = getattr(self, entry.name)
            if value is not None or entry.default is not None:
                value = entry.metadata["option"].kind.check(entry.name, value)
                object.__setattr__(self, entry.name, value)
        if self.tune != "psnr" and self.chosen_effort == 0:
            raise UsageError(
                f"effort 0 does not search, so it tunes nothing for {self.tune}: give 1 to 9"
            )

    @property
    def chosen_quality(self) -> int:
        """The quality, the default one where none is given."""
        return DEFAULT_QUALITY if self.quality is None else self.quality

    @property
    def chosen_effort(self) -> int:
        """The effort; by default all that fits into a time, some for another tune, else none."""
        if self.effort is not None:
            return self.effort
        if self.max_seconds is not None:
            return EFFORTS[-1]
        return _TUNED_EFFORT if self.tune != "psnr" else 0

    @property
    def has_goal(self) -> bool:
        """Whether a size or PSNR is to be reached."""
        return any(getattr(self, name) is not None for name in RATES if name != "quality")

    @property
    def weighed(self) -> bool:
        """Whether files are decoded on the way, to see what they are worth."""
        return self.chosen_effort > 0 or self.has_goal


OPTIONS: dict[str, Option] = {
    entry.name: entry.metadata["option"] for entry in fields(EncodeOptions)
}
"""The options by name."""

RATES = tuple(name for name, option in OPTIONS.items() if option.rate)
"""The options that say how large the file is to be."""


def refuse_several(given: Sequence[str]) -> None:
    """Raise UsageError where more than one of the options RATES is given, told by these names."""
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")


def described() -> str:
    """Every option with its meaning, a line each, for docstrings."""
    return "\n".join(
        f"{name}: {option.meaning}" + (f" By default {option.unset}." if option.unset else "")
        for name, option in OPTIONS.items()
    )


def takes(parameters: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Give a function of one object the parameters that make the object, which then stand once.

    Its signature, as type checkers and `help` see it, is that of `parameters`; `{options}` in its
    docstring stands for the list of the options.
    """

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(parameters(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(parameters).replace(return_annotation=returned)
        vars(call)["__signature__"] = signature
        call.__doc__ = (inspect.getdoc(function) or "").replace("{options}", described())
        return call

    return decorate

# SPDX-License-Identifier: Apache-2.0
"""Files of a wanted size or PSNR: a safeguarded search over settings finer than qualities.

A setting is a real number. Its whole part is the quality; the rest makes bits cheaper to the
quantizer, by FINER for a whole step, which is about what one quality is worth in size and PSNR.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from lvqcodec.encoder.original import Original
from lvqcodec.encoder.search import PLAIN, Candidate, Refinement, encode_refinement, search
from lvqcodec.errors import UsageError
from lvqcodec.format.container import section_bytes
from lvqcodec.options import EncodeOptions
from lvqcodec.progress import OnProgress

FINER = 0.75
BELOW, ABOVE = 4, 2
"""Steps beyond the qualities of the model, by the quantizer alone."""

_PER_STEP = {"size": 0.045, "psnr": 0.2}  # of ln bytes and of dB: a guess that brackets correct
_MAX_ENCODES = 14
_LAST_ENCODES = 4  # that fit refined latents to the goal


@dataclass(frozen=True)
class Goal:
    """`size`: at most `limit` bytes, as near as may be; `psnr`: at least `limit` dB, likewise.

    beside: how many of the bytes alpha and metadata take.
    """

    kind: str
    limit: float
    beside: int = 0

    @classmethod
    def of(cls, options: EncodeOptions, original: Original) -> Goal | None:
        """Return the goal that is wanted, if one is; UsageError where no bytes are left for it."""
        if options.target_psnr is not None:
            return cls("psnr", options.target_psnr)
        if not options.has_goal:
            return None
        limit = options.target_bytes
        if options.target_bpp is not None:
            pixels = original.header.width * original.header.height
            limit = max(int(options.target_bpp * pixels / 8), 1)
        assert limit is not None
        beside = sum(map(section_bytes, original.sections))
        if beside >= limit:
            raise UsageError(
                f"alpha and metadata alone take {beside} of {limit:.0f} bytes; allow for more, "
                "drop metadata with --strip or lower --alpha-quality"
            )
        return cls("size", limit, beside)

    def above(self, found: Candidate) -> float:
        """How far above the limit a file is, in steps of quality."""
        if self.kind == "size":
            size, most = len(found.data) - self.beside, self.limit - self.beside
            return math.log(size / most) / _PER_STEP["size"]
        return min(found.psnr - self.limit, 99.0) / _PER_STEP["psnr"]

    @property
    def band(self) -> tuple[float, float]:
        """What `above` may be for the search to stop: 1.5 % below, or 0.06 dB above."""
        return (-1 / 3, 0.0) if self.kind == "size" else (0.0, 0.3)

    def fits(self, found: Candidate) -> bool:
        """Whether the limit is kept."""
        return self.above(found) <= 0 if self.kind == "size" else self.above(found) >= 0

    def best(self, found: list[Candidate]) -> Candidate | None:
        """The largest file that fits, or the smallest; None if none does."""
        fitting = [candidate for candidate in found if self.fits(candidate)]
        if self.kind == "size":
            return max(fitting, key=lambda c: len(c.data), default=None)
        return min(fitting, key=lambda c: len(c.data), default=None)

    def out_of_reach(self, tried: list[Candidate]) -> UsageError:
        """What to say where no file keeps the limit."""
        if self.kind == "psnr":
            most = max(candidate.psnr for candidate in tried)
            return UsageError(
                f"a PSNR of {self.limit:g} dB is out of reach: the most is {most:.2f} dB;"
                " ask for less"
            )
        least = min(len(candidate.data) for candidate in tried) - self.beside
        beside = f"beside {self.beside} bytes of alpha and metadata " if self.beside else ""
        return UsageError(
            f"{beside}this picture does not fit into {self.limit - self.beside:.0f} bytes: its"
            f" smallest file has {least}; allow for more, or make the picture smaller"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to: the file, and how many it encoded on the way."""

    candidate: Candidate
    encodes: int


def reach(
    goal: Goal,
    original: Original,
    effort: int = 0,
    *,
    deadline: float = math.inf,
    on_progress: OnProgress | None = None,
) -> Found:
    """Encode a picture to a goal, before `deadline` (time.monotonic) if that can be.

    With an effort the quality is found first, then the latents are refined, then the quantizer is
    set anew, because refined files are of another size. Raises UsageError for a goal out of reach.
    """
    at = lru_cache(maxsize=2)(original.at)
    low, high = original.loaded.model.config.qualities

    def quality_of(setting: float) -> int:
        return min(max(math.floor(setting), low), high)

    def encode(setting: float) -> Candidate:
        quality = quality_of(setting)
        return encode_refinement(at(quality), _eased(PLAIN, setting, quality))

    start = time.monotonic()
    first, ends = float(original.header.quality), (low - BELOW, high + ABOVE)
    settings, tried = _close_in(goal, encode, first, ends, deadline, must_fit=True)
    best = goal.best(tried)
    if best is None:
        raise goal.out_of_reach(tried)
    now = time.monotonic()
    last_call = deadline - _LAST_ENCODES * (now - start) / len(tried)
    if effort == 0 or now >= last_call:
        return Found(best, len(tried))
    setting = settings[tried.index(best)]
    base = at(quality_of(setting))
    refined = search(base, effort, deadline=last_call, on_progress=on_progress).refinement
    if refined.rdo_lambda is None:
        return Found(best, len(tried) + 2)

    def encode_refined(setting: float) -> Candidate:
        return encode_refinement(base, _eased(refined, setting, base.header.quality))

    bounds = setting - 3, setting + 3
    _, more = _close_in(goal, encode_refined, setting, bounds, deadline, must_fit=False)
    better = goal.best(more)
    if better is not None and better.loss < best.loss:
        best = better
    return Found(best, len(tried) + 2 + len(more))


def _eased(refinement: Refinement, setting: float, quality: int) -> Refinement:
    """The refinement of a quality with bits as cheap as the setting has them."""
    return replace(refinement, ease=FINER ** (setting - quality))


def _close_in(
    goal: Goal,
    encode: Callable[[float], Candidate],
    setting: float,
    bounds: tuple[float, float],
    deadline: float,
    *,
    must_fit: bool,
) -> tuple[list[float], list[Candidate]]:
    """Encode at settings nearer and nearer to the goal; return all, with what they gave.

    After the deadline it ends, with `must_fit` at the first file that fits.
    False position, kept inside the bracket (Dowell and Jarratt, 1971: the Illinois rule).
    """
    settings: list[float] = []
    tried: list[Candidate] = []
    ends: dict[bool, tuple[float, float]] = {}
    aim = sum(goal.band) / 2
    last: bool | None = None
    while len(tried) < _MAX_ENCODES:
        settings.append(setting)
        tried.append(encode(setting))
        off = goal.above(tried[-1])
        settled = not must_fit or goal.best(tried) is not None
        late = settled and time.monotonic() >= deadline
        if late or goal.band[0] <= off <= goal.band[1]:
            break
        off -= aim
        side = off > 0
        if side == last and (not side) in ends:
            at, weight = ends[not side]
            ends[not side] = at, weight / 2
        ends[side], last = (setting, off), side
        if len(ends) == 1:
            step = -off - math.copysign(0.2 * len(tried), off)  # past the goal, to bracket it
            setting = min(max(setting + step, bounds[0]), bounds[1])
            if setting == settings[-1]:
                break
            continue
        (low, below), (high, over) = ends[False], ends[True]
        if abs(high - low) < 0.01:
            break
        guess = low + (high - low) * below / (below - over)
        spare = 0.02 * (high - low)
        setting = min(max(guess, min(low + spare, high - spare)), max(low + spare, high - spare))
    return settings, tried

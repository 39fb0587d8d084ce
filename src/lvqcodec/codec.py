# SPDX-License-Identifier: Apache-2.0
"""Pictures to bytes and back: what `lvq encode` and `lvq decode` do, and the library's door."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec import footprint, guard, ratecontrol, stream, tiling
from lvqcodec.catalog import DEFAULT_MODEL, find_by_digest
from lvqcodec.container import (
    MAX_PIXELS,
    Section,
    check_limit,
    pack,
    section_bytes,
    unpack,
    unpack_partial,
)
from lvqcodec.effort import MAX_EFFORT, Progress, Report, search
from lvqcodec.errors import UsageError
from lvqcodec.extras import LOSSLESS, pack_extras, unpack_extras
from lvqcodec.picture import Picture
from lvqcodec.ratecontrol import Goal
from lvqcodec.stream import LoadedModel, load_model
from lvqcodec.synthesis import decode_tiles

__all__ = [
    "DEFAULT_QUALITY",
    "Encoding",
    "LoadedModel",
    "Picture",
    "Progress",
    "decode",
    "decode_picture",
    "encode",
    "encode_image",
    "estimate_bits",
    "load_model",
]

DEFAULT_QUALITY = 50

_TUNED_EFFORT = 3


def default_effort(tune: str, max_seconds: float | None) -> int:
    """Return the effort where none is given: all that fits into a time, some for another tune."""
    return MAX_EFFORT if max_seconds is not None else _TUNED_EFFORT if tune != "psnr" else 0


@dataclass(frozen=True)
class Encoding:
    """A file, its PSNR in dB where the search has measured it, and how many files were encoded."""

    data: bytes
    psnr: float | None
    encodes: int


def encode(
    image: Picture | NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_psnr: float | None = None,
    alpha_quality: int = LOSSLESS,
    lattice: str | None = None,
    tune: str = "psnr",
    effort: int | None = None,
    max_seconds: float | None = None,
    tile: int | None = None,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> bytes:
    """Compress a picture, uint8 (H, W, 3) sRGB or (H, W) grey, to the bytes of an .lvq file.

    With alpha as the last channel it is (H, W, 4) or (H, W, 2); a `Picture` brings metadata too.

    One of three says how large: quality, 0 (smallest) .. 100 (best), 50 by default; target_bytes,
    the largest file that fits; target_psnr, the smallest file of at least so many dB, over the
    pixels. alpha_quality: 0 (smallest) .. 100 (lossless), whatever the quality of the pixels.
    lattice: "e8", "z" or None for the model's own choice. effort: 0 (plain) .. 9 (slowest), how
    long to search for smaller files. tune: "psnr", or "ms-ssim" for a search for files of which
    that is high, which takes an effort, by default 3. max_seconds: the search ends then with the
    best so far; it makes 9 the default effort, which otherwise is 0. `report` is told how the
    search goes.
    tile: side in pixels of the tiles that are coded on their own, a power of two from 32 to 32768;
    by default 1024 for pictures of more than 2^21 pixels. max_memory: bytes that it may take, by
    default half of what is available. `device` counts when `model` is a name.
    Raises UsageError, UnsupportedImage (type, shape or size), ModelNotFound, ModelMismatch, and
    LvqError for a picture that needs more memory.
    """
    return encode_image(
        image,
        model=model,
        quality=quality,
        target_bytes=target_bytes,
        target_psnr=target_psnr,
        alpha_quality=alpha_quality,
        lattice=lattice,
        tune=tune,
        effort=effort,
        max_seconds=max_seconds,
        tile=tile,
        max_memory=max_memory,
        device=device,
        report=report,
    ).data


@guard.own_torch()
def encode_image(
    image: Picture | NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_psnr: float | None = None,
    alpha_quality: int = LOSSLESS,
    lattice: str | None = None,
    tune: str = "psnr",
    effort: int | None = None,
    max_seconds: float | None = None,
    tile: int | None = None,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> Encoding:
    """Do as `encode`, and tell more of the file."""
    start = time.monotonic()
    wishes = {"quality": quality, "target_bytes": target_bytes, "target_psnr": target_psnr}
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    if effort is None:
        effort = default_effort(tune, max_seconds)
    if not 0 <= effort <= MAX_EFFORT:
        raise UsageError(f"effort {effort} does not exist: give 0 to {MAX_EFFORT}")
    if tune != "psnr" and effort == 0:
        raise UsageError(f"effort 0 does not search, so it tunes nothing for {tune}: give 1 to 9")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds = {max_seconds} must be more than 0")
    quality = DEFAULT_QUALITY if quality is None else quality
    picture = Picture.of(image)
    pixels = picture.pixels
    stream.check(pixels, quality, tune)
    extras = pack_extras(picture, alpha_quality)
    goal = None
    if target_bytes is not None:
        goal = Goal("size", target_bytes)
    elif target_psnr is not None:
        goal = Goal("psnr", target_psnr)
    if goal is not None and not 0 < goal.limit < math.inf:
        raise UsageError(f"{given[0]} = {goal.limit} must be more than 0 and finite")
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    original = stream.prepare(pixels, loaded, quality, lattice, tune=tune, tile=tile)
    weighed = effort > 0 or goal is not None
    footprint.check(
        footprint.encoding(original.header, original.tiling, effort, weighed=weighed),
        max_memory,
        original.header,
        remedy="allow for more (--max-memory)" + (", or give a lower effort" if effort else ""),
    )
    deadline = math.inf if max_seconds is None else start + max_seconds
    if goal is not None:
        found = _reach(
            goal,
            pixels,
            loaded,
            extras,
            lattice=lattice,
            tune=tune,
            tile=tile,
            effort=effort,
            deadline=deadline,
            report=report,
        )
        data = _with_extras(found.candidate.data, extras)
        return Encoding(data, found.candidate.psnr, found.encodes)
    if effort == 0:
        payloads = []
        for count, source in enumerate(original.sources(), 1):
            payloads.append(stream.write(source).payload)
            if report is not None:
                report(Progress(count / len(original.tiling)))
        return Encoding(_with_extras(stream.assemble(original, payloads), extras), None, 1)
    best = search(original, effort, deadline=deadline, report=report)
    return Encoding(_with_extras(best.data, extras), best.psnr, 2)


def _reach(
    goal: Goal, pixels: NDArray[np.uint8], loaded: LoadedModel, extras: list[Section], **how: Any
) -> ratecontrol.Found:
    """Reach a goal with the pixels; of a size they get what alpha and metadata leave."""
    beside = sum(map(section_bytes, extras)) if goal.kind == "size" else 0
    if beside >= goal.limit:
        raise UsageError(
            f"alpha and metadata alone take {beside} of {goal.limit:.0f} bytes; allow for more, "
            "drop metadata with --strip or lower --alpha-quality"
        )
    try:
        return ratecontrol.reach(Goal(goal.kind, goal.limit - beside), pixels, loaded, **how)
    except UsageError as error:
        if not beside:
            raise
        raise UsageError(f"beside {beside} bytes of alpha and metadata {error}") from error


def _with_extras(data: bytes, extras: list[Section]) -> bytes:
    """Put sections into a file."""
    if not extras:
        return data
    header, sections = unpack(data)
    return pack(header, [*extras, *(Section(*section) for section in sections.items())])


@guard.own_torch()
def estimate_bits(
    image: NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int = DEFAULT_QUALITY,
    lattice: str | None = None,
    device: str = "auto",
) -> float:
    """Return the model's own estimate of the bits of `encode`'s file, headers left out."""
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    return stream.estimate_bits(stream.prepare(image, loaded, quality, lattice))


def decode(
    data: bytes,
    *,
    region: tuple[int, int, int, int] | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> NDArray[np.uint8]:
    """Decompress the bytes of an .lvq file to uint8 (H, W, 3) or (H, W) for a grey picture.

    If it has transparency, alpha is one channel more: (H, W, 4) or (H, W, 2).
    region: (x, y, width, height) in pixels, of which alone the result is, from the tiles that it
    needs. partial: take data whose end is missing, too; latents that are not there are predicted,
    and no checksum tells whether those that are there are damaged. max_memory: bytes that it may
    take, by default half of what is available. `report` is told how far it is.
    Raises FormatError (StreamError) for damaged data, UnsupportedImage for a picture of more than
    max_pixels, before anything of its size is allocated, ModelNotFound, ModelMismatch, UsageError
    for a region that is not in the picture, and LvqError for one that needs more memory.
    """
    return decode_picture(
        data,
        region=region,
        partial=partial,
        max_pixels=max_pixels,
        max_memory=max_memory,
        device=device,
        report=report,
    ).array()


@guard.own_torch()
def decode_picture(
    data: bytes,
    *,
    region: tuple[int, int, int, int] | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> Picture:
    """Do as `decode`, and return the metadata as well."""
    header, sections, missing = unpack_partial(data) if partial else (*unpack(data), 0)
    check_limit(header.width, header.height, max_pixels)
    layout, tiles, whole = tiling.from_partial(header, sections, missing)
    shown = tiling.region(header, region)
    loaded = stream.load_card(find_by_digest(header.model), stream.find_device(device))
    for index, tile in enumerate(tiles[:whole]):
        stream.open_tile(tile, loaded, layout[index].grid)  # a size that is none shows here
    need = footprint.decoding(header, layout, shown)
    footprint.check(need, max_memory, header, remedy="allow for more (--max-memory)")
    tell = None if report is None else lambda done: report(Progress(done))
    pixels = decode_tiles(header, loaded, layout, tiles, shown, tell, whole)
    extras = unpack_extras(header, sections)
    if extras.get("alpha") is not None:
        extras["alpha"] = extras["alpha"][shown]
    return Picture(pixels, **extras)

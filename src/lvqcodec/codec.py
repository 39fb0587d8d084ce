# SPDX-License-Identifier: Apache-2.0
"""Pictures to bytes and back: what `lvq encode` and `lvq decode` do, and the library's door."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvqcodec import budget, ratecontrol, stream, tiling
from lvqcodec.catalog import DEFAULT_MODEL, find_by_digest
from lvqcodec.container import unpack
from lvqcodec.effort import MAX_EFFORT, Progress, Report, search
from lvqcodec.errors import UsageError
from lvqcodec.ratecontrol import Goal
from lvqcodec.stream import LoadedModel, load_model
from lvqcodec.synthesis import decode_tiles

__all__ = [
    "DEFAULT_QUALITY",
    "Encoding",
    "LoadedModel",
    "Progress",
    "decode",
    "encode",
    "encode_image",
    "estimate_bits",
    "load_model",
]

DEFAULT_QUALITY = 50


@dataclass(frozen=True)
class Encoding:
    """A file, its PSNR in dB where the search has measured it, and how many files were encoded."""

    data: bytes
    psnr: float | None
    encodes: int


def encode(
    image: NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_psnr: float | None = None,
    lattice: str | None = None,
    effort: int | None = None,
    max_seconds: float | None = None,
    tile: int | None = None,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> bytes:
    """Compress a picture, uint8 (H, W, 3) sRGB or (H, W) grey, to the bytes of an .lvq file.

    One of three says how large: quality, 0 (smallest) .. 100 (best), 50 by default; target_bytes,
    the largest file that fits; target_psnr, the smallest file of at least so many dB.
    lattice: "e8", "z" or None for the model's own choice. effort: 0 (plain) .. 9 (slowest), how
    long to search for smaller files. max_seconds: the search ends then with the best so far; it
    makes 9 the default effort, which otherwise is 0. `report` is told how the search goes.
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
        lattice=lattice,
        effort=effort,
        max_seconds=max_seconds,
        tile=tile,
        max_memory=max_memory,
        device=device,
        report=report,
    ).data


def encode_image(
    image: NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_psnr: float | None = None,
    lattice: str | None = None,
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
        effort = 0 if max_seconds is None else MAX_EFFORT
    if not 0 <= effort <= MAX_EFFORT:
        raise UsageError(f"effort {effort} does not exist: give 0 to {MAX_EFFORT}")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds = {max_seconds} must be more than 0")
    quality = DEFAULT_QUALITY if quality is None else quality
    stream.check(image, quality)
    goal = None
    if target_bytes is not None:
        goal = Goal("size", target_bytes)
    elif target_psnr is not None:
        goal = Goal("psnr", target_psnr)
    if goal is not None and not 0 < goal.limit < math.inf:
        raise UsageError(f"{given[0]} = {goal.limit} must be more than 0 and finite")
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    picture = stream.prepare(image, loaded, quality, lattice, tile)
    weighed = effort > 0 or goal is not None
    budget.check(
        budget.encoding(picture.header, picture.tiling, effort, weighed=weighed),
        max_memory,
        picture.header,
        remedy="allow for more (--max-memory)" + (", or give a lower effort" if effort else ""),
    )
    deadline = math.inf if max_seconds is None else start + max_seconds
    if goal is not None:
        found = ratecontrol.reach(
            goal,
            image,
            loaded,
            lattice=lattice,
            tile=tile,
            effort=effort,
            deadline=deadline,
            report=report,
        )
        return Encoding(found.candidate.data, found.candidate.psnr, found.encodes)
    if effort == 0:
        payloads = []
        for count, source in enumerate(picture.sources(), 1):
            payloads.append(stream.write(source).payload)
            if report is not None:
                report(Progress(count / len(picture.tiling)))
        return Encoding(stream.assemble(picture, payloads), None, 1)
    best = search(picture, effort, deadline=deadline, report=report)
    return Encoding(best.data, best.psnr, 2)


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
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> NDArray[np.uint8]:
    """Decompress the bytes of an .lvq file to uint8 (H, W, 3) or (H, W) for a grey picture.

    region: (x, y, width, height) in pixels, of which alone the result is, from the tiles that it
    needs. max_memory: bytes that it may take, by default half of what is available. `report` is
    told how far it is.
    Raises FormatError (StreamError) for damaged data, ModelNotFound, ModelMismatch, UsageError for
    a region that is not in the picture, and LvqError for a picture that needs more memory.
    """
    header, sections = unpack(data)
    layout, tiles = tiling.from_sections(header, sections)
    shown = tiling.region(header, region)
    need = budget.decoding(header, layout, shown)
    budget.check(need, max_memory, header, remedy="allow for more (--max-memory)")
    loaded = stream.load_card(find_by_digest(header.model), stream.find_device(device))
    tell = None if report is None else lambda done: report(Progress(done))
    return decode_tiles(header, loaded, layout, tiles, shown, tell)

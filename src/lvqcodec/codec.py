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
from lvqcodec.config import EFFORTS, default_effort
from lvqcodec.container import (
    MAX_PIXELS,
    Header,
    Section,
    check_limit,
    pack,
    read_header,
    section_bytes,
    unpack,
    unpack_partial,
)
from lvqcodec.effort import Progress, Report, search
from lvqcodec.errors import FormatError, ModelMismatch, UsageError
from lvqcodec.extras import LOSSLESS, pack_extras, unpack_extras
from lvqcodec.files import Source, read_source
from lvqcodec.picture import Picture
from lvqcodec.ratecontrol import Goal
from lvqcodec.sources import PictureSource, to_picture
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
    "default_effort",
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
    image: PictureSource,
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_bpp: float | None = None,
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
    """Compress a picture to the bytes of an .lvq file.

    image: a numpy array, uint8 (H, W, 3) sRGB or (H, W) grey, with alpha as the last channel
    (H, W, 4) or (H, W, 2); a tensor of torch, uint8 (C, H, W) or (H, W), as torchvision reads them;
    a `Picture`, which brings metadata too, or a path, a binary file or an image of Pillow, with the
    metadata that these have. What a file holds beside its picture and is left out is a warning.

    One of four says how large: quality, 0 (smallest) .. 100 (best), 50 by default; target_bytes or
    target_bpp (bits a pixel), the best file that fits; target_psnr, the smallest file of at least
    so many dB, over the pixels. alpha_quality: 0 (smallest) .. 100 (lossless), whatever the quality
    of the pixels. lattice: "e8", "z" or None for the model's own choice. effort: 0 (plain) .. 9
    (slowest), how long to search for smaller files. tune: "psnr", or "ms-ssim" for a search for
    files of which that is high, which takes an effort, by default 3. max_seconds: the search ends
    then with the best so far; it makes 9 the default effort, which otherwise is 0. `report` is told
    how the search goes.
    tile: side in pixels of the tiles that are coded on their own, a power of two from 32 to 32768;
    by default 1024 for pictures of more than 2^21 pixels. max_memory: bytes that it may take, by
    default half of what is available; a file is not decoded if it would take more. `device` counts
    when `model` is a name.
    Raises UsageError, also for what is no picture, UnsupportedImage (type of samples, shape or
    size), FormatError for a broken file, ModelNotFound, ModelMismatch, and LvqError for a picture
    that needs more memory.
    """
    return encode_image(
        image,
        model=model,
        quality=quality,
        target_bytes=target_bytes,
        target_bpp=target_bpp,
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
    image: PictureSource,
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int | None = None,
    target_bytes: int | None = None,
    target_bpp: float | None = None,
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
    wishes = {
        "quality": quality,
        "target_bytes": target_bytes,
        "target_bpp": target_bpp,
        "target_psnr": target_psnr,
    }
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    if effort is None:
        effort = default_effort(tune, max_seconds)
    if effort not in EFFORTS:
        raise UsageError(f"effort {effort} does not exist: give 0 to {EFFORTS[-1]}")
    if tune != "psnr" and effort == 0:
        raise UsageError(f"effort 0 does not search, so it tunes nothing for {tune}: give 1 to 9")
    if max_seconds is not None and not max_seconds > 0:
        raise UsageError(f"max_seconds = {max_seconds} must be more than 0")
    for limit in (target_bytes, target_bpp, target_psnr):
        if limit is not None and not 0 < limit < math.inf:
            raise UsageError(f"{given[0]} = {limit} must be more than 0 and finite")
    weighed = effort > 0 or (bool(given) and quality is None)
    admit = footprint.admission(max_memory, effort, tile=tile, weighed=weighed)
    quality = DEFAULT_QUALITY if quality is None else quality
    picture = to_picture(image, admit)
    pixels = picture.pixels
    stream.check(pixels, quality, tune)
    height, width = pixels.shape[:2]
    admit(width, height, (1 if pixels.ndim == 2 else 3) + (picture.alpha is not None))
    extras = pack_extras(picture, alpha_quality)
    goal = None
    if target_bytes is not None:
        goal = Goal("size", target_bytes)
    elif target_bpp is not None:
        goal = Goal("size", max(int(target_bpp * height * width / 8), 1))
    elif target_psnr is not None:
        goal = Goal("psnr", target_psnr)
    loaded = _load(model, device)
    original = stream.prepare(pixels, loaded, quality, lattice, tune=tune, tile=tile)
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
    image: PictureSource,
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int = DEFAULT_QUALITY,
    lattice: str | None = None,
    device: str = "auto",
) -> float:
    """Return the model's own estimate of the bits of the pixels in `encode`'s file."""
    pixels, loaded = to_picture(image).pixels, _load(model, device)
    return stream.estimate_bits(stream.prepare(pixels, loaded, quality, lattice))


def _load(model: str | LoadedModel, device: str) -> LoadedModel:
    """Return the model that is meant."""
    if isinstance(model, LoadedModel):
        return model
    if not isinstance(model, str):
        raise UsageError(f"model = {model!r} is neither the name of a model nor a loaded one")
    return load_model(model, device=device)


def _load_for(header: Header, model: str | LoadedModel | None, device: str) -> LoadedModel:
    """Return the model of a file, which is the one that is meant; raises ModelMismatch."""
    if model is None:
        return stream.load_card(find_by_digest(header.model), stream.find_device(device))
    loaded = _load(model, device)
    if loaded.digest != header.model:
        name = repr(model) if isinstance(model, str) else "the given one"
        raise ModelMismatch(
            f"the file is of the model with digest {header.model.hex()}..., {name} has"
            f" {loaded.digest.hex()}...: leave model out to use the file's own"
        )
    return loaded


def decode(
    data: Source,
    *,
    region: tuple[int, int, int, int] | None = None,
    model: str | LoadedModel | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> NDArray[np.uint8]:
    """Decompress an .lvq file to uint8 (H, W, 3) or (H, W) for a grey picture.

    data: bytes, or another buffer of them such as a numpy array of uint8, or a path or a binary
    file to read them from. If there is transparency, alpha is one channel more: (H, W, 4) or
    (H, W, 2).
    region: (x, y, width, height) in pixels, of which alone the result is, from the tiles that it
    needs. partial: take data whose end is missing, too; latents that are not there are predicted,
    and no checksum tells whether those that are there are damaged. model: a name or a loaded model
    that must be the file's own; by default that of the installed ones whose digest is in the file.
    max_memory: bytes that it may take, by default half of what is available. `device` counts unless
    the model is loaded. `report` is told how far it is.
    Raises FormatError (StreamError) for damaged data, UnsupportedImage for a picture of more than
    max_pixels, before anything of its size is allocated, ModelNotFound, ModelMismatch, UsageError
    for a region that is not in the picture and for data that cannot be read, and LvqError for a
    picture that needs more memory.
    """
    return decode_picture(
        data,
        region=region,
        model=model,
        partial=partial,
        max_pixels=max_pixels,
        max_memory=max_memory,
        device=device,
        report=report,
    ).array()


@guard.own_torch()
def decode_picture(
    data: Source,
    *,
    region: tuple[int, int, int, int] | None = None,
    model: str | LoadedModel | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: Report | None = None,
) -> Picture:
    """Do as `decode`, and return the metadata as well."""
    data = read_source(data, look=read_header)  # what is none, and may never end, is not read
    header, sections, missing = unpack_partial(data) if partial else (*unpack(data), 0)
    check_limit(header.width, header.height, max_pixels)
    layout, tiles, whole = tiling.from_partial(header, sections, missing)
    shown = tiling.region(header, region)
    loaded = _load_for(header, model, device)
    if header.stride != loaded.model.stride:
        raise FormatError(
            f"the file says {header.stride} pixels per position, its model has"
            f" {loaded.model.stride}: the file is damaged, get it again"
        )
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

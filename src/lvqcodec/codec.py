# SPDX-License-Identifier: Apache-2.0
"""Pictures to bytes and back: what `lvq encode` and `lvq decode` do, and the library's door."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec import guard
from lvqcodec.catalog import DEFAULT_MODEL, find_by_digest, find_model
from lvqcodec.encoder.original import prepare
from lvqcodec.encoder.ratecontrol import Goal, reach
from lvqcodec.encoder.search import search, write_plain
from lvqcodec.errors import FormatError, ModelMismatch, UsageError
from lvqcodec.files import Source
from lvqcodec.format.container import Header
from lvqcodec.format.limits import MAX_PIXELS
from lvqcodec.format.lvqfile import LvqFile, open_lvq
from lvqcodec.model.loaded import LoadedModel, find_device, load_card, load_model
from lvqcodec.options import DEFAULT_QUALITY, EncodeOptions, takes
from lvqcodec.pictures.picture import Picture
from lvqcodec.pictures.sections import unpack_sections
from lvqcodec.pictures.sources import PictureSource, to_picture
from lvqcodec.progress import OnProgress, Progress
from lvqcodec.reconstruction import decode_tiles
from lvqcodec.resources import admission, estimate
from lvqcodec.stream import TileCoder

__all__ = [
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


@dataclass(frozen=True)
class Encoding:
    """A file, its PSNR in dB where the search has measured it, and how many files were encoded."""

    data: bytes
    psnr: float | None
    encodes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeCall(EncodeOptions):
    """What `encode` takes: a picture, the options, and with what and where it is encoded."""

    image: PictureSource = field(kw_only=False)
    model: str | LoadedModel = DEFAULT_MODEL
    device: str = "auto"
    report: OnProgress | None = None


@takes(EncodeCall)
def encode(call: EncodeCall) -> bytes:
    """Compress a picture to the bytes of an .lvq file.

    image: a numpy array, uint8 (H, W, 3) sRGB or (H, W) grey, with alpha as the last channel
    (H, W, 4) or (H, W, 2); a tensor of torch, uint8 (C, H, W) or (H, W), as torchvision reads them;
    a `Picture`, which brings metadata too, or a path, a binary file or an image of Pillow, with the
    metadata that these have. What a file holds beside its picture and is left out is a warning.
    model: a name or a loaded model; `device` counts when it is a name. `report` is told how the
    work goes. The options:

    {options}

    Raises UsageError, also for what is no picture, UnsupportedImage (type of samples, shape or
    size), FormatError for a broken file, ModelNotFound, ModelMismatch, and LvqError for a picture
    that needs more memory.
    """
    return encode_image(
        call.image, call, model=call.model, device=call.device, report=call.report
    ).data


@guard.own_torch()
def encode_image(
    image: PictureSource,
    options: EncodeOptions | None = None,
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    device: str = "auto",
    report: OnProgress | None = None,
    **more: Any,
) -> Encoding:
    """Do as `encode`, and tell more of the file; `more` are options by name."""
    start = time.monotonic()
    options = EncodeOptions(**more) if options is None else replace(options, **more)
    deadline = start + (options.max_seconds or math.inf)
    picture = to_picture(image, admission.admission(options, _memory(model)))
    original = prepare(picture, _load(model, device), options)
    effort, goal = options.chosen_effort, Goal.of(options, original)
    if goal is not None:
        found = reach(goal, original, effort, deadline=deadline, on_progress=report)
        return Encoding(found.candidate.data, found.candidate.psnr, found.encodes)
    if effort == 0:
        return Encoding(write_plain(original, report), None, 1)
    best = search(original, effort, deadline=deadline, on_progress=report)
    return Encoding(best.data, best.psnr, 2)


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
    options = EncodeOptions(quality=quality, lattice=lattice)
    original = prepare(to_picture(image), _load(model, device), options)
    tiles = original.sources()
    return sum(original.coder.estimate_bits(tile.target, tile.grid) for tile in tiles)


def _memory(model: str | LoadedModel) -> estimate.MemoryFigures:
    """Return what coding with a model takes, without loading it."""
    if isinstance(model, str):
        return find_model(model).memory
    return model.memory if isinstance(model, LoadedModel) else estimate.LARGEST


def _load(model: str | LoadedModel, device: str) -> LoadedModel:
    """Return the model that is meant."""
    if isinstance(model, LoadedModel):
        return model
    if not isinstance(model, str):
        raise UsageError(f"model = {model!r} is neither the name of a model nor a loaded one")
    return load_model(model, device=device)


def _load_for(header: Header, model: str | LoadedModel | None, device: str) -> LoadedModel:
    """Return the model of a file, which is the one that is meant; ModelMismatch, FormatError."""
    if model is None:
        loaded = load_card(find_by_digest(header.model), find_device(device))
    else:
        loaded = _load(model, device)
    if header.lattice not in loaded.tables.names:
        raise FormatError(
            f"the file says lattice {header.lattice}, which its model has no rows for: it is"
            " damaged, get it again"
        )
    if loaded.digest != header.model:
        name = repr(model) if isinstance(model, str) else "the given one"
        raise ModelMismatch(
            f"the file is of the model with digest {header.model.hex()}..., {name} has"
            f" {loaded.digest.hex()}...: leave model out to use the file's own"
        )
    return loaded


def decode(
    data: Source | LvqFile,
    *,
    region: tuple[int, int, int, int] | None = None,
    model: str | LoadedModel | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: OnProgress | None = None,
) -> NDArray[np.uint8]:
    """Decompress an .lvq file to uint8 (H, W, 3) or (H, W) for a grey picture.

    data: bytes, or another buffer of them such as a numpy array of uint8, or a path or a binary
    file to read them from, or what `open_lvq` has made of them. If there is transparency, alpha is
    one channel more: (H, W, 4) or (H, W, 2).
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
    data: Source | LvqFile,
    *,
    region: tuple[int, int, int, int] | None = None,
    model: str | LoadedModel | None = None,
    partial: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
    device: str = "auto",
    report: OnProgress | None = None,
) -> Picture:
    """Do as `decode`, and return the metadata as well."""
    if isinstance(data, LvqFile):
        file = data
    else:
        file = open_lvq(data, partial=partial, max_pixels=max_pixels)
    shown = file.region(region)
    loaded = _load_for(file.header, model, device)
    coder = TileCoder(file.header, loaded)
    for index, tile in enumerate(file.tiles[: file.whole]):
        coder.check_length(tile, file.tiling[index].grid)  # a size that is none shows here
    need = estimate.decoding(file.header, file.tiling, shown, loaded.memory)
    admission.check(need, max_memory, file.header, remedy="allow for more (--max-memory)")
    pixels = decode_tiles(file, coder, shown, report)
    beside = unpack_sections(file.header, file.sections)
    if beside.get("alpha") is not None:
        beside["alpha"] = beside["alpha"][shown]
    return Picture(pixels, **beside)

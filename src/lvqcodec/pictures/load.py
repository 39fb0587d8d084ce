# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out of files, through Pillow, and never by a silent conversion."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lvqcodec.errors import FormatError, LvqError, UnsupportedImage, UsageError
from lvqcodec.format.container import refuse_coded
from lvqcodec.format.limits import MAX_PIXELS
from lvqcodec.format.signatures import looks_like
from lvqcodec.pictures.metadata import strip
from lvqcodec.pictures.picture import Picture
from lvqcodec.pictures.reader import READABLE, decode, find_reader, open_picture

_SIGNATURE_BYTES = 64
_PATH = (str, os.PathLike)
_BROKEN_IF_UNREAD = {*READABLE, "PGM"}


def load(
    source: str | os.PathLike[str] | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read the samples of an opaque picture as stored: uint8 (H,W,3) or (H,W) grey.

    Metadata is ignored. Errors are those of `load_picture`; UnsupportedImage for transparency too.
    """
    picture = load_picture(source, max_pixels=max_pixels)
    if picture.alpha is not None:
        raise UnsupportedImage(
            f"{_name(source)} has transparency; flatten it first: "
            "magick IN -background white -flatten OUT.png"
        )
    return picture.pixels


def load_picture(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    frame: int | None = None,
    to_srgb8: bool = False,
    stripped: bool = False,
    max_pixels: int = MAX_PIXELS,
    admit: Callable[[int, int, int], None] | None = None,
) -> Picture:
    """Read a picture with its transparency and metadata, samples as stored.

    frame: which frame or page, from 1; required if there are several and none is the primary one.
    to_srgb8: convert other colours and more bits to 8-bit sRGB instead of refusing them. stripped:
    see `metadata.strip`. admit: called with width, height and number of channels (alpha included)
    before any pixels are decoded; its errors are passed on. The picture's `remarks` name what of
    the file is left out. Raises UsageError if there is no such file or frame, FormatError if the
    file is broken or not a picture, and UnsupportedImage for a kind that is not coded or for more
    than max_pixels.
    """
    name = _name(source)
    try:
        with open(source, "rb") if isinstance(source, _PATH) else nullcontext(source) as file:
            data = file.read(_SIGNATURE_BYTES)
            reader = find_reader(data)
            data += file.read() if reader else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {name}: {reason}") from error
    refuse_coded(data, name)
    if reader is None:
        kind = looks_like(data)
        if kind and kind.upper() not in _BROKEN_IF_UNREAD:
            raise UnsupportedImage(f"{name} is {kind}, which is not read; convert it to PNG first")
        raise FormatError(f"{name} is no intact picture; kinds read: {', '.join(READABLE)}")
    with _explained(name):
        opened = open_picture(reader, data, name, frame, max_pixels)
    if admit is not None:
        admit(*opened.samples)
    with _explained(name):
        picture = decode(opened, to_srgb8)
    return strip(picture) if stripped else picture


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise the errors of reading a file again as errors that name it."""
    try:
        yield
    except UnsupportedImage as error:
        raise UnsupportedImage(f"{name} has {error}") from error
    except (LvqError, MemoryError):
        raise
    except Exception as error:  # Pillow lets out whatever its parsers stumble over
        reason = str(error) or type(error).__name__
        raise FormatError(f"{name} is damaged or of an unknown kind: {reason}") from error


def _name(source: str | os.PathLike[str] | BinaryIO) -> str:
    return os.fspath(source) if isinstance(source, _PATH) else "the picture"

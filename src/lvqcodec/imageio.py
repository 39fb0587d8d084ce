# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out of files, through Pillow, and never by a silent conversion."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from PIL.PngImagePlugin import PngInfo

from lvqcodec import files
from lvqcodec.container import MAGIC, MAX_PIXELS, looks_like
from lvqcodec.errors import FormatError, LvqError, UnsupportedImage, UsageError
from lvqcodec.metadata import EXIF_PREFIX, orientation, rewritable, strip, tiff_tags
from lvqcodec.picture import Picture
from lvqcodec.reader import READABLE, find_reader, read

SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the pictures that are read, in lower case."""

_SIGNATURE_BYTES = 16
_PATH = (str, os.PathLike)


@dataclass(frozen=True)
class _Format:
    """A format to write, by Pillow's name, with what it holds beside colours."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ()


_ALL = ("alpha", "icc", "exif", "xmp")
_JPEG = _Format("JPEG", {"quality": 95, "subsampling": "4:4:4"}, ("icc", "exif", "xmp"))
_TIFF = _Format("TIFF", {}, _ALL)
# by suffix; lossless, or close to it
_WRITABLE = {
    "png": _Format("PNG", {}, _ALL),
    "jpg": _JPEG,
    "jpeg": _JPEG,
    "webp": _Format("WEBP", {"lossless": True, "exact": True}, _ALL),
    "avif": _Format("AVIF", {"quality": 95, "subsampling": "4:4:4"}, _ALL),
    "tif": _TIFF,
    "tiff": _TIFF,
    "bmp": _Format("BMP"),
    "ppm": _Format("PPM"),
}
_NAMES = {"icc": "the colour profile", "exif": "EXIF", "xmp": "XMP"}


def load(
    source: str | os.PathLike[str] | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read the samples of an opaque picture as stored: uint8 (H,W,3) or (H,W) grey.

    Metadata is ignored. Errors as of `load_picture`; UnsupportedImage for transparency too.
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
) -> Picture:
    """Read a picture with its transparency and metadata, samples as stored.

    frame: which frame or page, from 1; needed if there are several. to_srgb8: convert other colours
    and more bits to 8-bit sRGB instead of refusing them. stripped: see `metadata.strip`. Raises
    UsageError if there is no such file or frame, FormatError if the file is broken or no picture,
    and UnsupportedImage if it is of a kind that is not coded or of more than max_pixels.
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
    if data.startswith(MAGIC):
        raise UnsupportedImage(f"{name} is an lvq file, coded already: `lvq decode` takes it")
    if reader is None:
        kind = looks_like(data)
        if kind and kind.upper() not in READABLE:
            raise UnsupportedImage(f"{name} is {kind}, which is not read; convert it to PNG first")
        raise FormatError(f"{name} is no intact picture; kinds read: {', '.join(READABLE)}")
    try:
        picture = read(reader, data, name, frame, to_srgb8, max_pixels)
    except UnsupportedImage as error:
        raise UnsupportedImage(f"{name} has {error}") from error
    except LvqError:
        raise
    except Exception as error:  # Pillow lets out whatever its parsers stumble over
        reason = str(error) or type(error).__name__
        raise FormatError(f"{name} is damaged or of an unknown kind: {reason}") from error
    return strip(picture) if stripped else picture


def _name(source: str | os.PathLike[str] | BinaryIO) -> str:
    return os.fspath(source) if isinstance(source, _PATH) else "the picture"


def save(
    image: Picture | NDArray[np.uint8],
    target: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    *,
    background: str | None = None,
) -> Sequence[str]:
    """Write a picture to a path (whole or not at all) or a stream; return what was left out of it.

    `image`: a Picture or an array as `Picture.of` takes it. `format`: a suffix such as "png"; by
    default that of the path, PNG for a stream. JPEG and AVIF are lossy (quality 95, 4:4:4), the
    others lossless. `background`: a colour, as CSS names it, to put behind transparent pixels.
    What is returned names the metadata that the format does not hold; if an orientation is among
    it, the pixels are turned. Raises UsageError, for transparency too that the format has not.
    """
    picture = Picture.of(image)
    pixels = picture.pixels
    if pixels.dtype != np.uint8 or (pixels.ndim != 2 and pixels.shape[2:] != (3,)):
        raise UsageError(f"a picture is uint8 (H,W,3) or (H,W), not {pixels.dtype} {pixels.shape}")
    suffix = format or (Path(target).suffix if isinstance(target, _PATH) else "png")
    form = _format(suffix)
    if background is not None:
        picture = _flatten(picture, background)
    if picture.alpha is not None and "alpha" not in form.holds:
        raise UsageError(
            f"{form.name} holds no transparency; write png, webp, avif or tiff, or put a colour "
            "behind it: --background white"
        )
    left_out = [
        name for name in _NAMES if getattr(picture, name) and not _holds(form, name, picture)
    ]
    if "exif" in left_out or "xmp" in left_out:
        picture = picture.turned(orientation(picture))
    file = BytesIO()
    try:
        options = form.options | _metadata_options(form, picture, left_out)
        Image.fromarray(picture.array()).save(file, form.name, **options)
    except MemoryError:
        raise
    except Exception as error:  # of what metadata may hold Pillow's writers stumble over much
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise UsageError(
            f"cannot write {size} pixels as {form.name}: {error}; choose another format"
        ) from error
    if isinstance(target, _PATH):
        files.write(target, file.getvalue())
    else:
        target.write(file.getvalue())
    return [_NAMES[name] for name in left_out]


def check_format(suffix: str) -> None:
    """Raise UsageError for a suffix of which no picture can be written."""
    _format(suffix)


def _format(suffix: str) -> _Format:
    try:
        return _WRITABLE[suffix.lower().removeprefix(".")]
    except KeyError:
        raise UsageError(
            f"cannot write a picture as {suffix!r}; choose one of {', '.join(_WRITABLE)}"
        ) from None


def _flatten(picture: Picture, background: str) -> Picture:
    """Put a colour behind the transparent pixels, mixed in the samples as browsers do."""
    try:
        colour = np.array(ImageColor.getrgb(background)[:3], np.uint16)
    except ValueError as error:
        raise UsageError(
            f"{background!r} is no colour; give one as CSS names it, as white or #ffe0c0"
        ) from error
    if picture.alpha is None:
        return picture
    pixels = picture.pixels
    if pixels.ndim == 2:
        if (colour == colour[0]).all():
            colour = colour[:1]
        pixels = np.dstack([pixels] * len(colour))
    alpha = picture.alpha[..., None].astype(np.uint16)
    mixed = ((pixels * alpha + colour * (255 - alpha) + 127) // 255).astype(np.uint8)
    return replace(picture, pixels=mixed[..., 0] if len(colour) == 1 else mixed, alpha=None)


def _holds(form: _Format, name: str, picture: Picture) -> bool:
    """Whether a format takes this piece of a picture's metadata."""
    if name == "exif" and form.name in ("TIFF", "AVIF"):
        return rewritable(picture.exif)  # they take it apart
    if name == "icc" and form.name == "WEBP" and picture.icc:
        return picture.icc[16:20] != b"GRAY"  # it has no grey
    return name in form.holds


def _metadata_options(form: _Format, picture: Picture, left_out: Sequence[str]) -> dict[str, Any]:
    """What Pillow is to be told to write the metadata."""
    data = {name: getattr(picture, name) for name in _NAMES if name not in left_out}
    icc, exif, xmp = (data.get(name) for name in ("icc", "exif", "xmp"))
    options: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if form.name == "TIFF":
        return options | {"exif": tiff_tags(exif, xmp)}
    if exif:
        options["exif"] = EXIF_PREFIX + exif
    if xmp and form.name == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif xmp:
        options["xmp"] = xmp
    return options

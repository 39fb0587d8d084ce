# SPDX-License-Identifier: Apache-2.0
"""`Picture` to picture files, through Pillow, and never by a silent conversion."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from PIL.AvifImagePlugin import AvifImageFile
from PIL.PngImagePlugin import PngInfo

from lvqcodec import files
from lvqcodec.errors import UsageError
from lvqcodec.pictures.colour import profile_misfit
from lvqcodec.pictures.load import _PATH
from lvqcodec.pictures.metadata import EXIF_PREFIX, orientation, rewritable, tiff_tags
from lvqcodec.pictures.picture import Picture, turn_back
from lvqcodec.suffixes import SYNONYMS, WRITTEN, WrittenFormat

_NAMES = {"icc": "the colour profile", "exif": "EXIF", "xmp": "XMP"}


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
    Returns the names of the metadata that the format does not hold, and of a colour profile that
    does not fit the colours written; if an orientation is left out, the pixels are turned. Raises
    UsageError, also for transparency and colours that the format does not have.
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
    if form.grey_only and picture.pixels.ndim == 3:
        raise UsageError("PGM holds grey only, and this picture has colours; write ppm or png")
    left_out = [
        name for name in _NAMES if getattr(picture, name) and not _holds(form, name, picture)
    ]
    picture = _without(picture, left_out)
    file = BytesIO()
    try:
        options = form.options | _metadata_options(form, picture)
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
    """Raise UsageError for a suffix whose format cannot be written."""
    _format(suffix)


def _format(suffix: str) -> WrittenFormat:
    name = suffix.lower().removeprefix(".")
    try:
        return WRITTEN[SYNONYMS.get(name, name)]
    except KeyError:
        raise UsageError(
            f"cannot write a picture as {suffix!r}; choose one of {', '.join(WRITTEN)}"
        ) from None


def _flatten(picture: Picture, background: str) -> Picture:
    """Put a colour behind the transparent pixels, mixing stored samples as browsers do."""
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


def _without(picture: Picture, left_out: Sequence[str]) -> Picture:
    """Leave metadata out, without changing the orientation that the picture is shown in."""
    gone: dict[str, Any] = dict.fromkeys(left_out)
    bare = replace(picture, **gone)
    told, left = orientation(picture.exif, picture.xmp), orientation(bare.exif, bare.xmp)
    if told == left:
        return bare
    upright = bare.turned(told)
    alpha = None if upright.alpha is None else turn_back(upright.alpha, left)
    return replace(upright, pixels=turn_back(upright.pixels, left), alpha=alpha)


def _holds(form: WrittenFormat, name: str, picture: Picture) -> bool:
    """Whether a format takes this piece of a picture's metadata."""
    data = getattr(picture, name)
    if name not in form.holds or len(data) > form.limits.get(name, len(data)):
        return False
    if name == "exif" and form.name in ("TIFF", "AVIF"):
        return rewritable(data)  # they take it apart
    if name == "icc":
        return profile_misfit(data, "L" if _stays_grey(form, picture) else "RGB") is None
    return True


def _stays_grey(form: WrittenFormat, picture: Picture) -> bool:
    """Whether grey pixels are written as grey."""
    if form.name == "WEBP":
        return False
    if form.name == "AVIF" and (picture.alpha is not None or not _avif_has_grey()):
        return False
    return picture.pixels.ndim == 2


@cache
def _avif_has_grey() -> bool:
    """Whether this Pillow knows grey AVIF files; older versions write and read them as colour."""
    file = BytesIO()
    Image.new("L", (1, 1)).save(file, "AVIF", subsampling="4:0:0")
    file.seek(0)
    with AvifImageFile(file) as image:
        return image.mode == "L"


def _metadata_options(form: WrittenFormat, picture: Picture) -> dict[str, Any]:
    """The options that make Pillow write the metadata."""
    icc, exif, xmp = picture.icc, picture.exif, picture.xmp
    options: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if form.name == "AVIF" and _stays_grey(form, picture):
        options["subsampling"] = "4:0:0"
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

# SPDX-License-Identifier: Apache-2.0
"""EXIF and XMP as picture files hold them, and the orientation that is told there."""

from __future__ import annotations

import re
from dataclasses import replace

from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lvqcodec.colour import means_srgb
from lvqcodec.picture import Picture

EXIF_PREFIX = b"Exif\0\0"
_XMP_TAG = 700  # of a TIFF file
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

# What of the first directory describes the picture: the rest of it describes the TIFF file.
_TIFF_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
)
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def read_exif(image: ImageFile.ImageFile) -> bytes | None:
    """Return the EXIF of a decoded picture; of a TIFF file, before it is decoded."""
    exif = image.info.get("exif") or _raw_profile(image, "exif")
    if exif is None and isinstance(image, TiffImageFile):
        try:
            tags = _describing(image.getexif())
            exif = tags.tobytes() if len(tags) else None
        except Exception:  # broken metadata is no obstacle to any viewer
            return None
    return exif.removeprefix(EXIF_PREFIX) or None if exif else None


def read_xmp(image: ImageFile.ImageFile) -> bytes | None:
    """Return the XMP packet of a decoded picture."""
    xmp = image.info.get("xmp") or _raw_profile(image, "xmp")
    return xmp.encode() if isinstance(xmp, str) else xmp


def _raw_profile(image: ImageFile.ImageFile, kind: str) -> bytes | None:
    """Return what ImageMagick put into PNG files before there were chunks for it."""
    text = image.info.get(f"Raw profile type {kind}")
    try:
        _, _, length, *digits = text.split("\n") if text else ("", "", "0")
        return bytes.fromhex("".join(digits)[: 2 * int(length)]) or None
    except (AttributeError, ValueError):
        return None


def parse_exif(exif: bytes | None) -> Image.Exif | None:
    """Return the tags of EXIF, None if there are none that can be read."""
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        return tags if len(tags) else None
    except Exception:  # Pillow lets out whatever its parsers stumble over
        return None


def rewritable(exif: bytes | None) -> bool:
    """Whether Pillow can take EXIF apart and put it together again."""
    tags = parse_exif(exif)
    try:
        return tags is not None and bool(tags.tobytes() and _describing(tags).tobytes())
    except Exception:  # values that are not of their type
        return False


def tiff_tags(exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return EXIF, which is rewritable, and XMP as tags for a TIFF file."""
    tags = _describing(parse_exif(exif) or Image.Exif())
    if xmp:
        tags[_XMP_TAG] = xmp
    return tags.tobytes()


def _describing(tags: Image.Exif) -> Image.Exif:
    """Return those tags that tell of the picture, not of how a TIFF file stores it."""
    out = Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in tags:
            out[tag] = tags[tag]
    for directory in _DIRECTORIES:
        if directory in tags and (inner := tags.get_ifd(directory)):
            out[directory] = dict(inner)
    return out


def orientation(picture: Picture) -> int:
    """Return the EXIF orientation, 1 to 8, that EXIF or else XMP tells; 1 if neither does."""
    tags = parse_exif(picture.exif)
    found = tags.get(ExifTags.Base.Orientation) if tags else None
    if found is None and (match := _XMP_ORIENTATION.search(picture.xmp or b"")):
        found = int(match[1])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def strip(picture: Picture) -> Picture:
    """Drop metadata without changing how the picture looks.

    It is turned upright, and keeps a colour profile only if that is of other colours than sRGB.
    """
    icc = picture.icc if picture.icc and not means_srgb(picture.icc) else None
    upright = picture.turned(orientation(picture))
    return replace(upright, icc=icc, exif=None, xmp=None)

# SPDX-License-Identifier: Apache-2.0
"""Picture files to pictures, through Pillow: kept as they are, or refused with the remedy.

Palettes and fewer bits are expanded, which changes no colour. More than 8 bits, other colours than
RGB and grey, and colour spaces that only the file format states are refused, or made 8-bit sRGB
where that was asked for: nothing is lost silently.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lvqcodec.colour import means_srgb, profile_to_srgb, stated_colours, stated_to_srgb
from lvqcodec.container import MAX_PIXELS, check_limit, check_size
from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.metadata import read_exif, read_xmp
from lvqcodec.picture import Picture, turn_back

READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF")

_EIGHT_BITS = ("1", "L", "La", "LA", "P", "PA", "RGB", "RGBa", "RGBA")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")  # I is grey of 16 bits in PPM, and in PNG once
_OTHER_COLOURS = ("CMYK", "LAB", "YCbCr")

_AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)
_AV1_HIGH_BITDEPTH = 0x40
_PNG_SIGNATURE = 8  # bytes
_PNG_DEPTH = 24  # offset of the bits a sample
_TIFF_REDUCED = 1
_TIFF_WHITE_IS_ZERO = 0

Reader = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]


def find_reader(head: bytes) -> Reader | None:
    """Return the Pillow plugin that reads a file with these first bytes.

    Not Image.open: its limit on pixels is a global, and smaller than ours.
    """
    Image.init()
    for name in READABLE:
        reader, accepts = Image.OPEN.get(name, (None, None))
        if reader and accepts and accepts(head) is True:
            return reader
    return None


def read(
    reader: Reader,
    data: bytes,
    name: str,
    frame: int | None = None,
    to_srgb8: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Read the whole file `data`; see `imageio.load_picture` for arguments and errors.

    What Pillow raises for broken files is let out, and UnsupportedImage says only what there is.
    """
    image = reader(BytesIO(data), name)
    if image.format == "PNG":
        _check_png(data)
    _select(image, frame, max_pixels)
    _refuse(image, data, frame, to_srgb8)
    colours = stated_colours(image, data)
    if colours and not to_srgb8:
        raise UnsupportedImage(f"{colours.name}; convert it with --to-srgb8")
    exif, turned = None, 1
    if isinstance(image, TiffImageFile):
        exif = read_exif(image)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)  # decoding will do that
    image.load()
    exif = exif or read_exif(image)  # in PNG it may stand at the end
    icc = image.info.get("icc_profile") or None
    expanded, alpha = _expand(image, data)
    if to_srgb8 and not colours:
        foreign = icc is not None and not means_srgb(icc)
        if foreign or expanded.mode in _OTHER_COLOURS:
            expanded, icc = profile_to_srgb(expanded, icc), None
    pixels = np.array(expanded)
    if colours:
        pixels, icc = stated_to_srgb(pixels, colours), None
    if image.mode == "P" and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    if alpha is not None:
        alpha = None if alpha.min() == 255 else turn_back(alpha, turned)
    return Picture(turn_back(pixels, turned), alpha, icc, exif, read_xmp(image))


def _check_png(data: bytes) -> None:
    """Raise FormatError where a checksum of the pixels is wrong, which Pillow does not look at."""
    at = _PNG_SIGNATURE
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        stored = data[end : end + 4]
        checked = kind == b"IDAT" and len(stored) == 4  # what is truncated shows in decoding
        if checked and zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(stored, "big"):
            raise FormatError(f"the checksum of its pixels at byte {at} is wrong")
        at = end + 4


def _select(image: ImageFile.ImageFile, frame: int | None, max_pixels: int) -> None:
    """Go to a frame or page, counted from 1; there must be one only if none is asked for."""
    _check_size(image, max_pixels)
    frames = getattr(image, "n_frames", 1)
    if frame is None:
        if frames > 1:
            raise UnsupportedImage(f"{frames} frames or pages; choose one with --frame N")
        return
    if not 1 <= frame <= frames:
        raise UsageError(f"frame {frame} does not exist: the picture has {frames}, from 1")
    if frame > 1:
        image.seek(frame - 1)
        _check_size(image, max_pixels)


def _check_size(image: ImageFile.ImageFile, max_pixels: int) -> None:
    try:
        check_size(*image.size)
        check_limit(*image.size, max_pixels)
    except (FormatError, UnsupportedImage) as error:
        raise UnsupportedImage(
            f"a size that is not coded: {error}; scale it down or cut it into parts first"
        ) from error


def _refuse(image: ImageFile.ImageFile, data: bytes, frame: int | None, to_srgb8: bool) -> None:
    """Raise UnsupportedImage for a kind that cannot be read, or only be converted."""
    mode = image.mode
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(ExifTags.Base.SamplesPerPixel, 1) > len(image.getbands()):
            raise UnsupportedImage(
                "extra channels; drop them first: magick IN -alpha off PNG24:OUT.png"
            )
        reduced = image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & _TIFF_REDUCED
        if reduced and frame is None:
            raise UnsupportedImage(
                "a thumbnail in the first place, as camera raw does; develop it first"
            )
    if mode == "F" or (mode == "I" and isinstance(image, TiffImageFile)):
        raise UnsupportedImage(
            "more than 8 bits a sample, of no known range; reduce it first: "
            "magick IN -depth 8 OUT.png"
        )
    if mode not in (*_EIGHT_BITS, *_SIXTEEN_BITS, *_OTHER_COLOURS):
        raise UnsupportedImage(
            f"{mode} colours; convert it first: magick IN -colorspace sRGB OUT.png"
        )
    deep = mode in _SIXTEEN_BITS or _is_deep(image, data)
    if deep and mode == "RGB" and "transparency" in image.info:
        raise UnsupportedImage(
            "a transparent colour of 16 bits; flatten it first: "
            "magick IN -background white -flatten OUT.png"
        )
    if deep and not to_srgb8:
        raise UnsupportedImage("more than 8 bits a sample; reduce it with --to-srgb8")
    if mode in _OTHER_COLOURS and not to_srgb8:
        raise UnsupportedImage(f"{mode} colours; convert them with --to-srgb8")


def _is_deep(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether there are more than 8 bits a sample, which Pillow cuts off."""
    if isinstance(image, TiffImageFile):
        return bool(np.max(image.tag_v2.get(ExifTags.Base.BitsPerSample, 1)) > 8)
    if image.format == "AVIF":
        return any(av1[1][0] & _AV1_HIGH_BITDEPTH for av1 in _AV1_CONFIGURATION.finditer(data))
    arguments = image.tile[0].args if image.tile else None
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[1] > 255
    return image.format == "PNG" and isinstance(arguments, str) and arguments.endswith(";16B")


def _expand(
    image: ImageFile.ImageFile, data: bytes
) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Return a decoded picture in L, RGB or one of _OTHER_COLOURS, and its alpha."""
    key = image.info.get("transparency")
    whole: Image.Image = image
    alpha = None
    if image.mode in ("La", "LA"):
        whole = image.convert("LA")
    elif image.mode in ("P", "PA", "RGBa", "RGBA"):
        whole = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif key is not None:
        alpha = _keyed(image, key, data[_PNG_DEPTH])
    if whole.mode in ("LA", "RGBA"):
        alpha = np.array(whole.getchannel("A"))
        whole = whole.convert(whole.mode.removesuffix("A"))
    elif whole.mode == "1":
        whole = whole.convert("L")
    elif whole.mode in _SIXTEEN_BITS:
        whole = Image.fromarray(_reduce(image))
    return whole, alpha


def _keyed(image: ImageFile.ImageFile, key: int | tuple[int, ...], depth: int) -> NDArray[np.uint8]:
    """The alpha of a PNG in which one colour is transparent, stated in samples as stored."""
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    if isinstance(key, int) and depth < 8:
        top = (1 << depth) - 1
        key = min(key, top) * 255 // top
    same = samples == np.asarray(key)
    return np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)


def _reduce(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits, rounded."""
    samples, top = np.asarray(image), 65535
    if isinstance(image, TiffImageFile):
        top = (1 << int(np.max(image.tag_v2[ExifTags.Base.BitsPerSample]))) - 1
        if image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _TIFF_WHITE_IS_ZERO:
            samples = top - np.minimum(samples, top)
    levels = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    reduced: NDArray[np.uint8] = np.take(levels, np.clip(samples, 0, top))
    return reduced

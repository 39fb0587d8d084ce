# SPDX-License-Identifier: Apache-2.0
"""Picture files to pictures, through Pillow: kept as they are, or refused with the remedy.

Palettes and samples of fewer bits are expanded, which changes no colour. More than 8 bits, colours
other than RGB and grey, and colour spaces that only the file format states are refused, or
converted to 8-bit sRGB on request. The remarks of a picture name what was left out of it: nothing
is lost silently.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.MpoImagePlugin import MpoImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.format.limits import MAX_PIXELS, check_limit, check_size
from lvqcodec.format.signatures import looks_like
from lvqcodec.pictures.colour import (
    means_srgb,
    profile_misfit,
    profile_space,
    profile_to_srgb,
    stated_colours,
    stated_to_srgb,
)
from lvqcodec.pictures.formats import UPRIGHT, is_heic, is_jxl, open_heic, open_jxl
from lvqcodec.pictures.metadata import orientation, read_exif, read_xmp
from lvqcodec.pictures.picture import Picture, turn_back
from lvqcodec.pictures.samples import SIXTEEN_BITS, expand
from lvqcodec.pictures.structure import all_boxes, end_of_picture, picture_properties, png_chunks

READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF", "GIF", "HEIC", "JPEG XL")

_BY_PILLOW = ("PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF", "GIF")
_EIGHT_BITS = ("1", "L", "La", "LA", "P", "PA", "RGB", "RGBa", "RGBA")
_OTHER_COLOURS = ("CMYK", "LAB", "YCbCr")

# Of several pictures, one is the primary one in these, and the first is what all viewers show.
_HAVE_PRIMARY = ("MPO", "GIF", "HEIF")
# Each of several pictures has its size, and none is decoded to reach another.
_PAGED = ("MPO", "HEIF", "TIFF")
# what Pillow says of intact files whose pixels it does not read
_NOT_READ = re.compile(
    r"unknown (pixel|raw) mode|cannot handle|unsupported|not supported|not available", re.IGNORECASE
)

_AV1_HIGH_BITDEPTH = 0x40
_TIFF_REDUCED = 1
_TIFF_YCBCR = 6
_TIFF_UNSIGNED = {1, 4}  # integers, and what is not said
_TIFF_SUBSAMPLING = 530
_MP_COUNT, _MP_ENTRIES = 0xB001, 0xB002
_AUXILIARY_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_VIDEO = re.compile(rb"ftyp(mp4|isom|iso2|qt  |avc1|3gp)")
_PADDING = b"\0\t\n\r \xff"

Reader = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]


@dataclass(frozen=True)
class Opened:
    """A picture file whose header has been read; `remarks` collects what will be left out."""

    image: ImageFile.ImageFile
    data: bytes
    frame: int | None
    remarks: list[str] = field(default_factory=list)

    @property
    def samples(self) -> tuple[int, int, int]:
        """Width, height and the number of channels that decoding makes, alpha included."""
        mode = self.image.mode
        bands = 3 if mode in ("P", "PA") else Image.getmodebands(mode)
        alpha = mode == "PA" or "transparency" in self.image.info
        return (*self.image.size, bands + alpha)


def find_reader(head: bytes) -> Reader | None:
    """Return the function that opens files with these first bytes.

    Image.open will not do: its limit on pixels is global and smaller than ours.
    """
    if looks_like(head) == "camera raw":
        return None  # Pillow would take the preview in it for the picture
    if is_heic(head):
        return open_heic
    if is_jxl(head):
        return open_jxl
    if head.startswith(b"\xff\xd8\xff"):
        return _open_jpeg
    Image.init()
    for name in _BY_PILLOW:
        reader, accepts = Image.OPEN.get(name, (None, None))
        if reader and accepts and accepts(head) is True:
            return reader
    return None


def open_picture(
    reader: Reader,
    data: bytes,
    name: str,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Opened:
    """Read the header of the whole file `data`, of the page `frame` if there are pages.

    See `load.load_picture` for arguments and errors. Errors of Pillow about broken files are
    passed on, and UnsupportedImage says only what was found.
    """
    with _understood():
        image = reader(BytesIO(data), name)
    if image.format == "PNG":
        _check_png(data)
    _check_size(image, max_pixels)
    opened = Opened(image, data, frame)
    frames = getattr(image, "n_frames", 1)
    if frame is None:
        _tell_of_others(opened, frames)
    elif not 1 <= frame <= frames:
        raise UsageError(f"frame {frame} does not exist: the picture has {frames}, from 1")
    elif image.format in _PAGED:
        with _understood():
            image.seek(frame - 1)
        _check_size(image, max_pixels)
    return opened


def decode(opened: Opened, to_srgb8: bool = False) -> Picture:
    """Decode an opened file; see `load.load_picture`. Errors are those of `open_picture`."""
    image, data, remarks = opened.image, opened.data, list(opened.remarks)
    if opened.frame is not None and image.format not in _PAGED:
        with _understood():
            image.seek(opened.frame - 1)
    _refuse(opened, to_srgb8)
    if image.format == "JXL":
        image.load()  # what it says beside its size comes with the pixels
    icc = image.info.get("icc_profile") or None
    space = profile_space(icc) if icc else None
    colours = stated_colours(image, data, profile=space is not None)
    if colours and not to_srgb8:
        raise UnsupportedImage(f"{colours.name}; convert it with --to-srgb8")
    exif, turned = None, 1
    if isinstance(image, TiffImageFile):
        exif = read_exif(image)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)  # decoding will do that
    with _understood():
        image.load()
    exif = exif or read_exif(image)  # in PNG it may stand at the end
    xmp, remark = read_xmp(image)
    remarks += [remark] if remark else []
    if image.format in UPRIGHT and "jpeg" not in image.info:
        turned = orientation(exif, xmp)
    expanded, alpha = expand(image, space, data)
    if icc and (misfit := profile_misfit(icc, expanded.mode)):
        remarks.append(f"its colour profile is left out: {misfit}")
        icc = None
    if image.format == "JXL" and icc and icc[4:8] == b"jxl " and means_srgb(icc):
        icc = None  # made by the decoder of a file without one
    if to_srgb8 and not colours:
        foreign = icc is not None and not means_srgb(icc)
        if foreign or expanded.mode in _OTHER_COLOURS:
            expanded, icc = profile_to_srgb(expanded, icc), None
    pixels = np.array(expanded)
    if colours:
        pixels, icc = stated_to_srgb(pixels, colours), None
    if alpha is not None:
        alpha = None if alpha.min() == 255 else turn_back(alpha, turned)
    return Picture(turn_back(pixels, turned), alpha, icc, exif, xmp, tuple(remarks))


def _open_jpeg(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """Open a JPEG file, with the other pictures that its index (MPF) tells of.

    Unlike Pillow's own opener it accepts Ultra HDR, and does not warn about bad indices.
    """
    image = JpegImageFile(file, name)
    try:
        index = image._getmp()
        if index is not None and index[_MP_COUNT] > 1 and len(index[_MP_ENTRIES]) > 1:
            return MpoImageFile.adopt(image, index)
    except Exception:  # Pillow lets out whatever its parsers stumble over
        file.seek(0)
        image = JpegImageFile(file, name)
    return image


@contextmanager
def _understood() -> Iterator[None]:
    """Raise UnsupportedImage where Pillow does not know the kind of picture."""
    try:
        yield
    except Image.DecompressionBombError as error:  # of GIF Pillow looks at its own limit
        raise UnsupportedImage(f"a size that is not read ({error}); scale it down first") from error
    except (OSError, SyntaxError, ValueError) as error:
        if _NOT_READ.search(str(error)):
            raise UnsupportedImage(
                f"pixels of a kind that is not read ({error}); convert it first: "
                "magick IN -depth 8 PNG24:OUT.png"
            ) from error
        raise


def _check_png(data: bytes) -> None:
    """Raise FormatError where a checksum of the pixels is wrong; Pillow does not check them."""
    for chunk in png_chunks(data):
        stored = data[chunk.end : chunk.end + 4]
        checked = chunk.kind == b"IDAT" and len(stored) == 4  # what is truncated shows in decoding
        if checked and zlib.crc32(memoryview(data)[chunk.start - 4 : chunk.end]) != int.from_bytes(
            stored, "big"
        ):
            raise FormatError(f"the checksum of its pixels at byte {chunk.start - 8} is wrong")


def _check_size(image: ImageFile.ImageFile, max_pixels: int) -> None:
    try:
        check_size(*image.size)
        check_limit(*image.size, max_pixels)
    except (FormatError, UnsupportedImage) as error:
        raise UnsupportedImage(
            f"a size that is not coded: {error}; scale it down or cut it into parts first"
        ) from error


def _tell_of_others(opened: Opened, frames: int) -> None:
    """Remark on the other pictures of a file; UnsupportedImage if none is the primary one."""
    image, data, remarks = opened.image, opened.data, opened.remarks
    if frames > 1 and image.format not in _HAVE_PRIMARY:
        raise UnsupportedImage(f"{frames} frames or pages; choose one with --frame N")
    others = frames - 1
    if isinstance(image, MpoImageFile) and image.mpinfo:
        starts = [entry["DataOffset"] for entry in image.mpinfo[_MP_ENTRIES][1:]]
        base = data.find(b"MPF\0") + 4
        others = sum(data[base + start :][:2] == b"\xff\xd8" for start in starts)
    if others:
        what = "frame" if image.format == "GIF" else "picture"
        plural = "s" if others > 1 else ""
        are = "are" if others > 1 else "is"
        remarks.append(f"{others} more {what}{plural} in it {are} left out (--frame N chooses one)")
    elif behind := _behind(image, data):
        remarks.append(behind)
    if isinstance(image, TiffImageFile) and (inner := image.tag_v2.get(ExifTags.Base.SubIFDs)):
        count = len(inner) if isinstance(inner, tuple) else 1
        remarks.append(f"{count} smaller or raw pictures in it (SubIFDs) are left out")
    if image.format in ("AVIF", "HEIF"):
        remarks += _auxiliaries(data)
    if image.format == "AVIF" and any(box.kind == b"clap" for box in picture_properties(data)):
        remarks.append("its clean aperture is not applied: the whole picture is coded")
    if image.info.get("extra_channels"):
        remarks.append(f"{image.info['extra_channels']} extra channels in it are left out")


def _behind(image: ImageFile.ImageFile, data: bytes) -> str | None:
    """The remark on data behind the picture, None if there are none."""
    end = end_of_picture(data, image.format or "")
    if image.format == "PPM" and image.tile and image.tile[0][0] != "ppm_plain":
        wide = 2 if image.mode in SIXTEEN_BITS or _is_deep(image, data) else 1
        width, height = image.size
        row = (width + 7) // 8 if image.mode == "1" else width * len(image.getbands()) * wide
        end = image.tile[0][2] + row * height
    rest = data[end:] if end is not None else b""
    if not (content := rest.lstrip(_PADDING)):
        return None
    what = "a video" if _VIDEO.search(rest[:256]) else looks_like(content)
    hint = f", {what}," if what else ""
    return f"{len(rest)} bytes behind the picture{hint} are left out"


def _auxiliaries(data: bytes) -> list[str]:
    """The remarks on gain maps, depth maps and the like in an AVIF or HEIC file."""
    found = [(box.kind, box.of(data)) for box in all_boxes(data)]
    others = sum(
        kind == b"auxC" and not content[4:].startswith(_AUXILIARY_ALPHA) for kind, content in found
    )
    # an item: version, flags, number, protection, then its type
    others += sum(kind == b"infe" and b"tmap" in content[8:14] for kind, content in found)
    if not others:
        return []
    return [f"auxiliary pictures in it ({others}, such as a gain or depth map) are left out"]


def _refuse(opened: Opened, to_srgb8: bool) -> None:
    """Raise UnsupportedImage for a kind that cannot be read, or can only be converted."""
    image, data = opened.image, opened.data
    mode = image.mode
    if mode == "F" or (mode == "I" and isinstance(image, TiffImageFile)):
        raise UnsupportedImage(
            "more than 8 bits a sample, of no known range; reduce it first: "
            "magick IN -depth 8 OUT.png"
        )
    if isinstance(image, TiffImageFile):
        _refuse_tiff(image, opened.frame)
    if mode not in (*_EIGHT_BITS, *SIXTEEN_BITS, *_OTHER_COLOURS):
        raise UnsupportedImage(
            f"{mode} colours; convert it first: magick IN -colorspace sRGB OUT.png"
        )
    deep = mode in SIXTEEN_BITS or _is_deep(image, data)
    if deep and mode == "RGB" and "transparency" in image.info:
        raise UnsupportedImage(
            "a transparent colour of 16 bits; flatten it first: "
            "magick IN -background white -flatten OUT.png"
        )
    if deep and not to_srgb8:
        raise UnsupportedImage("more than 8 bits a sample; reduce it with --to-srgb8")
    if mode in _OTHER_COLOURS and not to_srgb8:
        raise UnsupportedImage(f"{mode} colours; convert them with --to-srgb8")


def _refuse_tiff(image: TiffImageFile, frame: int | None) -> None:
    tags = image.tag_v2
    kinds = tags.get(ExifTags.Base.SampleFormat, (1,))
    if not set(kinds if isinstance(kinds, tuple) else (kinds,)) <= _TIFF_UNSIGNED:
        raise UnsupportedImage(
            "samples that are no unsigned integers; convert it first: magick IN -depth 8 OUT.png"
        )
    if tags.get(ExifTags.Base.SamplesPerPixel, 1) > len(image.getbands()):
        raise UnsupportedImage(
            "extra channels; drop them first: magick IN -alpha off PNG24:OUT.png"
        )
    reduced = tags.get(ExifTags.Base.NewSubfileType, 0) & _TIFF_REDUCED
    if reduced and frame is None:
        raise UnsupportedImage(
            "a thumbnail in the first place, as camera raw does; develop it first"
        )
    subsampled = (
        tags.get(ExifTags.Base.PhotometricInterpretation) == _TIFF_YCBCR
        and tags.get(ExifTags.Base.Compression, 1) == 1
        and tuple(tags.get(_TIFF_SUBSAMPLING, (2, 2))) != (1, 1)
    )
    if subsampled:  # which Pillow takes for samples of whole resolution
        raise UnsupportedImage(
            "subsampled colours without compression; convert it first: magick IN PNG24:OUT.png"
        )


def _is_deep(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether there are more than 8 bits per sample, more than Pillow decodes."""
    if isinstance(image, TiffImageFile):
        return bool(np.max(image.tag_v2.get(ExifTags.Base.BitsPerSample, 1)) > 8)
    if image.format == "AVIF":
        configurations = (box.of(data) for box in all_boxes(data) if box.kind == b"av1C")
        return any(av1[2:3] and av1[2] & _AV1_HIGH_BITDEPTH for av1 in configurations)
    if image.format in UPRIGHT:
        return bool(image.info["bit_depth"] > 8)
    arguments = image.tile[0].args if image.tile else None
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[1] > 255
    return image.format == "PNG" and isinstance(arguments, str) and arguments.endswith(";16B")

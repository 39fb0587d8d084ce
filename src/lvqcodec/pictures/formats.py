# SPDX-License-Identifier: Apache-2.0
"""HEIC and JPEG XL, read by packages of the extra `lvqcodec[formats]`, imported on use.

Both decoders turn pictures upright by the orientation that the format itself states; an orientation
in EXIF or XMP is only a note there and does not apply to these pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from lvqcodec.errors import FormatError, UnsupportedImage
from lvqcodec.pictures.structure import boxes, brands

UPRIGHT = ("HEIF", "JXL")
"""Formats, by Pillow's names, whose pixels come turned already."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}

# of JPEG XL, ISO/IEC 18181-1: value = base + so many bits
_SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))
_COUNT = ((0, 0), (1, 0), (2, 4), (1, 12))
_ALPHA, _BLACK = 0, 4
_GREY = 1
_SWAPPED = (5, 6, 7, 8)  # orientations of which width and height change places


def is_heic(head: bytes) -> bool:
    """Whether a file with these first bytes is HEIC: HEVC in HEIF."""
    found = brands(head)
    return bool(found & _HEIC_BRANDS) and not found & _AVIF_BRANDS


def is_jxl(head: bytes) -> bool:
    """Whether a file with these first bytes is JPEG XL, with a container or without."""
    return head.startswith((_CODESTREAM, _CONTAINER))


def open_heic(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """Open a HEIC file as Pillow does; raises UnsupportedImage where the package is missing."""
    image: ImageFile.ImageFile = _load("pillow_heif", ".as_plugin").HeifImageFile(file, name)
    return image


def open_jxl(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """Open a JPEG XL file by its header; raises UnsupportedImage where the package is missing."""
    _load("pillow_jxl")
    return JxlImageFile(file, name)


def _load(package: str, module: str = "") -> Any:
    try:
        return import_module(package + module)
    except ImportError as error:
        raise UnsupportedImage(
            f"a format that {_PACKAGES[package]} reads, which is missing ({error}): "
            'run `pip install "lvqcodec[formats]"`'
        ) from error


class JxlImageFile(ImageFile.ImageFile):
    """A JPEG XL file; opening it reads the header alone, unlike pillow-jxl-plugin's class.

    `info` has `bit_depth` and `extra_channels` (how many beside colours and alpha), and once the
    pixels are loaded the metadata; `compressed_metadata` if they need Brotli, `jpeg` if the file
    was made from a JPEG file: then its samples are not turned.
    """

    format = "JXL"
    format_description = "JPEG XL image"

    def _open(self) -> None:
        assert self.fp is not None
        self._file = self.fp.read()
        header = read_jxl_header(self._file)
        self._size = header.width, header.height
        bands = "RGB" if header.channels == 3 else "L"
        self._mode = "F" if header.floating else bands + ("A" if header.alpha else "")
        if header.premultiplied and self._mode != "F":
            self._mode = "RGBa" if header.channels == 3 else "La"
        self.info["bit_depth"] = header.bits
        self.info["extra_channels"] = header.extra_channels
        self.tile = []

    def load(self) -> Any:
        """Decode the pixels; raises OSError."""
        if self._file:
            self._decode(self._file)
            self._file = b""
        return super().load()

    def _decode(self, file: bytes) -> None:
        try:
            decoder = _load("pillow_jxl").Decoder(num_threads=0)
            jpeg, found, data, icc, *_ = decoder(file)
        except UnsupportedImage:
            raise
        except BaseException as error:  # what panics in Rust is no Exception
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise OSError("its codestream cannot be decoded") from error
            raise
        if jpeg:
            with JpegImageFile(BytesIO(data)) as image:
                image.load()
                self._take(image)
                self.info |= image.info | {"jpeg": True}
            return
        self._read_metadata(file)
        if icc:
            self.info["icc_profile"] = icc
        size = found.width, found.height
        if size != self.size:
            raise OSError(f"its pixels are {size[0]} x {size[1]}, unlike its header")
        if len(data) == 2 * size[0] * size[1] * Image.getmodebands(self.mode):
            deep = np.frombuffer(data, np.uint16).astype(np.uint32)
            data = ((deep * 255 + 32767) // 65535).astype(np.uint8).tobytes()
        self._take(Image.frombytes(self.mode, size, data))

    def _read_metadata(self, file: bytes) -> None:
        for box in boxes(file):
            content = box.of(file)
            if box.kind == b"Exif":
                # pillow-jxl-plugin leaves out where it begins, when it writes
                begins = content.startswith((b"II*\0", b"MM\0*"))
                start = 0 if begins else 4 + int.from_bytes(content[:4], "big")
                self.info["exif"] = content[start:]
            elif box.kind == b"xml ":
                self.info["xmp"] = content
            elif box.kind == b"brob" and content[:4] in (b"Exif", b"xml "):
                self.info["compressed_metadata"] = True

    def _take(self, image: Image.Image) -> None:
        self._mode, self._size, self.im = image.mode, image.size, image.im


@dataclass(frozen=True)
class JxlHeader:
    """The header of a JPEG XL file; width and height are those of the upright picture."""

    width: int
    height: int
    bits: int
    floating: bool
    channels: int
    alpha: bool
    premultiplied: bool
    extra_channels: int


def read_jxl_header(file: bytes) -> JxlHeader:
    """Return the header of a JPEG XL file.

    Raises FormatError for a damaged one, and UnsupportedImage for inks and animations.
    """
    stream = _Bits(_codestream(file))
    try:
        return _read_header(stream)
    except IndexError as error:
        raise FormatError("its JPEG XL header is cut") from error


def _codestream(file: bytes) -> bytes:
    """The codestream of a file, as far as the header may reach."""
    if file.startswith(_CODESTREAM):
        return file
    content = b""
    for box in boxes(file):
        if box.kind == b"jxlc":
            return box.of(file)
        if box.kind == b"jxlp":
            content += file[box.start + 4 : box.end]
    return content


def _read_header(stream: _Bits) -> JxlHeader:
    if stream.take(16) != int.from_bytes(_CODESTREAM, "little"):
        raise FormatError("there is no JPEG XL codestream in it")
    height, width = stream.size()
    if stream.flag():  # all as by default
        return JxlHeader(width, height, 8, False, 3, False, False, 0)
    if stream.flag():
        if stream.take(3) + 1 in _SWAPPED:
            width, height = height, width
        if stream.flag():
            stream.size()  # of how large it is meant to be shown
        if stream.flag():
            stream.preview()
        if stream.flag():
            raise UnsupportedImage("frames of an animation; save the one you want as PNG first")
    bits, floating = stream.depth()
    stream.flag()
    alphas: list[bool] = []
    others = 0
    for _ in range(stream.number(_COUNT)):
        kind, associated = stream.extra_channel()
        if kind == _BLACK:
            raise UnsupportedImage("CMYK colours; convert it first: magick IN -colorspace sRGB OUT")
        if kind == _ALPHA:
            alphas.append(associated)
        else:
            others += 1
    stream.flag()
    grey = not stream.flag() and not stream.flag() and stream.number(_ENUM) == _GREY
    channels = 1 if grey else 3
    return JxlHeader(
        width,
        height,
        bits,
        floating,
        channels,
        bool(alphas),
        any(alphas[:1]),
        others + len(alphas[1:]),
    )


class _Bits:
    """Numbers of a JPEG XL header, least significant bit first; IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        """Return the number in so many bits."""
        value = 0
        for shift in range(count):
            value |= (self._data[self._at >> 3] >> (self._at & 7) & 1) << shift
            self._at += 1
        return value

    def flag(self) -> bool:
        """Return whether the next bit is set."""
        return bool(self.take(1))

    def number(self, choices: tuple[tuple[int, int], ...]) -> int:
        """Return a number of one of four (base, bits), which two bits choose."""
        base, bits = choices[self.take(2)]
        return base + self.take(bits)

    def size(self) -> tuple[int, int]:
        """Return height and width."""
        small = self.flag()
        height = 8 * (1 + self.take(5)) if small else self.number(_SIZES)
        ratio = self.take(3)
        if ratio:
            top, bottom = _RATIOS[ratio - 1]
            return height, height * top // bottom
        return height, 8 * (1 + self.take(5)) if small else self.number(_SIZES)

    def preview(self) -> None:
        """Pass over the size of a preview."""
        small = self.flag()
        choices = ((16, 0), (32, 0), (1, 5), (33, 9)) if small else _PREVIEW_SIZES
        self.number(choices)
        if self.take(3) == 0:
            self.number(choices)

    def depth(self) -> tuple[int, bool]:
        """Return the bits a sample, and whether it is a floating-point number."""
        if self.flag():
            bits = self.number(((32, 0), (16, 0), (24, 0), (1, 6)))
            self.take(4)
            return bits, True
        return self.number(((8, 0), (10, 0), (12, 0), (1, 6))), False

    def extra_channel(self) -> tuple[int, bool]:
        """Return its kind, and whether it is an alpha that is multiplied into the colours."""
        if self.flag():
            return _ALPHA, False
        kind = self.number(_ENUM)
        self.depth()
        self.number(((0, 0), (3, 0), (4, 0), (1, 3)))
        self.take(8 * self.number(((0, 0), (0, 4), (16, 5), (48, 10))))
        if kind == _ALPHA:
            return kind, self.flag()
        if kind == 2:  # a spot colour
            self.take(4 * 16)
        elif kind == 5:  # of a colour filter array
            self.number(((1, 0), (0, 2), (3, 4), (19, 8)))
        return kind, False


_PREVIEW_SIZES = ((1, 6), (65, 8), (321, 10), (1345, 12))

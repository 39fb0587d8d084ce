# SPDX-License-Identifier: Apache-2.0
"""What a file holds beside the colours, as sections: alpha, ICC profile, EXIF, XMP.

Alpha is left to lossless WebP, the smallest of the well-kept codecs for masks, or to AVIF where it
may be lossy; metadata to zlib. The payloads are specified in `container`.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lvqcodec.errors import FormatError, UnsupportedImage
from lvqcodec.format.container import (
    MAX_METADATA_BYTES,
    NAMED_SECTIONS,
    SECTION_ALPHA,
    Header,
    Section,
)
from lvqcodec.format.fields import AGAIN
from lvqcodec.options import LOSSLESS
from lvqcodec.pictures.picture import Picture

_CONSTANT, _VP8L, _PNG, _AVIF = range(4)  # on the wire: append only
_STORED, _ZLIB = range(2)  # on the wire: append only

_VP8L_MAX_SIDE, _VP8L_MAX_PIXELS = 16383, 2**26
_VP8L_SIGNATURE = 0x2F
_RIFF = struct.Struct("<4sI4s4sI")
_PNG_HEAD = struct.Struct(">8sI4sIIBB")
_PNG_START = b"\x89PNG\r\n\x1a\n", 13, b"IHDR"
_METADATA = tuple(name for name, kind in NAMED_SECTIONS.items() if kind != SECTION_ALPHA)


def pack_sections(picture: Picture, alpha_quality: int = LOSSLESS) -> list[Section]:
    """Return the sections of all that a picture has beside its pixels; none for an opaque alpha.

    alpha_quality: 0 (smallest) .. 100 (lossless). Raises UnsupportedImage for metadata larger than
    the format takes.
    """
    sections = []
    if picture.alpha is not None and picture.alpha.min() < 255:
        sections.append(Section(SECTION_ALPHA, _pack_alpha(picture.alpha, alpha_quality)))
    for name in _METADATA:
        if data := getattr(picture, name):
            if len(data) > MAX_METADATA_BYTES:
                raise UnsupportedImage(
                    f"{len(data)} bytes of {name.upper()} are more than {MAX_METADATA_BYTES}; "
                    "leave metadata out with --strip"
                )
            sections.append(Section(NAMED_SECTIONS[name], _pack_metadata(data)))
    return sections


def unpack_sections(header: Header, sections: dict[int, bytes]) -> dict[str, Any]:
    """Return what `container.unpack` found beside the pixels: arguments of a Picture.

    Raises FormatError for payloads that are damaged or of another size than the header says.
    """
    found: dict[str, Any] = {
        name: _unpack_metadata(name, sections[NAMED_SECTIONS[name]])
        for name in _METADATA
        if NAMED_SECTIONS[name] in sections
    }
    if SECTION_ALPHA in sections:
        found["alpha"] = _unpack_alpha(sections[SECTION_ALPHA], header.width, header.height)
    return found


def _pack_alpha(alpha: NDArray[np.uint8], quality: int) -> bytes:
    if alpha.min() == alpha.max():
        return bytes([_CONSTANT, alpha[0, 0]])
    height, width = alpha.shape
    if max(height, width) <= _VP8L_MAX_SIDE and height * width <= _VP8L_MAX_PIXELS:
        # more effort costs ten times as long for a few per cent
        file = _written(alpha, "WEBP", lossless=True, method=6, quality=90)
        *_, size = _RIFF.unpack_from(file)
        payload = bytes([_VP8L]) + file[_RIFF.size : _RIFF.size + size]
    else:
        payload = bytes([_PNG]) + _written(alpha, "PNG", optimize=True)
    if quality < LOSSLESS:
        lossy = bytes([_AVIF]) + _written(alpha, "AVIF", quality=quality, subsampling="4:0:0")
        payload = min(payload, lossy, key=len)
    return payload


def _written(alpha: NDArray[np.uint8], form: str, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(alpha)).save(file, form, **options)
    return file.getvalue()


def _unpack_alpha(payload: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Return alpha (height, width); nothing of that size is allocated before sizes agree."""
    coding, data = _coding("alpha", payload)
    if coding == _CONSTANT:
        if len(data) != 1:
            raise FormatError(f"the alpha is damaged ({len(data)} bytes for one value); {AGAIN}")
        return np.full((height, width), data[0], np.uint8)
    readers = {_VP8L: _open_vp8l, _PNG: _open_png, _AVIF: _open_avif}
    if coding not in readers:
        raise FormatError(f"coding {coding} of the alpha is not known: upgrade lvqcodec")
    try:
        image = readers[coding](data, width, height)
        if image.size != (width, height) or getattr(image, "n_frames", 1) != 1:
            raise ValueError(f"{image.size[0]} x {image.size[1]} for {width} x {height}")
        bands = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow lets out whatever its parsers stumble over
        reason = str(error) or type(error).__name__
        raise FormatError(f"the alpha is damaged ({reason}); {AGAIN}") from error
    return bands if bands.ndim == 2 else np.ascontiguousarray(bands[..., 1])


def _open_vp8l(data: bytes, width: int, height: int) -> ImageFile.ImageFile:
    """Open a bare VP8L stream, whose size Pillow would allocate before it can be asked for it."""
    bits = int.from_bytes(data[1:5], "little")
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if len(data) < 5 or data[0] != _VP8L_SIGNATURE or size != (width, height):
        raise ValueError(f"no VP8L stream of {width} x {height}")
    padded = data + bytes(len(data) % 2)
    riff = _RIFF.pack(b"RIFF", 12 + len(padded), b"WEBP", b"VP8L", len(data))
    return WebPImageFile(BytesIO(riff + padded))


def _open_png(data: bytes, width: int, height: int) -> ImageFile.ImageFile:
    if len(data) < _PNG_HEAD.size or _PNG_HEAD.unpack_from(data) != (
        *_PNG_START,
        *(width, height, 8, 0),
    ):
        raise ValueError(f"no PNG of {width} x {height} in 8-bit grey")
    return PngImageFile(BytesIO(data))


def _open_avif(data: bytes, width: int, height: int) -> ImageFile.ImageFile:
    return AvifImageFile(BytesIO(data))  # opening reads the sizes alone


def _pack_metadata(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return bytes([_ZLIB]) + packed if len(packed) < len(data) else bytes([_STORED]) + data


def _unpack_metadata(name: str, payload: bytes) -> bytes:
    name = name.upper()
    coding, data = _coding(name, payload)
    if coding == _ZLIB:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(data, MAX_METADATA_BYTES + 1)
        except zlib.error as error:
            raise FormatError(f"the {name} section is damaged ({error}); {AGAIN}") from error
        if len(data) <= MAX_METADATA_BYTES and (not inflater.eof or inflater.unused_data):
            raise FormatError(f"the {name} section is damaged (cut or too long); {AGAIN}")
    elif coding != _STORED:
        raise FormatError(f"coding {coding} of the {name} section is not known: upgrade lvqcodec")
    if not 0 < len(data) <= MAX_METADATA_BYTES:
        raise FormatError(f"the {name} section has not 1 to {MAX_METADATA_BYTES} bytes")
    return data


def _coding(name: str, payload: bytes) -> tuple[int, bytes]:
    if not payload:
        raise FormatError(f"the {name} section is empty; {AGAIN}")
    return payload[0], payload[1:]

# SPDX-License-Identifier: Apache-2.0
"""The lvq file format, container version 1.

An lvq file is a header followed by sections; the end of the data ends the file. This text is the
specification (`docs/FORMAT.md` repeats it); MUST and MAY are meant as in RFC 2119. A u8 is one
byte, a u32 is four bytes, least significant first. A CRC-32 is that of PNG and zip (polynomial
0x04C11DB7, reflected), stored as a u32.

A varint is an unsigned LEB128 number: seven bits a byte, least significant first, bit 7 set in
every byte but the last. It MUST be the shortest form and at most 5 bytes long.

## Header (23 to 27 bytes)

| bytes | field | value |
|---|---|---|
| 8 | magic | `8B 4C 56 51 0D 0A 1A 0A`, which no transfer in text mode leaves intact |
| 1 | container version | u8, 1: how to parse what follows |
| 1 | stream version | u8, 1: what the bits of the sections mean |
| 1 | flags | u8, bit 0: grey (one channel); bit 1: stride 16, not 8; the other bits MUST be 0 |
| 1 | quality | u8, 0 to 100: the rate point, from which the decoder derives its steps |
| 1 | lattice | u8, 0: Z (scalar), 1: E8, 2: D4, 3: A2, 4: BW16, 5: Leech, 6: an 8-state trellis |
| 4 | model | the first 4 bytes of the SHA-256 of the weights file |
| 1 to 3 | width | varint, 1 to 65535 |
| 1 to 3 | height | varint, 1 to 65535; width times height MUST NOT exceed 2^28 |
| 4 | check | CRC-32 of all bytes before it |

## Sections

| bytes | field | value |
|---|---|---|
| 1 | kind | u8; bit 7 set: optional |
| 1 to 5 | length | varint, bytes of the payload |
| length | payload | as the kind says |
| 4 | check | CRC-32 of kind, length and payload |

| kind | name | payload |
|---|---|---|
| `01` | latents | u32: CRC-32 of the decoded integers; then the bytes of the range coder |
| `02` | alpha | u8: coding; then the transparency of every pixel in that coding |
| `03` | tiles | the same for every tile, see below |
| `81` | ICC | u8: coding; then the profile of the colours, which are sRGB without one |
| `82` | EXIF | u8: coding; then a TIFF structure as EXIF has it, without the prefix `Exif 00 00` |
| `83` | XMP | u8: coding; then an XMP packet |

There MUST be exactly one section of kind 01 or 03, and no two sections of one kind. A writer MUST
put it last, so that a cut at any byte shows; a reader MUST NOT rely on the order. A reader
MUST refuse a file with a section of unknown kind, unless that kind is optional: that one it skips,
after checking it. Every check MUST be made before a picture is shown: what does not match is an
error, never a picture. The decoded integers and the order they are coded in belong to the stream
version; their CRC catches weights or arithmetic that differ from the encoder's.

Alpha has the size of the picture; 0 is transparent, 255 opaque. It is not multiplied into the
colours, which are coded under transparent pixels too. Without the section all is opaque; a writer
MUST leave it out then. An orientation in EXIF or XMP is one that the pixels are still to be turned
to. Metadata is 1 to 2^24 bytes long once decoded.

| coding | of alpha |
|---|---|
| 0 | u8: the value of all pixels |
| 1 | a lossless WebP bitstream, VP8L of RFC 9649, without its RIFF header; green is alpha |
| 2 | a PNG file, 8-bit greyscale |
| 3 | an AVIF file of one frame, 8 bits, monochrome, full range (lossy) |

| coding | of ICC, EXIF and XMP |
|---|---|
| 0 | the bytes as they are |
| 1 | zlib, RFC 1950 |

A writer MUST NOT use coding 1 for more than 16383 pixels a side or 2^26 in all. A reader MUST
refuse an alpha of another size than the header says before it allocates for it, and any coding that
it does not know.

## Tiles

Latents of large pictures are coded in tiles of 2^k x 2^k positions (of the grid that the stream
version tells), cut from the top left. A height or width of n positions has
max(1, floor(n / 2^k + 1/2)) tiles, of which the last takes what is left. The payload:

| bytes | field | value |
|---|---|---|
| 1 | k | u8, 2 to 12 |
| 1 to 5 a tile | lengths | varints, bytes of each tile, at least 4; tiles in raster order |
| 4 | check | CRC-32 of k and lengths |
| lengths | tiles | each as the payload of kind 01 |

Every byte of the payload MUST belong to the table or to a tile. A tile is coded as a picture of its
size would be: its integers and their CRC-32 depend on no other tile. The synthesis runs over the
whole grid as if there were no tiles; a reader MAY do it window by window, wherever all latents in
reach are there. So it MAY show a part of the picture after reading the header, the table and the
tiles in reach alone; it MUST check the header, the table and the integers of these.

## Truncated files

Coarse scales are coded first, so the beginning of a file is a picture. A reader MAY show a file
whose end is missing if that is what it was asked for, and if only the payload of kind 01, or the
tiles of kind 03, and what follows them is missing. Every check that is there MUST be made, those of
the integers of whole tiles too. Of a tile that is cut, the latents are shown whose symbols are the
same whatever bytes follow; the others are their means. No check covers these.

## Versions

A reader MUST refuse container and stream versions that it does not know. The format only grows:
files that were valid once stay so. New kinds of section need no new version.

| container | stream | since | change |
|---|---|---|---|
| 1 | 1 | 0.1 | the first |
| 1 | 1 | 0.1 | the sections alpha, ICC, EXIF and XMP |
| 1 | 1 | 0.1 | the stride of 16 |

## Stream version 1

The picture, its last row and column repeated up to multiples of the stride, 8 or 16 pixels, has
ceil(height / stride) x ceil(width / stride) latent positions of as many channels as the weights
say. The stride in the header MUST be that of the weights. The integers are the
reconstructed latents in 64ths of a step; their CRC-32 takes them position by position in
raster order, channel by channel, each as a signed 32-bit number, least significant byte first.

The weights fix everything else, as stored in their file: the order of the parallel steps and the
integer networks that give each latent a mean (1/64 step) and a scale (1/16 bin, rounded to one of
64 bins, halves up) are those of `model/entropy/`; which latents form lattice vectors and in which
order their symbols come is told in `model/quantizer.py` and `model/lattices/`; rows, escapes and
the words of the range coder in `coding/rangecoder.py`. A change to any of them that changes bits is
a new stream version. The synthesis is floating point and may differ by 1 in a few samples between
machines.

## Example

A colour picture of 300 x 2 at quality 50 with the lattice E8 (38 bytes; the range coder wrote
`AA BB CC DD`):

```
8B 4C 56 51 0D 0A 1A 0A   magic
01 01 00 32 01            container 1, stream 1, colour, quality 50, E8
DE AD BE EF               model
AC 02 02                  300 x 2
C3 E5 62 A9               check
01 08                     latents, 8 bytes
78 56 34 12               CRC-32 of the decoded integers
AA BB CC DD               range coder
1A A8 1B 79               check
```
"""

import os
import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from lvqcodec.errors import FormatError, UnsupportedImage
from lvqcodec.files import Source, read_source
from lvqcodec.format.fields import (
    AGAIN,
    CHECK_BYTES,
    MAX_VARINT,
    checked,
    read_varint,
    to_varint,
    verify_crc,
)
from lvqcodec.format.limits import check_size
from lvqcodec.format.signatures import looks_like

MAGIC = b"\x8bLVQ\r\n\x1a\n"
CONTAINER_VERSION = 1
STREAM_VERSION = 1
SECTION_LATENTS = 0x01
SECTION_ALPHA = 0x02
SECTION_TILES = 0x03
NAMED_SECTIONS = {"alpha": SECTION_ALPHA, "icc": 0x81, "exif": 0x82, "xmp": 0x83}
MAX_METADATA_BYTES = 2**24
MAX_HEADER_BYTES = 27
STRIDES = (8, 16)
"""Pixels per latent position and direction that a file may have; the first needs no flag."""


_PICTURES = frozenset({SECTION_LATENTS, SECTION_TILES})  # of which a file has one
_KNOWN_KINDS = _PICTURES | {SECTION_ALPHA}
_OPTIONAL = 0x80
_GREY = 0x01
_STRIDE_16 = 0x02
LATTICES = ("z", "e8", "d4", "a2", "bw16", "leech", "trellis8")
"""The lattices by name, in the order of their numbers on the wire: append only."""

_FIXED = struct.Struct("<8sBBBBB4s")


@dataclass(frozen=True)
class Header:
    """What a file says of its picture; sizes in pixels, `model` the first 4 bytes of the digest."""

    width: int
    height: int
    channels: int
    quality: int
    lattice: str
    model: bytes
    stream_version: int = STREAM_VERSION
    stride: int = STRIDES[0]

    def __post_init__(self) -> None:
        """Hold to the limits of the format; raises FormatError."""
        if self.stream_version != STREAM_VERSION:
            raise FormatError(
                f"stream version {self.stream_version} is not known, only {STREAM_VERSION} is: "
                "upgrade lvqcodec"
            )
        check_size(self.width, self.height)
        if self.channels not in (1, 3):
            raise FormatError(f"a picture has 1 or 3 channels, not {self.channels}")
        if not 0 <= self.quality <= 100:
            raise FormatError(f"quality {self.quality} is outside 0..100")
        if self.lattice not in LATTICES:
            raise FormatError(f"lattice {self.lattice!r} is not one of {', '.join(LATTICES)}")
        if self.stride not in STRIDES:
            raise FormatError(f"a stride of {self.stride} pixels is not one of {STRIDES}")
        if len(self.model) != 4:
            raise FormatError(f"the model is named by 4 bytes of its digest, not {len(self.model)}")


@dataclass(frozen=True)
class Section:
    """One part of a file; `kind` 0..255, with bit 7 set a reader may skip it."""

    kind: int
    payload: bytes


def pack(header: Header, sections: Iterable[Section]) -> bytes:
    """Write a whole file, the latents last; raises FormatError for what no reader may accept."""
    head = _FIXED.pack(
        MAGIC,
        CONTAINER_VERSION,
        header.stream_version,
        _GREY * (header.channels == 1) | _STRIDE_16 * (header.stride == 16),
        header.quality,
        LATTICES.index(header.lattice),
        header.model,
    )
    parts = [checked(head + to_varint(header.width) + to_varint(header.height))]
    seen: set[int] = set()
    for section in sorted(sections, key=lambda section: section.kind in _PICTURES):
        _admit(section.kind, seen)
        seen.add(section.kind)
        length = to_varint(len(section.payload))
        parts.append(checked(bytes([section.kind]) + length + section.payload))
    _require_latents(seen)
    return b"".join(parts)


def unpack(data: bytes) -> tuple[Header, dict[int, bytes]]:
    """Check a whole file and return its header and the payload of every section by its kind.

    Optional sections of unknown kind are among them. Raises FormatError.
    """
    header, sections, missing = unpack_partial(data)
    if missing:
        raise FormatError(
            f"the file is truncated, {missing} bytes are missing; {AGAIN}, or look at what is"
            " there with lvq decode --partial"
        )
    return header, sections


def unpack_partial(data: bytes) -> tuple[Header, dict[int, bytes], int]:
    """Do as `unpack` with a file whose end may be missing, if that is of the latents or tiles.

    Returned last is how many bytes are missing, by the length of that section, of which there is
    the beginning: no check tells whether it is intact. Of everything else all checks are made.
    """
    header, at = _parse_header(data)
    sections: dict[int, bytes] = {}
    while at < len(data):
        start, kind = at, data[at]
        what = "what follows the picture" if _PICTURES & sections.keys() else "the section"
        what = f"{what} at byte {start}"
        length, at = read_varint(data, start + 1, what)
        payload = data[at : at + length]
        missing = at + length + CHECK_BYTES - len(data)
        if kind in _PICTURES and missing > 0:
            _admit(kind, sections)
            sections[kind] = payload
            return header, sections, missing
        at = verify_crc(data, start, at + length, what)
        _admit(kind, sections)
        sections[kind] = payload
    _require_latents(sections)
    return header, sections, 0


def read_header(source: Source) -> Header:
    """Return the header of an lvq file: bytes, at least the first MAX_HEADER_BYTES, or a file.

    See `files.read_source` for what is taken. The sections are not looked at, and of a file no more
    is read. Raises FormatError, UsageError.
    """
    return _parse_header(read_source(source, MAX_HEADER_BYTES))[0]


def read_beside(file: BinaryIO) -> tuple[Header, dict[int, bytes]]:
    """Return the header and all sections but the latents of a file that can be sought in.

    What is returned is checked; the latents are passed over unread. Raises FormatError.
    """
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    header, at = _parse_header(file.read(MAX_HEADER_BYTES))
    sections: dict[int, bytes] = {}
    seen: set[int] = set()
    while start + at < end:
        what = f"the section at byte {at}"
        file.seek(start + at)
        head = file.read(1 + MAX_VARINT)
        length, begin = read_varint(head, 1, what)
        kind, size = head[0], begin + length + 4
        if start + at + size > end:
            raise FormatError(f"{what} is truncated; {AGAIN}")
        _admit(kind, seen)
        seen.add(kind)
        if kind not in _PICTURES:
            file.seek(start + at)
            data = file.read(size)
            verify_crc(data, 0, begin + length, what)
            sections[kind] = data[begin : begin + length]
        at += size
    return header, sections


def section_bytes(section: Section) -> int:
    """Return how many bytes a section adds to a file: kind, length, payload and check."""
    return 1 + len(to_varint(len(section.payload))) + len(section.payload) + 4


def refuse_coded(data: bytes, name: str) -> None:
    """Raise UnsupportedImage if a file that begins so is one of ours, where a picture is wanted."""
    if data.startswith(MAGIC):
        raise UnsupportedImage(f"{name} is an lvq file, coded already: `lvq decode` takes it")


def _parse_header(data: bytes) -> tuple[Header, int]:
    """Return the header and the offset of the first section."""
    _check_magic(data)
    if len(data) > len(MAGIC) and data[len(MAGIC)] != CONTAINER_VERSION:
        raise FormatError(
            f"container version {data[len(MAGIC)]} is not known, only {CONTAINER_VERSION} is: "
            "upgrade lvqcodec"
        )
    if len(data) < _FIXED.size:
        raise FormatError(f"the header is truncated; {AGAIN}")
    _, _, stream_version, flags, quality, lattice, model = _FIXED.unpack_from(data)
    width, at = read_varint(data, _FIXED.size, "the header")
    height, at = read_varint(data, at, "the header")
    at = verify_crc(data, 0, at, "the header")
    # from here on the bytes are what a writer wrote: what is not known is new
    if flags & ~(_GREY | _STRIDE_16):
        raise FormatError(f"flags 0x{flags:02x} are not known: upgrade lvqcodec")
    if lattice >= len(LATTICES):
        raise FormatError(f"lattice {lattice} is not known: upgrade lvqcodec")
    channels = 1 if flags & _GREY else 3
    name = LATTICES[lattice]
    stride = 16 if flags & _STRIDE_16 else 8
    return Header(width, height, channels, quality, name, model, stream_version, stride), at


def _check_magic(data: bytes) -> None:
    if data.startswith(MAGIC):
        return
    if not data:
        raise FormatError(f"the file is empty; {AGAIN}")
    if MAGIC.startswith(data):
        raise FormatError(f"the header is truncated; {AGAIN}")
    if b"LVQ" in data[:6]:
        raise FormatError(
            "the signature of this lvq file is damaged, as by a transfer as text that converts "
            "line endings; transfer it again in binary mode"
        )
    name = looks_like(data)
    hint = f": it looks like {name}" if name else ""
    raise FormatError(f"not an lvq file{hint}")


def _admit(kind: int, seen: Container[int]) -> None:
    if kind in seen:
        raise FormatError(f"there are two sections of kind 0x{kind:02x}")
    if kind in _PICTURES and any(other in seen for other in _PICTURES):
        raise FormatError("there are sections of kinds 0x01 and 0x03, two pictures")
    if kind not in _KNOWN_KINDS and not kind & _OPTIONAL:
        raise FormatError(
            f"a section of kind 0x{kind:02x} is needed to decode and not known: upgrade lvqcodec"
        )


def _require_latents(seen: Container[int]) -> None:
    if not any(kind in seen for kind in _PICTURES):
        raise FormatError(f"the file ends before its latents; {AGAIN}")

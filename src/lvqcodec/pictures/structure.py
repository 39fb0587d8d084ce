# SPDX-License-Identifier: Apache-2.0
"""The parts that picture files are made of, found by walking them from the front.

Bytes mean something only where their format puts them: the same bytes elsewhere mean nothing. The
walkers stop where a file stops making sense; only its decoder can say whether it is damaged.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PNG_SIGNATURE = 8  # bytes
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_JPEG_SOS, _JPEG_EOI = 0xDA, 0xD9
# in a scan, 0xFF stands for itself before 0, and before a restart marker
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_RIFF_HEAD = 8

# of ISO BMFF: boxes that hold boxes, and how many bytes stand before these
_HOLDERS = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"iinf": 6,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": 8,
    b"av01": 78,
}


@dataclass(frozen=True)
class Part:
    """A chunk, segment or box: its kind, and data[start:end] that it holds."""

    kind: bytes
    start: int
    end: int

    def of(self, data: bytes) -> bytes:
        """Return what it holds."""
        return data[self.start : self.end]


def png_chunks(data: bytes) -> Iterator[Part]:
    """Walk a PNG file up to its end chunk; the last may be cut."""
    at = _PNG_SIGNATURE
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield Part(kind, at + 8, at + 8 + length)
        if kind == b"IEND":
            return
        at += 12 + length


def jpeg_segments(data: bytes) -> Iterator[Part]:
    """Walk the segments of the first picture in a JPEG file, up to its end marker (kind 0xD9)."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        end = at
        if marker not in _JPEG_BARE and marker != _JPEG_EOI:
            if at + 2 > len(data):
                return
            end = at + max(int.from_bytes(data[at : at + 2], "big"), 2)
            at += 2
        yield Part(bytes([marker]), at, end)
        if marker == _JPEG_EOI:
            return
        at = end


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """Walk the boxes of an ISO BMFF file (AVIF, HEIC, JPEG XL), without those inside them."""
    end = len(data) if end is None else min(end, len(data))
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else start + size
        if stop < start + head:
            return
        yield Part(kind, start + head, min(stop, end))
        start = stop


def all_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """Walk the boxes, and those inside them that describe pictures."""
    for box in boxes(data, start, end):
        yield box
        if box.kind in _HOLDERS:
            yield from all_boxes(data, box.start + _inner(data, box), box.end)


def brands(data: bytes) -> set[bytes]:
    """Return the brands in the first box of an ISO BMFF file; none for any other file."""
    box = next(boxes(data), None)
    if box is None or box.kind != b"ftyp":
        return set()
    content = box.of(data)
    rest = content[8:]
    return {content[:4], *(rest[at : at + 4] for at in range(0, len(rest) - 3, 4))}


def picture_properties(data: bytes) -> list[Part]:
    """Return the properties of the primary picture of an AVIF or HEIC file, or of its track."""
    found = {box.kind: box for box in all_boxes(data)}
    if data[8:12] == b"avis" or b"pitm" not in found:
        return [
            part
            for box in all_boxes(data)
            if box.kind == b"av01"
            for part in boxes(data, box.start + _inner(data, box), box.end)
        ]
    if b"ipco" not in found or b"ipma" not in found:
        return []
    primary = found[b"pitm"].of(data)
    item = int.from_bytes(primary[4:8] if primary[:1] > b"\0" else primary[4:6], "big")
    properties = list(boxes(data, found[b"ipco"].start, found[b"ipco"].end))
    return [
        properties[index - 1]
        for index in _associated(found[b"ipma"].of(data), item)
        if 1 <= index <= len(properties)
    ]


def end_of_picture(data: bytes, form: str) -> int | None:
    """Return where the picture ends in a PNG, JPEG or WEBP file, None if that is not known."""
    if form == "WEBP":
        size = int.from_bytes(data[4:8], "little")
        return _RIFF_HEAD + size + size % 2
    last = None
    if form == "PNG":
        last = next((part for part in png_chunks(data) if part.kind == b"IEND"), None)
        return last.end + 4 if last else None
    if form in ("JPEG", "MPO"):
        last = next((part for part in jpeg_segments(data) if part.kind[0] == _JPEG_EOI), None)
    return last.end if last else None


def _inner(data: bytes, box: Part) -> int:
    """How many bytes precede the boxes inside a box."""
    if box.kind == b"iinf" and data[box.start : box.start + 1] > b"\0":
        return 8  # its number of entries is longer
    return _HOLDERS[box.kind]


def _associated(content: bytes, wanted: int) -> list[int]:
    """The numbers, from 1, of the properties of an item, by an `ipma` box."""
    try:
        version, flags, entries = content[0], content[3], int.from_bytes(content[4:8], "big")
        at, wide = 8, 2 if flags & 1 else 1
        id_bytes = 2 if version < 1 else 4
        for _ in range(entries):
            item = int.from_bytes(content[at : at + id_bytes], "big")
            count, at = content[at + id_bytes], at + id_bytes + 1
            if item == wanted:
                indices = (content[at + wide * n : at + wide * (n + 1)] for n in range(count))
                mask = 0x7FFF if wide == 2 else 0x7F
                return [int.from_bytes(index, "big") & mask for index in indices]
            at += wide * count
    except IndexError:
        pass
    return []

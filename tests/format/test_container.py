# SPDX-License-Identifier: Apache-2.0
import re
import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvqcodec.errors import FormatError
from lvqcodec.format import container
from lvqcodec.format.container import (
    SECTION_LATENTS,
    Header,
    Section,
    pack,
    read_beside,
    read_header,
    unpack,
)
from lvqcodec.format.limits import MAX_SIDE

# a whole file, written by hand: 300 x 2, colour, quality 50, E8
HEAD = bytes.fromhex("8b4c56510d0a1a0a 01 01 00 32 01 deadbeef ac02 02")
LATENTS = bytes.fromhex("01 08 78563412 aabbccdd")
GOLDEN = HEAD + bytes.fromhex("c3e562a9") + LATENTS + bytes.fromhex("1aa81b79")
HEADER = Header(300, 2, 3, 50, "e8", bytes.fromhex("deadbeef"))
PAYLOAD = LATENTS[2:]


def checked(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def with_byte(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def sized(size: str) -> bytes:
    """A file whose header has these bytes for width and height."""
    return checked(HEAD[:17] + bytes.fromhex(size)) + checked(LATENTS)


def test_golden_file():
    assert pack(HEADER, [Section(SECTION_LATENTS, PAYLOAD)]) == GOLDEN
    assert unpack(GOLDEN) == (HEADER, {SECTION_LATENTS: PAYLOAD})


def test_grey_scalar_file():
    data = checked(HEAD[:10] + bytes.fromhex("01 64 00 00010203 7f 8001")) + checked(b"\1\0")
    header = Header(127, 128, 1, 100, "z", bytes(range(4)))
    assert unpack(data) == (header, {SECTION_LATENTS: b""})
    assert pack(header, [Section(SECTION_LATENTS, b"")]) == data


def test_the_stride_is_a_flag_of_its_own():
    sections = [Section(SECTION_LATENTS, b"crc!")]
    for channels, bits in ((3, 0), (1, 1)):
        header = Header(127, 128, channels, 100, "z", bytes(4))
        wide = Header(127, 128, channels, 100, "z", bytes(4), stride=16)
        assert (pack(header, sections)[10], pack(wide, sections)[10]) == (bits, bits | 2)


def test_header_needs_only_the_first_bytes():
    assert read_header(GOLDEN[: container.MAX_HEADER_BYTES]) == HEADER
    assert read_header(GOLDEN[:24]) == HEADER
    largest = Header(65535, 4096, 1, 0, "z", bytes(4))
    data = pack(largest, [Section(SECTION_LATENTS, bytes(9))])
    assert read_header(data[: container.MAX_HEADER_BYTES]) == largest


def test_specification_is_the_docstring():
    text = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    assert text == "# " + container.__doc__, (
        'remake it: print("# " + lvqcodec.format.container.__doc__, end="")'
    )


def test_example_of_the_specification():
    example = container.__doc__.split("```")[1]
    digits = re.findall(r"^((?:[0-9A-F]{2} )+) ", example, re.MULTILINE)
    assert bytes.fromhex("".join(digits)) == GOLDEN


@pytest.mark.parametrize("size", [(1, 1), (768, 512), (65535, 4096)])
def test_overhead_is_at_most_40_bytes(size):
    coded = bytes(3000)
    data = pack(Header(*size, 3, 50, "e8", b"abcd"), [Section(SECTION_LATENTS, b"crc!" + coded)])
    assert len(data) - len(coded) <= 40


def test_truncation_at_every_length():
    data = pack(HEADER, [Section(SECTION_LATENTS, PAYLOAD), Section(0x90, b"note")])
    for file in (GOLDEN, data):
        for length in range(len(file)):
            with pytest.raises(FormatError, match=r"truncated|is empty|ends before its latents"):
                unpack(file[:length])
    for length in range(24):
        with pytest.raises(FormatError, match=r"truncated|is empty"):
            read_header(GOLDEN[:length])


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(GOLDEN)):
        flipped = with_byte(GOLDEN, bit // 8, GOLDEN[bit // 8] ^ 1 << bit % 8)
        with pytest.raises(FormatError):
            unpack(flipped)


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "empty": (b"", "the file is empty"),
        "other": (b"hello, world", "^not an lvq file$"),
        "png": (b"\x89PNG\r\n\x1a\n" + bytes(30), "not an lvq file: it looks like PNG"),
        "jpeg": (b"\xff\xd8\xff\xe0" + bytes(30), "not an lvq file: it looks like JPEG"),
        "webp": (b"RIFF\0\0\0\0WEBPVP8 " + bytes(9), "not an lvq file: it looks like WebP"),
        "avif": (b"\0\0\0\x20ftypavif" + bytes(9), "not an lvq file: it looks like AVIF"),
        "crlf to lf": (GOLDEN.replace(b"\r\n", b"\n"), "as text .* in binary mode"),
        "lf to crlf": (GOLDEN.replace(b"\n", b"\r\n"), "as text .* in binary mode"),
        "seven bits": (bytes(b & 0x7F for b in GOLDEN), "as text .* in binary mode"),
        "utf-8": (GOLDEN.decode("latin1").encode(), "as text .* in binary mode"),
        "container": (with_byte(GOLDEN, 8, 2), "container version 2 is not known.*: upgrade"),
        "header": (with_byte(GOLDEN, 14, 0), "the header is damaged"),
        "stream": (
            checked(with_byte(HEAD, 9, 2)) + checked(LATENTS),
            "stream version 2 is not known.*: upgrade",
        ),
        "flags": (checked(with_byte(HEAD, 10, 7)), "flags 0x07 are not known: upgrade"),
        "quality": (checked(with_byte(HEAD, 11, 101)), r"quality 101 is outside 0\.\.100"),
        "lattice": (checked(with_byte(HEAD, 12, 3)), "lattice 3 is not known: upgrade"),
        "no width": (sized("00 02"), r"width 0 is outside 1\.\.65535"),
        "no height": (sized("02 00"), r"height 0 is outside 1\.\.65535"),
        "wide": (sized("808004 01"), r"width 65536 is outside 1\.\.65535"),
        "high": (sized("01 ffffffff7f"), r"height 34359738367 is outside 1\.\.65535"),
        "large": (sized("ffff03 8120"), "65535 x 4097 is more than 268435456 pixels"),
        "long width": (sized("8200 02"), "the header has a number that is not in its shortest"),
        "endless width": (sized("ffffffffff01 02"), "the header has a number of more than 5 bytes"),
        "long length": (
            checked(HEAD) + checked(b"\x01\x88\x00" + PAYLOAD),
            "the section at byte 24 has a number that is not in its shortest form",
        ),
        "payload": (with_byte(GOLDEN, 30, 0), "the section at byte 24 is damaged"),
        "length": (with_byte(GOLDEN, 25, 9), "the file is truncated, 1 bytes are missing"),
        "required": (
            checked(HEAD) + checked(b"\x7f\x01!") + checked(LATENTS),
            "section of kind 0x7f is needed to decode and not known: upgrade",
        ),
        "twice": (GOLDEN + checked(LATENTS), "two sections of kind 0x01"),
        "optional twice": (
            checked(HEAD) + 2 * checked(b"\x81\x01!") + checked(LATENTS),
            "two sections of kind 0x81",
        ),
        "no latents": (checked(HEAD) + checked(b"\x81\x01!"), "ends before its latents"),
        "more": (GOLDEN + b"\0\0\0\0\0\0\0\0", "what follows the picture at byte 38 is damaged"),
        "a byte more": (GOLDEN + b"\n", "what follows the picture at byte 38 is truncated"),
    }.values(),
)
def test_fault(data, message):
    with pytest.raises(FormatError, match=message) as caught:
        unpack(data)
    assert "\n" not in str(caught.value)


def test_unknown_optional_section_is_checked_and_no_obstacle():
    note = checked(b"\xff\x04note")
    for data in (checked(HEAD) + note + checked(LATENTS), GOLDEN + note):
        assert unpack(data)[1][SECTION_LATENTS] == PAYLOAD
    with pytest.raises(FormatError, match=r"byte 24 is damaged"):
        unpack(checked(HEAD) + note.replace(b"note", b"tone") + checked(LATENTS))


def test_latents_are_written_last():
    sections = [Section(SECTION_LATENTS, PAYLOAD), Section(0x81, b"!")]
    assert pack(HEADER, sections) == checked(HEAD) + checked(b"\x81\x01!") + checked(LATENTS)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([], "latents"),
        ([0x80], "latents"),
        ([1, 1], "two sections of kind 0x01"),
        ([1, 0x7F], "kind 0x7f"),
    ],
)
def test_pack_refuses_what_unpack_would(kinds, message):
    with pytest.raises(FormatError, match=message):
        pack(HEADER, [Section(kind, b"") for kind in kinds])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "width 0"),
        ("height", 65536, "height 65536"),
        ("channels", 4, "channels, not 4"),
        ("quality", -1, "quality -1"),
        ("lattice", "k12", "lattice 'k12' is not one of z, e8, d4"),
        ("model", b"abc", "4 bytes of its digest, not 3"),
        ("stream_version", 0, "stream version 0"),
        ("stride", 4, r"a stride of 4 pixels is not one of \(8, 16\)"),
    ],
)
def test_header_holds_to_the_limits(field, value, message):
    with pytest.raises(FormatError, match=message):
        Header(**(vars(HEADER) | {field: value}))


def test_sizes_from_the_file_allocate_nothing():
    data = checked(HEAD) + b"\x01\xff\xff\xff\xff\x7f" + bytes(1000)
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"truncated"):
        unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@given(
    st.integers(1, MAX_SIDE),
    st.integers(1, 4096),
    st.sampled_from([1, 3]),
    st.integers(0, 100),
    st.sampled_from(["z", "e8"]),
    st.binary(min_size=4, max_size=4),
    st.binary(max_size=20_000),
    st.dictionaries(st.integers(0x80, 0xFF), st.binary(max_size=300), max_size=5),
    st.sampled_from(container.STRIDES),
)
def test_round_trip(width, height, channels, quality, lattice, model, payload, others, stride):
    header = Header(width, height, channels, quality, lattice, model, stride=stride)
    sections = {SECTION_LATENTS: payload} | others
    data = pack(header, [Section(*section) for section in sections.items()])
    assert unpack(data) == (header, sections)
    assert read_header(data[: container.MAX_HEADER_BYTES]) == header


@given(st.binary(max_size=60), st.integers(0, len(GOLDEN)), st.integers(0, len(GOLDEN)))
def test_anything_else_is_a_format_error(junk, start, end):
    data = GOLDEN[:start] + junk + GOLDEN[end:]
    if data != GOLDEN:
        with pytest.raises(FormatError):
            unpack(data)


# reading what is beside the latents


class Counted(BytesIO):
    """A file that knows how much of it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


SECTIONS = [Section(0x81, b"profile"), Section(0xFE, b""), Section(SECTION_LATENTS, bytes(10_000))]


@pytest.mark.parametrize("offset", [0, 5])
def test_what_is_beside_is_read_without_the_latents(offset):
    data = pack(HEADER, SECTIONS)
    file = Counted(bytes(offset) + data)
    file.seek(offset)
    assert read_beside(file) == (HEADER, {0x81: b"profile", 0xFE: b""})
    assert file.count < 100
    # in any order
    head = data[: data.index(b"\x81\x07")]
    latents_first = head + checked(LATENTS) + checked(b"\x81\x07profile")
    assert read_beside(BytesIO(latents_first)) == (HEADER, {0x81: b"profile"})
    assert read_beside(BytesIO(GOLDEN)) == (HEADER, {})


def test_reading_beside_checks_what_it_returns():
    data = pack(HEADER, SECTIONS)
    ends = len(data) - 10_007, len(data) - 10_007 - 6  # after the header and whole sections
    for end in range(len(data) - 10_000):
        try:
            _, found = read_beside(BytesIO(data[:end]))
        except FormatError:
            continue
        assert end in (*ends, data.index(b"\x81\x07")), end
        assert found.items() <= {0x81: b"profile", 0xFE: b""}.items()
    at = data.index(b"profile")
    with pytest.raises(FormatError, match="damaged"):
        read_beside(BytesIO(with_byte(data, at, 0)))
    for twice in (checked(b"\x81\0") * 2, checked(LATENTS) * 2):
        with pytest.raises(FormatError, match="two sections"):
            read_beside(BytesIO(data[: data.index(b"\x81\x07")] + twice))
    with pytest.raises(FormatError, match="truncated"):
        read_beside(BytesIO(data[: data.index(b"\x81\x07")] + b"\x81\xff\xff\xff\xff\x7f"))

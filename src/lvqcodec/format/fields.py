# SPDX-License-Identifier: Apache-2.0
"""What every part of an lvq file is written with: numbers of any size, and checks."""

import zlib

from lvqcodec.errors import FormatError

CHECK_BYTES = 4


MAX_VARINT = 5


AGAIN = "fetch the file again"


def checked(data: bytes) -> bytes:
    """Return data with its CRC-32 behind it."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def verify_crc(data: bytes, start: int, end: int, what: str) -> int:
    """Check data[start:end] against the CRC behind it and return the offset after that.

    Raises FormatError.
    """
    stored = data[end : end + CHECK_BYTES]
    if len(stored) < CHECK_BYTES:
        raise FormatError(f"{what} is truncated; {AGAIN}")
    if zlib.crc32(memoryview(data)[start:end]) != int.from_bytes(stored, "little"):
        raise FormatError(f"{what} is damaged (CRC-32 differs); {AGAIN}")
    return end + CHECK_BYTES


def to_varint(value: int) -> bytes:
    """Return a number of at least 0 as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int, what: str) -> tuple[int, int]:
    """Return the varint at an offset and the offset after it; raises FormatError."""
    value = 0
    for i, byte in enumerate(data[at : at + MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * i
        if byte == 0 and i:
            raise FormatError(f"{what} has a number that is not in its shortest form")
        if byte < 0x80:
            return value, at + i + 1
    if at + MAX_VARINT <= len(data):
        raise FormatError(f"{what} has a number of more than {MAX_VARINT} bytes")
    raise FormatError(f"{what} is truncated; {AGAIN}")

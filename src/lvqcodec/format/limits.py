# SPDX-License-Identifier: Apache-2.0
"""How large a picture may be, by the format and for whoever asks."""

from lvqcodec.errors import FormatError, UnsupportedImage

MAX_SIDE = 65535


MAX_PIXELS = 2**28


def check_size(width: int, height: int) -> None:
    """Raise FormatError unless a picture of width x height pixels fits the format."""
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE:
            raise FormatError(f"{name} {side} is outside 1..{MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise FormatError(f"{width} x {height} is more than {MAX_PIXELS} pixels")


def check_limit(width: int, height: int, max_pixels: int) -> None:
    """Raise UnsupportedImage for a picture of more pixels than whoever asks wants to take."""
    if width * height > max_pixels:
        raise UnsupportedImage(
            f"{width} x {height} is more than the limit of {max_pixels} pixels (--max-pixels)"
        )

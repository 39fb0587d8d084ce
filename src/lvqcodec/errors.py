# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, one class per exit code (imports nothing)."""


def printable(text: str) -> str:
    """Return text with its control characters, and others that cannot be printed, spelled out."""
    if text.isprintable():
        return text
    parts = (
        c if c.isprintable() else c.encode("unicode-escape", "surrogatepass").decode() for c in text
    )
    return "".join(parts)


class LvqError(Exception):
    """Base of every error that lvqcodec raises itself; `exit_code` is what `lvq` exits with."""

    exit_code = 1

    def __str__(self) -> str:
        """What was wrong, in one line that is safe to print, whatever a file put into it."""
        return printable(" ".join(super().__str__().split()))


class UsageError(LvqError):
    """A wrong option, a missing input, an output that cannot be written."""

    exit_code = 2


class FormatError(LvqError):
    """The bytes are no intact lvq file or picture: truncated, altered, of an unknown version."""

    exit_code = 3


class StreamError(FormatError):
    """The container is intact, but what the range coder reads from it makes no sense."""


class ModelNotFound(LvqError):
    """No weights of that name or digest are installed."""

    exit_code = 4


class ModelMismatch(LvqError):
    """The weights differ from what the card or the stream asks for."""

    exit_code = 4


class UnsupportedImage(LvqError):
    """A valid picture of a kind that is not coded: 16 bits, CMYK, HDR, animation, too large, ..."""

    exit_code = 5

# SPDX-License-Identifier: Apache-2.0
"""Who may take the memory that he needs, told before it is taken."""

from __future__ import annotations

from collections.abc import Callable

from lvqcodec.errors import LvqError
from lvqcodec.format.container import Header
from lvqcodec.options import EncodeOptions
from lvqcodec.resources.available import allowance
from lvqcodec.resources.estimate import LARGEST, MemoryFigures, _header_of, encoding_of


def admission(
    options: EncodeOptions, figures: MemoryFigures = LARGEST
) -> Callable[[int, int, int], None]:
    """Return what raises LvqError for a picture that takes more memory to encode than it may.

    It takes width, height and channels as `encoding_of`.
    """
    searched = ", or give a lower effort" if options.chosen_effort else ""

    def admit(width: int, height: int, channels: int) -> None:
        need = encoding_of(width, height, channels, options, figures=figures)
        header = _header_of(width, height, channels)
        check(need, options.max_memory, header, remedy=f"allow for more (--max-memory){searched}")

    return admit


def check(need: int, limit: int | None, header: Header, *, remedy: str) -> None:
    """Raise LvqError if `need` bytes are more than `limit`, by default SHARE of what there is."""
    if limit is None:
        limit = allowance()
    if limit is not None and need > limit:
        raise LvqError(
            f"a picture of {header.width}x{header.height} needs about {spell(need)} of memory,"
            f" more than the {spell(limit)} it may take: {remedy}"
        )


def spell(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{-(-size // 2**20)} MiB"

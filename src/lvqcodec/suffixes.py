# SPDX-License-Identifier: Apache-2.0
"""Picture files by their suffix: which are read, which are written, and what those hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

READ = (
    *(".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Suffixes of the pictures that are read, in lower case."""


@dataclass(frozen=True)
class WrittenFormat:
    """A format to write, by Pillow's name, with what it holds beside colours.

    limits: of so many bytes of a piece of metadata at most.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    grey_only: bool = False


_ALL = ("alpha", "icc", "exif", "xmp")

WRITTEN = {
    "png": WrittenFormat("PNG", {}, _ALL),
    "jpg": WrittenFormat(
        "JPEG",
        {"quality": 95, "subsampling": "4:4:4"},
        ("icc", "exif", "xmp"),
        {"exif": 65527, "xmp": 65502},  # of a segment, less the names
    ),
    "webp": WrittenFormat("WEBP", {"lossless": True, "exact": True}, _ALL),
    "avif": WrittenFormat("AVIF", {"quality": 95, "subsampling": "4:4:4"}, _ALL),
    "bmp": WrittenFormat("BMP"),
    "ppm": WrittenFormat("PPM"),
    "pgm": WrittenFormat("PPM", grey_only=True),
    "tiff": WrittenFormat("TIFF", {}, _ALL),
}
"""The formats to write, lossless or close to it, by suffix without its dot."""

SYNONYMS = {"jpeg": "jpg", "tif": "tiff"}
"""Other suffixes of some of them."""

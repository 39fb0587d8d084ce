# SPDX-License-Identifier: Apache-2.0
"""Other codecs to measure beside ours, as Pillow and two of its plugins run them.

PEERS is the whole table: the options of each codec, and qualities that cover about 0.05 to 2 bpp on
photographs, as far down as the codec goes (JPEG and JPEG XL end near 0.15 bpp, WebP near 0.1).
Chroma is 4:4:4 wherever the format has it; lossy WebP is always 4:2:0. Everything else is left as
the library sets it: tuning, colour matrix, number of threads.
HEIC and JPEG XL need the extra `lvqcodec[bench]`, imported on use.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from lvqcodec.errors import UsageError
from lvqcodec.metrics import extra


@dataclass(frozen=True)
class Peer:
    """A codec by its Pillow name: options of `save`, and its qualities from small files to large.

    `feature` is what Pillow calls the library behind it, `plugin` the module that brings it.
    """

    name: str
    format: str
    suffix: str
    qualities: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    feature: str | None = None
    plugin: str | None = None

    def prepare(self) -> None:
        """Make the codec ready in this process; UsageError with the remedy where it is missing."""
        if self.plugin:
            plugin = extra(self.plugin, needed_by=f"the codec {self.name}", name="bench")
            if hasattr(plugin, "register_heif_opener"):  # the others register on import
                plugin.register_heif_opener()
        Image.init()
        if self.format not in Image.SAVE:
            raise UsageError(
                f"this Pillow was built without {self.name}: "
                "run `pip install --force-reinstall pillow` for one that has it"
            )

    def encode(self, image: NDArray[np.uint8], quality: int) -> bytes:
        """Code a picture (H,W,3) or (H,W) to the bytes of a file; UsageError if it cannot be."""
        file = io.BytesIO()
        try:
            Image.fromarray(image).save(file, self.format, quality=quality, **self.settings)
        except (OSError, ValueError, RuntimeError) as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise UsageError(
                f"{self.name} cannot code a picture of {size} ({error}): leave one of them out"
            ) from error
        return file.getvalue()

    def decode(self, data: bytes, grey: bool) -> NDArray[np.uint8]:
        """Decode a file of `encode` to (H,W,3), or to (H,W) for a picture that was grey."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            # WebP and AVIF hold colour only
            return np.asarray(image.convert("L" if grey else "RGB"))

    def facts(self) -> dict[str, Any]:
        """The options and the version of the library, as plain JSON values."""
        facts = {"format": self.format, "settings": self.settings, "qualities": self.qualities}
        version = features.version(self.feature) if self.feature else None
        return {**facts, "library": f"{self.feature} {version}"} if version else facts


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "jpeg",
            "JPEG",
            ".jpg",
            (1, 5, 10, 20, 40, 65, 80, 88),
            {"subsampling": "4:4:4", "optimize": True, "progressive": True},
            feature="libjpeg_turbo",
        ),
        Peer(
            "webp",
            "WEBP",
            ".webp",
            (0, 5, 15, 30, 55, 75, 85, 91),
            {"method": 6},
            feature="webp",
        ),
        Peer(
            "avif",
            "AVIF",
            ".avif",
            (1, 8, 18, 30, 45, 60, 73, 84),
            {"subsampling": "4:4:4", "speed": 4},  # from 0, slowest, to 10; Pillow's default is 6
            feature="avif",
        ),
        Peer(
            "heic",
            "HEIF",
            ".heic",
            (3, 10, 18, 26, 34, 42, 50, 60),
            {"chroma": 444},
            plugin="pillow_heif",
        ),
        Peer(
            "jxl",
            "JXL",
            ".jxl",
            # between 0 and 20 libjxl halves the picture's sides first, and loses PSNR by it
            (0, 20, 35, 50, 65, 77, 85, 90),
            {"effort": 7},
            plugin="pillow_jxl",
        ),
    )
}


def find_peers(names: Iterable[str]) -> list[Peer]:
    """The codecs of these names, each once and ready; UsageError for an unknown or missing one."""
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UsageError(f"there is no codec {unknown[0]!r}: choose among {', '.join(PEERS)}")
    for name in names:
        PEERS[name].prepare()
    return [PEERS[name] for name in names]

# SPDX-License-Identifier: Apache-2.0
"""Samples of a decoded picture, whatever mode Pillow keeps them in, as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")  # I is grey of 16 bits in PPM, and in PNG once
PNG_DEPTH = 24  # offset of the bits a sample
TIFF_WHITE_IS_ZERO = 0


def expand(
    image: Image.Image, space: str | None, data: bytes = b""
) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Return a decoded picture in L, RGB or one of _OTHER_COLOURS, and its alpha.

    space: what its profile is of. A palette of greys is grey, unless it has a profile of RGB. data:
    of its file, needed if one of its colours is transparent.
    """
    key = image.info.get("transparency")
    whole: Image.Image = image
    alpha = None
    if image.mode in ("La", "LA"):
        whole = image.convert("LA")
    elif image.mode in ("P", "PA", "RGBa", "RGBA"):
        whole = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif key is not None:
        alpha = _keyed(image, key, data[PNG_DEPTH])
    if whole.mode in ("LA", "RGBA"):
        alpha = np.array(whole.getchannel("A"))
        whole = whole.convert(whole.mode.removesuffix("A"))
    elif whole.mode == "1":
        whole = whole.convert("L")
    elif whole.mode in SIXTEEN_BITS:
        whole = Image.fromarray(_reduce(image))
    # pillow-heif has no grey with alpha
    mono = image.format == "HEIF" and "chroma" not in image.info
    if (mono or image.mode in ("P", "PA")) and space != "RGB" and whole.mode == "RGB":
        samples = np.asarray(whole)
        if (samples == samples[..., :1]).all():
            whole = whole.getchannel("G")
    return whole, alpha


def _keyed(image: Image.Image, key: int | tuple[int, ...], depth: int) -> NDArray[np.uint8]:
    """The alpha of a PNG in which one colour is transparent, stated in samples as stored."""
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)
    if isinstance(key, int) and depth < 8:
        top = (1 << depth) - 1
        key = min(key, top) * 255 // top
    same = samples == np.asarray(key)
    return np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)


def _reduce(image: Image.Image) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits, rounded."""
    samples, top = np.asarray(image), 65535
    if isinstance(image, TiffImageFile):
        top = (1 << int(np.max(image.tag_v2[ExifTags.Base.BitsPerSample]))) - 1
        if image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == TIFF_WHITE_IS_ZERO:
            samples = top - np.minimum(samples, top)
    levels = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    reduced: NDArray[np.uint8] = np.take(levels, np.clip(samples, 0, top))
    return reduced

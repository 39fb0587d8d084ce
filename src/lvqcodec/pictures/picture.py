# SPDX-License-Identifier: Apache-2.0
"""What is coded: the samples of a picture, its transparency and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lvqcodec.errors import UnsupportedImage

_INVERSE = {6: 8, 8: 6}  # the other orientations undo themselves


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture: samples as they are stored, alpha and metadata.

    pixels: uint8 (H, W, 3) RGB or (H, W) grey; sRGB unless `icc` says otherwise. alpha: uint8
    (H, W), 0 transparent, 255 opaque, not multiplied into the pixels; None if all is opaque. icc: a
    colour profile. exif: a TIFF structure, without the prefix that it has in JPEG files; viewers
    still have to apply its orientation. xmp: a packet in UTF-8. Each is None if there is none.
    remarks: sentences on what the file held and this does not; they are not coded.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UnsupportedImage for an alpha of another shape than the pixels."""
        alpha, shape = self.alpha, self.pixels.shape[:2]
        if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != shape):
            raise UnsupportedImage(
                f"the alpha of these pixels is uint8 {shape}, not {alpha.dtype} {alpha.shape}"
            )

    @classmethod
    def of(cls, image: Picture | NDArray[np.uint8]) -> Picture:
        """Return the picture of an array, (H, W, 4) and (H, W, 2) with alpha as the last channel.

        A `Picture` is returned as it is. Raises UnsupportedImage for anything that is not an array.
        """
        if isinstance(image, Picture):
            return image
        if not isinstance(image, np.ndarray):
            raise UnsupportedImage(f"a {type(image).__name__} is no picture; give a numpy array")
        if image.ndim == 3 and image.shape[2] == 4:
            return cls(image[..., :3], image[..., 3])
        if image.ndim == 3 and image.shape[2] == 2:
            return cls(image[..., 0], image[..., 1])
        return cls(image)

    def array(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) or (H, W); with alpha as the last channel (H, W, 4) or (H, W, 2)."""
        if self.alpha is None:
            return self.pixels
        return np.dstack([self.pixels, self.alpha])

    def turned(self, orientation: int) -> Picture:
        """Return the picture turned upright, given the EXIF orientation of its pixels, 1 to 8.

        The orientations in EXIF and XMP stay as they are.
        """
        alpha = None if self.alpha is None else turn(self.alpha, orientation)
        return replace(self, pixels=turn(self.pixels, orientation), alpha=alpha)


def turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn samples (H, W, ...) of an EXIF orientation 1..8 upright; leave all others."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def turn_back(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo `turn`."""
    return turn(image, _INVERSE.get(orientation, orientation))

# SPDX-License-Identifier: Apache-2.0
"""What the library takes for a picture: arrays, images of Pillow, tensors of torch and files.

Neither Pillow nor torch is loaded to find out whether something is of theirs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lvqcodec import files
from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.format.limits import MAX_PIXELS, MAX_SIDE, check_size
from lvqcodec.pictures.picture import Picture

if TYPE_CHECKING:
    from PIL import Image

PictureSource = Picture | NDArray[np.uint8] | files.StrPath | BinaryIO | Any
"""The last is an image of Pillow or a tensor of torch."""

METADATA = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
"""What metadata are called by Pillow."""

_MODES = ("1", "L", "La", "LA", "P", "PA", "RGB", "RGBa", "RGBA")
_CHANNELS = (1, 2, 3, 4)


def to_picture(source: Any, admit: Callable[[int, int, int], None] | None = None) -> Picture:
    """Return the picture that is meant; `codec.encode` says what is taken, and how.

    admit: called with width, height and number of channels (alpha included), of what is still to
    be decoded before it is. What a file holds and is left out is a warning. Raises UsageError for
    what is no picture, UnsupportedImage for one of a kind that is not coded, and what
    `load.load_picture` and `admit` do.
    """
    if _is_a(source, "PIL.Image", "Image"):
        return from_pillow(source, source.info, admit)
    if isinstance(source, str | os.PathLike) or callable(getattr(source, "read", None)):
        from lvqcodec.pictures import load

        picture = load.load_picture(source, admit=admit)
        for remark in picture.remarks:
            warnings.warn(remark, stacklevel=2)
        return picture
    picture = _of_samples(source)
    _check_samples(picture.pixels)
    if admit is not None:
        height, width = picture.pixels.shape[:2]
        grey = picture.pixels.ndim == 2
        admit(width, height, (1 if grey else 3) + (picture.alpha is not None))
    return picture


def _of_samples(source: Any) -> Picture:
    """Return the picture of samples that are decoded already."""
    if isinstance(source, Picture | np.ndarray):
        return Picture.of(source)
    if _is_a(source, "torch", "Tensor"):
        return _from_tensor(source)
    raise UsageError(
        f"a {type(source).__name__} is no picture: give a numpy array, a Picture, an image of"
        " Pillow, a tensor of torch, a path or a binary file"
    )


def _check_samples(image: Any) -> None:
    """Raise UnsupportedImage for samples that are not coded."""
    if not isinstance(image, np.ndarray):
        raise UnsupportedImage(f"a {type(image).__name__} is no picture; give a numpy array")
    grey = image.ndim == 2
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise UnsupportedImage(
            f"an array of {image.dtype} {image.shape} is no picture; give uint8 (H, W, 3) or (H, W)"
        )
    height, width = image.shape[:2]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise UnsupportedImage(
            f"a picture of {width}x{height} is not supported; sides of 1..{MAX_SIDE} and at most"
            f" {MAX_PIXELS} pixels are"
        )


def from_pillow(
    image: Image.Image,
    metadata: Mapping[Any, Any],
    admit: Callable[[int, int, int], None] | None = None,
) -> Picture:
    """Return what is coded of an image of Pillow, expanded as if it were read from a file.

    metadata: by Pillow's names, see METADATA; a profile of other colours is left out, with a
    warning. admit: as in `to_picture`. Raises UnsupportedImage.
    """
    if image.mode not in _MODES:
        raise UnsupportedImage(
            f"an image of mode {image.mode} is not coded; convert it first: "
            'image.convert("RGB"), or "RGBA" with transparency'
        )
    if image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        raise UnsupportedImage(
            'a transparent colour is not coded; convert it first: image.convert("RGBA")'
        )
    try:
        check_size(*image.size)
    except FormatError as error:
        raise UnsupportedImage(f"an image of a size that is not coded: {error}") from None
    if admit is not None:
        transparent = image.has_transparency_data
        grey = image.mode in ("1", "L", "La", "LA")
        admit(*image.size, (1 if grey else 3) + transparent)
    from lvqcodec.pictures.colour import profile_misfit, profile_space
    from lvqcodec.pictures.samples import expand

    parts: dict[str, Any] = {name: _to_bytes(metadata.get(key)) for name, key in METADATA.items()}
    icc = parts["icc"]
    pixels, alpha = expand(image, profile_space(icc) if icc else None)
    if icc and (misfit := profile_misfit(icc, pixels.mode)):
        warnings.warn(f"the colour profile is left out: {misfit}", stacklevel=3)
        parts["icc"] = None
    return Picture(np.array(pixels), alpha, **parts)


def _to_bytes(value: Any) -> bytes | None:
    """Return metadata as they are coded: EXIF without its prefix, none if empty."""
    from lvqcodec.pictures.metadata import EXIF_PREFIX

    if hasattr(value, "tobytes"):  # as the EXIF of Pillow has
        value = value.tobytes()
    if isinstance(value, str):
        value = value.encode()
    return bytes(value).removeprefix(EXIF_PREFIX) or None if value else None


def _from_tensor(tensor: Any) -> Picture:
    """Return the picture of a tensor, uint8 (C, H, W) or (H, W)."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype)
    if dtype != "torch.uint8":
        remedy = (
            "scale it to 0..255 first: (x * 255).round().clamp(0, 255).to(torch.uint8)"
            if tensor.is_floating_point()
            else "give uint8"
        )
        raise UnsupportedImage(f"a tensor of {dtype} is no picture; {remedy}")
    if len(shape) == 2:
        return Picture(tensor.cpu().numpy())
    if len(shape) == 3 and shape[0] in _CHANNELS:
        samples = tensor.cpu().permute(1, 2, 0).numpy()
        return Picture.of(samples[..., 0] if shape[0] == 1 else samples)
    raise UnsupportedImage(
        f"a tensor {shape} is no picture; give (C, H, W), of 1 to 4 channels, or (H, W): "
        "one of (H, W, C) by x.permute(2, 0, 1)"
    )


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a module, which then has been loaded."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)

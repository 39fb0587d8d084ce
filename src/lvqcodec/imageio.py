# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out of files, through Pillow, and never by a silent conversion.

What is read is 8-bit sRGB or grey. Anything else that a file may hold (alpha, a palette, more bits,
other colours, a rotation in EXIF, further frames) is refused with the remedy.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lvqcodec.container import check_size, looks_like
from lvqcodec.errors import FormatError, UnsupportedImage, UsageError

SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the pictures that are read, in lower case."""

_READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF")
_SIGNATURE_BYTES = 16
# by suffix: Pillow's name and options, lossless or close to it
_WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    "webp": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    "tif": ("TIFF", {}),
    "tiff": ("TIFF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
}

_DEEP = "more than 8 bits a sample; reduce it first: magick IN -depth 8 OUT.png"
_ALPHA = "transparency; flatten it first: magick IN -background white -flatten OUT.png"
_MODES = {
    "1": "1 bit a sample; expand it first: magick IN PNG24:OUT.png",
    "P": "a palette; expand it first: magick IN PNG24:OUT.png",
    "PA": _ALPHA,
    "LA": _ALPHA,
    "RGBA": _ALPHA,
    "I": _DEEP,
    "I;16": _DEEP,
    "I;16B": _DEEP,
    "F": _DEEP,
}

# Grey of gamma 2.2, in daily use the same as sRGB, is up to 9 of 255 off near black; other
# primaries (Display P3, Adobe RGB) and other gammas are off by more.
_COLOUR_TOLERANCE = 9
_SRGB_GAMMA = 0.45455
_SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# colour primaries and transfer function by the numbers of ITU-T H.273
_CICP = {
    "PNG": re.compile(rb"\x04cICP(.)(.)", re.DOTALL),
    "AVIF": re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL),
}
_SRGB_PRIMARIES = (1, 2)  # BT.709, unspecified
_SRGB_TRANSFERS = (1, 2, 6, 13)  # BT.709, unspecified, BT.601, sRGB
_AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)
_AV1_HIGH_BITDEPTH = 0x40
_TIFF_REDUCED = 1

_PATH = (str, os.PathLike)

_Reader = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]


def load(source: str | os.PathLike[str] | BinaryIO) -> NDArray[np.uint8]:
    """Read a picture: uint8 (H,W,3) sRGB or (H,W) grey, the values as stored.

    Raises UsageError if there is no such file, FormatError if it is broken or no picture, and
    UnsupportedImage if it is of a kind that is not coded.
    """
    name = os.fspath(source) if isinstance(source, _PATH) else "the picture"
    try:
        with open(source, "rb") if isinstance(source, _PATH) else nullcontext(source) as file:
            data = file.read(_SIGNATURE_BYTES)
            reader = _find_reader(data)
            data += file.read() if reader else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {name}: {reason}") from error
    if reader is None:
        kind = looks_like(data)
        if kind and kind.upper() not in _READABLE:
            raise UnsupportedImage(f"{name} is {kind}, which is not read; convert it to PNG first")
        raise FormatError(f"{name} is no intact picture; kinds read: {', '.join(_READABLE)}")
    try:
        image = reader(BytesIO(data), name)
        obstacle = _find_obstacle(image, data)
        if obstacle is None:
            return np.array(image)
    except Exception as error:  # Pillow lets out whatever its parsers stumble over
        reason = str(error) or type(error).__name__
        raise FormatError(f"{name} is damaged or of an unknown kind: {reason}") from error
    raise UnsupportedImage(f"{name} has {obstacle}")


def save(
    image: NDArray[np.uint8],
    target: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
) -> None:
    """Write a picture, uint8 (H,W,3) or (H,W), to a path (whole or not at all) or a stream.

    `format` is a suffix such as "png"; by default that of the path, PNG for a stream. JPEG and AVIF
    are lossy (quality 95, 4:4:4), the others lossless. Raises UsageError.
    """
    if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] != (3,)):
        raise UsageError(f"a picture is uint8 (H,W,3) or (H,W), not {image.dtype} {image.shape}")
    suffix = format or (Path(target).suffix if isinstance(target, _PATH) else "png")
    try:
        writer, options = _WRITABLE[suffix.lower().removeprefix(".")]
    except KeyError:
        raise UsageError(
            f"cannot write a picture as {suffix!r}; choose one of {', '.join(_WRITABLE)}"
        ) from None
    file = BytesIO()
    try:
        Image.fromarray(image).save(file, writer, **options)
    except (OSError, ValueError) as error:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UsageError(f"cannot write {size} pixels as {writer}: {error}") from error
    if isinstance(target, _PATH):
        atomic_write(target, file.getvalue())
    else:
        target.write(file.getvalue())


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all, with the permissions open() gives; raises UsageError."""
    target = Path(os.path.realpath(path))  # a link stays a link
    aside = target.with_name(f".lvq-{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():  # /dev/stdout must not be replaced
            target.write_bytes(data)
            return
        try:
            with open(aside, "xb") as file:
                file.write(data)
            if target.exists():
                shutil.copymode(target, aside)
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {os.fspath(path)}: {error.strerror}") from error


def _find_reader(head: bytes) -> _Reader | None:
    """Return the Pillow plugin that reads a file with these first bytes.

    Not Image.open: its limit on pixels is a global, and smaller than ours.
    """
    Image.init()
    for name in _READABLE:
        reader, accepts = Image.OPEN.get(name, (None, None))
        if reader and accepts and accepts(head) is True:
            return reader
    return None


def _find_obstacle(image: ImageFile.ImageFile, data: bytes) -> str | None:
    """Return what keeps a picture from being coded, and the remedy; decodes it only at the end."""
    try:
        check_size(*image.size)
    except FormatError as error:
        return f"a size that is not coded: {error}; scale it down or cut it into parts first"
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        return f"{frames} frames or pages; take one out first: magick IN[0] OUT.png"
    if image.mode not in ("L", "RGB"):
        other = f"{image.mode} colours; convert it first: magick IN -colorspace sRGB OUT.png"
        return _MODES.get(image.mode, other)
    if _is_deep(image, data):
        return _DEEP
    if "transparency" in image.info:
        return _ALPHA
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(ExifTags.Base.SamplesPerPixel, 1) > len(image.getbands()):
            return "extra channels; drop them first: magick IN -alpha off PNG24:OUT.png"
        if image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & _TIFF_REDUCED:
            return "a thumbnail in the first place, as camera raw does; develop it first"
    colours = _find_foreign_colours(image, data)
    if colours:
        return f"{colours}; convert it to sRGB first"
    orientation = _find_orientation(image)
    if orientation in range(2, 9):
        return f"EXIF orientation {orientation}; turn it first: magick IN -auto-orient OUT.png"
    return None


def _is_deep(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether there are more than 8 bits a sample, which Pillow cuts off in RGB."""
    if isinstance(image, TiffImageFile):
        return bool(np.max(image.tag_v2.get(ExifTags.Base.BitsPerSample, 1)) > 8)
    if image.format == "AVIF":
        return any(av1[1][0] & _AV1_HIGH_BITDEPTH for av1 in _AV1_CONFIGURATION.finditer(data))
    arguments = image.tile[0].args if image.tile else None
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[1] > 255
    return image.format == "PNG" and arguments == "RGB;16B"


def _find_orientation(image: ImageFile.ImageFile) -> object:
    """Return the EXIF orientation, if any; decodes the picture unless it is TIFF."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(ExifTags.Base.Orientation)  # decoding would turn it
    image.load()  # in PNG it may stand at the end
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken metadata turns no picture, in no viewer
        return None


def _find_foreign_colours(image: ImageFile.ImageFile, data: bytes) -> str | None:
    """Return what says that the values are not sRGB; a file that says nothing is sRGB."""
    profile = image.info.get("icc_profile")
    if profile:
        return _find_foreign_profile(profile)
    codes = _CICP[image.format].search(data) if image.format in _CICP else None
    if codes:
        primaries, transfer = codes[1][0], codes[2][0]
        if primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFERS:
            return f"colour primaries {primaries} and transfer {transfer} of H.273"
    elif image.format == "PNG" and "srgb" not in image.info:
        gamma = image.info.get("gamma", _SRGB_GAMMA)
        if not np.isclose(gamma, _SRGB_GAMMA, rtol=0, atol=0.01):
            return f"gamma {gamma}"
        chromaticities = image.info.get("chromaticity", _SRGB_CHROMATICITIES)
        if not np.allclose(chromaticities, _SRGB_CHROMATICITIES, rtol=0, atol=0.01):
            return "chromaticities of its own"
    return None


def _find_foreign_profile(icc: bytes) -> str | None:
    """Return the name of a colour profile unless it shows every colour as sRGB does.

    Measured, as names mislead: there are sRGB profiles called "c2" and P3 ones that say "sRGB".
    """
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        ramp = np.arange(0, 256, 17, dtype=np.uint8)
        chart = Image.fromarray(np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(-1, 16, 3))
        if profile.profile.xcolor_space.strip() == "GRAY":
            chart = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        shown = ImageCms.profileToProfile(
            chart,
            profile,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):
        return "a colour profile that cannot be read"
    error = np.abs(np.asarray(shown, np.int16) - np.asarray(chart.convert("RGB"), np.int16))
    if error.max() <= _COLOUR_TOLERANCE:
        return None
    return f"the colour profile {profile.profile.profile_description or 'without a name'}"

# SPDX-License-Identifier: Apache-2.0
"""What a picture file says of its colours, and how they become sRGB.

A file states its colours by an ICC profile, which travels with the picture, or by numbers of its
own format (PNG gAMA, cHRM and cICP, AVIF nclx). A file that says nothing is sRGB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from lvqcodec.errors import UnsupportedImage
from lvqcodec.pictures.structure import picture_properties, png_chunks

# Grey of gamma 2.2, in daily use the same as sRGB, is up to 9 of 255 off near black; other
# primaries (Display P3, Adobe RGB) and other gammas are off by more.
_COLOUR_TOLERANCE = 9

_SPACES = {"L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""What profiles call the colours of a mode; RGB for the others."""

_SRGB_GAMMA = 0.45455
# x and y of white, red, green and blue
_D65 = (0.3127, 0.329)
_SRGB_CHROMATICITIES = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)

# colour primaries by the numbers of ITU-T H.273
_PRIMARIES = {
    1: _SRGB_CHROMATICITIES,
    2: _SRGB_CHROMATICITIES,  # unspecified
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_SRGB_PRIMARIES = (1, 2)
_SRGB_TRANSFERS = (1, 2, 6, 13)  # BT.709, unspecified, BT.601, sRGB: one curve in daily use
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_GAMMA_RANGE = (0.1, 10)
_HDR = {16: "PQ", 18: "HLG"}

# Bradford's cone responses, for the adaptation of one white to another
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_BAND = 256


@dataclass(frozen=True, eq=False)
class Colours:
    """Colours other than sRGB, stated by numbers.

    name: in words; gamma: exponent from samples to light, None for the curve of sRGB; matrix:
    (3, 3) from their linear RGB to that of sRGB.
    """

    name: str
    gamma: float | None
    matrix: NDArray[np.float64]


def stated_colours(image: ImageFile.ImageFile, data: bytes, *, profile: bool) -> Colours | None:
    """Return the colours that a file states by numbers, None for sRGB and if it states nothing.

    image: as opened by Pillow; data: the whole file; profile: whether an ICC profile is in use.
    Raises UnsupportedImage for colours that cannot be converted, such as HDR.
    """
    if codes := _codes(image, data):
        primaries, transfer = codes
        if transfer in _HDR:
            raise UnsupportedImage(f"the HDR transfer {_HDR[transfer]}; tone-map it to SDR first")
        # in PNG the numbers come before a profile, elsewhere the profile before the numbers
        if profile and image.format != "PNG":
            return None
        if primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS:
            return None
        name = f"colour primaries {primaries} and transfer {transfer} of H.273"
        known = primaries in _PRIMARIES and transfer in (*_SRGB_TRANSFERS, *_GAMMAS)
        matrix = _to_linear_srgb(_PRIMARIES[primaries]) if known else None
        return _colours(name, _GAMMAS.get(transfer), matrix)
    if profile or image.format != "PNG" or "srgb" in image.info:
        return None
    gamma = image.info.get("gamma", _SRGB_GAMMA)
    chromaticities = image.info.get("chromaticity", _SRGB_CHROMATICITIES)
    matrix = _to_linear_srgb(tuple(chromaticities))
    if not np.isclose(gamma, _SRGB_GAMMA, rtol=0, atol=0.01):
        usable = _GAMMA_RANGE[0] <= gamma <= _GAMMA_RANGE[1]
        return _colours(f"gamma {gamma}", 1 / gamma if usable else None, matrix if usable else None)
    if not np.allclose(chromaticities, _SRGB_CHROMATICITIES, rtol=0, atol=0.01):
        return _colours("chromaticities of its own", None, matrix)
    return None


def _codes(image: ImageFile.ImageFile, data: bytes) -> tuple[int, int] | None:
    """Colour primaries and transfer function by the numbers of ITU-T H.273, None if not stated."""
    if image.format == "PNG":
        for chunk in png_chunks(data):
            if chunk.kind == b"cICP" and chunk.end - chunk.start == 4:
                return data[chunk.start], data[chunk.start + 1]
    elif image.format in ("AVIF", "HEIF"):
        for box in picture_properties(data):
            if box.kind == b"colr" and (found := box.of(data)).startswith(b"nclx"):
                return struct.unpack_from(">HH", found.ljust(8, b"\0"), 4)
    elif image.format == "JXL" and (icc := image.info.get("icc_profile")):
        # its decoder puts the numbers into the profile that it makes of them
        for at in range(132, 132 + 12 * int.from_bytes(icc[128:132], "big"), 12):
            if icc[at : at + 4] == b"cicp":
                start = int.from_bytes(icc[at + 4 : at + 8], "big") + 8
                return (icc[start], icc[start + 1]) if start + 1 < len(icc) else None
    return None


def _colours(name: str, gamma: float | None, matrix: NDArray[np.float64] | None) -> Colours:
    if matrix is None:
        raise UnsupportedImage(f"{name}, which cannot be converted; make it sRGB first")
    return Colours(name, gamma, matrix)


def stated_to_srgb(pixels: NDArray[np.uint8], colours: Colours) -> NDArray[np.uint8]:
    """Convert uint8 (H, W, 3) or (H, W); colours beyond sRGB are clipped."""
    levels = np.linspace(0, 1, 256)
    if colours.gamma is None:
        light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    else:
        light = levels**colours.gamma
    if pixels.ndim == 2:
        return _to_samples(light)[pixels]
    light, matrix = light.astype(np.float32), colours.matrix.T.astype(np.float32)
    out = np.empty_like(pixels)
    for top in range(0, len(pixels), _BAND):  # floats of the whole would take twelve times as much
        rows = slice(top, top + _BAND)
        out[rows] = _to_samples(light[pixels[rows]] @ matrix)
    return out


def _to_samples(light: NDArray[np.floating]) -> NDArray[np.uint8]:
    light = np.clip(light, 0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    samples: NDArray[np.uint8] = np.rint(255 * levels).astype(np.uint8)
    return samples


def _to_linear_srgb(chromaticities: tuple[float, ...]) -> NDArray[np.float64] | None:
    """The matrix from linear RGB of these chromaticities to that of sRGB; None if there is none."""
    with np.errstate(all="ignore"):
        try:
            matrix = np.linalg.inv(_to_xyz(_SRGB_CHROMATICITIES)) @ _to_xyz(chromaticities)
        except np.linalg.LinAlgError:
            return None
    return matrix if np.isfinite(matrix).all() else None


def _to_xyz(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix from linear RGB to XYZ under D65."""
    x, y = np.array(chromaticities).reshape(4, 2).T
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    white, primaries = xyz[:, 0], xyz[:, 1:]
    d65 = np.array([_D65[0] / _D65[1], 1, (1 - sum(_D65)) / _D65[1]])
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ d65) / (_BRADFORD @ white)) @ _BRADFORD
    matrix: NDArray[np.float64] = adapt @ (primaries * np.linalg.solve(primaries, white))
    return matrix


def profile_space(icc: bytes) -> str | None:
    """Return the colour space of a profile, such as GRAY or RGB; None if it cannot be read."""
    try:
        return ImageCms.ImageCmsProfile(BytesIO(icc)).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None


def profile_misfit(icc: bytes, mode: str) -> str | None:
    """Return why a profile does not fit pixels of a mode (L, RGB, CMYK, ...), None if it does."""
    space, fitting = profile_space(icc), _SPACES.get(mode, "RGB")
    if space == fitting:
        return None
    return f"it is of {space}, the pixels are {fitting}" if space else "it cannot be read"


def means_srgb(icc: bytes) -> bool:
    """Whether a profile shows every colour as sRGB does; one that cannot be read is ignored.

    This is measured because names mislead: some sRGB profiles are called "c2", and some P3 ones
    say "sRGB".
    """
    ramp = np.arange(0, 256, 17, dtype=np.uint8)
    chart = Image.fromarray(np.stack(np.meshgrid(ramp, ramp, ramp), -1).reshape(-1, 16, 3))
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if profile_space(icc) == "GRAY":
            chart = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        shown = _apply(chart, profile)
    except (ImageCms.PyCMSError, OSError):
        return True
    error = np.abs(np.asarray(shown, np.int16) - np.asarray(chart.convert("RGB"), np.int16))
    return bool(error.max() <= _COLOUR_TOLERANCE)


def profile_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert a picture of mode L, RGB, CMYK, LAB or YCbCr to sRGB; one of mode L stays L.

    The profile fits the mode. CMYK without a profile states no colours: each ink is taken to absorb
    its complement. Raises UnsupportedImage for a profile that cannot be used.
    """
    if image.mode == "LAB":
        return _apply(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if icc is None or image.mode == "YCbCr":
        image = image.convert("RGB")
        return image if icc is None else profile_to_srgb(image, icc)
    try:
        shown = _apply(image, ImageCms.ImageCmsProfile(BytesIO(icc)))
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnsupportedImage(
            f"a colour profile that cannot be used ({error}); convert it to sRGB first"
        ) from error
    return shown.getchannel("G") if image.mode == "L" else shown


def _apply(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    srgb = ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(image, profile, srgb, intent, outputMode="RGB")
    assert shown is not None  # it is only if told to work in place
    return shown

# SPDX-License-Identifier: Apache-2.0
"""The distance of two pictures, and of two rate-distortion curves (numpy).

MS-SSIM loads torch, and BD-rates need a package of the extra `lvqcodec[eval]`: both on use.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvqcodec.errors import UsageError

MS_SSIM_MIN_SIDE = 161  # five scales of an 11-tap window: 10 * 2^4 + 1 pixels
Picture = NDArray[np.uint8]
_ROWS = 256


def extra(module: str, *, needed_by: str = "evaluation", name: str = "eval") -> Any:
    """Import a module of the extra `name`; UsageError with the remedy where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{needed_by} needs the package `{module.split('.')[0]}`, which cannot be imported "
            f"({error}): run `pip install 'lvqcodec[{name}]'`"
        ) from error


def mse(a: Picture, b: Picture) -> float:
    """Mean squared error of two uint8 pictures of one shape, over all samples, in squared steps."""
    return squared_error(a, b) / a.size


def squared_error(a: Picture, b: Picture) -> int:
    """Sum of squared errors of two uint8 pictures of one shape, exact at any size."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError(
            f"cannot compare a {a.shape} {a.dtype} picture with a {b.shape} {b.dtype} one: "
            "give two uint8 arrays of one shape"
        )
    total = 0
    for start in range(0, len(a), _ROWS):  # copies of large pictures would take much memory
        difference = a[start : start + _ROWS].astype(np.int32) - b[start : start + _ROWS]
        total += int(np.sum(difference * difference, dtype=np.int64))
    return total


def psnr(a: Picture, b: Picture) -> float:
    """10 log10(255^2 / MSE) in dB, MSE over all channels together; inf for identical pictures."""
    return psnr_of_mse(mse(a, b))


def psnr_of_mse(error: float) -> float:
    """PSNR in dB of a mean squared error in squared steps of 1/255; inf for 0."""
    return 10 * math.log10(255**2 / error) if error else math.inf


def bpp(num_bytes: int, width: int, height: int) -> float:
    """Bits per pixel of a file of `num_bytes` bytes that holds a width x height picture."""
    return 8 * num_bytes / (width * height)


def ms_ssim(a: Picture, b: Picture) -> float | None:
    """Multi-scale SSIM in 0..1, mean over channels; None for a side below 161 pixels.

    Wang, Simoncelli and Bovik, 2003, https://doi.org/10.1109/ACSSC.2003.1292216.
    """
    measure = extra("pytorch_msssim").ms_ssim
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    import torch

    x, y = (
        torch.from_numpy(np.array(p, np.float32).reshape(*p.shape[:2], -1)).permute(2, 0, 1)[None]
        for p in (a, b)
    )
    return float(measure(x, y, data_range=255))


def bd_rate(
    rate_anchor: Sequence[float],
    psnr_anchor: Sequence[float],
    rate_test: Sequence[float],
    psnr_test: Sequence[float],
) -> float | None:
    """Mean rate of the test curve over the anchor's at one PSNR, in percent; negative is better.

    Bjontegaard (2001, VCEG-M33): log-rate is interpolated over PSNR (PCHIP) and averaged over the
    PSNR range that both curves cover (`common_range`). Rates in any unit, points in any order.
    None where it is undefined: the curves share no range, or one of them has fewer than two points
    or is not strictly rising and finite.
    """
    bjontegaard = extra("bjontegaard")
    if common_range(rate_anchor, psnr_anchor, rate_test, psnr_test) is None:
        return None
    curves = (*_rising(rate_anchor, psnr_anchor), *_rising(rate_test, psnr_test))
    # Its own checks are off: point counts may differ, and the overlap is the caller's to judge.
    percent = bjontegaard.bd_rate(
        *curves, method="pchip", require_matching_points=False, min_overlap=0
    )
    return float(percent)


def common_range(
    rate_anchor: Sequence[float],
    psnr_anchor: Sequence[float],
    rate_test: Sequence[float],
    psnr_test: Sequence[float],
) -> tuple[float, float] | None:
    """Lowest and highest PSNR (dB) that both curves cover; None where `bd_rate` is undefined."""
    anchor, test = _rising(rate_anchor, psnr_anchor)[1], _rising(rate_test, psnr_test)[1]
    if not (anchor.size and test.size):
        return None
    low, high = max(anchor[0], test[0]), min(anchor[-1], test[-1])
    return (float(low), float(high)) if low < high else None


def _rising(rate: Sequence[float], psnr: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points in order of rate; no points unless the curve is strictly rising and finite."""
    if len(rate) != len(psnr):
        raise UsageError(f"a curve of {len(rate)} rates and {len(psnr)} PSNRs: give one for one")
    points = np.array(sorted(zip(rate, psnr, strict=True)), np.float64).reshape(-1, 2)
    usable = (
        len(points) >= 2
        and bool(np.isfinite(points).all())
        and points[0, 0] > 0
        and bool((np.diff(points, axis=0) > 0).all())
    )
    rates, psnrs = (points if usable else points[:0]).T
    return rates, psnrs

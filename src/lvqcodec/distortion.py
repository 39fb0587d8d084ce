# SPDX-License-Identifier: Apache-2.0
"""What training and the encoder can be tuned for: the distortion in bpp + weight * distortion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from lvqcodec.metrics import extra

Distortion = Callable[[Tensor, Tensor], Tensor]
"""Maps pictures x_hat and x (B, 3 or 1, H, W) in [0, 1] to distortions (B,), 0 for equal ones."""

Scalar = TypeVar("Scalar", float, Tensor)

# The ends of the Lagrangians with which CompressAI (Begaint et al., 2020) trained its models for
# lmbda * 255^2 * MSE and for lmbda_ms * (1 - MS-SSIM), at about the same eight rates.
_LMBDA = (0.0018, 0.18)
_LMBDA_MS = (2.4, 220.0)
_EXPONENT = math.log(_LMBDA_MS[1] / _LMBDA_MS[0]) / math.log(_LMBDA[1] / _LMBDA[0])

LOSS = {
    "psnr": "bpp + lmbda * 255^2 * MSE",
    "ms-ssim": f"bpp + {_LMBDA_MS[0]:g} * (lmbda / {_LMBDA[0]:g})^{_EXPONENT:.3f} * (1 - MS-SSIM)",
}
"""The loss of every tune, in words."""


def ms_ssim_lmbda(lmbda: Scalar) -> Scalar:
    """Return the Lagrangian of 1 - MS-SSIM whose rate is about that of lmbda * 255^2 * MSE.

    A straight line in log-log through the ends of CompressAI's two lists of Lagrangians:
    2.4 * (lmbda / 0.0018) ^ 0.981.
    """
    result: Scalar = _LMBDA_MS[0] * (lmbda / _LMBDA[0]) ** _EXPONENT
    return result


def weight(tune: str, lmbda: Scalar) -> Scalar:
    """Return what one unit of the distortion costs in bits a pixel."""
    return ms_ssim_lmbda(lmbda) if tune == "ms-ssim" else lmbda * 255**2


def distortion(tune: str) -> Distortion:
    """Return the distortion of one of `config.TUNES`: MSE, or 1 - MS-SSIM.

    MS-SSIM takes pictures of at least 161 x 161 pixels; UsageError if its package is missing.
    """
    if tune == "psnr":
        return _mse
    measure = extra("pytorch_msssim").ms_ssim

    def one_less_ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
        similarity: Tensor = measure(x_hat, x, data_range=1.0, size_average=False)
        return 1 - similarity

    return one_less_ms_ssim


def _mse(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).square().mean((1, 2, 3))

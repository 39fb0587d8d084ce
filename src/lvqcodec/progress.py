# SPDX-License-Identifier: Apache-2.0
"""How far work is, for whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far work is: share done in 0..1, and where known bpp and distortion of what it has.

    The distortion is MSE or 1 - MS-SSIM by the tune, samples in 0..1.
    """

    done: float
    bpp: float | None = None
    distortion: float | None = None


OnProgress = Callable[[Progress], None]
"""Is told now and then how far work is; what it raises ends the work."""

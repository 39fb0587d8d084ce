# SPDX-License-Identifier: Apache-2.0
"""The entropy axis: what the decoder expects before it reads."""

from lvqcodec.entropy.base import LatentCoder
from lvqcodec.entropy.msp import MultiScaleProgressive

ENTROPY_MODELS = {"msp": MultiScaleProgressive}
"""Every entropy model by name. A new one is a class in its own file and a line here."""

__all__ = ["ENTROPY_MODELS", "LatentCoder", "MultiScaleProgressive"]

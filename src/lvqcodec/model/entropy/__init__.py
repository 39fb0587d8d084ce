# SPDX-License-Identifier: Apache-2.0
"""The entropy axis: what the decoder expects before it reads."""

from lvqcodec.model.entropy.base import EntropyModel, LatentCoder
from lvqcodec.model.entropy.factorized import Factorized
from lvqcodec.model.entropy.msp import MultiScaleProgressive

ENTROPY_MODELS: dict[str, type[EntropyModel]] = {
    "msp": MultiScaleProgressive,
    "factorized": Factorized,
}
"""Every entropy model by name. A new one is a class in its own file and a line here."""

__all__ = ["ENTROPY_MODELS", "EntropyModel", "Factorized", "LatentCoder", "MultiScaleProgressive"]

# SPDX-License-Identifier: Apache-2.0
"""The transform axis: picture <-> latents."""

from lvqcodec.model.transforms.base import Transform
from lvqcodec.model.transforms.conv import ConvTransform
from lvqcodec.model.transforms.lapped import LappedTransform

TRANSFORMS: dict[str, type[Transform]] = {"lapped": LappedTransform, "conv": ConvTransform}
"""Every transform by name. A new one is a class in its own file and a line here."""

__all__ = ["TRANSFORMS", "ConvTransform", "LappedTransform", "Transform"]

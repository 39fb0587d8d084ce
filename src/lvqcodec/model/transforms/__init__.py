# SPDX-License-Identifier: Apache-2.0
"""The transform axis: picture <-> latents."""

from lvqcodec.model.transforms.base import TRANSFORMS, Transform
from lvqcodec.model.transforms.basis import BasisTransform
from lvqcodec.model.transforms.conv import ConvTransform
from lvqcodec.model.transforms.lapped import LappedTransform

# every transform by name; a new one is a class in its own file and a line here
TRANSFORMS |= {"lapped": LappedTransform, "conv": ConvTransform, "basis": BasisTransform}

__all__ = ["TRANSFORMS", "BasisTransform", "ConvTransform", "LappedTransform", "Transform"]

# SPDX-License-Identifier: Apache-2.0
"""The contract between a transform and whoever codes or trains with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lvqcodec.config import AxisConfig

NETWORKS = ("analysis", "synthesis")
"""The parts of every transform that learn from nothing: those of g_a and of g_s alone.

Where a codec starts from another's weights, modules of these may begin anew, no others.
"""


class Transform(nn.Module, ABC):
    """Analysis g_a from pictures to latents, and synthesis g_s back.

    All of it is floating point, in training and in use, and stored as float16; nothing needs to be
    exact: what is written are the latents that the encoder found, and a pixel may differ by one
    between machines. Weights must stay what they are to within float16's 11 bits.

    A subclass is made with its own `Config` and sets `channels`. Pictures are coded window by
    window, so what the transform gives must not depend on how far away the picture goes on: the
    analysis of a window that has `analysis_reach` positions more on each side, as far as the
    picture has any, gives within it the latents of the whole picture; so does the synthesis with
    `synthesis_reach` for the pixels. Convolutions with zeros as padding do, averages over the
    picture or normalisation by its statistics do not. Windows begin at positions, and so at
    multiples of `stride` pixels.
    """

    Config: ClassVar[type[AxisConfig]]
    """What an instance is made with: a frozen dataclass nested in the class."""

    stride: int
    """Pixels per latent position and direction; one of `container.STRIDES`."""

    channels: int
    """Channels of the latents."""

    features: int = 0
    """Channels, exact whole numbers from the entropy model, behind the latents of `synthesis`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] and qualities (B,) in 0..100 to latents.

        The sides are multiples of the stride; latents are (B, channels, H / stride, W / stride),
        not yet divided by the steps.
        """

    @abstractmethod
    def synthesis(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """Map latents (B, channels, h, w), multiplied by their steps, and qualities (B,) back.

        `features` channels more follow the latents, if the transform takes any.

        Pictures are (B, 3, stride * h, stride * w), about in [0, 1]; nobody has clamped them.
        """

    @property
    @abstractmethod
    def analysis_reach(self) -> int:
        """Positions on each side of it on whose pixels a latent depends."""

    @property
    @abstractmethod
    def synthesis_reach(self) -> int:
        """Positions on each side of its own on whose latents a pixel depends."""

    def start(self, crops: Tensor) -> None:
        """Set what the statistics of training pictures (B, 3, H, W) determine; nothing here.

        Steps start at what theory says for an orthonormal transform (`model.theoretical_step`):
        latents should have about the variance that such a one gives.
        """

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what another transform's state amounts to in this one, as far as it does, by name.

        Here: the same names. What has another shape than it has here is not taken.
        """
        return state

    def penalty(self) -> Tensor:
        """Return what is to be small beside the loss, a scalar with gradients; 0 here.

        `Stage.penalty` weighs it.
        """
        return next(self.parameters()).new_zeros(())

    @abstractmethod
    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return what a training stage may name, with its modules.

        Every parameter is in one of them. There are "analysis" and "synthesis", see `NETWORKS`.
        """

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the modules whose parameters g_s alone depends on; those of "synthesis" here."""
        return self.parts()["synthesis"]

    def rate_class(self, name: str) -> str:
        """Return how a parameter of the transform is moved, a class of `training.optimizers`.

        "networks" here (AdamW); "matrices" are for Muon, "predictor" for what is linear in latents,
        "klt" for what should hardly move.
        Tables over quality have a class of their own, whatever this says.
        """
        return "networks"


TRANSFORMS: dict[str, type[Transform]] = {}
"""Every transform by name: the package has the list, whose entries may build on others of it."""

# SPDX-License-Identifier: Apache-2.0
"""Learned lattices: a learned basis between another transform and the rounding.

    x --inner g_a--> v --B^-1--> coordinates, divided by steps, rounded, coded
    x_hat <--inner g_s-- p <--B-- coordinates, times steps

The points of a lattice are p = k B, whole coordinates k times a generator matrix B whose rows are
the basis, and Babai's rounding ("On Lovasz' lattice reduction and the nearest lattice point
problem", 1986, https://doi.org/10.1007/BF02579403) takes p = round(v B^-1) B for v. So a lattice
whose B is learned, as in Zhang and Wu ("Learning Optimal Lattice Vector Quantizers for End-to-end
Neural Image Compression", NeurIPS 2024), needs no quantizer of its own: B^-1 ends the analysis, B
begins the synthesis, and what is rounded, predicted and coded are coordinates.

Rows of B have length 1, and the lengths of the basis are the steps of the codec, by channel and
quality. So an error of one step weighs what it weighs in any other codec: |b_i|^2, the weight of
coordinate i in the distortion, is the square of its step, and nobody who rounds by rate and
distortion need know of B. Of rows that are not orthogonal the errors have products too, which
Babai's rounding neglects; the penalty keeps them small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lvqcodec.config import AxisConfig, pick
from lvqcodec.errors import UsageError
from lvqcodec.model.transforms.base import TRANSFORMS, Transform
from lvqcodec.model.transforms.lapped import LappedTransform

_INNER = "inner."


class Basis(nn.Module):
    """Generator matrices B, one for each `dim` channels that follow each other; at first B = 1.

    What is learned is a logarithm: B = N exp(A), where the diagonal N makes the rows' lengths 1.
    Such a B has an inverse, exp(-A) N^-1, whatever A is and however it is rounded in storage;
    training cannot cross a singular one, and the condition number of exp(A) is at most
    exp(2 |A|). Every rotation is such an exponential, and so is every matrix without eigenvalues
    at or below 0; the sign of a row changes no lattice.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(channels // dim, dim, dim))

    def matrix(self) -> Tensor:
        """Return B (blocks, dim, dim); row i of a block is its basis vector b_i, of length 1."""
        exp: Tensor = torch.linalg.matrix_exp(self.logarithm)
        return exp / _lengths(exp)

    def inverse(self) -> Tensor:
        """Return B^-1 (blocks, dim, dim)."""
        lengths = _lengths(torch.linalg.matrix_exp(self.logarithm))
        inverse: Tensor = torch.linalg.matrix_exp(-self.logarithm) * lengths.mT
        return inverse

    def coordinates(self, v: Tensor) -> Tensor:
        """Map vectors (B, C, h, w) to their coordinates, v B^-1, block by block of channels."""
        with torch.autocast(v.device.type, enabled=False):
            return _multiply(v.float(), self.inverse())

    def points(self, k: Tensor) -> Tensor:
        """Map coordinates (B, C, h, w) to points k B."""
        with torch.autocast(k.device.type, enabled=False):
            return _multiply(k.float(), self.matrix())

    def penalty(self) -> Tensor:
        """Return the squared cosines between different rows, summed over all pairs (i, j)."""
        basis = self.matrix()
        cosines: Tensor = basis @ basis.mT
        return (cosines - torch.eye(cosines.shape[-1], device=cosines.device)).square().sum()


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return lengths


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each block of channels of (B, C, h, w), as rows, by its own matrix."""
    blocks = torch.unflatten(x.permute(0, 2, 3, 1), 3, matrices.shape[:2])
    # on a CPU, forward and backward are faster than those of a grouped convolution
    return torch.einsum("bhwgi,gij->bhwgj", blocks, matrices).flatten(3).permute(0, 3, 1, 2)


class BasisTransform(Transform):
    """Another transform, whose latents are told by coordinates in learned bases.

    It starts as the other one, latents and pictures bit for bit, and may take its weights.
    """

    @dataclass(frozen=True)
    class Config(AxisConfig):
        """`inner` is the other transform; each `dim` channels have a basis, with 0 all have one.

        A basis of all channels is a free 1x1 layer with scalar rounding: what learned lattices
        are to be compared with.
        """

        name: str = "basis"
        dim: int = 8
        inner: AxisConfig = field(
            default_factory=LappedTransform.Config, metadata={"choices": TRANSFORMS}
        )

        @property
        def layers(self) -> int:
            """See `AxisConfig.layers`."""
            return self.inner.layers + 1

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.inner.name == config.name:
            raise UsageError(
                "a basis of a basis is one basis: give [codec.transform.inner] another"
            )
        self.inner = pick(TRANSFORMS, config.inner.name)(config.inner)
        self.stride = self.inner.stride
        self.channels = self.inner.channels
        self.features = self.inner.features
        dim = config.dim or self.channels
        if self.channels % dim:
            raise UsageError(f"dim = {dim} does not divide the {self.channels} channels of latents")
        self.basis = Basis(self.channels, dim)

    @property
    def analysis_reach(self) -> int:
        """Positions on each side of it on whose pixels a latent depends."""
        return self.inner.analysis_reach

    @property
    def synthesis_reach(self) -> int:
        """Positions on each side of its own on whose latents a pixel depends."""
        return self.inner.synthesis_reach

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """See `Transform.analysis`; latents are coordinates."""
        return self.basis.coordinates(self.inner.analysis(x, quality))

    def synthesis(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """See `Transform.synthesis`; latents are coordinates."""
        points = self.basis.points(y_hat[:, : self.channels])
        if self.features:
            points = torch.cat([points, y_hat[:, self.channels :]], 1)
        return self.inner.synthesis(points, quality)

    def start(self, crops: Tensor) -> None:
        """See `Transform.start`; that of the other transform."""
        self.inner.start(crops)

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Transform.adapt`; a state of the other transform alone, and bases as they are."""
        if any(name.startswith(_INNER) for name in state):
            return state
        bases = {f"basis.{name}": value for name, value in self.basis.state_dict().items()}
        return bases | {_INNER + name: value for name, value in state.items()}

    def penalty(self) -> Tensor:
        """See `Transform.penalty`; that of Zhang and Wu, see `Basis.penalty`."""
        return self.basis.penalty()

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """See `Transform.parts`; "basis", and those of the other transform."""
        return {"basis": [self.basis], **self.inner.parts()}

    def decoder_modules(self) -> Sequence[nn.Module]:
        """See `Transform.decoder_modules`; not the bases: the analysis depends on them too."""
        return self.inner.decoder_modules()

    def rate_class(self, name: str) -> str:
        """See `Transform.rate_class`."""
        if name.startswith(_INNER):
            return self.inner.rate_class(name.removeprefix(_INNER))
        return "predictor"

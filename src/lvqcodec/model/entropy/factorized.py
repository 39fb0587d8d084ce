# SPDX-License-Identifier: Apache-2.0
"""A factorised prior: every channel has a density of its own, and nothing else is known.

The cumulative distribution F of a channel is a small network that can only rise (Ballé et al.,
"Variational image compression with a scale hyperprior", 2018, appendix 6.1,
https://arxiv.org/abs/1802.01436):
    F = sigmoid o f_K o ... o f_1
    f_k(x) = g_k(softplus(H_k) x + b_k),  g_k(x) = x + tanh(a_k) tanh(x),  the last without g_k
Its argument are latents in steps, times a scale for each channel and quality, which is learned too.
The scales start where they undo the division by the steps, so one network serves all qualities.

Nothing of that is needed to decode. At export each channel gets a row of probabilities,
F(v + 1/2) - F(v - 1/2) in float64, at each of `nodes` qualities; pictures of all others are coded
with the rows of the nearest one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.coding.rows import Floats, RowTable
from lvqcodec.config import QUALITIES, AxisConfig, limited
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.model.entropy.base import NUM_BINS, EntropyModel, LatentCoder
from lvqcodec.model.entropy.schedule import factorized
from lvqcodec.model.layers import QualityTable

_LOGISTIC = math.pi / (2 * math.sqrt(3) * math.log(2))  # standard over mean absolute deviation
_SCALE_NODES = 6
_MOST_ROWS = (1 << 16) - NUM_BINS
_DEVIATION_ONE = math.pi / math.sqrt(3)  # slope of the logits of a logistic of that deviation
_LEAST_RISE = 1e-9  # of a logit over a step: its logarithm is to be a number

_RADIUS = 255  # steps; what is farther away escapes
_MARGIN = 3  # steps of a row beyond either tail
_TAIL = 2.0**-11  # mass of either tail, most of which escapes
_FLOOR = 2.0**-20  # no symbol is less likely


@dataclass(frozen=True, eq=False)
class Densities:
    """Densities of C channels of values in steps; see `base.Density`.

    layers: H (C, outputs, inputs), b and a (C, outputs, 1) of each f_k; scale: (B, 1, C).
    """

    layers: list[tuple[Tensor, Tensor, Tensor]]
    scale: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Map values (B, P, C) to bits; ModelMismatch for the densities of a stored model."""
        if not self.layers:
            raise ModelMismatch("weights files hold rows, not densities; take those of a run")
        low, high = self.logits(values - 0.5), self.logits(values + 0.5)
        # sigmoid(h) - sigmoid(l) = sigmoid(h) sigmoid(-l) (1 - e^(l - h)) keeps all digits in tails
        rise = -torch.expm1(-(high - low).clamp(min=_LEAST_RISE))
        return (F.softplus(-high) + F.softplus(low) - torch.log(rise)) * (1 / math.log(2))

    def fixed(self) -> Densities:
        """Return the same, but differentiable by values alone."""
        layers = [(h.detach(), b.detach(), a.detach()) for h, b, a in self.layers]
        return Densities(layers, self.scale.detach())

    def logits(self, values: Tensor) -> Tensor:
        """Map values (B, P, C) to the logits of F."""
        x = (values * self.scale).permute(2, 0, 1)
        shape = x.shape
        x = x.flatten(1)[:, None]
        for h, b, a in self.layers:
            x = F.softplus(h) @ x + b
            x = x + torch.tanh(a) * torch.tanh(x)
        return x.reshape(shape).permute(1, 2, 0)


class Cumulative(nn.Module):
    """The parameters of F, for each channel; logistic densities of deviation 1 at first."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sides = list(pairwise((1, *widths, 1)))
        gain = _DEVIATION_ONE ** (1 / len(sides))
        weights = [math.log(math.expm1(gain / inputs)) for inputs, _ in sides]
        # units that began at one place would stay together; evenly spread, the median is 0
        spreads = [torch.linspace(-0.5, 0.5, n)[:, None] if n > 1 else torch.zeros(1, 1)
                   for _, n in sides]  # fmt: skip
        self.h = nn.ParameterList(
            torch.full((channels, outputs, inputs), weight)
            for (inputs, outputs), weight in zip(sides, weights, strict=True)
        )
        self.b = nn.ParameterList(spread.repeat(channels, 1, 1) for spread in spreads)
        self.a = nn.ParameterList(torch.zeros(channels, n, 1) for _, n in sides[:-1])
        self.log_scale = QualityTable(_SCALE_NODES, channels)

    def forward(self, quality: Tensor) -> Densities:
        """Return the densities at qualities (B,)."""
        factors = [*self.a, torch.zeros_like(self.b[-1])]
        layers = list(zip(self.h, self.b, factors, strict=True))
        return Densities(layers, torch.exp(self.log_scale(quality))[:, None])


class Factorized(EntropyModel):
    """A density for each channel, the same at every position: one parallel step."""

    num_steps = 1
    period = 1

    @dataclass(frozen=True)
    class Config(AxisConfig):
        """Sizes of the prior: `widths` of the layers between, `nodes` qualities that get rows."""

        name: str = "factorized"
        widths: tuple[int, ...] = limited((3, 3, 3), most=16, length=8)
        nodes: int = limited(21, most=len(QUALITIES))

        @property
        def layers(self) -> int:
            """See `AxisConfig.layers`."""
            return len(self.widths) + 1

    config: Config

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__(config, channels)
        self.num_own_rows = config.nodes * channels
        if min(config.widths, default=1) < 1 or config.nodes < 2:
            raise UsageError(
                f"widths = {list(config.widths)} must be at least 1 each, nodes = {config.nodes} at"
                " least 2"
            )
        if self.num_own_rows > _MOST_ROWS:
            raise UsageError(
                f"{config.nodes} nodes of {channels} channels are more than {_MOST_ROWS} rows"
            )
        self.cumulative: Cumulative | None = Cumulative(channels, config.widths)

    def code(self, coder: LatentCoder, height: int, width: int, quality: Tensor) -> Tensor:
        """See `EntropyModel.code`."""
        (step,) = factorized(height, width, self.channels)
        rows = torch.arange(self.channels, device=quality.device)
        if self.mode == "exact":
            rows = rows + self.channels * self._node(int(quality[0]))
        # a stored model has no densities left, and those who code never ask for them
        density = self.cumulative(quality) if self.cumulative else Densities([], quality)
        positions = step.positions.to(quality.device)
        return coder.own("y", positions, slice(0, self.channels), rows, density)

    def _node(self, quality: int) -> int:
        """Return which of the qualities with rows is the nearest."""
        last = QUALITIES[-1]
        return (quality * (self.config.nodes - 1) + last // 2) // last

    def load_integers(self, arrays: Mapping[str, Tensor]) -> None:
        """See `EntropyModel.load_integers`; of the densities only rows are stored."""
        super().load_integers(arrays)
        self.cumulative = None

    # --- training -------------------------------------------------------------------------------

    def start(self, y: Tensor, grid: tuple[int, int], steps: Tensor) -> None:
        """Set the scales so that the networks see deviations of 1 at all qualities.

        The deviation is the standard one of a logistic whose mean absolute one is that of y: heavy
        tails would widen a standard deviation of y itself, and cost a sixth of the rate at first.
        """
        assert self.cumulative is not None
        y = y.flatten(0, 1)
        deviation = (y - y.median(0).values).abs().mean(0) * _LOGISTIC
        scales = steps / deviation.clamp(min=1e-9)
        logs = torch.log(scales).T[None]
        rows = F.interpolate(logs, _SCALE_NODES, mode="linear", align_corners=True)
        self.cumulative.log_scale.rows.copy_(rows[0].T)

    @torch.no_grad()
    def own_rows(self) -> RowTable | None:
        """See `EntropyModel.own_rows`: row node * channels + channel."""
        cumulative = copy.deepcopy(self.cumulative)
        assert cumulative is not None
        cumulative = cumulative.cpu().double()
        edges = torch.arange(-_RADIUS, _RADIUS + 2, dtype=torch.float64) - 0.5
        nodes = torch.linspace(0, QUALITIES[-1], self.config.nodes, dtype=torch.float64)
        rows = []
        for node in torch.split(nodes, 1):
            logits = cumulative(node).logits(edges[None, :, None].expand(-1, -1, self.channels))
            rows += [_row(channel) for channel in logits[0].T.numpy()]
        return RowTable.from_rows(*zip(*rows, strict=True))


def _row(logits: Floats) -> tuple[Floats, int]:
    """Return a row and its offset for the logits at -_RADIUS - 1/2, ..., _RADIUS + 1/2."""
    cumulative = 0.5 + 0.5 * np.tanh(logits / 2)
    # the values between the tails, and some beyond
    last = 2 * _RADIUS
    low = int(np.searchsorted(cumulative[1:], _TAIL)) - _MARGIN
    high = int(np.searchsorted(cumulative[:-1], 1 - _TAIL)) + _MARGIN
    low, high = max(min(low, last), 0), max(min(high, last), 0)
    masses = np.diff(cumulative)[low : high + 1]
    row = np.append(masses, 1 - masses.sum())
    return np.maximum(row, _FLOOR), _RADIUS - low

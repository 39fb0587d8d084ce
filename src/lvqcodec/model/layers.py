# SPDX-License-Identifier: Apache-2.0
"""Building blocks of all axes: straight-through rounding, tables over quality, residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M")
N = TypeVar("N", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """Return an nn.ModuleList, seen by the type checker as a sequence of its members' type."""
    return cast(Sequence[M], nn.ModuleList(cast(Iterable[nn.Module], modules)))


def channels_last(model: N) -> N:
    """Move the convolutions of a model to the layout in which they run fastest; return it."""
    to = cast(
        Callable[..., N], model.to
    )  # torch's types know of this keyword in some versions only
    to(memory_format=torch.channels_last)
    return model


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """Return `value` with the gradient of `smooth` (Bengio et al., 2013, arXiv:1308.3432).

    Exact where value = 0 or value / 2 <= smooth <= 2 value (Sterbenz, 1974), so for whole values
    that `smooth` rounds to, up or down.
    """
    return smooth + (value - smooth).detach() if smooth.requires_grad else value


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes straight through."""
    return straight_through(torch.round(x), x)


def floor_ste(x: Tensor) -> Tensor:
    """Round down; the gradient passes straight through."""
    return straight_through(torch.floor(x), x)


def begin_randomly(weight: Tensor) -> None:
    """Fill a weight by He et al. (2015, arXiv:1502.01852); one on `meta` has no values."""
    if not weight.is_meta:  # there it would import the compiler of torch, for seconds
        nn.init.kaiming_normal_(weight, nonlinearity="relu")


def weigh_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x, with `weight` times its gradient."""
    weighted = x.view_as(x)
    if weighted.requires_grad:
        # typed in some versions of torch only
        cast(Callable[..., object], weighted.register_hook)(lambda gradient: gradient * weight)
    return weighted


class QualityTable(nn.Module):
    """A vector per quality: `nodes` learned rows at evenly spaced qualities, linear in between."""

    def __init__(self, nodes: int, dim: int, *, value: float = 0.0) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.full((nodes, dim), value))

    def forward(self, quality: Tensor) -> Tensor:
        """Map qualities (B,) in [0, 100] to rows (B, dim)."""
        last = self.rows.shape[0] - 1
        if last == 0:
            return self.rows.expand(quality.shape[0], -1)
        position = quality * (last / 100)
        low = position.floor().clamp(max=last - 1)
        share = (position - low)[:, None].to(self.rows.dtype)
        index = low.long()
        return self.rows[index] * (1 - share) + self.rows[index + 1] * share


class ResidualBlock(nn.Module):
    """x + gain(q) * conv3x3(leaky_relu(conv3x3(x) + bias(q))), both 3x3 dense at constant width.

    With `precision` the convolutions run in that type, all else stays as it is: bfloat16 trains on
    processors that multiply it faster.
    """

    precision: torch.dtype | None = None

    def __init__(self, channels: int, *, nodes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bias = QualityTable(nodes, channels)
        self.gain = QualityTable(nodes, channels, value=1.0)
        begin_randomly(self.conv1.weight)
        begin_randomly(self.conv2.weight)
        # a chain of blocks starts near the identity: the variance does not grow with depth
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.conv2.weight.data.mul_(0.2)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map (B, C, H, W) and qualities (B,) to (B, C, H, W)."""
        bias, gain = (table(quality)[:, :, None, None] for table in (self.bias, self.gain))
        if self.precision is None:
            hidden = self.conv2(F.leaky_relu(self.conv1(x) + bias, 0.1))
        else:
            hidden = self._convolve(x.to(self.precision), self.conv1)
            hidden = F.leaky_relu(hidden + bias.to(self.precision), 0.1)
            hidden = self._convolve(hidden, self.conv2).to(x.dtype)
        out: Tensor = x + hidden * gain
        return out

    def _convolve(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        bias = None if conv.bias is None else conv.bias.to(self.precision)
        return F.conv2d(x, conv.weight.to(self.precision), bias, padding=1)

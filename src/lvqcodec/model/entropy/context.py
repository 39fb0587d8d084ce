# SPDX-License-Identifier: Apache-2.0
"""The layers of `msp`: from what is known around latents to their means and scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from lvqcodec.config import AxisConfig, limited
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.entropy.base import FRACTION, LATENT_LIMIT, LATENT_UNITS, NUM_BINS
from lvqcodec.model.entropy.order import known_offsets
from lvqcodec.model.integer import ACTIVATION_MAX, IntegerLayer, IntegerLinear, Mode
from lvqcodec.model.layers import floor_ste, module_list, round_ste, straight_through

QUALITY_NODES = 6
_WEIGHT_ONE = 256
_REACH_MAX = 2**24 // (LATENT_LIMIT + 1) - 1
ACTIVITY_GAIN = 4
_COMPAND_GAIN = 12.0
_ERROR_MAX = 2047  # what the linear prediction sees of an error
_GATE_ONE = 128
SCALE_MAX = FRACTION * (NUM_BINS - 1)
_MEAN_PARTS = LATENT_UNITS // FRACTION  # means are whole quarters of a sixteenth of a step

# Mean corrections leave the network in 1/64 step per 2^-6, scales in 1/16 bin: one unit of the last
# layer is one step, or eight bins, which keeps both in the range where networks learn well.
_MEAN_BITS, _SCALE_BITS = 6, 7
BINS_PER_UNIT = 1 << (_SCALE_BITS - 4)
_OUT_MAX = 16384

ACTIVITY_SLOPE = 1.5
"""What a channel's activity weighs in its scale before training; 2.67 would be in proportion."""


@dataclass(frozen=True)
class Config(AxisConfig):
    """Sizes of `msp`.

    `scales`, `block` (rows, columns of a subgroup block) and `seeds` (channels of each seed
    group) fix the order of coding; the first `linear` channels are predicted from each other's
    neighbours by a matrix; `hidden`, `trunk` and `depth` are the widths and the number of
    residual layers of the context networks.
    """

    name: str = "msp"
    scales: int = limited(4, most=16)
    block: tuple[int, int] = limited((2, 2), most=8)
    seeds: tuple[int, ...] = limited((), length=32)
    linear: int = 96
    hidden: int = 192
    trunk: int = 128
    depth: int = limited(2, most=16)

    @property
    def layers(self) -> int:
        """See `AxisConfig.layers`."""
        networks = 2 * math.prod(self.block)
        return networks * (2 * self.depth + 4 * len(self.seeds) + 8)


def channel_groups(config: Config, channels: int) -> list[slice]:
    """Return the channel groups in coding order: the seed groups, then the rest."""
    edges = [0, *accumulate(config.seeds), channels]
    return [slice(a, b) for a, b in pairwise(edges)]


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Pick rows of x (B, R, C) by an index (P, N): (B, P, N, C)."""
    return torch.unflatten(x.index_select(1, index.flatten()), 1, index.shape)


def known(y: Tensor, mode: Mode) -> Tensor:
    """Return what networks see of latents in steps: whole sixteenths within LATENT_LIMIT."""
    sixteenths = y * FRACTION
    return _clip(sixteenths if mode == "float" else floor_ste(sixteenths + 0.5))


def _clip(y: Tensor) -> Tensor:
    return y.clamp(-LATENT_LIMIT, LATENT_LIMIT)


class Compand(nn.Module):
    """Sixteenths of a step to activations: 12 log2(1 + |x| / 16) with the sign of x, by a table."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", compand_table(), persistent=False)

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        """Map x of any shape, in exact mode whole numbers."""
        if mode == "exact":
            index = x.abs().clamp(max=2 * LATENT_LIMIT).to(torch.int64)
            exact = self.table.to(x.dtype)[index] * x.sign()
            return straight_through(exact, _compand(x)) if x.requires_grad else exact
        out = _compand(x)
        return round_ste(out) if mode == "simulate" else out


def _compand(x: Tensor) -> Tensor:
    return torch.log2(1 + x.abs() / FRACTION) * _COMPAND_GAIN * x.sign()


def compand_table() -> Tensor:
    """Return the companded value of every |x| in 0..2 * LATENT_LIMIT, as integers.

    The table is fixed by integers: entry n is the largest v with 2^(v - 1/2) <= (1 + n/16)^12,
    compared in exact integer arithmetic, so that it is the same on every machine.
    """
    values = []
    value = 0
    for n in range(2 * LATENT_LIMIT + 1):
        # 2^(2v+1) * 16^24 <= (16 + n)^24  <=>  v + 1/2 <= 12 log2(1 + n/16)
        power = (FRACTION + n) ** 24
        while (1 << (2 * value + 1)) * FRACTION**24 <= power:
            value += 1
        values.append(value)
    return torch.tensor(values, dtype=torch.float32, device="cpu")


class WeightedSum(IntegerLayer):
    """A sum over the known neighbours, channel by channel, weights in units of 1/256."""

    weight_int: Tensor

    def __init__(self, neighbours: int, channels: int, *, gain: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((neighbours, channels), 1.0 / neighbours))
        self.gain = gain

    def forward(self, neighbours: Tensor) -> Tensor:
        """Map (B, P, N, C), whole numbers up to LATENT_LIMIT, to `gain` times the sum (B, P, C)."""
        if self.mode == "float":
            return (neighbours * self.weight).sum(-2) * self.gain
        unit = self.gain / _WEIGHT_ONE
        if self.mode == "simulate":
            total = (neighbours * round_ste(self.weight * _WEIGHT_ONE)).sum(-2)
            return floor_ste(total * unit + 0.5)
        total = (neighbours * self.weight_int.to(neighbours.dtype)).sum(-2)
        return floor_ste((total + _WEIGHT_ONE // (2 * self.gain)) * unit)

    def integer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the integers that `load_integers` takes."""
        return {"weight": tuple(self.weight.shape)}

    def integers(self) -> dict[str, Tensor]:
        """Return the integers of the frozen layer."""
        return {"weight": self.weight_int}

    def freeze(self) -> None:
        """Turn the weights into integers and switch to exact arithmetic."""
        weight = torch.round(self.weight.detach() * _WEIGHT_ONE)
        self.load_integers({"weight": weight})

    def load_integers(self, integers: Mapping[str, Tensor]) -> None:
        """Take integer weights (N, C); ModelMismatch if a partial sum could reach 2^24."""
        weight = integers["weight"]
        reach = int(weight.abs().sum(0).max())
        if reach > _REACH_MAX:
            raise ModelMismatch(f"weights of neighbours sum to {reach}, above {_REACH_MAX}")
        self.register_buffer("weight_int", weight.to(torch.float32), persistent=False)
        self.mode = "exact"
        self.weight = nn.Parameter(self.weight_int / _WEIGHT_ONE, requires_grad=False)


class ResidualLinear(nn.Module):
    """relu-clipped x + W2 relu(W1 x) on integer activations."""

    def __init__(self, channels: int, window: int = 1) -> None:
        super().__init__()
        self.inner = IntegerLinear(window * channels, channels)
        self.outer = IntegerLinear(channels, channels, low=-ACTIVATION_MAX)
        self.outer.weight.data.mul_(0.2)

    def forward(self, x: Tensor, context: Tensor, quality: Tensor) -> Tensor:
        """Add to x (B, P, C) what the network makes of context (B, P, window * C)."""
        change: Tensor = self.outer(self.inner(context, quality), quality)
        return (x + change).clamp(0, ACTIVATION_MAX)


class Trunk(nn.Module):
    """Features of a coarser grid that is wholly known: a small 3x3 residual network."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.enter = IntegerLinear(channels, config.trunk, nodes=QUALITY_NODES)
        self.blocks = module_list(ResidualLinear(config.trunk, 9) for _ in range(config.depth))

    def forward(self, x: Tensor, windows: Tensor, quality: Tensor) -> Tensor:
        """Map companded latents (B, Q, C) to features (B, Q, trunk)."""
        hidden: Tensor = self.enter(x, quality)
        for block in self.blocks:
            padded = torch.cat([hidden, hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2])], 1)
            hidden = block(hidden, gather(padded, windows).flatten(2), quality)
        return hidden


class ContextNetwork(nn.Module):
    """Means and scales of one subgroup, channel group by channel group."""

    def __init__(self, config: Config, channels: int, subgroup: int) -> None:
        super().__init__()
        neighbours = len(known_offsets(config.block, subgroup))
        self.predictor = WeightedSum(neighbours, channels)
        linear = min(config.linear, channels)
        self.linear = IntegerLinear(
            neighbours * linear, linear, low=-LATENT_LIMIT, high=LATENT_LIMIT, reach=_ERROR_MAX
        )
        nn.init.zeros_(self.linear.weight)
        self.gate = IntegerLinear(channels, linear, nodes=QUALITY_NODES)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias.rows)  # a quarter
        self.activity = WeightedSum(neighbours, channels, gain=ACTIVITY_GAIN)
        self.activity_scale = _scales(channels, channels)
        # not eye_, which on meta would import the compiler of torch
        nn.init.zeros_(self.activity_scale.weight).data.diagonal().fill_(ACTIVITY_SLOPE)
        self.enter = IntegerLinear(
            (neighbours + 1) * channels + config.trunk, config.hidden, nodes=QUALITY_NODES
        )
        self.blocks = module_list(ResidualLinear(config.hidden) for _ in range(config.depth))
        self.groups = groups = channel_groups(config, channels)
        self.seed_inputs = module_list(
            IntegerLinear(group.start, config.hidden, low=-ACTIVATION_MAX) for group in groups[1:]
        )
        self.seed_blocks = module_list(ResidualLinear(config.hidden) for _ in groups[1:])
        self.seed_scales = module_list(_scales(g.start, g.stop - g.start) for g in groups[1:])
        for layer in self.seed_scales:
            nn.init.zeros_(layer.weight)
        self.heads = module_list(head(config.hidden, g.stop - g.start) for g in groups)

    def forward(
        self, neighbours: Tensor, parents: Tensor, quality: Tensor, compand: Compand
    ) -> Expectation:
        """Look at known neighbours (B, P, N, C) in sixteenths and features (B, P, T) of parents."""
        mode = self.linear.mode
        predicted = self.predictor(neighbours)
        errors = neighbours - predicted[:, :, None]
        around = compand(errors, mode).flatten(2)
        activity = compand(self.activity(_clip(errors.abs())), mode)
        predicted = self.predict_more(predicted, errors, activity, quality)
        scales = self.activity_scale(activity, quality)
        hidden = self.enter(torch.cat([around, activity, parents], 2), quality)
        for block in self.blocks:
            hidden = block(hidden, hidden, quality)
        return Expectation(self, compand, quality, predicted, scales, hidden)

    def predict_more(
        self, predicted: Tensor, errors: Tensor, activity: Tensor, quality: Tensor
    ) -> Tensor:
        """Add to predictions (B, P, C) what errors (B, P, N, C) say, gated by activity."""
        channels = self.linear.weight.shape[0]
        told = errors[..., :channels].clamp(-_ERROR_MAX, _ERROR_MAX).flatten(2)
        more = self.linear(told, quality) * self.gate(activity, quality) / _GATE_ONE
        if self.linear.mode != "float":
            more = floor_ste(more * _MEAN_PARTS + 0.5) / _MEAN_PARTS
        return torch.cat([predicted[..., :channels] + more, predicted[..., channels:]], 2)


class Expectation:
    """What is expected of the latents of one subgroup, channel group by channel group.

    predicted, scales: (B, P, C) in sixteenths, what neighbours say; hidden: (B, P, H).
    """

    def __init__(
        self,
        network: ContextNetwork,
        compand: Compand,
        quality: Tensor,
        predicted: Tensor,
        scales: Tensor,
        hidden: Tensor,
    ) -> None:
        self._network, self._compand, self._quality = network, compand, quality
        self._mode = network.linear.mode
        self._predicted, self._scales, self._hidden = predicted, scales, hidden
        self._surprises: list[Tensor] = []

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Return means in steps and scales (B, P, c) of a channel group, those before it heard."""
        group = self._network.groups[index]
        state, scales = self._hidden, self._scales[:, :, group]
        if index > 0:
            state, more = self._hear(index - 1)
            scales = scales + more
        mean, scale = self._network.heads[index](state, self._quality).chunk(2, dim=2)
        mean = (self._predicted[:, :, group] + mean / _MEAN_PARTS) / FRACTION
        return mean, (scales + scale).clamp(0, SCALE_MAX)

    def learn(self, surprise: Tensor) -> None:
        """Take by how much latents (B, P, c) of the last group differ from their means."""
        self._surprises.append(known(surprise, self._mode))

    def _hear(self, seeds: int) -> tuple[Tensor, Tensor]:
        """Return hidden (B, P, H) and what to add to scales, by the surprises of seeds so far."""
        network, quality = self._network, self._quality
        errors = torch.cat(self._surprises, 2)
        seed = network.seed_inputs[seeds](self._compand(errors, self._mode), quality)
        state = (self._hidden + seed).clamp(0, ACTIVATION_MAX)
        state = network.seed_blocks[seeds](state, state, quality)
        activity = self._compand(errors.abs() * ACTIVITY_GAIN, self._mode)
        return state, network.seed_scales[seeds](activity, quality)


def _scales(channels_in: int, channels: int) -> IntegerLinear:
    """A layer that adds to scales."""
    return IntegerLinear(channels_in, channels, out_bits=_SCALE_BITS, low=-_OUT_MAX, high=_OUT_MAX)


def head(channels_in: int, channels: int) -> IntegerLinear:
    """The layer that gives means and scales: (mean corrections, scales) side by side."""
    made = IntegerLinear(
        channels_in,
        2 * channels,
        out_bits=[_MEAN_BITS] * channels + [_SCALE_BITS] * channels,
        low=-_OUT_MAX,
        high=_OUT_MAX,
        nodes=QUALITY_NODES,
    )
    nn.init.zeros_(made.weight)
    return made

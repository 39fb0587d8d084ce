# SPDX-License-Identifier: Apache-2.0
"""Exact integer arithmetic for the context networks, carried in floating point.

Activations are integers (a real value a is stored as a * 2^fraction), weights are integers with a
power-of-two exponent per output channel. A sum of integers in float32 is exact in ANY order while
every partial sum stays below 2^24 (float64: 2^53); `IntegerLinear.freeze` proves that bound from
the sum of |w| and the largest activation, so the result is the same on every machine, with every
number of threads and on every device. Requantisation is a floor after a division by a power of two.

The same layer trains in float (`mode = "float"`), trains with the integer arithmetic simulated and
straight-through gradients (`"simulate"`), and runs frozen (`"exact"`), where the gradients of its
inputs pass straight through as well.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.errors import ModelMismatch
from lvqcodec.model.layers import QualityTable, begin_randomly, floor_ste, round_ste

Mode = Literal["float", "simulate", "exact"]

FRACTION_BITS = 5
"""Hidden activations are integers in units of 2^-5."""

ACTIVATION_MAX = 255
"""Largest hidden activation (a ReLU clipped at 255/32)."""

_MAX_EXPONENT = 14
_MAX_SHIFT = 24
_WEIGHT_MAX = 32767

MAX_SUM = 2**24
"""Integers below this are exact in float32; float64 would hold up to 2^53."""


def exact_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T of whole numbers whose bound was proved; never in TF32 or bf16."""
    with torch.autocast(x.device.type, enabled=False):
        if x.is_cuda or not _keeps_float32():
            wide: Tensor = F.linear(x.double(), weight.double())
            return wide.to(x.dtype)
        total: Tensor = F.linear(x, weight)
        return total


def _keeps_float32() -> bool:
    """Whether nobody in this process has allowed float32 products to be rounded (TF32, bf16)."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer switches, of which there is one for each backend
        return False


class IntegerLayer(nn.Module, ABC):
    """A layer that trains in floating point and is frozen to integers, whose bound it proves."""

    mode: Mode = "float"

    @abstractmethod
    def integer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the integers that `load_integers` takes, by name."""

    @abstractmethod
    def integers(self) -> dict[str, Tensor]:
        """Return the integers of the frozen layer by name: weight, bias, exponent."""

    @abstractmethod
    def freeze(self) -> None:
        """Turn the trained weights into integers, prove the bound, switch to exact arithmetic."""

    @abstractmethod
    def load_integers(self, integers: Mapping[str, Tensor]) -> None:
        """Take what `integers` returned; ModelMismatch if a partial sum could reach 2^24."""


class IntegerLinear(IntegerLayer):
    """A linear layer on integer activations, with a bias that depends on the quality.

    `out_bits` fraction bits of the outputs; `low`, `high` the clip range of the integer outputs;
    `nodes` quality nodes of the bias. Inputs are integers with |x| <= `reach` in units of
    2^-FRACTION_BITS.
    """

    weight_int: Tensor
    bias_int: Tensor
    exponent: Tensor
    out_bits: Tensor
    _half: Tensor
    _unit: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        out_bits: int | list[int] = FRACTION_BITS,
        low: int = 0,
        high: int = ACTIVATION_MAX,
        nodes: int = 1,
        reach: int = ACTIVATION_MAX,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in))
        begin_randomly(self.weight)
        self.bias = QualityTable(nodes, channels_out)
        bits = [out_bits] * channels_out if isinstance(out_bits, int) else out_bits
        steps = torch.tensor(bits, dtype=torch.float32, device="cpu")
        self.register_buffer("out_bits", steps, persistent=False)
        self.low, self.high, self.reach = low, high, reach
        self.mode: Mode = "float"

    # --- training ---------------------------------------------------------------------------

    def _exponents(self) -> Tensor:
        """Largest exponent per output channel for which the float32 bound surely holds."""
        with torch.no_grad():
            reach = self.reach * self.weight.abs().sum(1)
            reach = reach + self.bias.rows.abs().amax(0) * 2.0**FRACTION_BITS + 1e-9
            # rounding adds at most half a unit per weight, and half a unit to the output
            spare = MAX_SUM - self.reach * 0.5 * self.weight.shape[1] - 2.0**20
            by_sum = torch.floor(torch.log2(spare / reach))
            by_weight = torch.floor(torch.log2(_WEIGHT_MAX / (self.weight.abs().amax(1) + 1e-9)))
            return torch.minimum(by_sum, by_weight).clamp(0, _MAX_EXPONENT)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        """Map activations (B, P, in) and qualities (B,) to activations (B, P, out)."""
        if self.mode == "exact":
            return self._exact(x, int(quality[0]))
        out_bits = self.out_bits
        bias: Tensor = self.bias(quality)[:, None, :]
        if self.mode == "float":
            out = F.linear(x, self.weight * 2.0**-FRACTION_BITS) + bias
            return (out * torch.exp2(out_bits)).clamp(self.low, self.high)
        exponent = self._exponents()
        scale = torch.exp2(exponent)
        weight = round_ste(self.weight * scale[:, None])
        total = F.linear(x, weight) + round_ste(bias * (scale * 2.0**FRACTION_BITS))
        out = total * torch.exp2(out_bits - exponent - FRACTION_BITS) + 0.5
        return floor_ste(out).clamp(self.low, self.high)

    # --- frozen -----------------------------------------------------------------------------

    def integer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the integers that `load_integers` takes."""
        weight, bias = tuple(self.weight.shape), tuple(self.bias.rows.shape)
        return {"weight": weight, "bias": bias, "exponent": weight[:1]}

    def integers(self) -> dict[str, Tensor]:
        """Return the integers of the frozen layer."""
        return {"weight": self.weight_int, "bias": self.bias_int, "exponent": self.exponent}

    def freeze(self) -> None:
        """Turn the trained weights into integers, prove the bound, switch to exact arithmetic."""
        with torch.no_grad():
            exponent = self._exponents()
            scale = torch.exp2(exponent)
            weight = torch.round(self.weight * scale[:, None])
            bias = torch.round(self.bias.rows * (scale * 2.0**FRACTION_BITS))
        self.load_integers({"weight": weight, "bias": bias, "exponent": exponent})

    def load_integers(self, integers: Mapping[str, Tensor]) -> None:
        """Take weight (out, in), bias nodes (nodes, out) and exponent (out,), prove the bound.

        Raises ModelMismatch if a partial sum could reach 2^24.
        """
        weight, bias, exponent = (integers[name] for name in ("weight", "bias", "exponent"))
        self.register_buffer("weight_int", weight.to(torch.float32), persistent=False)
        self.register_buffer("bias_int", bias.to(torch.int64), persistent=False)
        self.register_buffer("exponent", exponent.to(torch.float32), persistent=False)
        shifts = (self.exponent + FRACTION_BITS - self.out_bits).int().tolist()
        if not 1 <= min(shifts) <= max(shifts) <= _MAX_SHIFT:
            raise ModelMismatch(
                f"an integer layer shifts by {min(shifts)} to {max(shifts)} bits;"
                f" it must be 1 to {_MAX_SHIFT}"
            )
        # ldexp is exact everywhere; nobody promises that for the exp2 of a device
        half = self.exponent.new_tensor([math.ldexp(1.0, shift - 1) for shift in shifts])
        self.register_buffer("_half", half, persistent=False)
        unit = self.exponent.new_tensor([math.ldexp(1.0, -shift) for shift in shifts])
        self.register_buffer("_unit", unit, persistent=False)
        if self.bound() >= MAX_SUM:
            raise ModelMismatch(
                f"an integer layer may reach {self.bound()}, not below 2^24; export it again"
            )
        self.mode = "exact"
        # the float twin of the integers
        scale = torch.exp2(self.exponent)
        self.weight = nn.Parameter(self.weight_int / scale[:, None], requires_grad=False)
        rows = self.bias_int.float() / (scale * 2.0**FRACTION_BITS)
        self.bias.rows = nn.Parameter(rows, requires_grad=False)

    def bound(self) -> int:
        """Largest absolute value that any partial sum can take, whatever the order of summation."""
        reach = self.weight_int.double().abs().sum(1) * self.reach
        reach = reach + self.bias_int.abs().amax(0).double() + self._half.double()
        return int(reach.max())

    def _exact(self, x: Tensor, quality: int) -> Tensor:
        bias = interpolate(self.bias_int, quality).to(x.dtype)
        total = exact_linear(x, self.weight_int.to(x.dtype)) + (bias + self._half)
        return floor_ste(total * self._unit).clamp(self.low, self.high)


def interpolate(nodes: Tensor, quality: int) -> Tensor:
    """Interpolate integer rows (nodes, dim) at an integer quality 0..100, rounding down: (dim,)."""
    last = nodes.shape[0] - 1
    if last == 0:
        return nodes[0]
    low = min(quality * last // 100, last - 1)
    share = quality * last - 100 * low
    return torch.div(
        nodes[low] * (100 - share) + nodes[low + 1] * share, 100, rounding_mode="floor"
    )

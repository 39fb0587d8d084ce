# SPDX-License-Identifier: Apache-2.0
"""Where `msp` starts: from statistics of latents, by least squares, from another's weights."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvqcodec.model.entropy.base import FRACTION, NUM_BINS, SIGMAS, Channels
from lvqcodec.model.entropy.context import (
    ACTIVITY_GAIN,
    ACTIVITY_SLOPE,
    BINS_PER_UNIT,
    Compand,
    ContextNetwork,
)
from lvqcodec.model.entropy.order import CodingOrder
from lvqcodec.model.integer import FRACTION_BITS, IntegerLinear

_ACTIVITY_SAMPLES = 4096
_RIDGE = 0.02
_LOG_MIN, _LOG_SPAN = math.log(SIGMAS[0]), math.log(SIGMAS[1] / SIGMAS[0])

Networks = Sequence[Sequence[ContextNetwork]]
"""The context networks by set, that of the finest scale first, and subgroup."""


class Statistics:
    """Latents y (B, h * w + 1, C) in units of the transform, and steps (nodes, C) by quality.

    The last of the latents is zero: what stands where there is no neighbour.
    """

    def __init__(self, y: Tensor, steps: Tensor, order: CodingOrder, compand: Compand) -> None:
        self._y = torch.cat([y, y.new_zeros(len(y), 1, y.shape[2])], 1)
        self._steps = steps
        self._order = order.to(y.device)
        self._compand = compand

    def start_prior(self, prior: IntegerLinear) -> None:
        """Set the scales of the coarsest grid."""
        coarsest = self._y[:, self._order.coarsest].flatten(0, 1)
        # the second half of a head's outputs are the scales
        prior.bias.rows[:, coarsest.shape[1] :] = self._scale_biases(coarsest.std(0))

    def start_networks(self, networks: Networks) -> None:
        """Set predictors by least squares, and scales by the deviations from them."""
        finest = len(self._order.scales) - 1
        for which, subgroups in enumerate(networks):
            depths = range(finest, finest + 1) if which == 0 else range(finest)
            for index, network in enumerate(subgroups):
                self._start_network(network, depths, index)

    def _start_network(self, network: ContextNetwork, depths: range, index: int) -> None:
        seen, wanted = self._samples(depths, index)
        weight = _least_squares(seen, wanted)
        network.predictor.weight.copy_(weight)
        predicted = (seen * weight).sum(1)
        deviation = (wanted - predicted).std(0)
        some = slice(0, None, max(1, len(seen) // _ACTIVITY_SAMPLES))
        # what the activity will say on average is not the bias' to say
        shares = self._activity_shares(seen[some] - predicted[some, None])
        biases = self._scale_biases(deviation) - shares
        for group, head in zip(network.groups, network.heads, strict=True):
            head.bias.rows[:, group.stop - group.start :] = biases[:, group]

    def _samples(self, depths: range, index: int) -> tuple[Tensor, Tensor]:
        """Return neighbours (S, N, C) and latents (S, C) of a subgroup, at some scales."""
        subgroups = [self._order.scales[depth].subgroups[index] for depth in depths]
        seen = [self._y[:, subgroup.neighbours].flatten(0, 1) for subgroup in subgroups]
        wanted = [self._y[:, subgroup.positions].flatten(0, 1) for subgroup in subgroups]
        return torch.cat(seen), torch.cat(wanted)

    def _scale_biases(self, deviation: Tensor) -> Tensor:
        """Return biases (nodes, C) of scale outputs for standard deviations (C,) of y."""
        # the neighbours that predict carry quantisation noise of their own
        return _scale_units(torch.sqrt((deviation / self._steps) ** 2 + 1 / 24))

    def _activity_shares(self, errors: Tensor) -> Tensor:
        """Return what activity adds to scales (nodes, C), on average, for errors (S, N, C) of y."""
        seen = [torch.round(errors / step).abs().mean(1) for step in self._steps]
        activity = [self._compand(e * (FRACTION * ACTIVITY_GAIN), "float").mean(0) for e in seen]
        shares: Tensor = torch.stack(activity) * (ACTIVITY_SLOPE / 2**FRACTION_BITS)
        return shares


def _scale_units(deviation: Tensor) -> Tensor:
    """Bias of a head's scale outputs for a standard deviation in steps."""
    index = (torch.log(deviation.clamp(min=1e-9)) - _LOG_MIN) / _LOG_SPAN
    return index.clamp(0, NUM_BINS - 1) / BINS_PER_UNIT


def _least_squares(seen: Tensor, wanted: Tensor) -> Tensor:
    """Return weights (N, C) of neighbours (S, N, C) for latents (S, C), channel by channel."""
    count = seen.shape[1]
    gram = torch.stack([(seen * seen[:, n : n + 1]).sum(0).T for n in range(count)], 2)
    cross = (seen * wanted[:, None]).sum(0).T
    ridge = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weight: Tensor = torch.linalg.solve(gram + ridge * eye, cross[..., None])[..., 0].T
    return weight


# --- linear predictors --------------------------------------------------------------------------


class LinearFit:
    """Fits the linear predictors to what all else leaves; see `base.Regression`.

    What is right at one medium quality suits the others, but for the gate, which learns.
    """

    def __init__(self, networks: Networks) -> None:
        self._fits = [_Fit(network) for subgroups in networks for network in subgroups]
        self._left: list[Tensor] = []

    def see(self, plane: str, channels: Channels, residual: Tensor) -> None:
        """See `Regression.see`; whose residuals these are tells the network that has just run."""
        for fit in self._fits:
            if fit.seen is not None:
                assert isinstance(channels, slice)
                self._left.append(residual * FRACTION)
                if channels.stop >= len(fit.weight):
                    fit.add(torch.cat(self._left, 2)[:, :, : len(fit.weight)])
                    self._left = []

    def solve(self) -> None:
        """See `Regression.solve`."""
        for fit in self._fits:
            fit.solve()


def linear_is_fitted(networks: Networks) -> bool:
    """Return whether any linear predictor says anything yet."""
    weights = (network.linear.weight for subgroups in networks for network in subgroups)
    return any(bool(weight.any()) for weight in weights)


class _Fit:
    """The normal equations of one network's linear predictor."""

    def __init__(self, network: ContextNetwork) -> None:
        self.weight = network.linear.weight
        outputs, inputs = self.weight.shape
        self.gram = self.weight.new_zeros(inputs, inputs, dtype=torch.float64)
        self.cross = self.weight.new_zeros(inputs, outputs, dtype=torch.float64)
        self.seen: Tensor | None = None
        self.hook = network.linear.register_forward_hook(self._see)

    def _see(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
        self.seen = inputs[0]

    def add(self, left: Tensor) -> None:
        """Take what the inputs just seen leave of the targets (B, P, outputs), in sixteenths."""
        assert self.seen is not None
        inputs = self.seen.flatten(0, 1)
        self.gram += (inputs.T @ inputs).double()
        self.cross += (inputs.T @ left.flatten(0, 1)).double()
        self.seen = None

    def solve(self) -> None:
        """Set the weights; a ridge keeps what the pictures say little about small."""
        self.hook.remove()
        ridge = torch.diag(_RIDGE * self.gram.diagonal() + 1e-6)
        self.weight.copy_(torch.linalg.solve(self.gram + ridge, self.cross).T)


# --- another's weights --------------------------------------------------------------------------

_OF_A_GROUP = re.compile(r"(.*)\.(heads|seed_inputs|seed_blocks|seed_scales)\.(\d+)\.(.*)")


def adapt(
    own: Mapping[str, Tensor], groups: Sequence[slice], state: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Fit another's weights to a model of weights `own` and channel groups `groups`; None: cannot.

    See `MultiScaleProgressive.adapt`.
    """
    found: dict[str, Tensor] = {}
    for name, wanted in own.items():
        source = _find(name, wanted, groups, state)
        if source is None or source.shape != wanted.shape:
            return None
        found[name] = source
    return found


def _find(
    name: str, wanted: Tensor, groups: Sequence[slice], state: Mapping[str, Tensor]
) -> Tensor | None:
    """Return what `state` has for a parameter, grown where it must be; None if nothing."""
    if match := _OF_A_GROUP.fullmatch(name):
        return _of_group(match, wanted, groups, state)
    if name not in state and (".linear." in name or ".gate." in name):
        # one factor of the product is zero; if both were, neither would ever learn
        return torch.zeros_like(wanted) if ".linear." in name else wanted
    return state.get(name)


def _of_group(
    match: re.Match[str], wanted: Tensor, groups: Sequence[slice], state: Mapping[str, Tensor]
) -> Tensor | None:
    """Put a layer of a channel group together from those of the groups in `state`.

    Of seeds that those did not see it hears nothing yet.
    """
    before, kind, index, part = match.groups()
    edges = [0]
    while (head := state.get(f"{before}.heads.{len(edges) - 1}.weight")) is not None:
        edges.append(edges[-1] + len(head) // 2)
    if edges[-1] != groups[-1].stop:
        return None
    number = int(index) + (kind != "heads")  # the first group has no seeds
    new = groups[number]
    if kind in ("seed_inputs", "seed_blocks"):  # layers between features
        old = bisect.bisect_right(edges, new.start) - 1
        if old == 0:
            return wanted if part.startswith("inner.") else torch.zeros_like(wanted)
        return _widen(state[f"{before}.{kind}.{old - 1}.{part}"], wanted)
    dim = 0 if part == "weight" else 1  # weight (outputs, inputs), bias rows (nodes, outputs)
    if kind == "heads":
        layers = [state[f"{before}.heads.{n}.{part}"] for n in range(len(edges) - 1)]
        both = torch.cat([torch.unflatten(layer, dim, (2, -1)) for layer in layers], dim + 1)
        return both.narrow(dim + 1, new.start, new.stop - new.start).flatten(dim, dim + 1)
    layers = [state[f"{before}.seed_scales.{n}.{part}"] for n in range(len(edges) - 2)]
    shape = (edges[1], wanted.shape[1]) if part == "weight" else (wanted.shape[0], edges[1])
    layers.insert(0, wanted.new_zeros(shape))
    whole = torch.cat([_widen(layer, wanted) if dim == 0 else layer for layer in layers], dim)
    return whole.narrow(dim, new.start, new.stop - new.start)


def _widen(layer: Tensor, wanted: Tensor) -> Tensor:
    """Give a weight (..., inputs) as many inputs as `wanted`; new ones count for nothing."""
    return F.pad(layer, (0, wanted.shape[-1] - layer.shape[-1]))

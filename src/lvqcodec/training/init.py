# SPDX-License-Identifier: Apache-2.0
"""Start from transform coding: KLT, predictors and scales measured on the training pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lvqcodec.entropy.base import FRACTION, NUM_BINS, SIGMAS
from lvqcodec.entropy.msp import (
    ACTIVITY_GAIN,
    ACTIVITY_SLOPE,
    BINS_PER_UNIT,
    ContextNetwork,
    channel_groups,
)
from lvqcodec.entropy.order import coding_order
from lvqcodec.integer import FRACTION_BITS
from lvqcodec.model import CodecModel, RateEstimator

_ACTIVITY_SAMPLES = 4096
_RIDGE = 0.02
_FIT_QUALITY = 62.0
_LOG_MIN, _LOG_SPAN = math.log(SIGMAS[0]), math.log(SIGMAS[1] / SIGMAS[0])


@torch.no_grad()
def initialise(model: CodecModel, crops: Tensor) -> None:
    """Set what crops (B, 3, H, W) determine: KLT, linear predictors, scales per quality."""
    model.transform.start(crops)
    _set_probabilities(model, crops)


def _scale_units(deviation: Tensor) -> Tensor:
    """Bias of a head's scale outputs for a standard deviation in steps."""
    index = (torch.log(deviation.clamp(min=1e-9)) - _LOG_MIN) / _LOG_SPAN
    return index.clamp(0, NUM_BINS - 1) / BINS_PER_UNIT


def _set_probabilities(model: CodecModel, crops: Tensor) -> None:
    entropy = model.entropy
    config = entropy.config
    height, width = crops.shape[-2] // model.stride, crops.shape[-1] // model.stride
    device = crops.device
    groups = channel_groups(config, entropy.channels)
    # at a medium quality: a transform that has just started hardly depends on it
    middle = torch.full((1,), 50.0, device=device)
    y = torch.cat([model.transform.analysis(c[None], middle).flatten(2) for c in crops])
    y = y.transpose(1, 2)
    y = torch.cat([y, y.new_zeros(len(y), 1, y.shape[2])], 1)
    order = coding_order(height, width, config.scales, config.block)

    steps = torch.exp(model.log_step.rows)

    def scale_biases(deviation: Tensor) -> Tensor:
        # the neighbours that predict carry quantisation noise of their own
        return _scale_units(torch.sqrt((deviation / steps) ** 2 + 1 / 24))

    def activity_shares(errors: Tensor) -> Tensor:
        seen = [torch.round(errors / step).abs().mean(1) for step in steps]
        activity = [entropy.compand(e * (FRACTION * ACTIVITY_GAIN)).mean(0) for e in seen]
        shares: Tensor = torch.stack(activity) * (ACTIVITY_SLOPE / 2**FRACTION_BITS)
        return shares

    # the second half of a head's outputs are the scales
    coarsest = y[:, order.coarsest].flatten(0, 1)
    entropy.prior.bias.rows[:, entropy.channels :] = scale_biases(coarsest.std(0))
    for which, networks in enumerate(entropy.networks):
        depths = range(config.scales - 1, config.scales) if which == 0 else range(config.scales - 1)
        for index, network in enumerate(networks):
            samples, targets = [], []
            for depth in depths:
                subgroup = order.scales[depth].subgroups[index]
                samples.append(y[:, subgroup.neighbours.to(device)].flatten(0, 1))
                targets.append(y[:, subgroup.positions.to(device)].flatten(0, 1))
            seen, wanted = torch.cat(samples), torch.cat(targets)
            count = seen.shape[1]
            gram = torch.stack([(seen * seen[:, n : n + 1]).sum(0).T for n in range(count)], 2)
            cross = (seen * wanted[:, None]).sum(0).T
            ridge = 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=device)
            weight = torch.linalg.solve(gram + ridge * eye, cross[..., None])[..., 0].T
            network.predictor.weight.copy_(weight)
            predicted = (seen * weight).sum(1)
            deviation = (wanted - predicted).std(0)
            some = slice(0, None, max(1, len(seen) // _ACTIVITY_SAMPLES))
            # what the activity will say on average is not the bias' to say
            biases = scale_biases(deviation) - activity_shares(seen[some] - predicted[some, None])
            for group, head in zip(groups, network.heads, strict=True):
                head.bias.rows[:, group.stop - group.start :] = biases[:, group]


@torch.no_grad()
def fit_linear(model: CodecModel, crops: Tensor) -> None:
    """Fit the linear predictors on crops (B, 3, H, W), by least squares on what all else leaves.

    At one medium quality: what is right there suits the others, but for the gate, which learns.
    """
    fits = [_Fit(network) for network in _context_networks(model)]
    grid = model.grid(*crops.shape[-2:])
    for start in range(0, len(crops), 4):
        some = crops[start : start + 4]
        quality = some.new_full((len(some),), _FIT_QUALITY)
        targets = model.targets(model.analysis(some, quality), grid, quality)
        model.entropy.code(_FitCoder(targets, fits), *grid, quality)
    for fit in fits:
        fit.solve()


def linear_is_fitted(model: CodecModel) -> bool:
    """Return whether any linear predictor says anything yet."""
    return any(bool(network.linear.weight.any()) for network in _context_networks(model))


def _context_networks(model: CodecModel) -> list[ContextNetwork]:
    return [network for networks in model.entropy.networks for network in networks]


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


class _FitCoder(RateEstimator):
    """Rounds like its parent, and hands what predictions leave to the fits."""

    def __init__(self, targets: Mapping[str, Tensor], fits: list[_Fit]) -> None:
        super().__init__(targets)
        self._fits = fits
        self._left: list[Tensor] = []

    def __call__(
        self, plane: str, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor
    ) -> Tensor:
        """See `RateEstimator`."""
        for fit in self._fits:
            if fit.seen is not None:
                left = self._targets[plane][:, positions, channels] - mean
                self._left.append(left * FRACTION)
                if channels.stop >= len(fit.weight):
                    fit.add(torch.cat(self._left, 2)[:, :, : len(fit.weight)])
                    self._left = []
        return super().__call__(plane, positions, channels, mean, scale)

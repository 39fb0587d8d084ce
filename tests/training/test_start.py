# SPDX-License-Identifier: Apache-2.0
"""What is measured before training."""

import numpy as np
import pytest
import torch

from lvqcodec.model.codec_model import CodecModel, RateEstimator
from lvqcodec.training.start import initialise, solve


class Residuals(RateEstimator):
    """Sums the squared residuals of the channels that have a linear predictor."""

    def __init__(self, targets, channels):
        super().__init__(targets)
        self.channels, self.squares = channels, 0.0

    def __call__(self, plane, positions, channels, mean, scale):
        group = slice(channels.start, min(channels.stop, self.channels))
        left = self._targets[plane][:, positions, group] - mean[..., : group.stop - group.start]
        self.squares += float(left.square().sum())
        return super().__call__(plane, positions, channels, mean, scale)


@pytest.fixture(scope="module")
def crops(photograph):
    """The quarters of six pictures, (24, 3, 128, 128), the last quarters last."""
    pictures = np.stack([photograph(256, 256, seed=n) for n in range(6)])
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return torch.cat([half for side in whole.chunk(2, 2) for half in side.chunk(2, 3)])


def squares(model, crops, quality):
    qualities = torch.full((len(crops),), quality)
    with torch.no_grad():
        coder = Residuals({"y": model.analysis(crops, qualities)}, model.config.entropy.linear)
        model.entropy.code(coder, 16, 16, qualities)
    return coder.squares


def test_linear_predictors_take_away_what_a_straight_line_can(tiny_config, crops):
    torch.manual_seed(0)
    model = CodecModel(tiny_config).requires_grad_(False)
    initialise(model, crops)
    for networks in model.entropy.networks:
        for network in networks:
            network.gate.bias.rows.fill_(4.0)  # wide open
    seen, unseen = crops[:18], crops[18:]
    before = squares(model, seen, 62.0), squares(model, unseen, 62.0)
    solve(model.entropy.regression(), model, seen)
    assert model.entropy.regression() is None, "it is fitted already"
    after = squares(model, seen, 62.0), squares(model, unseen, 62.0)
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.95 * before[1], "on pictures that it was not fitted to"


def test_fitting_leaves_nothing_hooked(tiny_config, crops):
    model = CodecModel(tiny_config).requires_grad_(False)
    initialise(model, crops)
    solve(model.entropy.regression(), model, crops[:4])
    for networks in model.entropy.networks:
        for network in networks:
            assert not network.linear._forward_hooks

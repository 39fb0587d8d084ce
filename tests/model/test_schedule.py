# SPDX-License-Identifier: Apache-2.0
"""Coding orders: every latent once, every neighbour before; and many steps taught as one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvqcodec.model.codec_model import RateEstimator
from lvqcodec.model.entropy import schedule
from lvqcodec.model.entropy.context import Config, channel_groups
from lvqcodec.model.entropy.order import coding_order
from lvqcodec.model.integer import ACTIVATION_MAX, IntegerLinear

CHANNELS = 6
ORDERS = {
    "factorized": lambda h, w: schedule.factorized(h, w, CHANNELS),
    "checkerboard": lambda h, w: schedule.checkerboard(h, w, CHANNELS),
    "channel-wise": lambda h, w: schedule.channel_wise(h, w, (1, 2, 3)),
    "wavefront": lambda h, w: schedule.wavefront(h, w, CHANNELS),
    "3-D wavefront": lambda h, w: schedule.wavefront_3d(h, w, (2, 2, 2)),
    "msp": lambda h, w: coding_order(h, w, 3, (2, 2)).steps(
        channel_groups(Config(seeds=(1, 2)), CHANNELS)
    ),
}


def channels_of(step):
    """The channels (P, c) at each position."""
    if isinstance(step.channels, torch.Tensor):
        return step.channels
    return torch.arange(CHANNELS)[step.channels].expand(len(step.positions), -1)


@pytest.mark.parametrize("order", ORDERS)
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_every_latent_is_coded_once_and_every_neighbour_before(order, height, width):
    known = torch.zeros(height * width + 1, CHANNELS, dtype=torch.bool)
    for step in ORDERS[order](height, width):
        assert not known[step.positions, step.channels].any()
        indices = channels_of(step)
        for around, before in ((step.neighbours, False), (step.earlier, True)):
            assert around.shape[0] == len(step.positions)
            for places, channels in zip(around.tolist(), indices.tolist(), strict=True):
                wanted = slice(0, channels[0]) if before else channels
                for place in set(places) - {height * width}:
                    assert known[place, wanted].all()
        known[step.positions, step.channels] = True
    assert known[:-1].all() and not known[-1].any()


@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"msp"}))
def test_nothing_in_the_window_that_is_known_is_left_out(order):
    height, width = 5, 7
    windows = schedule.windows_of(height, width)
    known = torch.zeros(height * width + 1, CHANNELS, dtype=torch.bool)
    for step in ORDERS[order](height, width):
        at = step.positions.flatten()
        first = channels_of(step)[:, 0]
        for around, places, start in zip(step.neighbours, windows[at], first.tolist(), strict=True):
            assert torch.equal(around, places.where(known[places, start], height * width))
        for around, places, start in zip(step.earlier, windows[at], first.tolist(), strict=True):
            there = known[places, :start].all(1) & torch.tensor(start > 0)
            assert torch.equal(around, places.where(there, height * width))
        known[step.positions, step.channels] = True


def test_numbers_of_steps():
    assert len(schedule.factorized(32, 48, 4)) == 1
    assert len(schedule.checkerboard(32, 48, 4)) == 2
    assert len(schedule.channel_wise(32, 48, (1, 1, 2, 4, 8))) == 5
    # 768 x 512 pixels at a stride of 16
    assert len(schedule.wavefront(32, 48, 4)) == 110
    assert len(schedule.wavefront_3d(32, 48, (3,) * 64)) == 362
    assert len(schedule.wavefront_3d(32, 48, (1,) * 128)) == 618


def test_orders_made_while_coding_serve_training_too():
    with torch.inference_mode():
        steps = schedule.wavefront(3, 11, 1)
    x = torch.ones(1, 34, 1, requires_grad=True)
    x[:, steps[1].neighbours.flatten()].sum().backward()
    assert x.grad is not None


# --- a teacher makes one step of many ------------------------------------------------------------


CAUSAL = range(4)  # of a 3x3 window in raster order, before its centre


class Masked(torch.nn.Module):
    """Means and scales from two stacked masked 3x3 layers, the second of which sees the centre."""

    channels, hidden = 3, 8

    def __init__(self):
        super().__init__()
        self.first = IntegerLinear(4 * self.channels, self.hidden, low=-ACTIVATION_MAX)
        self.second = IntegerLinear(5 * self.hidden, 2 * self.channels, low=-512, high=512)
        for layer in (self.first, self.second):
            torch.nn.init.normal_(layer.bias.rows)

    def code(self, coder, height, width, quality):
        """See `EntropyModel.code`; hidden features are computed where they can be, and kept."""
        if isinstance(coder, schedule.Teacher):
            return self.all_at_once(coder, height, width, quality)
        y = quality.new_zeros(len(quality), height * width + 1, self.channels)
        hidden = quality.new_zeros(len(quality), height * width + 1, self.hidden)
        for step in schedule.wavefront(height, width, self.channels):
            here = self.look(y, step.neighbours, quality)
            hidden[:, step.positions] = here
            mean, scale = self.expect(hidden, step.neighbours, step.positions, quality)
            y[:, step.positions] = coder("y", step.positions, step.channels, mean, scale)
        return y[:, :-1]

    def all_at_once(self, coder, height, width, quality):
        y = torch.nn.functional.pad(coder.answers["y"], (0, 0, 0, 1))
        everywhere = torch.arange(height * width)
        causal = schedule.windows_of(height, width).clone()
        causal[:, 4:] = height * width
        hidden = torch.nn.functional.pad(self.look(y, causal, quality), (0, 0, 0, 1))
        mean, scale = self.expect(hidden, causal, everywhere, quality)
        return coder("y", everywhere, slice(0, self.channels), mean, scale)

    def look(self, y, neighbours, quality):
        around = y[:, neighbours[:, CAUSAL]].flatten(2).clamp(-ACTIVATION_MAX, ACTIVATION_MAX)
        return self.first(around, quality)

    def expect(self, hidden, neighbours, positions, quality):
        seen = torch.cat([neighbours[:, CAUSAL], positions[:, None]], 1)
        out = self.second(hidden[:, seen].flatten(2), quality)
        mean, scale = out.chunk(2, 2)
        return mean / 64, scale.abs()


class Tape:
    """A coder of given latents (1, h * w, C) that records what is expected of each."""

    def __init__(self, latents):
        self.latents = latents
        self.mean, self.scale = torch.full_like(latents, torch.nan), torch.full_like(latents, -1)
        self.steps = 0

    def __call__(self, plane, positions, channels, mean, scale):
        self.mean[:, positions, channels], self.scale[:, positions, channels] = mean, scale
        self.steps += 1
        return self.latents[:, positions, channels]


@pytest.mark.parametrize("grid", [(1, 1), (4, 1), (1, 5), (6, 9)])
def test_what_a_teacher_gets_in_one_step_is_what_a_decoder_expects_in_all(grid):
    torch.manual_seed(0)
    model = Masked().requires_grad_(False)
    for layer in (model.first, model.second):
        layer.freeze()
    target = torch.randn(1, grid[0] * grid[1], 3) * 40
    quality = torch.full((1,), 50.0)
    serial, parallel = Tape(target.round()), Tape(target.round())
    found = model.code(serial, *grid, quality)
    taught = model.code(schedule.Teacher(parallel, {"y": target}), *grid, quality)
    assert (serial.steps, parallel.steps) == (len(schedule.wavefront(*grid, 3)), 1)
    assert torch.equal(serial.mean, parallel.mean) and torch.equal(serial.scale, parallel.scale)
    assert torch.equal(found, taught) and torch.equal(taught, target.round())
    assert not serial.mean.isnan().any()
    if min(grid) > 4:
        assert serial.mean.std() > 0.1 and serial.scale.std() > 1, "the layers do nothing"


def test_a_taught_step_counts_its_rate_and_passes_gradients():
    model, target = Masked(), (torch.randn(2, 12, 3) * 9).requires_grad_()
    estimator = RateEstimator({"y": target})
    coder = schedule.Teacher(estimator, {"y": target})
    y = model.code(coder, 3, 4, torch.tensor([10.0, 90.0]))
    (estimator.bits.sum() + y.sum()).backward()
    assert estimator.bits.shape == (2,) and (estimator.bits > 0).all()
    assert torch.isfinite(target.grad).all() and target.grad.abs().min() > 0
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("taught", [False, True])
def test_a_model_that_can_be_taught_gets_a_teacher_in_training(new_model, monkeypatch, taught):
    model, seen = new_model(), []
    monkeypatch.setattr(model.entropy, "taught", taught)
    code = model.entropy.code

    def spy(coder, *grid_and_quality):
        seen.append(coder)
        return code(coder, *grid_and_quality)

    monkeypatch.setattr(model.entropy, "code", spy)
    x, quality = torch.rand(1, 3, 32, 32), torch.full((1,), 50.0)
    out = model.rate(x, quality)
    assert isinstance(seen[0], schedule.Teacher) == taught
    assert torch.equal(out.y_hat, model.analysis(x, quality).round()) == taught
    assert out.bits > 0

# SPDX-License-Identifier: Apache-2.0
"""Context networks give the same integers on every machine: proved bounds, any order of sums."""

import contextlib
import warnings

import pytest
import torch
from conftest import read_latents

from lvqcodec import codec, stream
from lvqcodec.errors import ModelMismatch
from lvqcodec.format import container
from lvqcodec.model import integer
from lvqcodec.model.entropy.base import LATENT_LIMIT, LATENT_UNITS
from lvqcodec.model.entropy.context import WeightedSum
from lvqcodec.model.integer import (
    ACTIVATION_MAX,
    FRACTION_BITS,
    MAX_SUM,
    IntegerLinear,
    interpolate,
)

NODE, BETWEEN = 40, 53  # a quality that is one of six nodes, and one that is not


def layer(channels_in=20, channels_out=6, *, scale=1.0, nodes=6, **options):
    torch.manual_seed(3)
    made = IntegerLinear(channels_in, channels_out, nodes=nodes, **options)
    with torch.no_grad():
        made.weight.normal_(std=scale)
        made.bias.rows.normal_()
    return made.requires_grad_(False)


def activations(count=50, channels=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ACTIVATION_MAX + 1, (1, count, channels), generator=generator).float()


def at(quality, dtype=torch.float32):
    return torch.full((1,), float(quality), dtype=dtype)


def load(made, weight, bias, exponent):
    integers = {"weight": weight, "bias": bias, "exponent": exponent}
    made.load_integers({name: torch.tensor(value) for name, value in integers.items()})


# one layer


@pytest.mark.parametrize("out_bits", [FRACTION_BITS, 4, 7])
def test_exact_equals_simulated_at_the_nodes_and_is_off_by_one_unit_at_most_between(out_bits):
    made = layer(out_bits=out_bits, low=-4096, high=4096)
    x = activations()
    made.mode = "simulate"
    simulated = {q: made(x, at(q)) for q in (NODE, BETWEEN)}
    made.freeze()
    assert simulated[NODE].abs().max() > 100
    assert torch.equal(made(x, at(NODE)), simulated[NODE])
    # between nodes the exact bias is interpolated from integers, the simulated one is rounded
    assert (made(x, at(BETWEEN)) - simulated[BETWEEN]).abs().max() <= 1


def test_exact_is_close_to_float():
    made = layer(low=-4096, high=4096)
    x = activations()
    wanted = made(x, at(NODE))
    made.freeze()
    assert (made(x, at(NODE)) - wanted).abs().max() <= 1


def test_exact_equals_arithmetic_in_python_integers():
    made = layer(low=-255, high=255, out_bits=4)
    made.freeze()
    x = activations(3)
    bias = interpolate(made.bias_int, BETWEEN).tolist()
    for row, found in zip(x[0].int().tolist(), made(x, at(BETWEEN))[0].int().tolist(), strict=True):
        for channel, weights in enumerate(made.weight_int.int().tolist()):
            shift = int(made.exponent[channel]) + FRACTION_BITS - 4
            total = sum(a * b for a, b in zip(row, weights, strict=True)) + bias[channel]
            wanted = (total + (1 << (shift - 1))) >> shift
            assert found[channel] == max(-255, min(255, wanted))


@pytest.mark.parametrize("quality", range(0, 101, 7))
def test_interpolation_is_exact_and_between_its_nodes(quality):
    nodes = torch.randint(-(2**23), 2**23, (6, 30))
    found = interpolate(nodes, quality)
    low = min(quality // 20, 4)
    share = quality - 20 * low
    wanted = torch.div(
        nodes[low] * (20 - share) + nodes[low + 1] * share, 20, rounding_mode="floor"
    )
    assert torch.equal(found, wanted)
    assert found.abs().max() <= nodes.abs().max()
    assert torch.equal(interpolate(nodes[:1], quality), nodes[0])


@pytest.mark.parametrize("scale", [1e-4, 0.05, 1.0, 10.0])
@pytest.mark.parametrize("channels", [1, 20, 1000])
def test_freezing_always_finds_weights_below_the_bound(scale, channels):
    made = layer(channels, scale=scale)
    made.freeze()
    reach = made.weight_int.abs().double().sum(1) * ACTIVATION_MAX
    assert reach.max() < made.bound() < MAX_SUM
    if channels * scale > 10:
        assert made.bound() > MAX_SUM / 4, "precision is given away"


def test_freezing_refuses_weights_that_no_exponent_brings_below_the_bound():
    with pytest.raises(ModelMismatch):
        layer(3000, scale=30.0).freeze()


def test_the_bound_is_refused_exactly_where_it_fails():
    made = IntegerLinear(2, 1, out_bits=5)
    half = 2**9
    room = MAX_SUM - 1 - half - ACTIVATION_MAX * (30000 + 20000)
    load(made, [[30000, -20000]], [[-room]], [10])
    assert made.bound() == MAX_SUM - 1
    with pytest.raises(ModelMismatch, match="may reach 16777216"):
        load(made, [[30000, -20000]], [[room + 1]], [10])


@pytest.mark.parametrize("exponent", [-6, 0, 25, 127])
def test_shifts_out_of_range_are_refused(exponent):
    made = IntegerLinear(1, 1, out_bits=5)
    with pytest.raises(ModelMismatch, match="bits"):
        load(made, [[1]], [[0]], [exponent])


def test_predictors_are_refused_where_their_bound_fails():
    made = WeightedSum(2, 1)
    most = (MAX_SUM - 1 - 128) // LATENT_LIMIT
    made.load_integers({"weight": torch.tensor([[500], [500 - 1000]])})
    with pytest.raises(ModelMismatch, match="neighbours"):
        made.load_integers({"weight": torch.tensor([[most], [1]])})


def test_products_are_widened_where_float32_may_be_rounded(monkeypatch):
    seen = []
    original = torch.nn.functional.linear

    def spy(x, weight):
        seen.append(x.dtype)
        return original(x, weight)

    monkeypatch.setattr(integer.F, "linear", spy)
    x, weight = activations()[0], torch.ones(4, 20)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert integer.exact_linear(x, weight).dtype == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [torch.float32, torch.float64, torch.float64]


def test_products_stay_exact_under_autocast():
    made = layer()
    made.freeze()
    x = activations()
    wanted = made(x, at(NODE))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x, at(NODE)), wanted)


# whole models


class Tape:
    """A coder of given latents (1, h * w, C) that records every mean and scale."""

    def __init__(self, latents):
        self.latents, self.steps = latents, []

    def __call__(self, plane, positions, channels, mean, scale):
        self.steps.append((mean, scale))
        return self.latents[:, positions, channels].to(mean.dtype)


def latents(height, width, channels, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(1, height * width, channels, generator=generator) * spread / 16
    return torch.round(y * LATENT_UNITS) / LATENT_UNITS


def test_a_whole_walk_is_the_same_exact_and_simulated(new_model):
    entropy = new_model().entropy
    y = latents(7, 9, entropy.channels, 40.0)
    tapes = {}
    for mode in ("simulate", "exact"):
        if mode == "simulate":
            entropy.set_mode(mode)
        else:
            entropy.freeze()
        tapes[mode] = Tape(y)
        entropy.code(tapes[mode], 7, 9, at(NODE))
    scales = torch.cat([scale.flatten() for _, scale in tapes["exact"].steps])
    assert scales.std() > 8, "the networks do nothing"
    for simulated, exact in zip(tapes["simulate"].steps, tapes["exact"].steps, strict=True):
        assert torch.equal(simulated[0], exact[0]) and torch.equal(simulated[1], exact[1])


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_no_sum_of_the_most_extreme_latents_reaches_the_bound(new_model, monkeypatch, scale):
    model = new_model()
    for _, made in model.entropy.layers():
        if isinstance(made, IntegerLinear):
            made.weight.mul_(scale)  # 60: every activation saturates
    model.entropy.freeze()
    largest = {"activation": 0, "error": 0, "sum": 0}
    predict, run = WeightedSum.forward, IntegerLinear._exact

    def check_inputs(self, x, quality):
        assert x.abs().max() <= self.reach
        kind = "activation" if self.reach == ACTIVATION_MAX else "error"
        largest[kind] = max(largest[kind], int(x.abs().max()))
        return run(self, x, quality)

    def check_prediction(self, neighbours):
        assert torch.equal(neighbours, neighbours.round())
        sums = (neighbours.abs().double() * self.weight_int.abs().double()).sum(-2) + 128
        largest["sum"] = max(largest["sum"], int(sums.max()))
        return predict(self, neighbours)

    def check(x, weight):
        assert torch.equal(x, x.round())
        # whatever the order, a partial sum is at most the sum of the magnitudes
        sums = x.abs().double() @ weight.abs().double().T
        largest["sum"] = max(largest["sum"], int(sums.max()))
        return x @ weight.T

    monkeypatch.setattr(integer, "exact_linear", check)
    monkeypatch.setattr(WeightedSum, "forward", check_prediction)
    monkeypatch.setattr(IntegerLinear, "_exact", check_inputs)
    for seed, spread in enumerate((1e9, LATENT_LIMIT, 300.0, 0.0)):
        y = latents(6, 5, model.entropy.channels, spread, seed).clamp(-(2.0**16), 2.0**16)
        tape = Tape(y)
        model.entropy.code(tape, 6, 5, at(BETWEEN))
        for mean, t in tape.steps:
            parts = mean * LATENT_UNITS
            assert torch.equal(parts, parts.round()) and parts.abs().max() < MAX_SUM / 2
            assert t.min() >= 0 and t.max() <= 16 * 63
    assert largest["sum"] < MAX_SUM
    assert largest["error"] == 2047, "the errors seen by the linear prediction"
    if scale > 1:
        assert largest["activation"] == ACTIVATION_MAX


def test_every_layer_stays_below_its_bound_at_its_worst_input(new_model):
    model = new_model()
    model.entropy.freeze()
    for name, made in model.entropy.layers():
        if isinstance(made, WeightedSum):
            reach = LATENT_LIMIT * made.weight_int.double().abs().sum(0) + 128
            assert reach.max() < MAX_SUM, name
            continue
        worst = made.weight_int.sign() * made.reach  # one input for every output
        sums = (worst.double() * made.weight_int.double()).sum(1)
        assert sums.max() <= made.bound() < MAX_SUM, name
        found = integer.exact_linear(worst, made.weight_int).diagonal()
        assert torch.equal(found.double(), sums), name


# whole files, everything about the arithmetic changed that may differ between machines


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_onednn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # switches for Intel GPUs that nobody asked for
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@contextlib.contextmanager
def double_carrier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stream, "quality_of", lambda header, loaded: at(header.quality, torch.float64)
        )
        yield


@contextlib.contextmanager
def permuted_sums():
    generator = torch.Generator().manual_seed(7)
    calls = []

    def permuted(x, weight):
        calls.append(weight.shape)
        order = torch.randperm(weight.shape[1], generator=generator)
        x, weight = x[..., order], weight[:, order]
        cut = weight.shape[1] // 3
        # parts added up one by one, as vector units and threads do
        return x[..., cut:] @ weight[:, cut:].T + x[..., :cut] @ weight[:, :cut].T

    def predict(self, neighbours):
        total = torch.zeros_like(neighbours[..., 0, :])
        for n in torch.randperm(neighbours.shape[-2], generator=generator).tolist():
            total = total + neighbours[..., n, :] * self.weight_int[n]
        return torch.floor((total + 128 / self.gain) * self.gain / 256)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer, "exact_linear", permuted)
        patch.setattr(WeightedSum, "forward", predict)
        yield
    assert calls


MACHINES = {
    "one thread": lambda: threads(1),
    "two threads": lambda: threads(2),
    "no oneDNN": without_onednn,
    "float64 carrier": double_carrier,
    "permuted sums": permuted_sums,
}


@pytest.fixture(scope="module")
def files(models_folder, photograph):
    """Files written with two threads, with the integers that they hold."""
    written = []

    def spy(planes):
        written.append(planes[-1].clone())
        return checksum(planes)

    checksum = stream._crc
    pictures = photograph(250, 334), photograph(97, 130, channels=1, seed=2)
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        patch.setattr(stream, "_crc", spy)
        data = [
            codec.encode(picture, model="tiny", quality=quality, lattice=lattice)
            for picture in pictures
            for quality, lattice in ((NODE, "e8"), (BETWEEN, "z"), (95, "e8"))
        ]
    return list(zip(data, written, strict=True))


@pytest.mark.parametrize("machine", MACHINES)
def test_files_decode_to_the_same_integers_on_every_machine(tiny, files, machine):
    loaded = codec.load_model(tiny, device="cpu")
    for data, written in files:
        with MACHINES[machine]():
            # raises StreamError if the CRC of the integers is not the one in the file
            found = read_latents(data, loaded)
        assert torch.equal(found.double(), written.double())
    assert max(len(data) for data, _ in files) > 1000


@pytest.mark.parametrize("machine", sorted(set(MACHINES) - {"float64 carrier"}))
def test_files_written_on_every_machine_decode(tiny, photograph, machine):
    with MACHINES[machine]():
        data = codec.encode(photograph(97, 130, channels=1, seed=2), model=tiny, quality=NODE)
    loaded = codec.load_model(tiny, device="cpu")
    read_latents(data, loaded)


def test_inexact_arithmetic_would_be_noticed(tiny, files, monkeypatch):
    """The machines differ enough: float networks in the same place break the files."""
    loaded = codec.load_model(tiny, device="cpu")
    monkeypatch.setattr(
        integer,
        "exact_linear",
        lambda x, weight: x.bfloat16().float() @ weight.bfloat16().float().T,
    )
    with pytest.raises(container.FormatError):
        read_latents(files[0][0], loaded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_files_decode_to_the_same_integers_on_a_gpu(tiny, files):
    loaded = codec.load_model(tiny, device="cuda")
    for data, written in files:
        found = read_latents(data, loaded)
        assert torch.equal(found.cpu(), written)

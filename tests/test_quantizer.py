# SPDX-License-Identifier: Apache-2.0
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.tables import (
    LATTICE_MIN_BIN,
    NUM_BINS,
    SIGMAS,
    fit_tables,
    parametric_tables,
)
from lvqcodec.errors import StreamError
from lvqcodec.lattices import LATTICES
from lvqcodec.lattices.e8 import E8
from lvqcodec.quantizer import LIMIT, RDO_LAMBDA, Quantizer


def source(count, seed=0, mean=-1.0, spread=1.0):
    """Residuals in steps with bins that know their sigma, log-normal."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.normal(mean, spread, count))
    bins = np.abs(np.log(sigma)[:, None] - np.log(SIGMAS)).argmin(-1)
    return torch.from_numpy(rng.normal(size=count) * sigma).float(), torch.from_numpy(bins)


def encode(quantizer, j, bins):
    encoder = SymbolEncoder()
    quantizer.write(j.numpy(), bins.numpy(), encoder)
    return encoder.finish()


@functools.cache
def fitted(lattice, seed=0, rounds=4, **options):
    """A quantizer with tables fitted to its own choices on `source`."""
    x, bins = source(60_000, seed, **options)
    quantizer = Quantizer(lattice, parametric_tables())
    for _ in range(rounds):
        seen = quantizer.histograms(quantizer.choose(x, bins), bins, x)
        quantizer = Quantizer(lattice, fit_tables(seen))
    return quantizer


@pytest.fixture(params=LATTICES)
def quantizer(request):
    return fitted(request.param)


def test_eights_in_order_are_lattice_points_and_the_rest_whole():
    x, bins = source(1003)
    j = fitted("e8").choose(x, bins)
    assert j.dtype == torch.int32
    high = (bins >= LATTICE_MIN_BIN).nonzero().squeeze(-1)
    whole = len(high) // 8 * 8
    vectors = j[high[:whole]].reshape(-1, 8)
    p = vectors.float() / 2
    assert torch.equal(E8().nearest(p), p)
    assert (vectors[:, 0] % 2).float().mean() > 0.01
    assert (j[high[whole:]] % 2 == 0).all()
    assert (j[bins < LATTICE_MIN_BIN] % 2 == 0).all()
    assert (fitted("z").choose(x, bins) % 2 == 0).all()


def test_lambda_zero_is_the_nearest_point():
    x, bins = source(800, mean=1.0)
    plain = Quantizer("z", fitted("z").tables, rdo_lambda=0)
    assert torch.equal(plain.choose(x, bins), 2 * x.round().int())
    x, bins = x[bins >= LATTICE_MIN_BIN][:400], bins[bins >= LATTICE_MIN_BIN][:400]
    plain = Quantizer("e8", fitted("e8").tables, rdo_lambda=0)
    assert torch.equal(plain.choose(x, bins) / 2, E8().nearest(x.reshape(-1, 8)).flatten())


def cost(quantizer, kind, j, x, bins):
    """Squared error + lambda bits of every j (..., n) by its own reading of the tables."""
    tables = quantizer.tables
    sizes = np.abs(j)
    offset = tables.centroids[kind, bins, np.minimum(sizes, 15)] / 16
    bits = tables.costs[kind, bins, sizes]
    return (x - j / 2 + np.sign(j) * offset) ** 2 + quantizer.rdo_lambda * bits


def test_scalar_choice_beats_all_neighbours():
    quantizer = fitted("z")
    x, bins = source(3000)
    j = quantizer.choose(x, bins).numpy()
    x, bins = x.numpy(), bins.numpy()
    steps = 2 * np.arange(-2, 3)[:, None]
    candidates = np.concatenate((2 * np.rint(x).astype(int) + steps, 0 * steps[:1] * j))
    least = cost(quantizer, 0, candidates, x, bins).min(0)
    chosen = cost(quantizer, 0, j, x, bins)
    # values farther out than the nearest are never tried, though now and then a centroid is nearer
    assert (chosen <= least + 1e-5).mean() > 0.999
    assert (chosen - least).max() < 0.05
    assert (np.abs(j) < np.abs(2 * np.rint(x))).any()


def test_vector_choice_is_exact():
    """All 6^8 points of each coset's cube around x with the right sum."""
    quantizer = fitted("e8")
    x, bins = source(4000, seed=5, mean=0.0)
    high = (bins >= LATTICE_MIN_BIN).nonzero().squeeze(-1)[:64]
    x, bins = x[high], bins[high]
    chosen = quantizer.choose(x, bins).numpy().reshape(8, 8)
    plain = (2 * E8().nearest(x.reshape(8, 8))).numpy()
    assert (chosen != plain).any()
    for vector, values, rows in zip(
        chosen, x.numpy().reshape(8, 8), bins.numpy().reshape(8, 8), strict=True
    ):
        least = np.inf
        for coset in (0, 1):
            base = 2 * np.floor(values - coset / 2).astype(int) + coset
            total, odd = np.zeros(()), np.zeros((), bool)
            for i in range(8):
                j = base[i] + 2 * np.arange(-2, 4)
                total = total[..., None] + cost(quantizer, 1, j, values[i], rows[i])
                odd = odd[..., None] ^ ((j >> 1) & 1).astype(bool)
            least = min(least, total[~odd].min())
        assert cost(quantizer, 1, vector, values, rows).sum() == pytest.approx(least, rel=1e-5)


def test_reconstructions_are_exact_sixteenths(quantizer):
    x, bins = source(5000)
    j = quantizer.choose(x, bins)
    r16 = quantizer.reconstruct(j, bins)
    assert r16.dtype == torch.int32
    kind = np.zeros(5000, int)
    if quantizer.lattice.name == "e8":
        high = np.flatnonzero(bins.numpy() >= LATTICE_MIN_BIN)
        kind[high[: len(high) // 8 * 8]] = 1
    centroids = quantizer.tables.centroids
    assert centroids.any()
    expected = []
    for value, k, row in zip(j.tolist(), kind, bins.tolist(), strict=True):
        size = 8 * abs(value) - int(centroids[k, row, min(abs(value), 15)])
        expected.append(size if value > 0 else -size)
    assert r16.tolist() == expected
    outliers = quantizer.choose(torch.tensor([1e9, -1e9]), torch.zeros(2, dtype=torch.int64))
    assert outliers.tolist() == [2 * LIMIT, -2 * LIMIT]


def test_centroids_lower_the_error(quantizer):
    x, bins = source(60_000)
    j = quantizer.choose(x, bins)
    moved = (quantizer.reconstruct(j, bins) / 16 - x).square().mean()
    assert moved < (j / 2 - x).square().mean() * 0.999


@pytest.mark.parametrize("options", [{}, {"mean": -0.75, "spread": 0.1}, {"mean": 2.0}])
@pytest.mark.parametrize("lattice", LATTICES)
def test_bits_are_near_real_bytes(lattice, options):
    quantizer = fitted(lattice, **options)
    x, bins = source(150_000, seed=1, **options)
    x[::5000] *= 300  # escapes
    j = quantizer.choose(x, bins)
    bits = quantizer.bits(j, bins)
    assert abs(8 * len(encode(quantizer, j, bins)) - bits) < 0.001 * bits + 64


def test_bits_of_outliers_beyond_the_tabled_costs():
    quantizer, values = fitted("z"), np.array([600, -3000, 16384])
    for value in values:
        j, bins = torch.tensor([2 * value], dtype=torch.int32), torch.tensor([10])
        exact = quantizer.tables.scalar.integer_bits(np.array([value]), bins.numpy())[0]
        assert quantizer.bits(j, bins) == pytest.approx(exact, abs=2.5)


def test_classes_of_a_vector_have_total_probability_one():
    """128 parities of the even coset and 128 of the odd one, each by a point that stands for it."""
    quantizer = fitted("e8")
    bins = torch.tensor([14, 15, 16, 17, 20, 25, 15, 14])
    total = 0.0
    for coset, parities in itertools.product((0, 1), itertools.product((0, 1), repeat=8)):
        if sum(parities) % 2 == 0:
            m = torch.tensor(parities)
            j = (2 * m + coset).where((m == 0) | (coset == 0), -torch.ones_like(m)).int()
            kind = np.where(coset, 2, parities)
            rows = 3 * (bins.numpy() - LATTICE_MIN_BIN) + kind
            inside = quantizer.tables.lattice.integer_bits(np.zeros(8, int), rows).sum()
            total += 2 ** (inside - quantizer.bits(j, bins))
    assert total == pytest.approx(1, abs=1e-4)


residuals = st.one_of(
    st.floats(-4, 4, width=32), st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1e30, -1e30])
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(LATTICES)),
    st.lists(st.lists(st.tuples(residuals, st.integers(0, NUM_BINS - 1)), max_size=40), max_size=4),
    st.sampled_from([0.0, RDO_LAMBDA]),
    st.sampled_from([torch.uint8, torch.int64]),
)
def test_round_trip(lattice, steps, rdo_lambda, dtype):
    quantizer = Quantizer(lattice, fitted(lattice).tables, rdo_lambda)
    encoder, coded = SymbolEncoder(), []
    for step in steps:
        x, bins = torch.tensor(step).reshape(-1, 2).T
        bins = bins.to(dtype)
        coded.append((quantizer.choose(x, bins).numpy(), bins.numpy()))
        quantizer.write(*coded[-1], encoder)
    decoder = SymbolDecoder(encoder.finish())
    for j, bins in coded:
        decoded = quantizer.read(bins, decoder)
        assert decoded.dtype == np.int32
        assert decoded.tolist() == j.tolist()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(LATTICES)), st.binary(max_size=80), st.integers(0, 2**32 - 1))
def test_garbage_is_numbers_or_a_stream_error(lattice, data, seed):
    bins = np.random.default_rng(seed).integers(0, NUM_BINS, 100)
    quantizer, decoder = fitted(lattice), SymbolDecoder(data)
    try:
        j = torch.from_numpy(quantizer.read(bins, decoder))
    except StreamError:
        return
    assert j.abs().max() <= 4 * 32768 + 2
    quantizer.reconstruct(j, torch.from_numpy(bins))


def test_damage_changes_numbers(quantizer):
    x, bins = source(600)
    j = quantizer.choose(x, bins)
    data = encode(quantizer, j, bins)
    damaged = [data[:cut] for cut in range(0, len(data) - 4, 7)]
    damaged += [data[4:8] + data[:4] + data[8:], bytes([data[0], data[1] ^ 1]) + data[2:]]
    for stream in damaged:
        try:
            decoded = quantizer.read(bins.numpy(), SymbolDecoder(stream))
        except StreamError:
            continue
        assert decoded.tolist() != j.tolist()


@pytest.mark.parametrize(
    "j", [[1] * 7 + [2], [2] + [0] * 7, [1] * 7 + [-1], [0] * 8 + [1], [4 << 17] + [0] * 7]
)
def test_what_is_no_lattice_point_is_the_callers_error(j):
    bins = np.full(len(j), 30)
    with pytest.raises(ValueError):
        fitted("e8").write(np.array(j), bins, SymbolEncoder())


def test_words_are_pinned():
    """An even and an odd vector, mixed with small scalars; three left over, one of them far out."""
    even, odd = [0, 2, 0, -4, 0, 6, 2, -2], [1, -1, 3, -5, 1, 1, -1, 5]
    j = np.array([0, *even, 0, 2, *odd, 0, -2, 8, 700, 0])
    bins = np.array([0, *[14] * 8, 5, 13, *range(40, 32, -1), 9, 2, 22, 22, 22])
    encoder = SymbolEncoder()
    Quantizer("e8", parametric_tables()).write(j, bins, encoder)
    assert encoder.finish().hex() == "e601358ace31f1149470d3312b6b613f"
    encoder = SymbolEncoder()
    Quantizer("z", parametric_tables()).write(j & ~1, bins, encoder)
    assert encoder.finish().hex() == "0fa15a00cf3ac33059e89cc01f21227b"


def test_refitting_saves_bits(quantizer):
    x, bins = source(60_000, seed=3)
    start = Quantizer(quantizer.lattice.name, parametric_tables())
    first, then = ((q, q.choose(x, bins)) for q in (start, quantizer))
    losses = [
        (q.reconstruct(j, bins) / 16 - x).square().sum().item() + RDO_LAMBDA * q.bits(j, bins)
        for q, j in (first, then)
    ]
    assert losses[1] < 0.98 * losses[0]


def test_histograms_count_and_add_up():
    quantizer = fitted("e8")
    x, bins = source(2000)
    j = quantizer.choose(x, bins)
    seen = quantizer.histograms(j, bins, x)
    assert seen.counts.sum() == 2000
    np.testing.assert_array_equal(
        seen.counts.sum((0, 2)), np.bincount(bins.numpy(), minlength=NUM_BINS)
    )
    assert not seen.counts[0, :, 1::2].any()
    assert seen.counts[1, :, 1::2].any()
    assert not seen.counts[1, :LATTICE_MIN_BIN].any()
    one = (j.abs() == 2).numpy() & (bins < LATTICE_MIN_BIN).numpy()
    assert seen.offsets[0, :LATTICE_MIN_BIN, 2].sum() == pytest.approx(
        (1 - np.abs(x.numpy()[one])).sum(), rel=1e-4
    )
    twice = seen + seen
    np.testing.assert_array_equal(twice.counts, 2 * seen.counts)
    np.testing.assert_array_equal(twice.offsets, 2 * seen.offsets)


def rate_and_error(lattice, sigma, step):
    """Real bits a latent and MSE of a Gaussian source, tables fitted on other samples."""
    options = {"mean": float(np.log(sigma / step)), "spread": 0.0}
    quantizer = fitted(lattice, rounds=6, **options)
    x, bins = source(40_000, seed=9, **options)
    j = quantizer.choose(x, bins)
    error = (quantizer.reconstruct(j, bins) / 16 - x).square().mean().item() * step**2
    return 8 * len(encode(quantizer, j, bins)) / len(x), error


@pytest.mark.parametrize(("sigma", "margin"), [(1.0, 0.045), (1.5, 0.035), (2.0, 0.03)])
def test_e8_saves_rate_at_equal_error(sigma, margin):
    rate, error = rate_and_error("z", sigma, 1.0)
    (fine, low), (coarse, high) = (rate_and_error("e8", sigma, step) for step in (1.0, 1.1))
    assert low < error < high
    share = np.log(error / low) / np.log(high / low)
    assert fine + share * (coarse - fine) < (1 - margin) * rate


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree(quantizer):
    x, bins = source(20_000)
    j = quantizer.choose(x.cuda(), bins.cuda())
    assert (j.cpu() == quantizer.choose(x, bins)).float().mean() > 0.9999
    host = quantizer.reconstruct(j.cpu(), bins)
    assert torch.equal(quantizer.reconstruct(j, bins.cuda()).cpu(), host)
    assert quantizer.bits(j, bins.cuda()) == pytest.approx(quantizer.bits(j.cpu(), bins))

# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lattices import D3, D6

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import LATENT_UNITS, NUM_BINS, SIGMAS, RowTable
from lvqcodec.errors import StreamError, UsageError
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.a2 import A2
from lvqcodec.model.lattices.dn import D4
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.tables import CodingTables, added, parametric_tables
from lvqcodec.model.quantizer import LIMIT, RDO_LAMBDA, Quantizer

FIRST = E8.fit().packing.first_bin
PACKED = [name for name in LATTICES if name != "z"]


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
    tables = parametric_tables(lattice)
    for _ in range(rounds):
        quantizer = Quantizer(lattice, tables)
        tables = tables.fitted(quantizer.count(quantizer.choose(x, bins), bins, x))
    return Quantizer(lattice, tables)


@pytest.fixture(params=LATTICES)
def quantizer(request):
    return fitted(request.param)


@pytest.mark.parametrize("name", PACKED)
def test_vectors_in_order_are_lattice_points_and_the_rest_scalars(name):
    x, bins = source(1003)
    quantizer = fitted(name)
    lattice = quantizer.lattice
    j = quantizer.choose(x, bins)
    assert j.dtype == torch.int32
    high = (bins >= lattice.packing.first_bin).nonzero().squeeze(-1)
    whole = len(high) // lattice.dim * lattice.dim
    assert whole > 0 and (whole < len(high)) == (lattice.dim > 1)
    vectors = j[high[:whole]].reshape(-1, lattice.dim)
    points = type(lattice).fit().reconstruct(vectors, torch.full_like(vectors, FIRST))
    assert torch.equal(lattice.nearest(points / LATENT_UNITS), vectors)
    assert (vectors % 2 != 0).float().mean() > 0.01
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[high[:whole]] = False
    scalars = Quantizer("z", quantizer.tables)
    assert torch.equal(j[rest], scalars.choose(x[rest], bins[rest]))
    assert torch.equal(
        quantizer.reconstruct(j, bins)[rest], scalars.reconstruct(j[rest], bins[rest])
    )


@pytest.mark.parametrize("name", LATTICES)
def test_where_bits_cost_nothing_the_nearest_point_is_chosen(name):
    x, bins = source(960, mean=1.0)
    bins = bins.clamp(min=FIRST)
    quantizer = Quantizer(name, parametric_tables(name), rdo_lambda=1e-9)
    lattice = quantizer.lattice
    nearest = lattice.nearest(x.reshape(-1, lattice.dim)).flatten()
    assert torch.equal(quantizer.choose(x, bins), nearest)
    points = quantizer.reconstruct(nearest, bins) / LATENT_UNITS
    assert 0.055 < (points - x).square().mean() < 1.1 / 12  # no cell is below 0.0585


def axes(lattice):
    """Steps between the coordinates of a vector and where their tables begin, (dim,) or (1,)."""
    return lattice.unit * np.array(lattice.axes), NUM_BINS * np.arange(len(lattice.axes))


def cost(lattice, j, x, bins):
    """Squared error + lambda bits of every j (..., n) by its own reading of the tables."""
    sizes, last = np.abs(j), lattice.centroids.shape[1] - 1
    units, starts = axes(lattice)
    offset = lattice.centroids[bins + starts, np.minimum(sizes, last)] / 16
    bits = lattice.costs[bins + starts, sizes]
    return (x - j * units + np.sign(j) * offset) ** 2 + RDO_LAMBDA * bits


def test_scalar_choice_beats_all_neighbours():
    quantizer = fitted("z")
    x, bins = source(3000)
    j = quantizer.choose(x, bins).numpy()
    x, bins = x.numpy(), bins.numpy()
    steps = np.arange(-2, 3)[:, None]
    candidates = np.concatenate((np.rint(x).astype(int) + steps, 0 * steps[:1] * j))
    least = cost(quantizer.lattice, candidates, x, bins).min(0)
    chosen = cost(quantizer.lattice, j, x, bins)
    # values farther out than the nearest are never tried, though now and then a centroid is nearer
    assert (chosen <= least + 1e-5).mean() > 0.999
    assert (chosen - least).max() < 0.05
    assert (np.abs(j) < np.abs(np.rint(x))).any()


def test_e8_choice_is_exact():
    """All 6^8 points of each coset's cube around x with the right sum."""
    quantizer = fitted("e8")
    x, bins = source(4000, seed=5, mean=0.0)
    high = (bins >= FIRST).nonzero().squeeze(-1)[:64]
    x, bins = x[high], bins[high]
    chosen = quantizer.choose(x, bins).numpy().reshape(8, 8)
    plain = quantizer.lattice.nearest(x.reshape(8, 8)).numpy()
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
                total = total[..., None] + cost(quantizer.lattice, j, values[i], rows[i])
                odd = odd[..., None] ^ ((j >> 1) & 1).astype(bool)
            least = min(least, total[~odd].min())
        assert cost(quantizer.lattice, vector, values, rows).sum() == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("name", ["a2", "d4"])
def test_choice_of_even_sums_is_exact(name):
    """All points around x with the right sum."""
    quantizer = fitted(name)
    lattice = quantizer.lattice
    x, bins = source(4000, seed=5, mean=0.0)
    high = (bins >= FIRST).nonzero().squeeze(-1)[:512]
    x, bins = x[high], bins[high]
    chosen = quantizer.choose(x, bins).numpy().reshape(-1, lattice.dim)
    vectors, rows = (each.numpy().reshape(-1, lattice.dim) for each in (x, bins))
    assert (chosen != lattice.nearest(x.reshape(-1, lattice.dim)).numpy()).any()
    low = np.floor(vectors / axes(lattice)[0]).astype(int)
    least = np.full(len(low), np.inf)
    for around in itertools.product(range(-2, 4), repeat=lattice.dim):
        j = low + around
        total = np.where(j.sum(1) % 2, np.inf, cost(lattice, j, vectors, rows).sum(1))
        least = np.minimum(least, total)
    np.testing.assert_allclose(cost(lattice, chosen, vectors, rows).sum(1), least, rtol=1e-4)


@pytest.mark.parametrize("kind", [A2, D3, D4, D6])
def test_parities_of_a_vector_have_total_probability_one(kind):
    lattice, bins = kind.fit(), torch.tensor([[14, 17, 25, 15, 40, 14][: kind.dim]])
    total = 0.0
    for parities in itertools.product((0, 1), repeat=kind.dim):
        if sum(parities) % 2 == 0:
            places = bins[0].numpy() - FIRST
            places += (NUM_BINS - FIRST) * np.arange(len(kind.axes))
            rows = 2 * places + parities
            inside = lattice.rows.integer_bits(np.zeros(kind.dim, int), rows).sum()
            total += 2 ** (inside - lattice.bits(torch.tensor([parities]).int(), bins))
    assert total == pytest.approx(1, abs=1e-4)


def test_reconstructions_are_exact_in_latent_units(quantizer):
    x, bins = source(5000)
    j = quantizer.choose(x, bins)
    found = quantizer.reconstruct(j, bins)
    assert found.dtype == torch.int32
    dim = quantizer.lattice.dim
    high = np.flatnonzero(bins.numpy() >= quantizer.lattice.packing.first_bin)
    packed = {place: k % dim for k, place in enumerate(high[: len(high) // dim * dim].tolist())}
    assert quantizer.lattice.centroids.any()
    for place, (value, row) in enumerate(zip(j.tolist(), bins.tolist(), strict=True)):
        lattice = quantizer.lattice if place in packed else quantizer.tables.z
        units, starts = axes(lattice)
        axis = packed.get(place, 0) % len(units)
        last = lattice.centroids.shape[1] - 1
        shift = 4 * int(lattice.centroids[row + starts[axis], min(abs(value), last)])
        size = round(LATENT_UNITS * units[axis] * abs(value)) - shift
        assert found[place] == (size if value > 0 else -size)
    outliers = quantizer.choose(torch.tensor([1e9, -1e9]), torch.zeros(2, dtype=torch.int64))
    assert outliers.tolist() == [LIMIT, -LIMIT]


def test_centroids_lower_the_error(quantizer):
    x, bins = source(60_000)
    j = quantizer.choose(x, bins)
    name = quantizer.lattice.name
    moved, plain = (
        (Quantizer(name, tables).reconstruct(j, bins) / LATENT_UNITS - x).square().mean()
        for tables in (quantizer.tables, parametric_tables(name))
    )
    assert moved < plain * 0.999


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
        j, bins = torch.tensor([value], dtype=torch.int32), torch.tensor([10])
        exact = quantizer.tables.z.rows.integer_bits(np.array([value]), bins.numpy())[0]
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
            rows = 3 * (bins.numpy() - FIRST) + kind
            inside = quantizer.lattice.rows.integer_bits(np.zeros(8, int), rows).sum()
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
    assert j.abs().max() <= getattr(quantizer.lattice, "period", 1) * (32768 + 1)
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
    "j", [[1] * 7 + [2], [2] + [0] * 7, [1] * 7 + [-1], [4 << 17] + [0] * 7, [0] * 8 + [1 << 16]]
)
def test_what_is_no_lattice_point_is_the_callers_error(j):
    bins = np.full(len(j), 30)
    with pytest.raises(ValueError):
        fitted("e8").write(np.array(j), bins, SymbolEncoder())


def test_words_are_pinned():
    """An even and an odd vector, mixed with small scalars; three left over, one of them far out."""
    even, odd = [0, 2, 0, -4, 0, 6, 2, -2], [1, -1, 3, -5, 1, 1, -1, 5]
    j = np.array([0, *even, 0, 1, *odd, 0, -1, 4, 350, 0])
    bins = np.array([0, *[14] * 8, 5, 13, *range(40, 32, -1), 9, 2, 22, 22, 22])
    encoder = SymbolEncoder()
    Quantizer("e8", parametric_tables()).write(j, bins, encoder)
    assert encoder.finish().hex() == "e601358ace31f1149470d3312b6b613f"
    encoder = SymbolEncoder()
    whole = np.array([0, *even, 0, 2, *odd, 0, -2, 8, 700, 0]) // 2  # as scalars
    Quantizer("z", parametric_tables()).write(whole, bins, encoder)
    assert encoder.finish().hex() == "0fa15a00cf3ac33059e89cc01f21227b"


def test_words_of_d4_are_pinned():
    j = np.array([0, 2, 0, -4, 0, 0, 1, 1, -5, 3, 0, -1, 4, 350, 0])
    bins = np.array([0, *[14] * 4, 5, *range(40, 36, -1), 9, 2, 22, 22, 22])
    encoder = SymbolEncoder()
    Quantizer("d4", parametric_tables("d4")).write(j, bins, encoder)
    assert encoder.finish().hex() == "9994daa5ebe097f54a9487e2"


def test_words_of_a2_are_pinned():
    """Odd and even vectors, small scalars between; one left over."""
    j = np.array([0, 1, -3, 0, 2, 4, -6, 0, 0, 5, 1, -1, 350])
    bins = np.array([0, 14, 15, 5, *range(40, 36, -1), 9, 20, 21, 3, 22])
    encoder = SymbolEncoder()
    Quantizer("a2", parametric_tables("a2")).write(j, bins, encoder)
    assert encoder.finish().hex() == "058d5bd2fbb5167b0e8c9d4c"


def test_refitting_saves_bits(quantizer):
    x, bins = source(60_000, seed=3)
    name = quantizer.lattice.name
    start = Quantizer(name, parametric_tables(name))
    first, then = ((q, q.choose(x, bins)) for q in (start, quantizer))
    losses = [
        (q.reconstruct(j, bins) / LATENT_UNITS - x).square().sum().item()
        + RDO_LAMBDA * q.bits(j, bins)
        for q, j in (first, then)
    ]
    assert losses[1] < 0.98 * losses[0]


@pytest.mark.parametrize("name", PACKED)
def test_counts_are_of_what_was_chosen_and_add_up(name):
    quantizer = fitted(name)
    lattice = quantizer.lattice
    x, bins = source(2000)
    j = quantizer.choose(x, bins)
    seen = quantizer.count(j, bins, x)
    assert set(seen) == {"z", name}
    counts = [seen[key]["counts"] for key in ("z", name)]
    counts[1] = counts[1].reshape(-1, *counts[0].shape[:1], counts[1].shape[-1]).sum(0)  # of axes
    total = sum(c.sum(1) for c in counts)
    np.testing.assert_array_equal(total, np.bincount(bins.numpy(), minlength=NUM_BINS))
    assert not counts[1][: lattice.packing.first_bin].any() and counts[1][:, 1::2].any()
    assert counts[1].sum() % lattice.dim == 0
    low = (bins < lattice.packing.first_bin).numpy()
    one = (j.abs() == 1).numpy() & low
    assert seen["z"]["offsets"][: lattice.packing.first_bin, 1].sum() == pytest.approx(
        (1 - np.abs(x.numpy()[one])).sum(), rel=1e-4
    )
    twice = added(seen, seen)
    for key, arrays in seen.items():
        for part, array in arrays.items():
            np.testing.assert_array_equal(twice[key][part], 2 * array)
    assert added({}, seen).keys() == added(seen, {}).keys() == seen.keys()


# rows of their own


OWN = RowTable.from_rows(
    [
        np.array([0.02, 0.03, 0.05, 0.1, 0.6, 0.15, 0.05]),  # over -2..3: mostly 2
        np.array([0.2, 0.78, 0.02]),  # -1 and 0
    ],
    [2, 1],
)


@functools.cache
def with_own(name):
    return Quantizer(name, dataclasses.replace(fitted(name).tables, own=OWN))


def mixed_source(count=4000, seed=7):
    """Latents of all bins and, every third, of rows of their own."""
    x, bins = source(count, seed)
    bins[::3] = NUM_BINS + torch.arange(len(bins[::3])) % 2
    rng = np.random.default_rng(seed)
    own = np.where(bins[::3] == NUM_BINS, rng.normal(1.8, 0.7, len(bins[::3])), -0.3)
    x[::3] = torch.from_numpy(own).float()
    x[30], x[33] = 700.25, -40.0  # far outside of their rows
    return x, bins


@pytest.mark.parametrize("name", LATTICES)
def test_own_rows_leave_the_other_latents_as_they_were(name):
    x, bins = mixed_source()
    own, plain = with_own(name), fitted(name)
    j = own.choose(x, bins)
    rest = bins < NUM_BINS
    assert torch.equal(j[rest], plain.choose(x[rest], bins[rest]))
    found = own.reconstruct(j, bins)
    assert torch.equal(found[rest], plain.reconstruct(j[rest], bins[rest]))
    assert torch.equal(found[~rest], LATENT_UNITS * j[~rest])  # no centroids


@pytest.mark.parametrize("name", LATTICES)
def test_own_rows_are_written_read_and_priced(name):
    quantizer = with_own(name)
    x, bins = mixed_source()
    j = quantizer.choose(x, bins)
    data = encode(quantizer, j, bins)
    assert quantizer.read(bins.numpy(), SymbolDecoder(data)).tolist() == j.tolist()
    assert quantizer.bits(j, bins) == pytest.approx(8 * len(data), rel=0.002, abs=64)
    own = bins >= NUM_BINS
    exact = OWN.integer_bits(j[own].numpy(), (bins[own] - NUM_BINS).numpy()).sum()
    assert quantizer.bits(j[own], bins[own]) == pytest.approx(exact, abs=2.5)
    with pytest.raises(ValueError):
        quantizer.write(np.array([0]), np.array([NUM_BINS + 2]), SymbolEncoder())


def test_own_rows_are_chosen_from_by_rate_and_error():
    quantizer, values = with_own("z"), np.arange(-6, 7)
    x = torch.linspace(-4, 5, 901)
    for row in range(2):
        bins = torch.full((len(x),), NUM_BINS + row)
        bits = OWN.integer_bits(values, np.full(len(values), row))
        loss = (x.numpy()[:, None] - values) ** 2 + RDO_LAMBDA * bits
        j = quantizer.choose(x, bins).numpy()
        assert (loss[np.arange(len(x)), j + 6] <= loss.min(1) + 1e-5).mean() > 0.97
        assert (j != np.rint(x.numpy())).any()


def test_own_rows_are_refitted_to_their_counts_and_stored():
    quantizer = with_own("e8")
    rng = np.random.default_rng(0)
    values = np.where(rng.random(20_000) < 0.75, 0, rng.integers(-2, 5, 20_000))  # 4 escapes
    bins, j = torch.full((len(values),), NUM_BINS), torch.from_numpy(values).int()
    seen = quantizer.count(j, bins, j.float())
    assert seen["z"]["own"].sum() == len(values) and not seen["z"]["counts"].any()
    tables = quantizer.tables.fitted(seen)
    shares = np.bincount(values + 2) / len(values)
    np.testing.assert_allclose(tables.own.probs[0, :7], shares, atol=0.003)
    np.testing.assert_allclose(tables.own.probs[1], OWN.probs[1], rtol=1e-6)
    arrays = tables.to_arrays()
    assert {"own.probs", "own.sizes", "own.offsets"} < arrays.keys()
    again = CodingTables.from_arrays(arrays)
    assert {k: a.tobytes() for k, a in again.to_arrays().items()} == {
        k: a.tobytes() for k, a in arrays.items()
    }
    assert tables.least_bits <= quantizer.tables.own.least_bits.min() * 1.1


def test_lattices_that_there_are_no_rows_for():
    tables = CodingTables(parametric_tables().z)
    with pytest.raises(UsageError, match=r"no rows for lattice 'e8'; .* refit NAME .*--lattice e8"):
        Quantizer("e8", tables)
    with pytest.raises(UsageError, match="unknown lattice 'k12'; choose one of z, e8"):
        Quantizer("k12", tables)


def rate_and_error(lattice, sigma, step):
    """Real bits a latent and MSE of a Gaussian source, tables fitted on other samples."""
    options = {"mean": float(np.log(sigma / step)), "spread": 0.0}
    quantizer = fitted(lattice, rounds=6, **options)
    x, bins = source(40_000, seed=9, **options)
    j = quantizer.choose(x, bins)
    error = (quantizer.reconstruct(j, bins) / LATENT_UNITS - x).square().mean().item() * step**2
    return 8 * len(encode(quantizer, j, bins)) / len(x), error


@pytest.mark.parametrize(
    ("lattice", "sigma", "margin"),
    [
        ("e8", 1.0, 0.045),
        ("e8", 1.5, 0.035),
        ("e8", 2.0, 0.03),
        ("d4", 1.0, 0.025),
        ("d4", 2.0, 0.015),
        ("bw16", 1.0, 0.06),
        ("bw16", 2.0, 0.04),
        ("a2", 1.0, 0.01),
        ("a2", 2.0, 0.005),
        ("leech", 1.0, 0.075),
    ],
)
def test_lattices_save_rate_at_equal_error(lattice, sigma, margin):
    rate, error = rate_and_error("z", sigma, 1.0)
    (fine, low), (coarse, high) = (rate_and_error(lattice, sigma, step) for step in (1.0, 1.1))
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

# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest

from lvqcodec.coding.tables import (
    EDGE,
    LATTICE_CLASSES,
    LATTICE_MIN_BIN,
    LOG_ONE,
    MAX_CENTROID,
    NUM_BINS,
    RATIO_ONE,
    SIGMAS,
    CodingTables,
    Histograms,
    RowTable,
    fit_tables,
    parametric_tables,
)
from lvqcodec.errors import ModelMismatch


@pytest.fixture(scope="module")
def tables():
    return parametric_tables()


def small_table():
    return RowTable.from_rows([np.array([1.0, 2.0, 1.0]), np.array([3.0, 1.0])], [1, 0])


def test_bins():
    assert len(SIGMAS) == NUM_BINS == 64
    assert (SIGMAS[0], SIGMAS[-1]) == pytest.approx((0.11, 64.0))
    assert SIGMAS[LATTICE_MIN_BIN - 1] < 0.42 <= SIGMAS[LATTICE_MIN_BIN]


def test_parametric_scalar_rows_are_logistic_cells(tables):
    for index in (0, 14, 40):
        scale = SIGMAS[index] * math.sqrt(3) / math.pi
        offset = tables.scalar.offsets[index]
        for value in range(-3, 4):
            edges = [1 / (1 + math.exp(-(value + side) / scale)) for side in (-0.5, 0.5)]
            expected = max(edges[1] - edges[0], 2.0**-20)
            assert tables.scalar.probs[index, value + offset] == pytest.approx(expected, rel=2e-3)


def test_rows_are_symmetric_short_and_never_zero(tables):
    rng = np.random.default_rng(0)
    seen = Histograms(rng.poisson(3, (2, NUM_BINS, EDGE + 1)), np.zeros((2, NUM_BINS, EDGE + 1)))
    for fitted in (tables, fit_tables(seen)):
        assert fitted.scalar.sizes.max() <= 513
        for row, size in zip(fitted.scalar.probs, fitted.scalar.sizes, strict=True):
            np.testing.assert_array_equal(row[: size - 1], row[: size - 1][::-1])
            assert row[:size].min() > 2.0**-21
        lattice = fitted.lattice.probs
        for index in range(0, len(lattice), LATTICE_CLASSES):
            size = fitted.lattice.sizes[index]
            np.testing.assert_array_equal(
                lattice[index, : size - 1], lattice[index, size - 2 :: -1]
            )
            # 4 q + 2 and -(4 q + 2) are q and -q - 1
            np.testing.assert_array_equal(
                lattice[index + 1, : size - 2], lattice[index + 1, size - 3 :: -1]
            )


def test_arrays_round_trip_bit_for_bit(tables):
    again = CodingTables.from_arrays(tables.to_arrays())
    for name, array in tables.to_arrays().items():
        assert array.dtype == again.to_arrays()[name].dtype
        np.testing.assert_array_equal(array, again.to_arrays()[name])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("probs", lambda a: a.astype(np.float64)),
        ("probs", lambda a: a * np.float32(1.01)),
        ("probs", lambda a: np.where(a == a[0, 0], np.float32(np.nan), a)),
        ("probs", lambda a: np.where(a == a[0, 0], np.float32(-0.25), a)),
        ("probs", lambda a: a + np.float32(1e-6)),  # the padding
        ("probs", lambda a: a[0]),
        ("sizes", lambda a: a + 1),
        ("sizes", lambda a: a * 0),
        ("sizes", lambda a: a[:1]),
        ("offsets", lambda a: a[:1]),
        ("offsets", lambda a: a + (1 << 20)),
        ("offsets", lambda a: a.astype(np.int64)),
    ],
)
def test_damaged_rows(name, change):
    arrays = small_table().to_arrays()
    RowTable.from_arrays(arrays)
    with pytest.raises(ModelMismatch):
        RowTable.from_arrays(arrays | {name: change(arrays[name])})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parity_ratio", lambda a: a + RATIO_ONE),
        ("parity_ratio", lambda a: a.astype(np.float32)),
        ("coset_ratio", lambda a: a[1:]),
        ("coset_ratio", lambda a: a - (1 << 21)),
        ("centroids", lambda a: a + np.int8(1)),
        ("centroids", lambda a: a.astype(np.int16)),
        ("centroids", lambda a: np.full_like(a, MAX_CENTROID + 1)),
        ("bernoulli.sizes", lambda a: a + 1),
    ],
)
def test_damaged_tables(tables, name, change):
    arrays = tables.to_arrays()
    with pytest.raises(ModelMismatch):
        CodingTables.from_arrays(arrays | {name: change(arrays[name])})


def test_missing_unknown_and_exchanged_arrays(tables):
    arrays = tables.to_arrays()
    with pytest.raises(ModelMismatch, match="coset_ratio"):
        CodingTables.from_arrays({k: v for k, v in arrays.items() if k != "coset_ratio"})
    with pytest.raises(ModelMismatch, match="extra"):
        CodingTables.from_arrays(arrays | {"extra": arrays["coset_ratio"]})
    exchanged = {k.replace("scalar", "lattice"): v for k, v in arrays.items() if "scalar" in k}
    with pytest.raises(ModelMismatch):
        CodingTables.from_arrays(arrays | exchanged)


def test_integer_bits_by_hand():
    table = small_table()  # row 0: -1 and 0 with 1/4 and 1/2, escape 1/4
    values = np.array([-1, 0, 1, -2, 2, 3, -5])
    expected = [2, 1, 2 + 2, 2 + 2, 2 + 4, 2 + 4, 2 + 6]
    np.testing.assert_allclose(table.integer_bits(values, np.zeros(7, int)), expected)
    assert np.isinf(table.bits[1, 2])


def counts_of(kind, index, sizes, counts):
    seen = Histograms.empty()
    seen.counts[kind, index, sizes] = counts
    return seen


def test_unseen_bins_keep_the_parametric_row(tables):
    fitted = fit_tables(counts_of(0, 30, [0, 2], [1000, 500]))
    for index in (0, 29, 31, 63):
        np.testing.assert_array_equal(fitted.scalar.probs[index], tables.scalar.probs[index])
    np.testing.assert_array_equal(fitted.lattice.probs, tables.lattice.probs)
    assert not np.array_equal(fitted.scalar.probs[30], tables.scalar.probs[30])


@pytest.mark.parametrize("number", [300, 10_000, 1_000_000])
def test_fitted_row_is_near_the_truth(number):
    index, rng = 35, np.random.default_rng(1)  # sigma 3.8
    values = np.rint(rng.laplace(0, 2.0, number)).astype(int)  # narrower, of another shape
    seen = Histograms.empty()
    np.add.at(seen.counts, (0, index, np.abs(2 * values)), 1)
    table = fit_tables(seen).scalar
    fresh = np.rint(rng.laplace(0, 2.0, 100_000)).astype(int)
    sizes = np.abs(fresh)
    share = np.where(sizes == 0, 1 - math.exp(-0.25), np.exp(-sizes / 2) * math.sinh(0.25))
    ideal = -np.log2(share).mean()
    cost = table.integer_bits(fresh, np.full(len(fresh), index)).mean()
    assert cost < ideal * {300: 1.005, 10_000: 1.0005, 1_000_000: 1.0002}[number]


def test_a_single_outlier_does_not_dent_the_tail():
    index, sizes = 45, 2 * np.arange(-512, 513)
    counts = np.rint(1000 * np.exp(-np.abs(sizes) / SIGMAS[index])).astype(int)
    counts[512 + 45] = 1  # alone among zeros
    seen = Histograms.empty()
    np.add.at(seen.counts, (0, index, np.abs(sizes)), counts)
    row = fit_tables(seen).scalar.probs[index]
    radius = (np.count_nonzero(row) - 2) // 2
    assert (np.diff(row[radius : 2 * radius + 1]) < 0).all()


@pytest.mark.parametrize(("ratio", "coset"), [(0.9, -0.7), (0.4, -0.05), (-0.05, 0.02)])
def test_class_ratios_are_recovered_from_vector_moments(ratio, coset):
    weights = {0: (1 + ratio) / 2, 1: (1 - ratio) / 2}
    counts, half = np.zeros(3), 2.0 ** (8 * coset) / 2
    for parities in itertools.product((0, 1), repeat=8):
        if sum(parities) % 2 == 0:
            mass = math.prod(weights[parity] for parity in parities)
            counts[0] += mass * parities.count(0)
            counts[1] += mass * parities.count(1)
    counts[2] = 8 * half
    counts = np.rint(1e9 * counts / counts.sum()).astype(int)
    fitted = fit_tables(counts_of(1, LATTICE_MIN_BIN + 5, [0, 2, 1], counts))
    assert fitted.parity_ratio[5] / RATIO_ONE == pytest.approx(ratio, abs=2e-4)
    assert fitted.coset_ratio[5] / LOG_ONE == pytest.approx(coset, abs=2e-3)


def test_centroids_are_mean_offsets_rounded_and_limited():
    seen = Histograms.empty()
    seen.counts[:, 20, [0, 2, 4, 900]] = 100_000
    seen.offsets[:, 20, 0] = 5000  # never moves
    seen.offsets[:, 20, 2] = 3 / 16 * 100_000
    seen.offsets[:, 20, 4] = -2 / 16 * 100_000
    seen.offsets[:, 20, 900] = 100_000
    centroids = fit_tables(seen).centroids
    assert centroids[0, 20].tolist() == [0, 0, 3, 0, -2, *[0] * 10, MAX_CENTROID]
    assert not centroids[:, 21].any()


def test_costs_are_minus_log2_of_the_masses(tables):
    costs, index = tables.costs, LATTICE_MIN_BIN + 3
    scalar = 2.0 ** -costs[0, index, ::2].astype(float)
    assert scalar[0] + 2 * scalar[1:20].sum() == pytest.approx(1, abs=1e-3)
    masses = 2.0 ** -costs[1, index].astype(float)
    assert masses[0] + 2 * masses[2:40:2].sum() == pytest.approx(1, abs=1e-3)
    half = 2 * masses[1:40:2].sum()
    assert half == pytest.approx(2.0 ** (tables.coset_ratio[3] / LOG_ONE), rel=1e-3)
    even, odd = masses[0] + 2 * masses[4:40:4].sum(), 2 * masses[2:40:4].sum()
    assert even - odd == pytest.approx(tables.parity_ratio[3] / RATIO_ONE, abs=1e-3)

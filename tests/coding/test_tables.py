# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest

from lvqcodec.coding.fitting import MAX_CENTROID, refit_rows
from lvqcodec.coding.rows import NUM_BINS, SIGMAS, RowTable
from lvqcodec.errors import ModelMismatch
from lvqcodec.model.lattices.construction_b import LOG_ONE
from lvqcodec.model.lattices.e8 import E8
from lvqcodec.model.lattices.parity import RATIO_ONE
from lvqcodec.model.lattices.tables import CodingTables, parametric_tables
from lvqcodec.model.lattices.z import Z

FIRST = E8.fit().packing.first_bin


def empty(lattice):
    """Counts of nothing."""
    shape = (NUM_BINS, lattice.edge + 1)
    return {"counts": np.zeros(shape, int), "offsets": np.zeros(shape)}


@pytest.fixture(scope="module")
def tables():
    return parametric_tables()


def small_table():
    return RowTable.from_rows([np.array([1.0, 2.0, 1.0]), np.array([3.0, 1.0])], [1, 0])


def test_bins():
    assert len(SIGMAS) == NUM_BINS == 64
    assert (SIGMAS[0], SIGMAS[-1]) == pytest.approx((0.11, 64.0))
    assert SIGMAS[FIRST - 1] < 0.42 <= SIGMAS[FIRST]


def test_parametric_scalar_rows_are_logistic_cells(tables):
    for index in (0, 14, 40):
        scale = SIGMAS[index] * math.sqrt(3) / math.pi
        offset = tables.z.rows.offsets[index]
        for value in range(-3, 4):
            edges = [1 / (1 + math.exp(-(value + side) / scale)) for side in (-0.5, 0.5)]
            expected = max(edges[1] - edges[0], 2.0**-20)
            assert tables.z.rows.probs[index, value + offset] == pytest.approx(expected, rel=2e-3)


def test_rows_are_symmetric_short_and_never_zero(tables):
    rng = np.random.default_rng(0)
    seen = {one.name: empty(one) for one in (Z, E8)}
    for counts in seen.values():
        counts["counts"] = rng.poisson(3, counts["counts"].shape)
    for fitted in (tables, tables.fitted(seen)):
        scalar, lattice = fitted.z.rows, fitted.others["e8"].rows
        assert scalar.sizes.max() <= 513
        for row, size in zip(scalar.probs, scalar.sizes, strict=True):
            np.testing.assert_array_equal(row[: size - 1], row[: size - 1][::-1])
            assert row[:size].min() > 2.0**-21
        for index in range(0, len(lattice.probs), len(E8.offsets)):
            size, row, next_row = lattice.sizes[index], *lattice.probs[index : index + 2]
            np.testing.assert_array_equal(row[: size - 1], row[size - 2 :: -1])
            # 4 q + 2 and -(4 q + 2) are q and -q - 1
            np.testing.assert_array_equal(next_row[: size - 2], next_row[size - 3 :: -1])


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


def counts_of(lattice, index, sizes, counts):
    seen = empty(lattice)
    seen["counts"][index, sizes] = counts
    return seen


def test_unseen_bins_keep_the_parametric_row(tables):
    fitted = tables.fitted({"z": counts_of(Z, 30, [0, 1], [1000, 500])})
    for index in (0, 29, 31, 63):
        np.testing.assert_array_equal(fitted.z.rows.probs[index], tables.z.rows.probs[index])
    assert not np.array_equal(fitted.z.rows.probs[30], tables.z.rows.probs[30])
    np.testing.assert_array_equal(fitted.others["e8"].rows.probs, tables.others["e8"].rows.probs)


@pytest.mark.parametrize("number", [300, 10_000, 1_000_000])
def test_fitted_row_is_near_the_truth(number):
    index, rng = 35, np.random.default_rng(1)  # sigma 3.8
    values = np.rint(rng.laplace(0, 2.0, number)).astype(int)  # narrower, of another shape
    seen = empty(Z)
    np.add.at(seen["counts"], (index, np.abs(values)), 1)
    table = Z.fit(seen).rows
    fresh = np.rint(rng.laplace(0, 2.0, 100_000)).astype(int)
    sizes = np.abs(fresh)
    share = np.where(sizes == 0, 1 - math.exp(-0.25), np.exp(-sizes / 2) * math.sinh(0.25))
    ideal = -np.log2(share).mean()
    cost = table.integer_bits(fresh, np.full(len(fresh), index)).mean()
    assert cost < ideal * {300: 1.005, 10_000: 1.0005, 1_000_000: 1.0002}[number]


def test_a_single_outlier_does_not_dent_the_tail():
    index, values = 45, np.arange(-512, 513)
    counts = np.rint(1000 * np.exp(-2 * np.abs(values) / SIGMAS[index])).astype(int)
    counts[512 + 45] = 1  # alone among zeros
    seen = empty(Z)
    np.add.at(seen["counts"], (index, np.abs(values)), counts)
    row = Z.fit(seen).rows.probs[index]
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
    fitted = E8.fit(counts_of(E8, FIRST + 5, [0, 2, 1], counts))
    assert fitted.parity_ratio[5] / RATIO_ONE == pytest.approx(ratio, abs=2e-4)
    assert fitted.coset_ratio[5] / LOG_ONE == pytest.approx(coset, abs=2e-3)


@pytest.mark.parametrize("lattice", [Z, E8])
def test_centroids_are_mean_offsets_rounded_and_limited(lattice):
    seen = counts_of(lattice, 20, [0, 2, 4, 450], 100_000)
    seen["offsets"][20, 0] = 5000  # never moves
    seen["offsets"][20, 2] = 3 / 16 * 100_000
    seen["offsets"][20, 4] = -2 / 16 * 100_000
    seen["offsets"][20, 450] = 100_000
    centroids = lattice.fit(seen).centroids
    rest = [0] * (lattice.num_centroids - 6)
    assert centroids[20].tolist() == [0, 0, 3, 0, -2, *rest, MAX_CENTROID]
    assert not centroids[21].any()


def test_costs_are_minus_log2_of_the_masses(tables):
    e8, index = tables.others["e8"], FIRST + 3
    scalar = 2.0 ** -tables.z.costs[index].astype(float)
    assert scalar[0] + 2 * scalar[1:20].sum() == pytest.approx(1, abs=1e-3)
    masses = 2.0 ** -e8.costs[index].astype(float)
    assert masses[0] + 2 * masses[2:40:2].sum() == pytest.approx(1, abs=1e-3)
    half = 2 * masses[1:40:2].sum()
    assert half == pytest.approx(2.0 ** (e8.coset_ratio[3] / LOG_ONE), rel=1e-3)
    even, odd = masses[0] + 2 * masses[4:40:4].sum(), 2 * masses[2:40:4].sum()
    assert even - odd == pytest.approx(e8.parity_ratio[3] / RATIO_ONE, abs=1e-3)


def test_refitted_rows_are_shares_where_much_was_counted_and_the_old_ones_elsewhere():
    table, counts = small_table(), np.zeros((2, 9), int)  # over -4..4
    counts[0, [3, 4, 5, 8]] = 400_000, 300_000, 200_000, 100_000  # 1 and more are escapes
    fitted = refit_rows(table, counts)
    np.testing.assert_allclose(fitted.probs[0], [0.4, 0.3, 0.3], atol=1e-4)
    np.testing.assert_allclose(fitted.probs[1], table.probs[1], rtol=1e-6)
    np.testing.assert_array_equal(fitted.offsets, table.offsets)


def test_tables_one_after_the_other_are_numbered_on():
    wide = RowTable.from_rows([np.ones(5)], [2])
    both = small_table().then(wide)
    assert both.sizes.tolist() == [3, 2, 5] and both.offsets.tolist() == [1, 0, 2]
    np.testing.assert_array_equal(both.probs[2], wide.probs[0])
    np.testing.assert_array_equal(both.probs[:2, :3], small_table().probs)


def test_tables_of_another_set_of_lattices_go_by_their_names():
    """Weights files name the arrays of Z and E8 as they did when there were no others."""
    alone = CodingTables(Z.fit())
    assert {name.split(".")[0] for name in alone.to_arrays()} == {"z"}
    assert CodingTables.from_arrays(alone.to_arrays()).names == ("z",)
    with pytest.raises(ModelMismatch, match="unknown 'k12'; upgrade"):
        CodingTables.from_arrays(alone.to_arrays() | {"k12.rows": np.zeros(3)})

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvqcodec.coding.rangecoder import (
    IMPLIED_ZEROS,
    MAX_INTEGER,
    SymbolDecoder,
    SymbolEncoder,
    most_bits,
    require,
)
from lvqcodec.coding.rows import RowTable
from lvqcodec.errors import StreamError
from lvqcodec.model.lattices.tables import parametric_tables

TABLE = RowTable.from_rows(
    [
        np.array([1.0, 6.0, 1.0, 0.01]),
        np.array([3.0, 1.0]),
        np.arange(1.0, 40.0),
        np.array([5.0, 0.001]),
    ],
    [1, 0, -3, 20],
)
BITS = RowTable.from_rows([np.array([1 - p, p]) for p in (0.01, 0.3, 0.5, 0.999)], [0] * 4)


def draw(rng, count, table=TABLE):
    rows = rng.integers(0, len(table.sizes), count)
    edges = np.cumsum(table.probs, axis=1)
    symbols = (rng.random(count)[:, None] * edges[rows, -1:] > edges[rows]).sum(1)
    return symbols, rows


def test_words_are_pinned():
    encoder = SymbolEncoder()
    encoder.encode(np.array([1, 0, 1, 20, 2, 0, 3]), np.array([0, 1, 0, 2, 0, 3, 0]), TABLE)
    encoder.encode_bits(np.array([0, 1, 1, 0, 1]), np.array([0, 1, 2, 2, 3]), BITS)
    values = np.array([0, -1, 2, -40, 32768, -32768, 3, 36])
    encoder.encode_integers(values, np.array([0, 0, 0, 1, 3, 0, 2, 2]), TABLE)
    assert encoder.finish().hex() == "9d1058c7aca366527b50fd7a186b5f13f3f51bd1"


def test_bytes_are_near_the_entropy():
    symbols, rows = draw(np.random.default_rng(0), 100_000)
    encoder = SymbolEncoder()
    encoder.encode(symbols, rows, TABLE)
    ideal = TABLE.bits[rows, symbols].sum(dtype=float)
    assert ideal * 0.999 <= 8 * len(encoder.finish()) <= ideal * 1.001 + 64


def test_integer_bits_tell_the_length_with_escapes():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 4, 20_000)
    values = np.rint(rng.standard_cauchy(20_000) * 3).clip(-MAX_INTEGER, MAX_INTEGER).astype(int)
    encoder = SymbolEncoder()
    encoder.encode_integers(values, rows, TABLE)
    ideal = TABLE.integer_bits(values, rows).sum()
    assert ideal * 0.999 <= 8 * len(encoder.finish()) <= ideal * 1.001 + 64


def test_rows_are_coded_in_ascending_order():
    symbols, rows = draw(np.random.default_rng(2), 500)
    together, apart = SymbolEncoder(), SymbolEncoder()
    together.encode(symbols, rows, TABLE)
    for row in range(4):
        apart.encode(symbols[rows == row], rows[rows == row], TABLE)
    assert together.finish() == apart.finish()


integers = st.one_of(
    st.integers(-5, 45), st.integers(-MAX_INTEGER, MAX_INTEGER), st.sampled_from([-32768, 32768])
)
calls = st.lists(st.lists(st.tuples(integers, st.integers(0, 3)), max_size=40), max_size=5)


@settings(max_examples=150, deadline=None)
@given(calls, st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=20))
def test_round_trip(batches, flips):
    encoder = SymbolEncoder()
    bits, bit_rows = np.array(flips, int).reshape(-1, 2).T
    pairs = [np.array(batch, int).reshape(-1, 2).T for batch in batches]
    for values, rows in pairs:
        encoder.encode_integers(values, rows, TABLE)
        encoder.encode_bits(bits, bit_rows, BITS)
    data = encoder.finish()
    for stream in (data, data + bytes(64)):  # the decoder reads zeros after the end
        decoder = SymbolDecoder(stream)
        for values, rows in pairs:
            decoded = decoder.decode_integers(rows, TABLE)
            assert decoded.dtype == np.int32
            assert decoded.tolist() == values.tolist()
            assert decoder.decode_bits(bit_rows, BITS).tolist() == bits.tolist()


def test_trailing_zero_bytes_are_dropped_and_restored():
    certain = RowTable.from_rows([np.array([1.0, 1e-7])], [0])
    zeros = np.zeros(1000, int)
    encoder = SymbolEncoder()
    encoder.encode(zeros, zeros, certain)
    assert encoder.finish() == b""
    assert not SymbolDecoder(b"").decode(zeros, certain).any()
    lengths = set()
    for count in range(300):
        symbols, rows = draw(np.random.default_rng(count), count)
        encoder = SymbolEncoder()
        encoder.encode(symbols, rows, TABLE)
        data = encoder.finish()
        lengths.add(len(data) % 4)
        assert SymbolDecoder(data).decode(rows, TABLE).tolist() == symbols.tolist()
    assert len(lengths) > 1


def test_nothing():
    none = np.empty(0, int)
    encoder, decoder = SymbolEncoder(), SymbolDecoder(b"")
    encoder.encode(none, none, TABLE)
    encoder.encode_bits(none, none, BITS)
    encoder.encode_integers(none, none, TABLE)
    assert encoder.finish() == b""
    for decoded in (
        decoder.decode(none, TABLE),
        decoder.decode_bits(none, BITS),
        decoder.decode_integers(none, TABLE),
    ):
        assert decoded.shape == (0,)
        assert decoded.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_any_integer_type(dtype):
    symbols, rows = (array.astype(dtype) for array in draw(np.random.default_rng(3), 100))
    encoder = SymbolEncoder()
    encoder.encode(symbols, rows, TABLE)
    decoder = SymbolDecoder(encoder.finish())
    assert decoder.decode(rows, TABLE).tolist() == symbols.tolist()


@pytest.mark.parametrize(
    ("values", "rows"), [([32769], [0]), ([-32769], [0]), ([0], [4]), ([0], [-1])]
)
def test_what_cannot_be_coded_is_the_callers_error(values, rows):
    with pytest.raises(ValueError):
        SymbolEncoder().encode_integers(np.array(values), np.array(rows), TABLE)


@pytest.mark.parametrize(("symbol", "row"), [(-1, 0), (4, 0), (2, 1)])
def test_symbols_that_a_row_lacks(symbol, row):
    with pytest.raises(ValueError, match="symbol"):
        SymbolEncoder().encode(np.array([symbol]), np.array([row]), TABLE)


def outcome(data, rows):
    """What decoding gives: numbers or None, no other exception than StreamError."""
    decoder = SymbolDecoder(data)
    try:
        return [*decoder.decode_integers(rows, TABLE), *decoder.decode_bits(rows, BITS)]
    except StreamError:
        return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_garbage_is_numbers_or_a_stream_error(data, seed):
    rows = np.random.default_rng(seed).integers(0, 4, 300)
    numbers = outcome(data, rows)
    assert numbers is None or max(map(abs, numbers)) <= MAX_INTEGER


def test_impossible_words_are_a_stream_error():
    with pytest.raises(StreamError, match="damaged"):
        SymbolDecoder(b"\xff" * 64).decode(np.zeros(1000, int), TABLE)


def test_too_large_an_escape_is_a_stream_error():
    wide = RowTable.from_rows([np.array([1.0, 1.0])], [0])
    shifted = RowTable.from_rows([np.array([1.0, 1.0])], [-10])  # the same symbols, values from 10
    encoder = SymbolEncoder()
    encoder.encode_integers(np.array([MAX_INTEGER]), np.array([0]), wide)
    with pytest.raises(StreamError, match="32768"):
        SymbolDecoder(encoder.finish()).decode_integers(np.array([0]), shifted)


def test_truncated_and_exchanged_words_change_the_numbers():
    symbols, rows = draw(np.random.default_rng(4), 400)
    encoder = SymbolEncoder()
    encoder.encode(symbols, rows, TABLE)
    data = encoder.finish()
    damaged = [data[:cut] for cut in range(0, len(data) - 4, 3)]
    damaged += [data[4:], data[4:8] + data[:4] + data[8:]]
    for stream in damaged:
        try:
            assert SymbolDecoder(stream).decode(rows, TABLE).tolist() != symbols.tolist()
        except StreamError:
            continue


@pytest.mark.parametrize("tables", [parametric_tables()])
def test_symbols_take_the_least_bits_that_are_claimed(tables):
    """Refusing short streams rests on it: in no row may the coder do better."""
    e8 = tables.others["e8"]
    for table in (tables.z.rows, e8.rows, e8.bernoulli):
        for row in range(0, len(table.sizes), 7):
            for symbol in {int(table.probs[row].argmax()), 0, int(table.sizes[row]) - 1}:
                count = 200_000 if table.probs[row, symbol] > 0.9 else 1000
                encoder = SymbolEncoder()
                encoder.encode(np.full(count, symbol), np.full(count, row), table)
                least = count * float(table.least_bits[row, symbol])
                assert 8 * len(encoder.finish()) + 8 * IMPLIED_ZEROS >= least


def test_a_stream_that_is_used_up_is_a_stream_error():
    symbols, rows = draw(np.random.default_rng(5), 400)
    encoder = SymbolEncoder()
    encoder.encode(symbols, rows, TABLE)
    decoder = SymbolDecoder(encoder.finish())
    decoder.decode(rows, TABLE)
    with pytest.raises(StreamError, match="too short"):
        for _ in range(5):
            decoder.decode(rows, TABLE)
    with pytest.raises(StreamError, match="too short"):
        require(8 * (100 + IMPLIED_ZEROS) + 1, most_bits(100))


def test_no_more_zeros_are_left_out_than_are_implied():
    """All symbols first in their rows: the coder writes nothing but zeros."""
    zeros = np.zeros(10_000, int)
    encoder = SymbolEncoder()
    encoder.encode(zeros, zeros, TABLE)
    data = encoder.finish()
    assert data == bytes(len(data)) and len(data) > 3000
    assert not SymbolDecoder(data).decode(zeros, TABLE).any()

# SPDX-License-Identifier: Apache-2.0
"""Range coding of symbols whose probabilities are rows of a stored table.

The bytes are the little-endian 32-bit words of constriction 0.5's RangeEncoder without trailing
zero bytes, of which at most IMPLIED_ZEROS are left out: its decoder reads zeros after the end, so
these restore themselves, and whoever needs more of them reads no stream of an encoder. Symbols are
coded row after row, in ascending row number, within a row in the order given; bits in the order
given. Only float32 rows with perfect=False are used: other types or settings give other bits.
An integer beyond its row is the row's escape; after all rows follow, for all escapes of the call,
the lengths n of the excess + 1 = 1xx..x in binary (n digits x), with probability 2^-(n+1), and
then the digits x and, last, the sign.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import constriction
import numpy as np
from numpy.typing import NDArray

from lvqcodec.coding.rows import Integers, RowTable
from lvqcodec.errors import StreamError

MAX_INTEGER = 1 << 15
IMPLIED_ZEROS = 32  # bytes: 2^-256 is how often an encoder has more of them

_Categorical = constriction.stream.model.Categorical
_LENGTHS = _Categorical(0.5 ** np.arange(1, 18, dtype=np.float32), perfect=False)
_PER_SYMBOL = _Categorical(perfect=False)
_DIGITS = constriction.stream.model.Uniform()
_models: WeakKeyDictionary[RowTable, list[Any]] = WeakKeyDictionary()


class SymbolEncoder:
    """Collects symbols; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: Integers, rows: Integers, table: RowTable) -> None:
        """Append symbols (M,), symbol i by row rows[i]; ValueError if a row has no such symbol."""
        order, counts = _by_row(rows, table)
        symbols = symbols.take(order)
        if ((symbols < 0) | (symbols >= np.repeat(table.sizes, counts))).any():
            raise ValueError("a symbol that its row does not have")
        self._write_rows(symbols.astype(np.int32), counts, table)

    def encode_bits(self, bits: Integers, rows: Integers, table: RowTable) -> None:
        """Append bits (M,) by rows of two symbols, in the order given: quicker for short calls."""
        _check_rows(rows, table)
        if bits.size:
            self._coder.encode(bits.astype(np.int32), _PER_SYMBOL, table.probs.take(rows, axis=0))

    def encode_integers(self, values: Integers, rows: Integers, table: RowTable) -> None:
        """Append integers (M,) by rows whose last symbol escapes; ValueError beyond +-2^15."""
        if values.size and max(-int(values.min()), int(values.max())) > MAX_INTEGER:
            raise ValueError(f"integers from {values.min()} to {values.max()} exceed {MAX_INTEGER}")
        order, counts = _by_row(rows, table)
        symbols = values.take(order).astype(np.int32) + np.repeat(table.offsets, counts)
        last = np.repeat(table.sizes - 1, counts)
        escaped = np.flatnonzero(symbols.view(np.uint32) >= last.view(np.uint32))  # below 0 as well
        escaped = escaped[np.argsort(order[escaped])]
        below, above = -symbols[escaped], symbols[escaped] - last[escaped] + 1
        symbols[escaped] = last[escaped]
        self._write_rows(symbols, counts, table)
        if escaped.size:
            excess = np.maximum(below, above)  # from 1
            length = np.searchsorted(1 << np.arange(1, 17), excess, side="right")
            digits = 2 * (excess - (1 << length)) + (below > above)
            self._coder.encode(length.astype(np.int32), _LENGTHS)
            self._coder.encode(digits.astype(np.int32), _DIGITS, _ranges(length))

    def _write_rows(self, symbols: Integers, counts: Integers, table: RowTable) -> None:
        """Append symbols (M,), counts[i] of them by row i, row after row."""
        start = 0
        for model, count in _runs(counts, table):
            self._coder.encode(symbols[start : start + count], model)
            start += count

    def finish(self) -> bytes:
        """All bytes so far; none for symbols that cost nothing."""
        words = self._coder.get_compressed()
        data = bytes(words.astype("<u4").tobytes())
        return data[: max(len(data.rstrip(b"\0")), len(data) - IMPLIED_ZEROS)]


def most_bits(size: int) -> float:
    """Bits that the symbols of a stream of `size` bytes carry at most."""
    return 8.0 * (size + IMPLIED_ZEROS)


def require(bits: float, left: float) -> None:
    """Raise StreamError for symbols that carry more bits than are left."""
    if bits > left:
        raise StreamError("the latents are too short for their picture: the file is damaged")


class SymbolDecoder:
    """Mirror of SymbolEncoder: the same calls in the same order; garbage may raise StreamError.

    Symbols that carry more bits than there are end the decoding, so that a short stream costs
    little time however many symbols are asked of it.
    """

    ended = False
    """Whether symbols were asked for that are not there: never, but see PartialDecoder."""

    known: NDArray[np.bool_]
    """Once `ended`: which of the integers that were asked for last are there."""

    def __init__(self, data: bytes) -> None:
        self._bits_left = most_bits(len(data))
        words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))

    def decode(self, rows: Integers, table: RowTable) -> NDArray[np.int32]:
        """Symbols (M,) int32, symbol i by row rows[i]; raises StreamError."""
        order, counts = _by_row(rows, table)
        symbols = np.empty(rows.size, np.int32)
        symbols[order] = self._read_rows(counts, table)
        return symbols

    def decode_bits(self, rows: Integers, table: RowTable) -> NDArray[np.int32]:
        """Bits (M,) int32 by rows of two symbols; raises StreamError."""
        _check_rows(rows, table)
        if not rows.size:
            return np.empty(0, np.int32)
        bits = self._read(_PER_SYMBOL, table.probs.take(rows, axis=0))
        self._spend(bits + np.multiply(rows, table.probs.shape[1], dtype=np.intp), table)
        return bits

    def decode_integers(self, rows: Integers, table: RowTable) -> NDArray[np.int32]:
        """Integers (M,) int32 by rows whose last symbol escapes; raises StreamError."""
        order, counts = _by_row(rows, table)
        symbols = self._read_rows(counts, table)
        values = np.empty(rows.size, np.int32)
        values[order] = symbols - np.repeat(table.offsets, counts)
        escaped = np.sort(order[symbols == np.repeat(table.sizes - 1, counts)])
        if escaped.size:
            self._read_escapes(values, escaped, table.offsets[rows[escaped]])
        return values

    def _read_escapes(self, values: Integers, escaped: Integers, offsets: Integers) -> int:
        """Add to the values of `escaped` their excess; return of how many it is there."""
        length = self._read(_LENGTHS, escaped.size)
        digits = self._read(_DIGITS, _ranges(length))
        there = len(digits)
        escaped, excess = escaped[:there], (1 << length[:there]) + (digits >> 1)
        below = -excess - offsets[:there]
        values[escaped] = np.where(digits & 1, below, values[escaped] + excess - 1)
        if np.abs(values[escaped]).max(initial=0) > MAX_INTEGER:
            raise StreamError(f"an integer beyond {MAX_INTEGER}: the file is damaged")
        return there

    def _read_rows(self, counts: Integers, table: RowTable) -> NDArray[np.int32]:
        """Symbols (M,), counts[i] of them by row i, row after row."""
        parts = [self._read(model, count) for model, count in _runs(counts, table)]
        symbols = np.concatenate([np.empty(0, np.int32), *parts])
        width = table.probs.shape[1]
        self._spend(symbols + np.repeat(np.arange(0, width * len(counts), width), counts), table)
        return symbols

    def _spend(self, places: Integers, table: RowTable) -> None:
        """Take the bits of symbols, told by their places in rows one after the other."""
        costs = table.least_bits.take(places)
        bits = float(costs.sum(dtype=np.float64))
        require(bits, self._bits_left)
        self._bits_left -= bits

    def _read(self, model: Any, argument: Any) -> NDArray[np.int32]:
        try:
            symbols: NDArray[np.int32] = self._coder.decode(model, argument)
        except Exception as error:  # constriction: AssertionError, on words no encoder writes
            raise StreamError("words that no encoder writes: the file is damaged") from error
        return symbols


class PartialDecoder(SymbolDecoder):
    """Decodes the beginning of a stream: the symbols that are the same whatever follows it.

    The larger the number that the words make, the later the symbol it falls on. So a symbol is
    certain if the least continuation, all zeros, and the greatest, all ones, agree on it. From the
    first that is not certain on symbols are -1, bits and integers 0, and `ended` and `known` tell.
    `received` counts the integers that were there.
    """

    def __init__(self, data: bytes) -> None:
        whole = data[: len(data) // 4 * 4]
        super().__init__(whole)
        # more than two words are never looked at: what they leave open is more than any symbol
        words = np.frombuffer(whole + b"\xff" * 8, "<u4")
        self._greatest = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))
        self.received = 0

    def _read_rows(self, counts: Integers, table: RowTable) -> NDArray[np.int32]:
        """Do as before, -1 for symbols that are not there."""
        symbols, start = np.full(counts.sum(), -1, np.int32), 0
        for model, count in _runs(counts, table):
            found = self._read(model, count)
            symbols[start : start + len(found)] = found
            start += count
            if self.ended:
                break
        return symbols

    def decode_bits(self, rows: Integers, table: RowTable) -> NDArray[np.int32]:
        """Bits (M,) int32, 0 for those that are not there; raises StreamError."""
        _check_rows(rows, table)
        bits = np.zeros(rows.size, np.int32)
        found = self._read(_PER_SYMBOL, table.probs.take(rows, axis=0))
        bits[: len(found)] = found
        return bits

    def decode_integers(self, rows: Integers, table: RowTable) -> NDArray[np.int32]:
        """Integers (M,) int32, 0 for those that are not `known`; raises StreamError."""
        symbols = self.decode(rows, table)
        self.known = symbols >= 0
        values = symbols - table.offsets[rows]
        escaped = np.flatnonzero(symbols == table.sizes[rows] - 1)
        there = self._read_escapes(values, escaped, table.offsets[rows[escaped]])
        self.known[escaped[there:]] = False
        values[~self.known] = 0
        self.received += int(self.known.sum())
        return values

    def _read(self, model: Any, argument: Any) -> NDArray[np.int32]:
        """Those of the symbols that are certain; if that is not all of them, the last ones."""
        count = argument if isinstance(argument, int) else len(argument)
        if self.ended or not count:
            return np.empty(0, np.int32)
        before = self._coder.clone(), self._greatest.clone()
        try:
            symbols = super()._read(model, argument)
            others = self._greatest.decode(model, argument)
        except Exception:
            return self._read_halves(model, argument, count, before)
        same = symbols == others
        self.ended = not same.all()
        return symbols[: same.argmin()] if self.ended else symbols

    def _read_halves(
        self, model: Any, argument: Any, count: int, before: tuple[Any, Any]
    ) -> NDArray[np.int32]:
        """Do as `_read` where decoding all at once fails, at the last certain symbol or later."""
        self._coder, self._greatest = before
        if count == 1:
            super()._read(model, argument)  # zeros lead to no symbol only where nothing does
            self.ended = True
            return np.empty(0, np.int32)
        half = count // 2
        if isinstance(argument, int):
            parts = [half, count - half]
        else:
            parts = [argument[:half], argument[half:]]
        return np.concatenate([self._read(model, part) for part in parts])


def _check_rows(rows: Integers, table: RowTable) -> None:
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < len(table.sizes):
        raise ValueError(f"rows {rows.min()} to {rows.max()} of a table of {len(table.sizes)}")


def _by_row(rows: Integers, table: RowTable) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of coding, and how many symbols each row of the table has."""
    _check_rows(rows, table)
    order = np.argsort(rows.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
    return order, np.bincount(rows, minlength=len(table.sizes))


def _runs(counts: Integers, table: RowTable) -> Iterator[tuple[Any, int]]:
    """(model, count) of every row in use, in the order of coding."""
    if table not in _models:
        sized = zip(table.probs, table.sizes.tolist(), strict=True)
        _models[table] = [_Categorical(probs[:size], perfect=False) for probs, size in sized]
    models, used = _models[table], np.flatnonzero(counts)
    return zip([models[row] for row in used.tolist()], counts[used].tolist(), strict=True)


def _ranges(length: Integers) -> NDArray[np.int32]:
    """How many values the digits and the sign of an excess take."""
    return (2 << length).astype(np.int32)

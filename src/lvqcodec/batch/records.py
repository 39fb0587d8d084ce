# SPDX-License-Identifier: Apache-2.0
"""What was done, a line of JSON a file: for the report, and for a later run to go on from.

A log is appended to and never rewritten; of two lines on one thing the later holds. A line that a
killed run left unfinished, or that anything else has damaged, counts as not written.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from lvqcodec.batch.store import Store
from lvqcodec.config import QUALITIES
from lvqcodec.format.limits import MAX_SIDE
from lvqcodec.metrics import bpp

DONE, SKIPPED, KEPT, FAILED, IGNORED = "done", "skipped", "kept", "failed", "ignored"
TO_CODE = "to code"
"""Of a file that a batch would code, if it did more than look."""

_LIMITS = {
    **dict.fromkeys(("bytes_in", "bytes_out"), (0, 2**63)),
    **dict.fromkeys(("width", "height"), (1, MAX_SIDE)),
    "quality": (QUALITIES[0], QUALITIES[-1]),
    "seconds": (0, 1e9),
    "bpp": (1e-9, 1e9),
    **dict.fromkeys(("psnr", "score"), (-1e3, 1e3)),
}
"""What the numbers of a line may be, both ends included; none of them NaN or infinite."""


@dataclass(frozen=True)
class Record:
    """What became of a file. What is not known is None.

    status: done, skipped (as it was done before), kept (another file that is not replaced is in its
    place), failed, or ignored for its `kind`, which is a suffix such as ".txt", "no suffix",
    "excluded", or what is there instead of a file. `error` says why it was kept or has failed, and
    `remarks` what of the source the output does not hold.
    seconds: how long its coding took. psnr: in dB, inf as None. The digests are SHA-256 in hex: of
    the source's bytes, of the output's, and of all settings that decide what the output is.
    """

    source: str
    output: str | None
    status: str
    bytes_in: int | None = None
    bytes_out: int | None = None
    width: int | None = None
    height: int | None = None
    quality: int | None = None
    psnr: float | None = None
    seconds: float | None = None
    kind: str | None = None
    remarks: str | None = None
    error: str | None = None
    source_sha256: str | None = None
    output_sha256: str | None = None
    settings_sha256: str | None = None

    def covers(self, source_sha256: str, settings_sha256: str, *, psnr: bool) -> bool:
        """Whether it tells of this source under these settings, and of its PSNR if asked for."""
        same = (self.source_sha256, self.settings_sha256) == (source_sha256, settings_sha256)
        return same and not (psnr and self.psnr is None)

    def bpp(self, lvq_bytes: int | None) -> float | None:
        """Bits per pixel of so many bytes; None where the size is not known."""
        if lvq_bytes is None or self.width is None or self.height is None:
            return None
        return bpp(lvq_bytes, self.width, self.height)


@dataclass(frozen=True)
class Probe:
    """What a picture takes (bits a pixel) and is worth (`score`, more is better) at a quality.

    `error` says why it is not known. The digests are as in `Record`; the metric is named.
    """

    source: str
    quality: int
    metric: str
    bpp: float = 0.0
    score: float = 0.0
    error: str | None = None
    source_sha256: str | None = None
    settings_sha256: str | None = None


Line = TypeVar("Line", Record, Probe)


class Log(Generic[Line]):
    """A log of a store, and what it holds so far by key; for several threads."""

    def __init__(
        self, store: Store, name: str, kind: type[Line], key: Callable[[Line], object]
    ) -> None:
        self._store, self._name = store, name
        self._key: Callable[[Line], object] = key
        text = store.log(name)
        self._lines: dict[object, Line] = {key(line): line for line in _parse(text, kind)}
        self._torn = bool(text) and not text.endswith(b"\n")
        self._lock = threading.Lock()

    def get(self, key: object) -> Line | None:
        """Return the latest line of that key."""
        return self._lines.get(key)

    def lines(self) -> Iterable[Line]:
        """Return the latest lines of all keys."""
        return self._lines.values()

    def add(self, line: Line) -> None:
        """Remember a line."""
        with self._lock:
            # what is torn must not spoil the next line
            text = b"\n" * self._torn + to_json(asdict(line)) + b"\n"
            self._store.append(self._name, text)
            self._torn = False
            self._lines[self._key(line)] = line


def to_json(facts: dict[str, Any]) -> bytes:
    """Return one line of JSON, its end left out."""
    return json.dumps(facts, allow_nan=False).encode()


def report(records: Iterable[Record], *, decoded: bool) -> bytes:
    """Return the lines of a report in the order of the sources, `bpp` added."""
    lines = []
    for record in sorted(records, key=lambda record: record.source):
        rate = record.bpp(record.bytes_in if decoded else record.bytes_out)
        lines.append(to_json({**asdict(record), "bpp": rate}) + b"\n")
    return b"".join(lines)


def _parse(text: bytes, kind: type[Line]) -> Iterator[Line]:
    """Yield what the lines tell; those that make no sense are left out."""
    types = get_type_hints(kind)
    for line in text.splitlines():
        try:
            facts = json.loads(line)
            facts = {name: value for name, value in facts.items() if name in types}
            if all(_fits(name, value, types[name]) for name, value in facts.items()):
                yield kind(**facts)
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue


def _fits(name: str, value: object, wanted: Any) -> bool:
    """Whether a field may have a value."""
    if isinstance(value, bool) or not isinstance(value, wanted):
        return False
    low, high = _LIMITS.get(name, (-math.inf, math.inf))
    return not isinstance(value, int | float) or low <= value <= high

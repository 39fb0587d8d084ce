# SPDX-License-Identifier: Apache-2.0
"""What was done, a line of JSON a file: for the report, and for a later run to go on from.

A log is appended to and never rewritten; of two lines on one thing the later holds. A line that a
killed run left unfinished, or that anything else has damaged, counts as not written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar

from lvqcodec.batch.stores import Store
from lvqcodec.metrics import bpp

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Record:
    """What became of a file. What is not known is None.

    status: done, skipped (as it was done before) or failed (`error` says why). seconds: how long
    its coding took. psnr: in dB, inf as None. The digests are SHA-256 in hex: of the source's
    bytes, of the output's, and of all settings that decide what the output is.
    """

    source: str
    output: str
    status: str
    bytes_in: int | None = None
    bytes_out: int | None = None
    width: int | None = None
    height: int | None = None
    quality: int | None = None
    psnr: float | None = None
    seconds: float | None = None
    error: str | None = None
    source_sha256: str | None = None
    output_sha256: str | None = None
    settings_sha256: str | None = None

    def bpp(self, lvq_bytes: int | None) -> float | None:
        """Bits per pixel of so many bytes; None where the size is not known."""
        if lvq_bytes is None or self.width is None or self.height is None:
            return None
        return bpp(lvq_bytes, self.width, self.height)


@dataclass(frozen=True)
class Point:
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


Line = TypeVar("Line", Record, Point)


class Log(Generic[Line]):
    """A log of a store, and what it holds so far by key."""

    def __init__(
        self, store: Store, name: str, kind: type[Line], key: Callable[[Line], object]
    ) -> None:
        self._store, self._name = store, name
        self._key: Callable[[Line], object] = key
        text = store.log(name)
        self._lines: dict[object, Line] = {key(line): line for line in _parse(text, kind)}
        if text and not text.endswith(b"\n"):
            store.append(name, b"\n")  # so that the next line is not lost with the torn one

    def get(self, key: object) -> Line | None:
        """Return the latest line of that key."""
        return self._lines.get(key)

    def add(self, line: Line) -> None:
        """Remember a line."""
        self._lines[self._key(line)] = line
        self._store.append(self._name, to_json(asdict(line)) + b"\n")


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
    known = {field.name for field in fields(kind)}
    for line in text.splitlines():
        try:
            facts = json.loads(line)
            yield kind(**{name: value for name, value in facts.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            continue

# SPDX-License-Identifier: Apache-2.0
"""What becomes of every file: which are coded, to what, and why the others are not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec

from lvqcodec.batch.records import FAILED, IGNORED, Record
from lvqcodec.batch.store import LINK_TO_FOLDER, Entry, Store
from lvqcodec.batch.stores import relative
from lvqcodec.errors import UsageError

_NAMED = 3  # of the clashes, in the message
_EXCLUDED = "excluded"
_NO_SUFFIX = "no suffix"


@dataclass(frozen=True)
class Item:
    """A file and what becomes of it, as names in their stores.

    A budget sets the quality, and knows the PSNR in dB that it gives.
    """

    source: str
    output: str
    quality: int | None = None
    psnr: float | None = None


@dataclass
class Plan:
    """The files to code, and a record of every other one: ignored, or failed as it is no file."""

    items: list[Item] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def plan(
    source: Store,
    destination: Store,
    *,
    suffixes: Sequence[str],
    new_suffix: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_suffix: bool = False,
) -> Plan:
    """Pair every file to code with its output, the tree mirrored.

    Taken are files of the given suffixes or, instead, those that a pattern of `include` matches;
    never those of `exclude`. Patterns are gitignore's. A destination inside the source is left out.
    What would be taken by its name and is no file has failed, as has a folder that cannot be read.
    Raises UsageError if there is nothing, if two files would become one output, or if the source
    lies in the destination.
    """
    if relative(source, destination) is not None:
        raise UsageError(
            f"{source.location} lies in {destination.location}, whose files may be replaced: "
            "name another folder for the output"
        )
    inside = relative(destination, source)
    chooser = _Chooser(suffixes, include, exclude)
    taken: list[str] = []
    planned = Plan()
    for entry in source.entries():
        if inside is not None and entry.name.startswith(inside + "/"):
            continue
        record = chooser.refuse(entry)
        if record is None:
            taken.append(entry.name)
        else:
            planned.records.append(record)
    if not taken and all(record.status == IGNORED for record in planned.records):
        wanted = ", ".join(include or suffixes)
        there = spell_kinds(count_kinds(planned.records))
        raise UsageError(
            f"nothing to do: no files in {source.location} are {wanted}"
            + (f"; there are {there}" if there else "")
        )
    planned.items = _pair(taken, new_suffix, keep_suffix)
    return planned


def count_kinds(records: Sequence[Record]) -> dict[str, int]:
    """Count the files that are ignored by kind, the most frequent first."""
    kinds = Counter(record.kind or "" for record in records if record.status == IGNORED)
    return dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))


def spell_kinds(kinds: dict[str, int], most: int = 8) -> str:
    """Say what `count_kinds` returns in words: "3 .heic, 2 .txt"."""
    words = [f"{count} {kind}" for kind, count in kinds.items()]
    others = sum(list(kinds.values())[most:])
    return ", ".join(words[:most] + [f"{others} others"] * (others > 0))


class _Chooser:
    def __init__(
        self, suffixes: Sequence[str], include: Sequence[str], exclude: Sequence[str]
    ) -> None:
        try:
            self._include = GitIgnoreSpec.from_lines(include) if include else None
            self._exclude = GitIgnoreSpec.from_lines(exclude)
        except ValueError as error:
            raise UsageError(f"a pattern of --include or --exclude is wrong: {error}") from error
        self._suffixes = tuple(suffixes)

    def refuse(self, entry: Entry) -> Record | None:
        """Return the record of what is not coded, None for what is."""
        name = entry.name
        if self._exclude.match_file(name):
            return Record(name, None, IGNORED, kind=_EXCLUDED)
        if entry.problem is not None:
            why = f"cannot be read: {entry.problem}"
            return Record(name, None, FAILED, kind=entry.kind, error=why)
        if entry.kind == LINK_TO_FOLDER:
            return Record(name, None, IGNORED, kind=entry.kind)
        if self._include is None:
            wanted = name.lower().endswith(self._suffixes)
            kind = entry.kind or os.path.splitext(name)[1].lower() or _NO_SUFFIX
        else:
            wanted, kind = self._include.match_file(name), _EXCLUDED
        if not wanted:
            return Record(name, None, IGNORED, kind=kind)
        if entry.kind is not None:
            return Record(name, None, FAILED, kind=entry.kind, error=f"no file: a {entry.kind}")
        return None


def _pair(names: Sequence[str], new_suffix: str, keep_suffix: bool) -> list[Item]:
    sources = defaultdict(list)
    for name in names:
        stem = name if keep_suffix else os.path.splitext(name)[0]
        sources[stem + new_suffix].append(name)
    clashes = [(output, several) for output, several in sources.items() if len(several) > 1]
    if clashes:
        told = "; ".join(f"{' and '.join(several)} -> {name}" for name, several in clashes[:_NAMED])
        more = f"; and {len(clashes) - _NAMED} more" if len(clashes) > _NAMED else ""
        raise UsageError(
            f"several files would become one: {told}{more}; "
            "give --keep-suffix, or --exclude all but one"
        )
    return [Item(several[0], output) for output, several in sources.items()]

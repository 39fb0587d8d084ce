# SPDX-License-Identifier: Apache-2.0
"""Which files are coded, and what each becomes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from lvqcodec.batch.stores import Store, relative
from lvqcodec.errors import UsageError

_NAMED = 3  # of the clashes, in the message


@dataclass(frozen=True)
class Item:
    """A file and what becomes of it, as names in their stores.

    A budget sets the quality, and knows the PSNR in dB that it gives.
    """

    source: str
    output: str
    quality: int | None = None
    psnr: float | None = None


def plan(
    source: Store,
    destination: Store,
    *,
    suffixes: Sequence[str],
    new_suffix: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_suffix: bool = False,
) -> list[Item]:
    """Pair every file to code with its output, the tree mirrored.

    Taken are files of the given suffixes or, instead, those that a pattern of `include` matches;
    never those of `exclude`. Patterns are gitignore's. A destination inside the source is left out.
    Raises UsageError if there is nothing, if two files would become one output, or if the source
    lies in the destination.
    """
    if relative(source, destination) is not None:
        raise UsageError(
            f"{source.location} lies in {destination.location}, whose files may be replaced: "
            "name another folder for the output"
        )
    inside = relative(destination, source)
    names = source.names()
    if inside is not None:
        names = (name for name in names if not name.startswith(inside + "/"))
    chosen = _choose(names, suffixes, include, exclude)
    if not chosen:
        wanted = ", ".join(include or suffixes)
        raise UsageError(f"nothing to do: no files in {source.location} are {wanted}")
    return _pair(chosen, new_suffix, keep_suffix)


def _choose(
    names: Iterable[str], suffixes: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    try:
        wanted, unwanted = GitIgnoreSpec.from_lines(include), GitIgnoreSpec.from_lines(exclude)
    except ValueError as error:
        raise UsageError(f"a pattern of --include or --exclude is wrong: {error}") from error

    def taken(name: str) -> bool:
        if include:
            return wanted.match_file(name)
        return name.lower().endswith(tuple(suffixes))

    return [name for name in names if taken(name) and not unwanted.match_file(name)]


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

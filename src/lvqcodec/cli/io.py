# SPDX-License-Identifier: Apache-2.0
"""What the commands read and write: files, pipes and the standard streams.

An output is checked before work begins and written when it is done. A file in its place is replaced
unasked only if it is of the kind that the command writes.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import BinaryIO

import click

from lvqcodec import files
from lvqcodec.errors import FormatError, UsageError
from lvqcodec.format.container import MAGIC, MAX_HEADER_BYTES, read_header, refuse_coded
from lvqcodec.format.signatures import looks_like
from lvqcodec.suffixes import SYNONYMS, WRITTEN

_STREAMS = (("stdin", "an input file"), ("stdout", "an output file"), ("stderr", ""))


def occupy_closed_streams() -> None:
    """Open the null device in the place of standard streams that are closed.

    The next file to be opened would have their number otherwise, and what is said on stderr would
    be written into it.
    """
    for number in range(len(_STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which is given the lowest number that is free


def standard(name: str) -> BinaryIO:
    """Return the bytes of `stdin` or `stdout`; UsageError where it is closed."""
    stream = getattr(sys, name)
    if stream is None:
        raise UsageError(f"{name} is closed: name {dict(_STREAMS)[name]}")
    buffer: BinaryIO = stream.buffer
    return buffer


def is_terminal(name: str) -> bool:
    """Whether `stdout` or `stderr` is a terminal."""
    stream = getattr(sys, name)
    return stream is not None and bool(stream.isatty())


def display_name(path: str, std: str = "-") -> str:
    """Return a path as it can be printed, `std` for `-`."""
    return std if path == "-" else click.format_filename(path)


def read_file(path: str) -> bytes:
    """Read an lvq file whose header is intact; `-` is stdin. Raises FormatError, OSError."""
    with nullcontext(standard("stdin")) if path == "-" else open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
        if is_picture(head) and head:
            raise FormatError(
                f"{display_name(path, 'stdin')} is not an lvq file: it looks like"
                f" {looks_like(head)}, which `lvq encode` takes"
            )
        read_header(head)  # what is none, and may never end, is not read to its end
        return head + file.read()


def refuse_lvq(path: str) -> None:
    """Raise UnsupportedImage for a file of ours, which is no picture to encode."""
    if path != "-":
        refuse_coded(_head(path), display_name(path))


class Output:
    """Where a command puts what it makes of `source`; making one raises what is in the way.

    out: as given; None: `source` with `suffix`, or stdout if that is stdin. ours: whether a file
    that begins with these bytes may be replaced unasked. parents: missing folders are made.
    preserve: the output gets mode and times of the source.
    """

    def __init__(
        self,
        source: str,
        out: str | None,
        suffix: str,
        *,
        ours: Callable[[bytes], bool],
        overwrite: bool = False,
        parents: bool = False,
        preserve: bool = False,
    ) -> None:
        if out is None:
            out = "-" if source == "-" else os.path.splitext(source)[0] + suffix
        self.path = out
        self._source, self._parents, self._preserve = source, parents, preserve
        if out == "-":
            standard("stdout")
            if is_terminal("stdout"):
                raise UsageError(
                    "binary data is not written to a terminal: name an output file or redirect"
                    " stdout"
                )
            return
        there = os.path.exists(out)
        if there and source != "-" and os.path.exists(source) and os.path.samefile(source, out):
            raise UsageError(
                f"{display_name(out)} is both input and output: name another output file"
            )
        head = _head(out)
        self._replace = overwrite or (there and ours(head))
        if os.path.isfile(out) and not files.is_stream(out) and not self._replace:
            kind = "lvq" if is_lvq(head) else looks_like(head) or "another"
            raise UsageError(
                f"{display_name(out)} exists already, a file of {kind} kind: name another OUT, or"
                " give --overwrite to replace it"
            )
        files.check(out, parents=parents)

    @property
    def name(self) -> str:
        """The path, as it can be printed."""
        return display_name(self.path, "stdout")

    @property
    def suffix(self) -> str:
        """What names the format of a picture, that of PNG in a stream without a name."""
        suffix = os.path.splitext(self.path)[1]
        unnamed = self.path == "-" or files.is_stream(self.path)
        return ".png" if unnamed and not suffix else suffix

    def expect(self, size: int) -> None:
        """Raise UsageError if the disk has not so many bytes left."""
        if self.path != "-":
            files.check(self.path, room=size, parents=self._parents)

    def write(self, data: bytes) -> None:
        """Write all of it, or nothing at all to a file."""
        if self.path == "-":
            stream = standard("stdout")
            stream.write(data)
            stream.flush()
            return
        if self._parents:
            files.make_folders(self.path)
        files.write(
            self.path,
            data,
            replace=self._replace,
            like=_status(self._source),
            preserve=self._preserve,
        )


def is_lvq(head: bytes) -> bool:
    """Whether a file that begins so is one of ours, or has nothing in it yet."""
    return not head or head.startswith(MAGIC)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture as `decode` writes them, or empty."""
    kind = (looks_like(head) or "").lower()
    return not head or SYNONYMS.get(kind, kind) in WRITTEN


def _head(path: str) -> bytes:
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read(MAX_HEADER_BYTES)


def _status(source: str) -> os.stat_result | None:
    """What the mode of an output follows: that of its source, if that is a file."""
    try:
        status = os.fstat(0) if source == "-" else os.stat(source)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None

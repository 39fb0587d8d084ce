# SPDX-License-Identifier: Apache-2.0
"""What a place for files is to a batch, wherever it lies.

Names are relative, with `/` between their parts. In the folder `.lvq-batch` a store keeps what
`lvq batch` remembers of it, logs of lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from lvqcodec.errors import UsageError

STATE = ".lvq-batch"


PIPE, SOCKET, DEVICE, BROKEN_LINK = "pipe", "socket", "device", "broken link"


LINK_TO_FOLDER = "link to a folder"


NO_FILES = (PIPE, SOCKET, DEVICE, BROKEN_LINK)
"""What is never opened."""


class Entry(NamedTuple):
    """What a store has under a name; one of a folder ends in `/`, and is there if it is not read.

    kind: None for a file, else what it, or what it leads to, is instead. problem: why it cannot be
    read, if not for its kind.
    """

    name: str
    kind: str | None = None
    problem: str | None = None


class Content(NamedTuple):
    """The bytes of a file, and its status where there is such a thing."""

    data: bytes
    status: os.stat_result | None


class Store(Protocol):
    """A folder of files, wherever it is; its methods may be called from several threads."""

    location: str

    def entries(self) -> Iterator[Entry]:
        """Yield all that is there but `.lvq-batch`, in the order of folders and names."""

    def read(self, name: str) -> Content:
        """Return a file; raises OSError."""

    def exists(self, name: str) -> bool:
        """Whether anything has this name; UsageError for one that leads out of here."""

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of a file in hex, None if it is none or cannot be read."""

    def write(
        self,
        name: str,
        data: bytes,
        *,
        replace: bool = True,
        like: os.stat_result | None = None,
        preserve: bool = False,
    ) -> None:
        """Put a file there, whole or not at all; UsageError for a name that leads out of here.

        For the other arguments and errors see `files.write`; a link is replaced, not followed.
        """

    def log(self, name: str) -> bytes:
        """Return all that was appended to a log, nothing if there is none."""

    def append(self, name: str, line: bytes) -> None:
        """Add a line, its end included, to a log; from one thread at a time."""

    def flush(self) -> None:
        """Put the lines that are still held back into their logs."""

    def claim(self, names: Iterable[str]) -> AbstractContextManager[object]:
        """Hold the store as the only batch that writes to it, where that can be known.

        What killed ones have left beside the files of these names is removed. UsageError if nothing
        can be written there.
        """


def check_name(name: str) -> None:
    """Raise UsageError for a name that leads out of its folder."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise UsageError(f"{name!r} leads out of its folder: rename it")

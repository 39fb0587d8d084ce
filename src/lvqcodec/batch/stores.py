# SPDX-License-Identifier: Apache-2.0
"""Where files lie: a local folder, or whatever fsspec knows by a URL (s3://, gs://, memory://).

Names are relative, with `/` between their parts. In the folder `.lvq-batch` a store keeps what
`lvq batch` remembers of it (logs of lines) and files on their way.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from lvqcodec.errors import UsageError
from lvqcodec.metrics import extra

STATE = ".lvq-batch"
_FLUSH_SECONDS = 5.0  # an object store cannot append: lines go there in bundles


class Store(Protocol):
    """A folder of files, wherever it is; its methods may be called from several threads."""

    location: str

    def names(self) -> Iterator[str]:
        """Yield the name of every file, those of `.lvq-batch` left out."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raises OSError."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all; UsageError for a name that leads out of here."""

    def log(self, name: str) -> bytes:
        """Return all that was appended to a log, nothing if there is none."""

    def append(self, name: str, line: bytes) -> None:
        """Add a line, its end included, to a log; from one thread at a time."""

    def flush(self) -> None:
        """Put the lines that are still held back into their logs."""

    def claim(self) -> AbstractContextManager[object]:
        """Hold the store as the only batch that writes to it, where that can be known."""


def open_store(location: str) -> Store:
    """Return the store of a path or URL; UsageError where fsspec is needed and missing."""
    if "://" not in location:
        return LocalStore(location)
    if location.startswith("file://"):
        return LocalStore(url2pathname(urlsplit(location).path))
    return RemoteStore(location)


def relative(inner: Store, outer: Store) -> str | None:
    """Return the name that `inner` has in `outer`, "" if they are one, None if it is elsewhere."""
    if type(inner) is not type(outer):
        return None
    if isinstance(inner, LocalStore):
        try:
            path = os.path.relpath(os.path.realpath(inner.root), os.path.realpath(outer.location))
        except ValueError:  # another drive
            return None
        path = Path(path).as_posix()
        return "" if path == "." else None if path.split("/")[0] == ".." else path
    if inner.location == outer.location:
        return ""
    prefix = outer.location + "/"
    return inner.location[len(prefix) :] if inner.location.startswith(prefix) else None


class LocalStore:
    """A folder. Links to folders are not followed, neither for reading nor for writing."""

    def __init__(self, path: str) -> None:
        self.location = os.path.abspath(path)  # a worker may run in another folder
        self.root = Path(self.location)

    def names(self) -> Iterator[str]:
        """Yield the name of every file, in order."""

        def fail(error: OSError) -> None:
            raise error

        for folder, folders, files in os.walk(self.root, onerror=fail):
            folders[:] = sorted(name for name in folders if name != STATE)
            for name in sorted(files):
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Put a file there by renaming; a link of its name is replaced, not followed."""
        _check_name(name)
        root, target = os.path.realpath(self.root), self.root / name
        parent = os.path.realpath(target.parent)
        if os.path.commonpath([root, parent]) != root:
            raise UsageError(
                f"{target} would be written outside, to {parent}: remove the link that leads there"
            )
        os.makedirs(parent, exist_ok=True)
        aside = self._state() / f"{secrets.token_hex(8)}.tmp"
        try:
            aside.write_bytes(data)
            os.replace(aside, os.path.join(parent, target.name))
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def log(self, name: str) -> bytes:
        """Return a log."""
        path = self.root / STATE / name
        return path.read_bytes() if path.exists() else b""

    def append(self, name: str, line: bytes) -> None:
        """Add a line to a log."""
        with open(self._state() / name, "ab") as file:
            file.write(line)

    def flush(self) -> None:
        """Nothing is held back."""

    def claim(self) -> AbstractContextManager[object]:
        """Lock the folder against another batch, and clear away what a killed one left."""
        lock = FileLock(self._state() / "lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another lvq batch is writing to {self.location}: wait for it, or end it"
            ) from None
        for path in self._state().glob("*.tmp"):
            path.unlink()
        return held

    def _state(self) -> Path:
        state = self.root / STATE
        if state.is_symlink():
            raise UsageError(f"{state} is a link, which might lead outside: remove it")
        state.mkdir(parents=True, exist_ok=True)
        return state


class RemoteStore:
    """What fsspec knows by a URL. An object is put whole; two batches at once are not noticed."""

    def __init__(self, url: str) -> None:
        fsspec = extra("fsspec", needed_by=f"{url.partition('://')[0]}://", name="remote")
        self._files: Any
        try:
            self._files, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot open {url}: {error}") from error
        self._root = path.rstrip("/")
        self.location = url.rstrip("/")
        self._held: dict[str, list[bytes]] = {}
        self._flushed = time.monotonic()

    def names(self) -> Iterator[str]:
        """Yield the name of every object, in order."""
        for path in sorted(self._files.find(self._root)):
            name = path[len(self._root) :].lstrip("/")
            if name and STATE not in name.split("/"):
                yield name

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Put an object there."""
        _check_name(name)
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, data)

    def log(self, name: str) -> bytes:
        """Return the bundles of a log, in the order they were put."""
        try:
            found = self._files.find(f"{self._root}/{STATE}/{name}")
        except FileNotFoundError:
            return b""
        return b"".join(self._files.cat_file(path) for path in sorted(found))

    def append(self, name: str, line: bytes) -> None:
        """Add a line to a log, with those that come within seconds."""
        self._held.setdefault(name, []).append(line)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put the lines held back as an object for each log."""
        for name, lines in self._held.items():
            bundle = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
            self.write(f"{STATE}/{name}/{bundle}", b"".join(lines))
        self._held.clear()
        self._flushed = time.monotonic()

    def claim(self) -> AbstractContextManager[object]:
        """Nothing keeps another batch off."""
        return nullcontext()


def _check_name(name: str) -> None:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise UsageError(f"{name!r} leads out of its folder: rename it")

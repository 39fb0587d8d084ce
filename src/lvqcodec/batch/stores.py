# SPDX-License-Identifier: Apache-2.0
"""Where files lie: a local folder, or whatever fsspec knows by a URL (s3://, gs://, memory://).

Names are relative, with `/` between their parts. In the folder `.lvq-batch` a store keeps what
`lvq batch` remembers of it, logs of lines. Nothing in there is opened through a link.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from lvqcodec import files
from lvqcodec.errors import UsageError
from lvqcodec.metrics import extra

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE = ".lvq-batch"
_FLUSH_SECONDS = 5.0  # an object store cannot append: lines go there in bundles
_LOCK = "lock"

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

    def entries(self) -> Iterator[Entry]:
        """See `Store`; a folder that cannot be read is an entry itself, but for the first one."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.root / folder) as scanned:
                    found = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                if not folder:
                    raise
                yield Entry(folder, "folder", _reason(error))
                continue
            inner = []
            for entry in found:
                if entry.name == STATE:
                    continue
                name = folder + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(f"{name}/")
                    else:
                        yield Entry(name, _kind(entry))
                except OSError as error:
                    yield Entry(name, problem=_reason(error))
            folders += reversed(inner)

    def read(self, name: str) -> Content:
        """See `Store`."""
        with open(files.open_plain(self.root / name), "rb") as file:
            return Content(file.read(), os.fstat(file.fileno()))

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return os.path.lexists(self._target(name))

    def digest(self, name: str) -> str | None:
        """See `Store`; a link is no file."""
        try:
            with open(files.open_plain(self._target(name), follow=False), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None

    def write(
        self,
        name: str,
        data: bytes,
        *,
        replace: bool = True,
        like: os.stat_result | None = None,
        preserve: bool = False,
    ) -> None:
        """See `Store`."""
        target = self._target(name)
        os.makedirs(target.parent, exist_ok=True)
        files.write(target, data, replace=replace, like=like, preserve=preserve, follow=False)

    def log(self, name: str) -> bytes:
        """See `Store`."""
        try:
            with self._open(name, os.O_RDONLY) as descriptor, open(descriptor, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def append(self, name: str, line: bytes) -> None:
        """See `Store`; other processes may append as well."""
        self._make_state()
        with (
            self._open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor,
            open(descriptor, "ab") as file,
        ):
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # what else may mix lines over a network
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def flush(self) -> None:
        """Nothing is held back."""

    @contextmanager
    def claim(self, names: Iterable[str]) -> Iterator[None]:
        """See `Store`."""
        try:
            files.check_folder(self.root, parents=True)
            state = self._make_state()
        except OSError as error:
            raise UsageError(f"cannot write to {self.location}: {_reason(error)}") from error
        if os.path.islink(state / _LOCK):
            raise _linked(state / _LOCK)
        lock = FileLock(state / _LOCK)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another lvq batch is writing to {self.location}: wait for it"
            ) from None
        with held:
            self._sweep(names)
            yield

    def _sweep(self, names: Iterable[str]) -> None:
        for stale in (self.root / STATE).glob("*.tmp"):  # where they were once
            stale.unlink(missing_ok=True)
        for name in {name.rpartition("/")[0]: name for name in names}.values():  # one a folder
            with suppress(UsageError):  # it leads outside: its files will say so
                files.sweep(self._target(name).parent)

    def _target(self, name: str) -> Path:
        """The path of a file to write; UsageError if it is not in this folder."""
        _check_name(name)
        root, target = os.path.realpath(self.root), self.root / name
        parent = os.path.realpath(target.parent)
        if os.path.commonpath([root, parent]) != root:
            raise UsageError(
                f"{target} would be written outside, to {parent}: remove the link that leads there"
            )
        return Path(parent, target.name)

    def _make_state(self) -> Path:
        state = self.root / STATE
        if state.is_symlink():
            raise _linked(state)
        state.mkdir(parents=True, exist_ok=True)
        return state

    @contextmanager
    def _open(self, name: str, flags: int) -> Iterator[int]:
        """Open a file of the state folder, neither of them being a link."""
        state = self.root / STATE
        folder = None
        path: str | Path = state / name
        try:
            if os.open in os.supports_dir_fd:
                path, at = name, state
                folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            elif state.is_symlink():
                raise _linked(state)
            at = state / name
            descriptor = files.open_plain(path, flags, follow=False, folder=folder)
        except OSError as error:
            if os.path.islink(at):
                raise _linked(at) from error
            if isinstance(error, FileNotFoundError):
                raise
            raise UsageError(f"cannot open {at}: {_reason(error)}") from error
        finally:
            if folder is not None:
                os.close(folder)
        yield descriptor


def _linked(path: Path) -> UsageError:
    return UsageError(f"{path} is a link, which might lead outside: remove it")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Say what is no folder, see `Entry`; raises OSError."""
    if entry.is_file(follow_symlinks=False):
        return None
    try:
        mode = entry.stat().st_mode
    except OSError:
        if entry.is_symlink():
            return BROKEN_LINK
        raise
    if stat.S_ISREG(mode):
        return None
    kinds = (
        (stat.S_ISDIR, LINK_TO_FOLDER),
        (stat.S_ISFIFO, PIPE),
        (stat.S_ISSOCK, SOCKET),
    )
    return next((kind for matches, kind in kinds if matches(mode)), DEVICE)


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

    def entries(self) -> Iterator[Entry]:
        """See `Store`."""
        for path in sorted(self._files.find(self._root)):
            name = path[len(self._root) :].lstrip("/")
            if name and STATE not in name.split("/"):
                yield Entry(name)

    def read(self, name: str) -> Content:
        """See `Store`; an object has no status."""
        return Content(self._files.cat_file(f"{self._root}/{name}"), None)

    def exists(self, name: str) -> bool:
        """See `Store`."""
        _check_name(name)
        return bool(self._files.exists(f"{self._root}/{name}"))

    def digest(self, name: str) -> str | None:
        """See `Store`."""
        try:
            return hashlib.sha256(self.read(name).data).hexdigest()
        except OSError:
            return None

    def write(
        self,
        name: str,
        data: bytes,
        *,
        replace: bool = True,
        like: os.stat_result | None = None,
        preserve: bool = False,
    ) -> None:
        """See `Store`; what appears in the moment of writing is replaced."""
        if not replace and self.exists(name):
            raise files.FileInTheWay(f"{name} exists by now: it is left as it is")
        _check_name(name)
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, data)

    def log(self, name: str) -> bytes:
        """See `Store`: the bundles in the order they were put."""
        try:
            found = self._files.find(f"{self._root}/{STATE}/{name}")
        except FileNotFoundError:
            return b""
        return b"".join(self._files.cat_file(path) for path in sorted(found))

    def append(self, name: str, line: bytes) -> None:
        """See `Store`; a line waits for those that come within seconds."""
        self._held.setdefault(name, []).append(line)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """See `Store`: an object for each log."""
        for name, lines in self._held.items():
            bundle = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
            self.write(f"{STATE}/{name}/{bundle}", b"".join(lines))
        self._held.clear()
        self._flushed = time.monotonic()

    def claim(self, names: Iterable[str]) -> AbstractContextManager[object]:
        """See `Store`; nothing keeps another batch off, and nothing partial is ever left."""
        probe = f"{STATE}/probe-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"")
        except OSError as error:
            raise UsageError(f"cannot write to {self.location}: {_reason(error)}") from error
        with suppress(OSError):
            self._files.rm_file(f"{self._root}/{probe}")
        return nullcontext()


def _check_name(name: str) -> None:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise UsageError(f"{name!r} leads out of its folder: rename it")

# SPDX-License-Identifier: Apache-2.0
"""Files in a local folder; nothing that a batch keeps there is opened through a link."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lvqcodec import files
from lvqcodec.batch.store import (
    BROKEN_LINK,
    DEVICE,
    LINK_TO_FOLDER,
    PIPE,
    SOCKET,
    STATE,
    Content,
    Entry,
    check_name,
)
from lvqcodec.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_LOCK = "lock"


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
                yield Entry(folder, "folder", files.reason(error))
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
                    yield Entry(name, problem=files.reason(error))
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
            raise UsageError(f"cannot write to {self.location}: {files.reason(error)}") from error
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
        check_name(name)
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
            raise UsageError(f"cannot open {at}: {files.reason(error)}") from error
        finally:
            if folder is not None:
                os.close(folder)
        yield descriptor


def _linked(path: Path) -> UsageError:
    return UsageError(f"{path} is a link, which might lead outside: remove it")


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

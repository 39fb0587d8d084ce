# SPDX-License-Identifier: Apache-2.0
"""Files of this machine: checked before work begins, written whole or not at all.

A file that is being written lies beside its target as `.lvq-*.tmp`, locked by its writer. One
without a lock was left by a killed process, and `sweep` removes it. A stream (a pipe, a device,
`/dev/stdout`, `/dev/fd/N`) is written directly, after what others wrote there.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lvqcodec.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]
Source = bytes | bytearray | memoryview | StrPath | BinaryIO | Any
"""Bytes or where to read them; the last is any buffer of them, such as a numpy array of uint8."""

_TEMPORARY = re.compile(r"\.lvq-[0-9a-f]{16}\.tmp")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d{1,9})")
_MAX_LINKS = 40
_BYTES = ("B", "b", "c")  # as buffers call their items
_HEAD = 64  # bytes, the beginning of a file
_READING = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # no pipe is to hold us up; Windows has text
    _READING |= getattr(os, _flag, 0)
_OWNER_WRITES = 0o200
_PLAIN = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer is not waited for
)


class FileInTheWay(UsageError):
    """The file that is there must not be replaced."""


def write(
    path: StrPath,
    data: bytes,
    *,
    replace: bool = True,
    like: os.stat_result | None = None,
    preserve: bool = False,
    follow: bool = True,
) -> None:
    """Write `data` to a path, whole or not at all; into a stream directly. Raises UsageError.

    A link stays a link, and its target is written; without `follow` the file replaces the link or
    the stream itself. replace: whether an existing file may be replaced, keeping its permissions;
    if not, FileInTheWay is raised for one. like: the status of the file that the data were made
    from, whose permissions are the most that the new file gets; preserve: it gets exactly these,
    and the times too. BrokenPipeError is passed on.
    """
    try:
        if follow and is_stream(path):
            _write_stream(path, data)
            return
        target = Path(os.path.realpath(path) if follow else os.path.abspath(path))
        there = _mode_of(target)
        mode = 0o666 if there is None else there
        if like is not None:
            mode &= like.st_mode | _OWNER_WRITES
        with temporary(target.parent, mode) as (file, aside):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if there is not None:
                os.chmod(aside, mode)
            if preserve and like is not None:
                os.utime(aside, ns=(like.st_atime_ns, like.st_mtime_ns))
                os.chmod(aside, stat.S_IMODE(like.st_mode) & 0o777)
            if fcntl is None:
                file.close()  # Windows renames no open file
            _put(aside, target, replace)
    except BrokenPipeError:
        raise
    except FileExistsError as error:
        raise FileInTheWay(f"{_name(path)} exists by now: it is left as it is") from error
    except OSError as error:
        raise UsageError(f"cannot write {_name(path)}: {reason(error)}") from error


def check(path: StrPath, *, room: int = 1, parents: bool = False) -> None:
    """Raise UsageError if `write` would fail, as far as that can be known before.

    room: the least number of bytes to be written. parents: whether missing folders will be made
    (`make_folders`). Files that killed processes left in the folder are removed.
    """
    try:
        if is_stream(path):
            _check_stream(path)
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        check_folder(target.parent, room=room, parents=parents)
    except OSError as error:
        raise UsageError(f"cannot write {_name(path)}: {reason(error)}") from error


def check_folder(folder: StrPath, *, room: int = 1, parents: bool = False) -> None:
    """Raise OSError if no file of `room` bytes can be written into a folder.

    parents: if the folder is missing, look at the nearest existing one above it.
    """
    folder = Path(folder)
    while parents and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {_name(folder)}")
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{_name(folder)} is no folder")
    sweep(folder)
    free = shutil.disk_usage(folder).free
    with temporary(folder) as (file, _):
        file.write(b"\0")  # a full disk, a quota, a mount for reading only show here
    if free < room:
        raise OSError(errno.ENOSPC, f"it needs {room:,} bytes, the disk has {free:,} left")


def read_source(
    source: Any, most: int = -1, look: Callable[[bytes], object] | None = None
) -> bytes:
    """Return what a `Source` holds, at most `most` bytes unless -1.

    look: a function that is given the beginning of a file before the rest is read; its errors are
    passed on. Raises UsageError for a source that holds no bytes or cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                return _read_stream(file, most, look, _name(source))
        except (OSError, ValueError) as error:
            raise _unreadable(_name(source), error) from error
    if callable(getattr(source, "read", None)):
        return _read_stream(source, most, look, "the file")
    try:
        view = memoryview(source)
    except TypeError:
        view = None
    if view is None or view.format not in _BYTES:
        raise UsageError(
            f"a {type(source).__name__} holds no file: give bytes, a buffer of them such as a numpy"
            " array of uint8, a path or a binary file"
        )
    data = source if isinstance(source, bytes) else view.tobytes()
    return data if most < 0 else data[:most]


def _read_stream(
    file: BinaryIO, most: int, look: Callable[[bytes], object] | None, name: str
) -> bytes:
    wanted = _HEAD if most < 0 else most
    try:
        data = part = file.read(wanted)
        if not isinstance(data, bytes):
            raise UsageError(f'{name} gives no bytes: open it as binary, with "rb"')
        while part and len(data) < wanted:  # as of a pipe that is not buffered
            part = file.read(wanted - len(data))
            data += part
        if look is not None:
            look(data)
        return data + file.read() if most < 0 else data
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError | ValueError) -> UsageError:
    said = reason(error) if isinstance(error, OSError) else error
    return UsageError(f"cannot read {name}: {said}")


def read_regular(path: StrPath, most: int) -> bytes:
    """Return the bytes of a regular file, as many as its size says; raises OSError.

    Other files may never end, and neither may one that is still being written; one of more than
    `most` bytes is refused.
    """
    with open(os.open(path, _READING), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than {most}")
        return file.read(status.st_size)


def make_folders(path: StrPath) -> None:
    """Make the folder that a path lies in, and those around it; raises UsageError."""
    try:
        os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {_name(path)}: {reason(error)}") from error


def open_plain(
    path: StrPath, flags: int = os.O_RDONLY, *, follow: bool = True, folder: int | None = None
) -> int:
    """Open a regular file without ever waiting for another process; return its descriptor.

    follow: whether the path may be a link. folder: the descriptor of the open folder that the path
    starts from. Raises OSError, ELOOP for a link that may not be one.
    """
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        if folder is None and os.path.islink(path):  # where there is no such flag
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    descriptor = os.open(path, flags | _PLAIN, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "this is no file", os.fspath(path))
    return descriptor


@contextmanager
def temporary(folder: Path, mode: int = 0o666) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new locked file in a folder; at the end it is removed if it is still there.

    Yields the file and its path; raises OSError.
    """
    path, descriptor = _create(folder, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file, path
    finally:
        with suppress(OSError):
            path.unlink()


def sweep(folder: StrPath) -> None:
    """Remove the temporary files in a folder that no process is writing any more."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_stale(entry.path)


def is_stream(path: StrPath) -> bool:
    """Whether a path is written as a stream: a descriptor of this process, a pipe, a device."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def descriptor_of(path: StrPath) -> int | None:
    """Return the number of the open file that a path names, such as 1 for /dev/stdout."""
    name = os.path.abspath(os.fspath(path))
    for _ in range(_MAX_LINKS):
        if name in _STANDARD:
            return _STANDARD[name]
        if found := _DESCRIPTOR.fullmatch(name):
            return int(found[1])
        try:
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
        except (OSError, ValueError):
            return None
    return None


def _create(folder: Path, mode: int) -> tuple[Path, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = folder / f".lvq-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(path, flags, mode)
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # somebody swept it away before it was locked


def _lock(descriptor: int) -> bool:
    """Lock an open file against `sweep`, where there are locks; False if another process has it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _remove_stale(path: str) -> None:
    if fcntl is None:
        os.unlink(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)


def _put(aside: Path, target: Path, replace: bool) -> None:
    """Give a file its name; FileExistsError if the name is taken and may not be replaced."""
    if not replace:
        try:
            os.link(aside, target)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
    os.replace(aside, target)


def _mode_of(target: Path) -> int | None:
    """The permissions of a file, None if there is none of this name."""
    try:
        mode = target.lstat().st_mode
    except OSError:
        return None
    return stat.S_IMODE(mode) & 0o777 if stat.S_ISREG(mode) else None


def _write_stream(path: StrPath, data: bytes) -> None:
    number = descriptor_of(path)
    if number is None:
        with open(path, "wb") as file:
            file.write(data)
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was said before comes before
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


def _check_stream(path: StrPath) -> None:
    number = descriptor_of(path)
    if number is None:
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    os.fstat(number)
    if fcntl is not None:
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it is open for reading only")


def reason(error: OSError) -> str:
    """Return what the system says of an error."""
    return error.strerror or str(error) or type(error).__name__


def _name(path: StrPath) -> str:
    """A path as it can be printed, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

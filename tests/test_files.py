# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, never in another's place unasked; streams in order."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest

from lvqcodec import files
from lvqcodec.errors import UsageError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """The usual one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(params=["by path", "as root"])
def unwritable(request, tmp_path, monkeypatch):
    """A folder in which nobody may write, whoever runs this."""
    if request.param == "as root" or os.geteuid() == 0:

        def refuse(path, flags, mode=0o777):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files, "_create", refuse)
    tmp_path.chmod(0o555)
    yield tmp_path
    tmp_path.chmod(0o755)


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.lvq"
    path.write_bytes(b"old")
    path.chmod(0o640)
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_must_not_be_replaced_stays(tmp_path):
    path = tmp_path / "a.lvq"
    files.write(path, b"first", replace=False)
    with pytest.raises(UsageError, match=r"a\.lvq exists by now"):
        files.write(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_replaced_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.lvq"
    files.write(path, b"first", replace=False)
    with pytest.raises(UsageError, match=r"exists by now"):
        files.write(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o640


@pytest.mark.parametrize(
    ("source", "there", "expected"),
    [
        (0o600, None, 0o600),
        (0o644, None, 0o644),
        (0o755, None, 0o644),
        (0o666, None, 0o644),
        (0o400, None, 0o600),
        (0o600, 0o644, 0o600),
        (0o644, 0o600, 0o600),
    ],
)
def test_what_is_made_of_a_file_is_open_to_nobody_else(tmp_path, umask, source, there, expected):
    (tmp_path / "source").touch()
    (tmp_path / "source").chmod(source)
    if there is not None:
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(there)
    files.write(tmp_path / "a", b"", like=(tmp_path / "source").stat())
    assert mode(tmp_path / "a") == expected


def test_mode_and_times_can_be_kept(tmp_path, umask):
    source = tmp_path / "source"
    source.touch()
    source.chmod(0o464)
    os.utime(source, ns=(10**18 + 1, 10**18 + 2))
    files.write(tmp_path / "a", b"x", like=source.stat(), preserve=True)
    assert mode(tmp_path / "a") == 0o464
    assert (tmp_path / "a").stat().st_mtime_ns == 10**18 + 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((UsageError, KeyboardInterrupt)) as caught:
        files.write(tmp_path / "a", b"new")
    if caught.type is UsageError:
        assert str(caught.value) == f"cannot write {tmp_path / 'a'}: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_can_be_replaced_instead_of_followed(tmp_path, umask):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(files.FileInTheWay):
        files.write(tmp_path / "link", b"new", follow=False, replace=False)
    files.write(tmp_path / "link", b"new", follow=False)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert mode(tmp_path / "link") == 0o644
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_pipe_can_be_replaced_instead_of_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    files.write(tmp_path / "pipe", b"new", follow=False)
    assert (tmp_path / "pipe").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe", "socket"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT])
def test_what_is_no_file_is_not_opened_and_not_waited_for(tmp_path, kind, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("pipe", "link to a pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(OSError):
            os.close(files.open_plain(kind, flags))


def test_links_are_opened_only_if_they_may_be(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    os.close(files.open_plain(tmp_path / "link"))
    folder = os.open(tmp_path, os.O_RDONLY)
    for path, start in ((tmp_path / "link", None), ("link", folder)):
        with pytest.raises(OSError) as caught:
            files.open_plain(path, follow=False, folder=start)
        assert caught.value.errno == errno.ELOOP
    os.close(files.open_plain("file", follow=False, folder=folder))
    os.close(folder)


def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.check(tmp_path / "pipe")
    files.write(tmp_path / "pipe", b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("link", [False, True])
def test_a_descriptor_is_written_on_where_it_stands(tmp_path, link):
    log = tmp_path / "log"
    with open(log, "wb", buffering=0) as file:
        file.write(b"before ")
        path = f"/dev/fd/{file.fileno()}"
        if link:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        files.check(path)
        files.write(path, b"data ")
        file.write(b"after")
    assert log.read_bytes() == b"before data after"


def test_a_descriptor_for_reading_is_refused_before(tmp_path):
    (tmp_path / "a").touch()
    with open(tmp_path / "a") as file, pytest.raises(UsageError, match=r"for reading only"):
        files.check(f"/dev/fd/{file.fileno()}")


def test_a_descriptor_that_is_not_open_is_refused_before():
    with pytest.raises(UsageError, match=r"cannot write /dev/fd/987: "):
        files.check("/dev/fd/987")


def test_a_device_is_written_into():
    files.check(os.devnull)
    files.write(os.devnull, b"new")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_full_device_is_told():
    with pytest.raises(UsageError, match=r"cannot write /dev/full: No space left on device"):
        files.write("/dev/full", b"new")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone/a", "there is no folder .*gone"),
        ("file/a", "file is no folder"),
        ("", "Is a directory"),
        ("folder", "Is a directory"),
    ],
)
def test_where_no_file_can_be_is_told_before(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=rf"cannot write .*: .*{reason}"):
        files.check(tmp_path / name)
    with pytest.raises(UsageError, match=r"cannot write "):
        files.write(tmp_path / name, b"")


def test_a_folder_nobody_may_write_in_is_told_before(unwritable):
    with pytest.raises(UsageError, match=r"cannot write .*: Permission denied"):
        files.check(unwritable / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_must_not_be_written_is_told_before(tmp_path):
    (tmp_path / "a").touch(0o444)
    with pytest.raises(UsageError, match=r"cannot write .*: Permission denied"):
        files.check(tmp_path / "a")


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    files.check(tmp_path / "a", room=1000)
    with pytest.raises(UsageError, match=r"it needs 1,001 bytes, the disk has 1,000 left"):
        files.check(tmp_path / "a", room=1001)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_can_be_made(tmp_path):
    path = tmp_path / "b" / "c" / "a"
    files.check(path, parents=True)
    assert not (tmp_path / "b").exists()
    files.make_folders(path)
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_what_killed_processes_left_is_swept(tmp_path):
    stale = tmp_path / ".lvq-0123456789abcdef.tmp"
    stale.touch()
    others = [tmp_path / name for name in (".lvq-1.tmp", "a.tmp", ".lvq-0123456789abcdef.tmp.png")]
    for other in others:
        other.touch()
    (tmp_path / ".lvq-ffffffffffffffff.tmp").symlink_to("a.tmp")
    files.check(tmp_path / "a")
    assert not stale.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(other.name for other in others),
        ".lvq-ffffffffffffffff.tmp",
    }


def test_what_is_being_written_is_not_swept(tmp_path):
    with files.temporary(tmp_path) as (file, path):
        files.sweep(tmp_path)
        file.write(b"data")
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    locks = iter([False, True])
    lock = files._lock
    monkeypatch.setattr(files, "_lock", lambda descriptor: lock(descriptor) and next(locks))
    with files.temporary(tmp_path) as (_, path):
        assert path.exists()


def test_a_process_killed_in_writing_leaves_what_is_swept(tmp_path):
    code = (
        "import pathlib, sys, time; from lvqcodec import files\n"
        "with files.temporary(pathlib.Path(sys.argv[1])) as (file, path):\n"
        "    print(path, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline().strip().startswith(str(tmp_path / ".lvq-"))
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        child.send_signal(signal.SIGKILL)
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []

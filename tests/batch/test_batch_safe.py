# SPDX-License-Identifier: Apache-2.0
"""`lvq batch` loses nothing: no file replaced unasked, none left out in silence, no way astray."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from batches import batch, tree
from PIL import Image, ImageCms
from test_batch import STATE, lines, many, photos, small, start, wait_for_some

from lvqcodec import codec, files
from lvqcodec.batch import work
from lvqcodec.batch.ledger import Ledger
from lvqcodec.batch.local_store import LocalStore
from lvqcodec.batch.plan import Item
from lvqcodec.batch.records import DONE, Log, Probe, Record
from lvqcodec.batch.work import Job, Settings, Worker
from lvqcodec.errors import LvqError, UsageError
from lvqcodec.format import tiling
from lvqcodec.format.container import read_header
from lvqcodec.pictures import load
from lvqcodec.resources import estimate

__all__ = ["many", "photos", "small"]  # fixtures


def digests(folder: Path) -> dict[str, str]:
    """All that is in a folder, what batch keeps of it too."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in found}


# what is replaced, and what is not


def test_decoding_into_the_folder_of_the_originals_leaves_them(photos, small, tiny):
    assert batch(photos, small, "-m", tiny, "-q", 5).exit_code == 0
    before = digests(photos)
    result = batch(small, photos, "--decode", "--report", small.parent / "report")
    assert result.exit_code == 1
    *errors, summary = result.stderr.splitlines()
    assert sorted(line.split(": ")[2] for line in errors) == ["a.lvq", "grey.lvq"]
    assert all("give --overwrite to replace it" in line for line in errors)
    assert " 2 done, 0 skipped, 2 kept, 0 failed, " in summary  # b.png and c.png were not there
    told = {line["source"]: line for line in lines(small.parent / "report")}
    assert (told["a.lvq"]["status"], told["a.lvq"]["output"]) == ("kept", "a.png")
    assert before.items() <= digests(photos).items()
    assert json.loads(batch(small, photos, "--decode", "--json").stdout)["kept"] == 2

    assert batch(small, photos, "--decode", "--overwrite").exit_code == 0
    after = digests(photos)
    assert after[str(photos / "a.png")] != before[str(photos / "a.png")]


def test_encoding_leaves_files_it_did_not_write(photos, small, tiny, monkeypatch):
    small.mkdir()
    (small / "a.lvq").write_bytes(b"mine")
    (small / "grey.lvq").mkdir()
    coded = []
    encode = work.encode_picture

    def count(picture, *arguments):
        coded.append(picture)
        return encode(picture, *arguments)

    monkeypatch.setattr(work, "encode_picture", count)
    result = batch(photos, small, "-m", tiny, "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["files"], summary["done"], summary["kept"]) == (4, 2, 2)
    assert len(coded) == 2  # it was known before
    assert (small / "a.lvq").read_bytes() == b"mine"
    result = batch(photos, small, "-m", tiny, "--overwrite", "--quiet")
    assert result.stderr.count("grey.lvq: Is a directory") == 1
    assert (small / "a.lvq").read_bytes() != b"mine"


def test_what_was_written_and_changed_since_is_left(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    (small / "a.lvq").write_bytes(b"changed")
    assert batch(photos, small, "-m", tiny, "-q", 3).exit_code == 1
    assert (small / "a.lvq").read_bytes() == b"changed"


def test_a_file_that_appears_while_its_picture_is_coded_is_left(photos, small, tiny, monkeypatch):
    encode = work.encode_picture

    def slow(picture, *arguments):
        if picture.pixels.shape == (24, 40, 3):  # a.png
            small.mkdir(exist_ok=True)
            (small / "a.lvq").write_bytes(b"mine")
        return encode(picture, *arguments)

    monkeypatch.setattr(work, "encode_picture", slow)
    result = batch(photos, small, "-m", tiny, "--json")
    assert (json.loads(result.stdout)["kept"], json.loads(result.stdout)["done"]) == (1, 3)
    assert (small / "a.lvq").read_bytes() == b"mine"


def test_a_file_that_appears_in_the_moment_of_writing_is_left(tmp_path, monkeypatch):
    ledger = Ledger(LocalStore(str(tmp_path)))
    find = ledger.find

    def late(output):
        known = find(output)
        (tmp_path / output).write_bytes(b"mine")
        return known

    monkeypatch.setattr(ledger, "find", late)
    with pytest.raises(files.FileInTheWay):
        ledger.put(Record("a", "a.lvq", DONE), b"new", like=None, preserve=False)
    assert (tmp_path / "a.lvq").read_bytes() == b"mine"


def test_a_batch_killed_between_journal_and_file_knows_both_versions(tmp_path, monkeypatch):
    def put(data):
        record = Record("a.png", "a.lvq", DONE, output_sha256=sha256(data).hexdigest())
        Ledger(LocalStore(str(tmp_path))).put(record, data, like=None, preserve=False)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    put(b"first")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalStore, "write", killed)
        put(b"second")
    put(b"third")
    assert (tmp_path / "a.lvq").read_bytes() == b"third"


def test_a_budget_is_shared_by_those_that_may_be_written(photos, small, tiny):
    small.mkdir()
    (small / "a.lvq").write_bytes(b"mine")
    result = batch(photos, small, "-m", tiny, "--target-bpp", 2, "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert (summary["done"], summary["kept"]) == (3, 1)
    assert "a.png" not in summary["budget"]["qualities"]
    assert (small / "a.lvq").read_bytes() == b"mine"


# --dry-run


def test_a_dry_run_says_what_a_run_does_and_writes_nothing(photos, small, tiny):
    result = batch(photos, small, "-m", tiny, "--dry-run")
    assert result.exit_code == 0
    assert not small.exists()
    assert result.stdout.splitlines() == [
        "encode  a.png -> a.lvq",
        "encode  deep/b.JPG -> deep/b.lvq",
        "encode  deep/er/c.webp -> deep/er/c.lvq",
        "encode  grey.png -> grey.lvq",
        "ignored notes.txt: .txt",
    ]
    assert result.stderr.endswith(
        "small: would be 4 to encode, 0 skipped, 0 kept, 0 failed, 1 ignored (1 .txt)\n"
    )
    batch(photos, small, "-m", tiny)
    (small / "a.lvq").write_bytes(b"mine")
    os.mkfifo(photos / "pipe.png")
    before = digests(small)
    result = batch(photos, small, "-m", tiny, "--dry-run", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [(row["source"], row["status"]) for row in told.pop("plan")] == [
        ("a.png", "kept"),
        ("deep/b.JPG", "skipped"),
        ("deep/er/c.webp", "skipped"),
        ("grey.png", "skipped"),
        ("notes.txt", "ignored"),
        ("pipe.png", "failed"),
    ]
    assert told == {
        "dry_run": True,
        "files": 5,
        "encode": 0,
        "skipped": 3,
        "kept": 1,
        "failed": 1,
        "ignored": {".txt": 1},
    }
    assert digests(small) == before


def test_a_dry_run_of_the_other_way_and_what_it_cannot_go_with(photos, small, tmp_path, tiny):
    batch(photos, small, "-m", tiny)
    result = batch(small, photos, "--decode", "--dry-run", "--overwrite", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "decode  a.lvq -> a.png"
    result = batch(photos, small, "--dry-run", "--report", tmp_path / "report")
    assert result.exit_code == 2
    assert "--report cannot go with --dry-run" in result.stderr
    assert not (tmp_path / "report").exists()


# every file of the source is told of


def test_what_is_not_taken_is_counted_by_kind(photos, small, tiny):
    for name in ("x.MOV", "deep/y.mov", "z", ".hidden", "drafts.png"):
        (photos / name).write_bytes(b"something")
    (photos / "loop").symlink_to(photos)
    report = small.parent / "report"
    result = batch(photos, small, "-m", tiny, "--exclude", "drafts.*", "--report", report, "--json")
    assert result.exit_code == 0
    expected = {".mov": 2, "no suffix": 2, ".txt": 1, "excluded": 1, "link to a folder": 1}
    assert json.loads(result.stdout)["ignored"] == expected
    assert "7 ignored (2 .mov, 2 no suffix, 1 .txt, 1 excluded, 1 link to a folder)" in (
        result.stderr
    )
    told = [line["source"] for line in lines(report)]
    there = [p.relative_to(photos).as_posix() for p in photos.rglob("*") if not p.is_dir()]
    assert sorted(told) == sorted([*there, "loop"])
    result = batch(photos, small.parent / "png", "-m", tiny, "--include", "*.png", "--json")
    assert json.loads(result.stdout)["ignored"]["excluded"] == 7


def test_nothing_to_do_says_what_there_is(photos, small):
    result = batch(photos / "empty", small, "--decode")
    assert result.stderr.endswith("are .lvq\n")
    result = batch(photos, small, "--include", "*.gif")
    assert result.exit_code == 2
    assert "; there are 5 excluded" in result.stderr


def test_what_outputs_do_not_hold_of_their_sources_is_said(tmp_path, small, tiny, photograph):
    folder = tmp_path / "profiles"
    folder.mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number in range(3):
        picture = Image.fromarray(photograph(24, 24, seed=number))
        picture.save(folder / f"{number}.png", **({"icc_profile": profile} if number else {}))
    batch(folder, small, "-m", tiny)
    report = tmp_path / "report"
    result = batch(small, tmp_path / "back", "--decode", "--format", "bmp", "--report", report)
    assert result.exit_code == 0
    remark = "bmp does not hold the colour profile"
    assert result.stderr.splitlines()[:-1] == [f"lvq: note: 2 of 3: {remark}"]
    assert [line["remarks"] for line in lines(report)] == [None, remark, remark]


@pytest.fixture
def strange(photos, monkeypatch):
    """The folder with what is no file in it, by names of pictures and by others."""
    monkeypatch.chdir(photos)  # the name of a socket must be short
    for suffix in ("", ".png"):
        os.mkfifo(f"pipe{suffix}")
        os.symlink(f"pipe{suffix}", f"link-to-pipe{suffix}")
        os.symlink("/dev/zero", f"device{suffix}")
        os.symlink("nowhere", f"broken{suffix}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"socket{suffix}")
    return photos


def test_what_is_no_file_is_named_and_never_opened(strange, small, tiny):
    report = small.parent / "report"
    command = [sys.executable, "-m", "lvqcodec", "batch", strange, small, "-m", tiny, "--json"]
    done = subprocess.run(
        [*map(str, command), "--report", str(report)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["files"], summary["done"], summary["failed"]) == (9, 4, 5)
    assert summary["ignored"] == {"pipe": 2, ".txt": 1, "broken link": 1, "device": 1, "socket": 1}
    told = done.stderr.splitlines()[:-1]
    assert "lvq: error: device.png: no file: a device" in told
    assert "lvq: note: link-to-pipe is left out: it is no file but a pipe" in told
    assert len(told) == 10
    statuses = Counter(line["status"] for line in lines(report))
    assert statuses == {"done": 4, "failed": 5, "ignored": 6}
    again = batch(strange, small, "-m", tiny, "--include", "a.png")
    assert again.exit_code == 0
    assert "note" not in again.stderr


def test_what_becomes_a_pipe_after_it_was_seen_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no file"):
        LocalStore(str(tmp_path)).read("a.png")


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_done(
    photos, small, tiny, monkeypatch
):
    scan = os.scandir

    def refuse(path="."):
        if os.path.basename(os.path.normpath(path)) == "deep" and str(photos) in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = small.parent / "report"
    result = batch(photos, small, "-m", tiny, "--report", report)
    assert result.exit_code == 1
    assert "lvq: error: deep/: cannot be read: Permission denied" in result.stderr.splitlines()
    assert sorted(tree(small)) == ["a.lvq", "grey.lvq"]
    (failed,) = [line for line in lines(report) if line["status"] == "failed"]
    assert (failed["source"], failed["kind"]) == ("deep/", "folder")
    assert batch(photos, small, "-m", tiny, "--exclude", "deep/").exit_code == 0


# modes and times


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_outputs_are_open_to_nobody_more_than_their_sources(photos, small, tmp_path, tiny, way):
    batch(photos, small, "-m", tiny)
    source, options = (photos, ["-m", tiny]) if way == "encode" else (small, ["--decode"])
    suffix, new = (".png", ".lvq") if way == "encode" else (".lvq", ".png")
    (source / f"a{suffix}").chmod(0o600)
    (source / f"grey{suffix}").chmod(0o444)
    os.utime(source / f"a{suffix}", ns=(10**18, 10**18))
    before = os.umask(0o022)
    try:
        batch(source, tmp_path / "plain", *options)
        batch(source, tmp_path / "same", "--preserve", *options)
    finally:
        os.umask(before)

    def status(folder, name):
        found = (tmp_path / folder / f"{name}{new}").stat()
        return stat.S_IMODE(found.st_mode), found.st_mtime_ns == 10**18

    assert status("plain", "a") == (0o600, False)
    assert status("plain", "grey") == (0o644, False)
    assert status("same", "a") == (0o600, True)
    assert status("same", "grey") == (0o444, False)


def test_objects_have_no_mode_to_preserve(photos):
    pytest.importorskip("fsspec")
    result = batch(photos, "memory://nowhere", "--preserve")
    assert result.exit_code == 2
    assert "--preserve is for folders of this machine" in result.stderr


# --frame


def test_a_frame_can_be_chosen_of_pictures_that_have_several(tmp_path, small, tiny, photograph):
    folder = tmp_path / "pages"
    folder.mkdir()
    pages = [photograph(24, 24, seed=seed) for seed in range(2)]
    first, second = map(Image.fromarray, pages)
    first.save(folder / "a.tif", save_all=True, append_images=[second])
    result = batch(folder, small, "-m", tiny)
    assert result.exit_code == 1
    assert "2 frames or pages; choose one with --frame N" in result.stderr
    for number, page in enumerate(pages, 1):
        assert batch(folder, small, "-m", tiny, "--frame", number).exit_code == 0
        assert (small / "a.lvq").read_bytes() == codec.encode(page, model=tiny)
    assert "frame 3 does not exist" in batch(folder, small, "-m", tiny, "--frame", 3).stderr
    assert (
        "--frame cannot go with --decode" in batch(small, folder, "--decode", "--frame", 1).stderr
    )


# what is known before work begins


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test if a picture is read or a model loaded."""

    def refuse(*arguments, **options):
        raise AssertionError("work has begun")

    monkeypatch.setattr(work, "read_picture", refuse)
    monkeypatch.setattr(codec, "load_model", refuse)


@pytest.mark.parametrize("report", ["gone/report", ".", "a.png/report"])
def test_a_report_that_cannot_be_written_is_told_before(photos, small, tiny, no_work, report):
    result = batch(photos, small, "-m", tiny, "--report", photos / report)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"lvq: error: cannot write {photos / report}")
    assert not small.exists()


def test_a_report_may_lie_in_the_folder_that_is_made(photos, small, tiny):
    assert batch(photos, small, "-m", tiny, "--report", small / "report").exit_code == 0
    assert len(lines(small / "report")) == 5


@pytest.mark.parametrize("destination", ["file", "file/below"])
def test_a_destination_that_cannot_be_is_told_before(photos, tmp_path, tiny, no_work, destination):
    (tmp_path / "file").touch()
    result = batch(photos, tmp_path / destination, "-m", tiny)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"lvq: error: cannot write to {tmp_path / destination}: ")


def test_a_destination_in_which_nobody_may_write_is_told_before(
    photos, small, tiny, no_work, monkeypatch
):
    small.mkdir()

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_create", refuse)
    result = batch(photos, small, "-m", tiny)
    assert result.exit_code == 2
    assert result.stderr == f"lvq: error: cannot write to {small}: No space left on device\n"
    assert list(small.iterdir()) == []


# links and mounts in the destination


@pytest.mark.parametrize("name", ["", "journal.jsonl", "points.jsonl", "lock"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_of_the_state_is_opened_through_a_link(photos, small, tmp_path, tiny, name, there):
    (small / STATE).mkdir(parents=True)
    victim = tmp_path / "victim"
    link = small / STATE / name
    if name:
        if there:
            victim.write_text("mine")
    else:
        link.rmdir()
        if there:
            victim.mkdir()
    link.symlink_to(victim)
    result = batch(photos, small, "-m", tiny, "--target-bpp", 2)
    assert result.exit_code == 2
    assert result.stderr == f"lvq: error: {link} is a link, which might lead outside: remove it\n"
    assert victim.exists() == there
    if there and name:
        assert victim.read_text() == "mine"
    assert tree(small) == {}


@pytest.mark.parametrize("name", ["journal.jsonl", "points.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_log_that_is_no_file_is_refused(photos, small, tiny, name, make):
    (small / STATE).mkdir(parents=True)
    make(small / STATE / name)
    result = batch(photos, small, "-m", tiny, "--target-bpp", 2)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"lvq: error: cannot open {small / STATE / name}: ")


def test_a_link_in_an_outputs_place_is_left_and_never_followed(photos, small, tmp_path, tiny):
    small.mkdir()
    for name, target in (("a.lvq", "victim"), ("grey.lvq", "nowhere")):
        (small / name).symlink_to(tmp_path / target)
    (tmp_path / "victim").write_text("mine")
    assert json.loads(batch(photos, small, "-m", tiny, "--json").stdout)["kept"] == 2
    assert (small / "a.lvq").is_symlink() and (small / "grey.lvq").is_symlink()
    assert batch(photos, small, "-m", tiny, "--overwrite").exit_code == 0
    assert not (small / "a.lvq").is_symlink() and not (small / "grey.lvq").is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_file_system_mounted_in_the_destination_is_written_to(photos, small, tiny, monkeypatch):
    def only_inside(move):
        def checked(source, target, **options):
            if os.path.dirname(source) != os.path.dirname(target):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return move(source, target, **options)

        return checked

    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, only_inside(getattr(os, name)))
    assert batch(photos, small, "-m", tiny).exit_code == 0
    assert batch(photos, small, "-m", tiny, "-q", 3).exit_code == 0


# what the journal says


RECORD = {
    "source": "a.png",
    "output": "a.lvq",
    "status": "done",
    "width": 2,
    "height": 2,
    "bytes_in": 9,
    "bytes_out": 9,
    "quality": 50,
    "psnr": 30.5,
    "seconds": 1.0,
    "output_sha256": "0" * 64,
}
WRONG = [
    ("psnr", float("nan")),
    ("psnr", float("inf")),
    ("psnr", "30"),
    ("psnr", [30.0]),
    ("seconds", float("-inf")),
    ("seconds", -1.0),
    ("width", 0),
    ("width", True),
    ("width", 10**30),
    ("height", -1),
    ("height", 2.5),
    ("bytes_in", 10**400),
    ("bytes_out", -1),
    ("quality", 101),
    ("quality", {}),
    ("output", ["a.lvq"]),
    ("output", {}),
    ("source", None),
    ("status", 1),
    ("error", 5),
    ("source_sha256", ["x"]),
    ("output_sha256", {}),
]
DAMAGED = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    **{text: text.encode() for text in ("null", "7", "[]", '"text"', "{}")},
    "no text": b"\x00\xff",
    **{
        f"{name}={str(value)[:9]}": json.dumps(RECORD | {name: value}).encode()
        for name, value in WRONG
    },
    "psnr=1e999": json.dumps(RECORD).replace("30.5", "1e999").encode(),
    "psnr of 5000 digits": json.dumps(RECORD).replace("30.5", "9" * 5000).encode(),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_line_that_makes_no_sense_counts_as_not_written(tmp_path, what):
    line = DAMAGED[what]
    store = LocalStore(str(tmp_path))
    good = json.dumps(RECORD).encode()
    store.append("journal.jsonl", line + b"\n" + good + b"\n")
    log = Log(store, "journal.jsonl", Record, lambda record: record.output)
    assert list(log.lines()) == [Record(**RECORD)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("bpp", 0.0), ("bpp", -1.0), ("bpp", float("nan")), ("score", float("inf")), ("quality", 999)],
)
def test_a_point_that_makes_no_sense_counts_as_not_measured(tmp_path, name, value):
    store = LocalStore(str(tmp_path))
    point = {"source": "a.png", "quality": 50, "metric": "psnr", "bpp": 1.0, "score": 30.0}
    text = json.dumps(point | {name: value}) + "\n" + json.dumps(point) + "\n"
    store.append("points.jsonl", text.encode())
    log = Log(store, "points.jsonl", Probe, lambda point: point.source)
    assert list(log.lines()) == [Probe(**point)]


def test_a_journal_of_nonsense_reaches_neither_report_nor_summary(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    journal = small / STATE / "journal.jsonl"
    text = journal.read_text()
    for line in text.splitlines():
        told = json.loads(line) | {"psnr": float("nan"), "width": -5, "seconds": float("inf")}
        text += json.dumps(told) + "\n"
    journal.write_bytes(text.encode() + b"\n".join(DAMAGED.values()))
    report = small.parent / "report"
    result = batch(photos, small, "-m", tiny, "--json", "--report", report)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["skipped"] == 4
    assert not any(word in result.stdout + report.read_text() for word in ("NaN", "Infinity"))


# memory


def test_decoding_books_what_the_tiles_of_the_file_take(tmp_path, tiny, photograph, monkeypatch):
    (tmp_path / "lvq").mkdir()
    data = codec.encode(photograph(200, 300), model=tiny, tile=32)
    (tmp_path / "lvq/a.lvq").write_bytes(data)
    worker = Worker(Job(str(tmp_path / "lvq"), str(tmp_path / "out"), Settings(decode=True)))
    booked = []
    take = worker._memory.take

    def note(need):
        booked.append(need)
        return take(need)

    monkeypatch.setattr(worker._memory, "take", note)
    assert worker.code(Item("a.lvq", "a.png")).status == DONE
    header = read_header(data)
    cut, whole = tiling.choose(header, 32), tiling.region(header, None)
    assert booked == [estimate.decoding(header, cut, whole)]
    assert booked != [estimate.decoding(header, tiling.choose(header), whole)]


def test_a_picture_is_admitted_with_its_size_and_given_room_until_it_is_coded(
    photos, small, tiny, monkeypatch
):
    worker = Worker(Job(str(photos), str(small), Settings(model=tiny)))
    inside = []
    encode = work.encode_picture

    def look(picture, *arguments):
        inside.append((worker._memory._needs[:], worker._places._needs[:]))
        return encode(picture, *arguments)

    monkeypatch.setattr(work, "encode_picture", look)
    assert worker.code(Item("a.png", "a.lvq")).status == DONE
    assert inside == [([worker._need(40, 24, 3)], [0])]
    assert worker._memory._needs == worker._places._needs == []
    read = load.load_picture

    def refuse(file, **options):
        read(file, **options)
        raise LvqError("it takes too much memory")

    monkeypatch.setattr(load, "load_picture", refuse)
    assert worker.code(Item("grey.png", "grey.lvq")).error == "it takes too much memory"
    assert worker._memory._needs == worker._places._needs == []


# what ends a batch early


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_a_signal_ends_it_in_good_order(many, small, tiny, number, code, word, quiet):
    process = start(many, small, "-m", tiny, "--jobs", 2, *(["--quiet"] if quiet else []))
    wait_for_some(small, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(stderr.splitlines()) == (1 if quiet else 2)
    last = f"lvq: error: {word}: run the same command again to go on"
    assert stderr.splitlines()[-1] == last
    left = tree(small)
    assert 3 <= len(left) < 40
    assert all(name.endswith(".lvq") for name in left)
    result = batch(many, small, "-m", tiny, "--json")
    assert json.loads(result.stdout)["skipped"] == len(left)
    assert result.exit_code == 0


def test_an_interrupted_bar_tells_how_far_it_came(many, small, tiny):
    pty = pytest.importorskip("pty")
    shown, terminal = pty.openpty()
    command = [sys.executable, "-m", "lvqcodec", "batch", many, small, "-m", tiny, "--jobs", 1]
    process = subprocess.Popen([*map(str, command)], stderr=terminal)
    os.close(terminal)
    text, interrupted = "", False
    with suppress(OSError):  # all is said
        while True:
            text += os.read(shown, 2**16).decode()
            if " 3/40" in text and not interrupted:
                interrupted = True
                process.send_signal(signal.SIGINT)
    os.close(shown)
    assert process.wait() == 130
    summary = text.splitlines()[-2]
    done = len(tree(small))
    assert 3 <= done < 40
    assert f" {done} done, " in summary
    percent, shown_done = re.findall(r"coding: +(\d+)%[^\r]* (\d+)/40", text)[-1]
    assert (int(percent), int(shown_done)) == (round(100 * done / 40), done)


def test_what_killed_batches_left_is_swept(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    stale = [
        small / ".lvq-0123456789abcdef.tmp",
        small / "deep/er/.lvq-0123456789abcdef.tmp",
        small / STATE / "0123456789abcdef.tmp",
        small / STATE / ".lvq-0123456789abcdef.tmp",
    ]
    for path in stale:
        path.write_bytes(b"half")
    with files.temporary(small / "deep") as (_, alive):
        assert batch(photos, small, "-m", tiny).exit_code == 0
        assert alive.exists()
    assert not [path for path in stale if path.exists()]


def test_kills_at_any_time_and_a_rerun_leave_all_as_if_nothing_had_happened(
    many, small, tmp_path, tiny
):
    originals = digests(many)
    rng = np.random.default_rng(7)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process = start(many, small, "-m", tiny, "--jobs", 2, "-q", 30)
        before = len(list(small.glob("*.lvq"))) if small.exists() else 0
        while process.poll() is None and len(list(small.glob("*.lvq"))) < before + 2:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(number)
        process.communicate(timeout=60)
    result = batch(many, small, "-m", tiny, "-q", 30, "--json")
    assert result.exit_code == 0, result.stderr
    batch(many, tmp_path / "undisturbed", "-m", tiny, "-q", 30)
    assert tree(small) == tree(tmp_path / "undisturbed")
    assert not list(small.rglob("*.tmp"))
    assert digests(many) == originals


def test_names_that_lead_out_are_refused_before_work(tmp_path, tiny):
    ledger = Ledger(LocalStore(str(tmp_path)))
    with pytest.raises(UsageError, match="leads out"):
        ledger.find("../a.lvq")

# SPDX-License-Identifier: Apache-2.0
"""`lvq encode` and `lvq decode` lose nobody's file, whatever they are told and whatever happens."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import lvqcodec
from lvqcodec import files
from lvqcodec.cli import main
from lvqcodec.format.container import MAGIC
from lvqcodec.pictures import load, save
from lvqcodec.threads import FORCE_THREADS, bounded

LVQ = f"'{sys.executable}' -m lvqcodec"


def lvq(*arguments: object) -> Result:
    """Run `lvq` in this process; an exception that is no exit fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sh(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line in a shell that has process substitution, in a folder."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def complaint(result: Result) -> str:
    (line,) = result.stderr.splitlines()
    assert line.startswith("lvq: error: ")
    return line.removeprefix("lvq: error: ")


@pytest.fixture
def folder(tmp_path: Path, tiny: str, photograph) -> Path:
    """Two pictures, and an .lvq file of another."""
    for seed, name in enumerate(("a.png", "b.png")):
        Image.fromarray(photograph(40, 48, seed=seed)).save(tmp_path / name)
    coded = lvqcodec.encode(photograph(24, 32, seed=2), model=tiny)
    (tmp_path / "c.lvq").write_bytes(coded)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- what is there already ----------------------------------------------------------------------


def test_a_shell_pattern_of_two_pictures_does_not_lose_the_second(folder: Path, tiny: str) -> None:
    before = contents(folder)
    result = lvq("encode", folder / "a.png", folder / "b.png", "-m", tiny)
    assert result.exit_code == 2
    said = complaint(result)
    assert "b.png exists already, a file of PNG kind" in said and "--overwrite" in said
    assert contents(folder) == before


@pytest.mark.parametrize(("command", "more"), [("encode", ""), ("decode", " --decode")])
def test_several_inputs_are_pointed_to_batch(folder: Path, command: str, more: str) -> None:
    before = contents(folder)
    result = lvq(command, *(folder / name for name in ("a.png", "b.png", "c.lvq")))
    assert result.exit_code == 2
    assert (
        f"here are 3 names: for many pictures there is `lvq batch FOLDER OUT{more}`"
        in complaint(result)
    )
    assert contents(folder) == before


@pytest.mark.parametrize("head", [b"hello\n", b"%PDF-1.7", b"\xff\xd8\xff\xe0", b"PK\x03\x04"])
def test_encode_replaces_nothing_but_lvq_files(folder: Path, tiny: str, head: bytes) -> None:
    out = folder / "precious.lvq"
    out.write_bytes(head + bytes(20))
    result = lvq("encode", folder / "a.png", out, "-m", tiny)
    assert result.exit_code == 2 and "exists already" in complaint(result)
    assert out.read_bytes() == head + bytes(20)
    assert lvq("encode", folder / "a.png", out, "-m", tiny, "--overwrite").exit_code == 0
    assert out.read_bytes().startswith(MAGIC)
    assert lvq("encode", folder / "b.png", out, "-m", tiny).exit_code == 0


@pytest.mark.parametrize("head", [None, b"hello\n", b"%PDF-1.7", b"\x8bLVQ\r\n\x1a\n"])
def test_decode_replaces_nothing_but_named_pictures(folder: Path, head: bytes | None) -> None:
    out = folder / "precious.png"
    out.write_bytes((folder / "c.lvq").read_bytes() if head is None else head + bytes(20))
    before = contents(folder)
    result = lvq("decode", folder / "c.lvq", out)
    assert result.exit_code == 2 and "exists already" in complaint(result)
    assert contents(folder) == before
    assert lvq("decode", folder / "c.lvq", out, "--overwrite").exit_code == 0
    assert load.load(out).shape == (24, 32, 3)
    assert lvq("decode", folder / "c.lvq", out).exit_code == 0


def test_decode_replaces_what_is_not_named_only_if_told(folder: Path) -> None:
    original = Image.fromarray(np.zeros((4, 4), np.uint8))
    original.save(folder / "c.png")
    before = contents(folder)
    assert "exists already" in complaint(lvq("decode", folder / "c.lvq"))
    assert contents(folder) == before
    assert lvq("decode", folder / "c.lvq", "--overwrite").exit_code == 0
    assert load.load(folder / "c.png").shape == (24, 32, 3)


def test_a_file_that_appears_meanwhile_is_not_replaced(folder: Path, monkeypatch) -> None:
    really = save.save

    def slowly(*args: object, **kwargs: object) -> object:
        (folder / "new.png").write_bytes(b"somebody's")
        return really(*args, **kwargs)

    monkeypatch.setattr(save, "save", slowly)
    result = lvq("decode", folder / "c.lvq", folder / "new.png")
    assert result.exit_code == 2 and "exists by now" in complaint(result)
    assert (folder / "new.png").read_bytes() == b"somebody's"


@pytest.mark.parametrize("way", ["link", "hard link"])
def test_the_input_is_never_replaced_even_if_told(folder: Path, tiny: str, way: str) -> None:
    if way == "link":
        (folder / "other.lvq").symlink_to(folder / "a.png")
    else:
        os.link(folder / "a.png", folder / "other.lvq")
    before = contents(folder)
    result = lvq("encode", folder / "a.png", folder / "other.lvq", "-m", tiny, "--overwrite")
    assert "both input and output" in complaint(result)
    assert contents(folder) == before


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "-", "/proc/self/fd/1"])
def test_a_redirected_stdout_is_written_in_order(folder: Path, target: str) -> None:
    line = f"{{ printf before; {LVQ} decode c.lvq {target} --format ppm; printf after; }} >all"
    done = sh(line, folder)
    assert done.returncode == 0, done.stderr
    data = (folder / "all").read_bytes()
    assert data.startswith(b"beforeP6") and data.endswith(b"after")
    assert len(data) == len(b"beforeafter") + len(b"P6\n32 24\n255\n") + 24 * 32 * 3


def test_stdout_by_its_name_appends_to_a_log(folder: Path) -> None:
    (folder / "all").write_bytes(b"before")
    assert sh(f"{LVQ} decode c.lvq /dev/stdout --format ppm >>all", folder).returncode == 0
    assert (folder / "all").read_bytes().startswith(b"beforeP6")


def test_a_process_substitution_gets_the_picture(folder: Path) -> None:
    line = f"{LVQ} decode c.lvq >(cat >got.png) && {LVQ} decode c.lvq plain.png; wait; sleep 0.2"
    done = sh(line, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "got.png").read_bytes() == (folder / "plain.png").read_bytes()


def test_a_pipe_with_a_name_gets_the_picture(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    done = sh(f"cat pipe >got & {LVQ} decode c.lvq pipe --format ppm; wait", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "got").read_bytes().startswith(b"P6")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("models", 0),
        ("info c.lvq", 0),
        ("info broken.lvq", 3),
        ("decode c.lvq out.png", 0),
        ("encode a.png out.lvq -m tiny", 0),
        ("encode a.png out.lvq --quality 101", 2),
    ],
)
def test_closed_streams_are_no_trouble(
    folder: Path, closed: str, arguments: str, code: int
) -> None:
    (folder / "broken.lvq").write_bytes(MAGIC)
    before = contents(folder)
    done = sh(f"{LVQ} {arguments} {closed}", folder)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    if "out." in arguments and code == 0:
        (made,) = set(after) - set(before)
        if made.endswith(".png"):
            assert load.load(folder / made).shape == (24, 32, 3)
        else:
            assert lvqcodec.read_header(after[made]).width == 48


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("encode - out.lvq <&-", "stdin is closed: name an input file"),
        ("info - <&-", "stdin is closed: name an input file"),
        ("encode a.png - >&-", "stdout is closed: name an output file"),
        ("decode c.lvq - >&-", "stdout is closed: name an output file"),
    ],
)
def test_a_closed_stream_that_is_needed_is_told(folder: Path, line: str, told: str) -> None:
    done = sh(f"{LVQ} {line}", folder)
    assert done.returncode == 2
    assert told in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


# --- before work begins -------------------------------------------------------------------------


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coding fails the test: what is in the way must be told before."""

    def work(*args: object, **kwargs: object) -> None:
        pytest.fail("work has begun")

    for name in ("lvqcodec.codec.encode_image", "lvqcodec.codec.decode_picture"):
        monkeypatch.setattr(name, work)
    monkeypatch.setattr("lvqcodec.evaluation.evaluate.evaluate", work)


@pytest.mark.parametrize("command", ["encode a.png", "decode c.lvq"])
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("gone/out.png", "there is no folder"),
        ("a.png/out.png", "is no folder"),
        (".", "Is a directory"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_work(
    folder: Path, idle: None, command: str, out: str, reason: str
) -> None:
    name, source = command.split()
    before = contents(folder)
    result = lvq(name, folder / source, folder / out)
    assert result.exit_code == 2 and reason in complaint(result)
    assert contents(folder) == before


def test_an_unknown_format_is_told_before_work(folder: Path, idle: None) -> None:
    for name in ("out.xyz", "out"):
        assert "cannot write a picture as" in complaint(lvq("decode", folder / "c.lvq", name))


def test_a_full_disk_is_told_before_work(folder: Path, idle: None, monkeypatch) -> None:
    usage = files.shutil.disk_usage(folder)._replace(free=30)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    assert "the disk has 30 left" in complaint(
        lvq("encode", folder / "a.png", folder / "out.lvq", "--target-size", "2k")
    )
    assert "the disk has 30 left" in complaint(lvq("decode", folder / "c.lvq", folder / "out.png"))


@pytest.mark.parametrize("option", ["--json", "--csv", "--plot"])
def test_eval_knows_before_that_it_cannot_write(folder: Path, idle: None, option: str) -> None:
    result = lvq("eval", folder, option, folder / "gone" / "out.png")
    assert result.exit_code == 2 and "there is no folder" in complaint(result)


def test_export_knows_before_that_it_cannot_write(folder: Path) -> None:
    result = lvq("export", folder / "run", "--name", "x", "--out", folder / "a.png")
    assert result.exit_code == 2 and "a.png is no folder" in complaint(result)


def test_missing_folders_are_made_if_told(folder: Path, tiny: str) -> None:
    out, back = folder / "x" / "y" / "a.lvq", folder / "z" / "a.png"
    assert lvq("encode", folder / "a.png", out, "-m", tiny, "-p").exit_code == 0
    assert lvq("decode", out, back, "--parents").exit_code == 0
    assert load.load(back).shape == (40, 48, 3)


def test_folders_are_not_made_for_nothing(folder: Path, tiny: str) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:300])
    result = lvq("encode", folder / "broken.png", folder / "x" / "a.lvq", "-m", tiny, "-p")
    assert result.exit_code == 3
    assert not (folder / "x").exists()


# --- permissions --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_private_picture_stays_private(folder: Path, tiny: str, mode: int) -> None:
    source, out, back = (folder / name for name in ("a.png", "a.lvq", "back.png"))
    source.chmod(mode)
    assert lvq("encode", source, out, "-m", tiny).exit_code == 0
    assert lvq("decode", out, back).exit_code == 0
    for path in (out, back):
        assert stat.S_IMODE(path.stat().st_mode) & ~mode == 0, path


def test_a_private_picture_on_stdin_stays_private(folder: Path) -> None:
    (folder / "c.lvq").chmod(0o600)
    assert sh(f"{LVQ} decode - out.png <c.lvq", folder).returncode == 0
    assert stat.S_IMODE((folder / "out.png").stat().st_mode) == 0o600


def test_mode_and_time_are_kept_if_told(folder: Path, tiny: str) -> None:
    source, out, back = (folder / name for name in ("a.png", "a.lvq", "back.png"))
    source.chmod(0o464)
    os.utime(source, (10**9, 10**9))
    assert lvq("encode", source, out, "-m", tiny, "--preserve").exit_code == 0
    assert lvq("decode", out, back, "--preserve").exit_code == 0
    for path in (out, back):
        assert stat.S_IMODE(path.stat().st_mode) == 0o464
        assert path.stat().st_mtime == 10**9


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "encode a.png out.lvq --target-bpp nan",
        "encode a.png out.lvq --target-bpp inf",
        "encode a.png out.lvq --target-psnr nan",
        "encode a.png out.lvq --target-psnr inf",
        "encode a.png out.lvq --max-seconds nan",
        "encode a.png out.lvq --max-memory inf",
        "encode a.png out.lvq --quality 50.0",
        "encode a.png out.lvq --threads 100000",
        "decode c.lvq out.png --region 1,2,3",
        "decode c.lvq out.png --region 1,2,3,4,5",
        "decode c.lvq out.png --region 1,2,3,x",
        "decode c.lvq out.png --region 1.5,2,3,4",
        "decode c.lvq out.png --region ''",
        "train --config r --data d --out o --minutes nan",
        "batch . out --target-bpp nan",
        "batch . out --target-bpp inf",
        "batch . out --threads 100000",
        "batch . out --jobs 100000",
        "eval . --threads 100000",
        "eval . --qualities ''",
        "encode a.png out.lvq --no-such-option",
        "encode a.png out.lvq --quality",
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    result = lvq(*shlex.split(arguments))
    assert result.exit_code == 2
    assert f"; see `lvq {arguments.split()[0]} --help`" in complaint(result)
    assert contents(folder) == before


def test_lvq_alone_shows_its_help() -> None:
    result = lvq()
    assert "Usage: lvq" in result.output and "encode" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize("wanted", [(1, 2, 3), (1, 2, 3, 4, 5), (0.5, 0, 3, 3)])
def test_a_region_of_the_library_is_four_whole_numbers(folder: Path, wanted: tuple) -> None:
    with pytest.raises(lvqcodec.LvqError, match="give four whole numbers"):
        lvqcodec.decode((folder / "c.lvq").read_bytes(), region=wanted)


def test_threads_are_bounded_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert [bounded(threads) for threads in (1, 3, 4, 1000)] == [1, 3, 3, 3]
    monkeypatch.setenv(FORCE_THREADS, "1")
    assert bounded(5) == 5


@pytest.mark.parametrize("named", [True, False])
def test_the_wrong_command_for_a_file_is_told(folder: Path, named: bool) -> None:
    result = lvq("decode", folder / "a.png", *([folder / "out.png"] if named else []))
    assert "a.png is not an lvq file: it looks like PNG, which `lvq encode` takes" in complaint(
        result
    )
    result = lvq("encode", folder / "c.lvq", *([folder / "out.lvq"] if named else []))
    assert "c.lvq is an lvq file, coded already: `lvq decode` takes it" in complaint(result)


def test_a_coded_file_on_stdin_is_told(folder: Path) -> None:
    done = sh(f"{LVQ} encode - - <c.lvq", folder)
    assert done.returncode == 5 and done.stdout == b""
    assert b"is an lvq file, coded already" in done.stderr


# --- interruption -------------------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lvqcodec", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, b"terminated"), (signal.SIGINT, 130, b"interrupted")],
)
def test_a_signal_in_the_midst_of_writing_leaves_nothing(
    folder: Path, number: int, code: int, word: bytes
) -> None:
    before = contents(folder)
    script = (
        "import os, sys, time\n"
        "from lvqcodec.cli import main\n"
        "def hang(*args):\n"
        "    print('now', flush=True); time.sleep(60)\n"
        "os.link = os.replace = hang\n"
        "main(['decode', 'c.lvq', 'out.png'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"now\n"
        assert len(contents(folder)) == len(before) + 1
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == code
    assert said == b"lvq: error: " + word + b"\n"
    assert contents(folder) == before


def test_an_interrupt_before_the_commands_are_there_is_no_traceback(folder: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from lvqcodec.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "decode", "c.lvq", "out.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
    assert not (folder / "out.png").exists()


# --- progress -----------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *arguments: str, until: bytes = b"") -> tuple[int, bytes]:
    """Run `lvq` with stderr a terminal; interrupt it once it has shown `until`."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "lvqcodec", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    said, sent = b"", False
    try:
        while piece := os.read(ours, 10000):
            said += piece
            if until and until in said and not sent:
                sent = True
                time.sleep(0.1)
                child.send_signal(signal.SIGINT)
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return child.wait(), said


def test_a_search_shows_name_share_and_time_left(folder: Path, tiny: str) -> None:
    code, said = on_a_terminal(folder, "encode", "a.png", "out.lvq", "-m", tiny, "-e", "4")
    assert code == 0
    shown = [line for line in said.decode().split("\r") if "left" in line]
    assert all(line.lstrip("\x1b[K").startswith("out.lvq: ") for line in shown)
    assert " 25% |" in said.decode() and "dB" in shown[-1]
    assert "? left" in shown[0]


def test_eval_shows_how_far_it_is(folder: Path, tiny: str) -> None:
    for name in ("a.png", "b.png"):
        with Image.open(folder / name) as picture:
            picture.resize((192, 192)).save(folder / name)
    (folder / "c.lvq").unlink()
    code, said = on_a_terminal(folder, "eval", ".", "-m", tiny, "--qualities", "10,30")
    assert code == 0
    assert ". loading:   0% |" in said.decode()
    assert ". b.png:  75% |" in said.decode()


def test_json_goes_with_none_of_that(folder: Path, tiny: str) -> None:
    result = lvq("encode", folder / "a.png", folder / "x.lvq", "-m", tiny, "--json", "--overwrite")
    assert json.loads(result.stdout)["file"].endswith("x.lvq")

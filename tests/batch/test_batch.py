# SPDX-License-Identifier: Apache-2.0
"""`lvq batch` on local folders: what it codes, leaves, refuses, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from batches import batch, tree
from filelock import FileLock
from PIL import Image

import lvqcodec
from lvqcodec.batch import work
from lvqcodec.batch.local_store import LocalStore
from lvqcodec.batch.plan import Item, plan
from lvqcodec.batch.work import Job, Settings, Worker, encode_picture
from lvqcodec.errors import UsageError
from lvqcodec.metrics import psnr

STATE = ".lvq-batch"
NAMES = ("a.png", "deep/b.JPG", "deep/er/c.webp", "grey.png")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def photos(tmp_path, photograph):
    """A folder of four pictures, a text and an empty folder."""
    folder = tmp_path / "photos"
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = photograph(24 + number, 40, 1 if "grey" in name else 3, seed=number)
        Image.fromarray(picture).save(path)
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def small(tmp_path):
    return tmp_path / "small"


def test_the_tree_is_mirrored_and_files_are_those_of_encode(photos, small, tiny):
    result = batch(photos, small, "-m", tiny, "-q", 40)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    made = tree(small)
    assert sorted(made) == ["a.lvq", "deep/b.lvq", "deep/er/c.lvq", "grey.lvq"]
    image = np.asarray(Image.open(photos / "a.png"))
    assert made["a.lvq"] == lvqcodec.encode(image, model=tiny, quality=40)
    (line,) = result.stderr.splitlines()
    total = sum(map(len, made.values()))
    assert "small: 4 done, 0 skipped, 0 failed, " in line
    assert f" -> {total:,} bytes, mean " in line


def test_decode_brings_every_picture_back(photos, small, tmp_path, tiny):
    batch(photos, small, "-m", tiny)
    result = batch(small, tmp_path / "back", "--decode", "--format", "webp")
    assert result.exit_code == 0, result.stderr
    back = tmp_path / "back"
    assert sorted(tree(back)) == ["a.webp", "deep/b.webp", "deep/er/c.webp", "grey.webp"]
    for name, data in tree(small).items():
        with Image.open((back / name).with_suffix(".webp")) as picture:
            decoded = lvqcodec.decode(data)
            shown = np.asarray(picture.convert("L" if decoded.ndim == 2 else "RGB"))
        assert np.array_equal(shown, decoded)
    assert " 4 skipped, " in batch(small, back, "--decode", "--format", "webp").stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--include", "*.png"], ["a.lvq", "grey.lvq"]),
        (["--include", "/deep/*.JPG", "--include", "a.*"], ["a.lvq", "deep/b.lvq"]),
        (["--exclude", "deep/"], ["a.lvq", "grey.lvq"]),
        (["--exclude", "er/", "--exclude", "grey.*"], ["a.lvq", "deep/b.lvq"]),
        (["--include", "deep/**", "--exclude", "*.webp"], ["deep/b.lvq"]),
        (["--keep-suffix", "--include", "*.webp"], ["deep/er/c.webp.lvq"]),
    ],
    ids=" ".join,
)
def test_patterns_choose(photos, small, tiny, options, expected):
    assert batch(photos, small, "-m", tiny, *options).exit_code == 0
    assert sorted(tree(small)) == expected


@pytest.mark.parametrize("options", [["--include", "*.gif"], ["--exclude", "*"], ["--decode"]])
def test_nothing_to_do_is_an_error(photos, small, tiny, options):
    result = batch(photos, small, *options)
    assert result.exit_code == 2
    assert "nothing to do: no files in" in result.stderr
    assert not small.exists()


def test_a_rerun_leaves_what_is_done(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    times = {path: path.stat().st_mtime_ns for path in small.rglob("*.lvq")}
    os.utime(photos / "a.png", (1, 1))  # another date, the same bytes
    result = batch(photos, small, "-m", tiny, "--json")
    assert json.loads(result.stdout)["skipped"] == 4
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*.lvq")} == times


@pytest.mark.parametrize(
    "options", [["-q", 51], ["--lattice", "z"], ["-e", 1], ["-m", "other"], ["--target-psnr", 25]]
)
def test_other_settings_make_all_anew(photos, small, tiny, options):
    batch(photos, small, "-m", tiny)
    before = tree(small)
    result = batch(photos, small, "-m", tiny, *options, "--json")
    assert json.loads(result.stdout)["done"] == 4
    assert tree(small) != before


def test_the_default_and_the_same_quality_given_are_one_setting(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    result = batch(photos, small, "-m", tiny, "-q", 50, "-e", 0, "--json")
    assert json.loads(result.stdout)["skipped"] == 4


def test_what_changed_is_made_anew(photos, small, tiny, photograph):
    batch(photos, small, "-m", tiny)
    before = tree(small)
    Image.fromarray(photograph(20, 20, seed=9)).save(photos / "a.png")
    (small / "deep/b.lvq").write_bytes(before["deep/b.lvq"][:-1])
    (small / "grey.lvq").unlink()
    report = small.parent / "report.jsonl"
    assert batch(photos, small, "-m", tiny, "--report", report).exit_code == 1
    statuses = ["done", "kept", "skipped", "done", "ignored"]
    assert [line["status"] for line in lines(report)] == statuses
    assert (small / "deep/b.lvq").read_bytes() == before["deep/b.lvq"][:-1]
    result = batch(photos, small, "-m", tiny, "--report", report, "--overwrite")
    assert result.exit_code == 0
    statuses = ["skipped", "done", "skipped", "skipped", "ignored"]
    assert [line["status"] for line in lines(report)] == statuses
    after = tree(small)
    assert after.pop("a.lvq") != before.pop("a.lvq")
    assert after == before


def test_a_torn_or_damaged_journal_costs_only_its_lines(photos, small, tiny):
    batch(photos, small, "-m", tiny)
    journal = small / STATE / "journal.jsonl"
    first, second, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + b"[1]\n\xff\n" + b"".join(rest) + second[: len(second) // 2])
    (small / json.loads(second)["output"]).unlink()  # as if killed while its line was written
    result = batch(photos, small, "-m", tiny, "--json")
    assert (json.loads(result.stdout)["done"], json.loads(result.stdout)["skipped"]) == (1, 3)
    result = batch(photos, small, "-m", tiny, "--json")
    assert json.loads(result.stdout)["skipped"] == 4


def test_bad_files_are_named_and_the_rest_is_done(photos, small, tiny):
    (photos / "deep/bad.png").write_bytes((photos / "a.png").read_bytes()[:300])
    (photos / "empty.jpg").write_bytes(b"")
    Image.new("I;16", (8, 8)).save(photos / "deep.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    result = batch(photos, small, "-m", tiny, "--quiet", "--report", small.parent / "r.jsonl")
    assert result.exit_code == 1
    told = sorted(result.stderr.splitlines())
    starts = ["deep.png: ", "deep/bad.png: ", "empty.jpg: ", "gone.png: "]
    assert len(told) == 4
    assert all(a.startswith("lvq: error: " + b) for a, b in zip(told, starts, strict=True))
    assert len(tree(small)) == 4
    failed = [line for line in lines(small.parent / "r.jsonl") if line["status"] == "failed"]
    assert [line["source"] for line in failed] == [
        "deep.png",
        "deep/bad.png",
        "empty.jpg",
        "gone.png",
    ]
    assert all(line["error"] and line["bytes_out"] is None for line in failed)
    assert batch(photos, small, "-m", tiny, "--exclude", "*").exit_code == 2


def test_bad_files_of_the_other_way(photos, small, tmp_path, tiny):
    batch(photos, small, "-m", tiny)
    data = (small / "a.lvq").read_bytes()
    (small / "a.lvq").write_bytes(data[:-1])
    result = batch(small, tmp_path / "back", "--decode")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("lvq: error: a.lvq: ")
    assert sorted(tree(tmp_path / "back")) == ["deep/b.png", "deep/er/c.png", "grey.png"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory for a picture of this size"),
        (RuntimeError("can't allocate memory: 9 bytes"), "not enough memory for"),
        (OSError(28, "No space left on device", "x"), "x: no space left on device"),
        (ZeroDivisionError("a\ndefect"), "ZeroDivisionError: a defect"),
    ],
    ids=str,
)
def test_whatever_goes_wrong_with_one_file_the_rest_is_done(
    photos, small, tiny, monkeypatch, error, said
):
    def encode(image, *arguments):
        if image.pixels.shape == (24, 40, 3):  # a.png
            raise error
        return encode_picture(image, *arguments)

    monkeypatch.setattr(work, "encode_picture", encode)
    result = batch(photos, small, "-m", tiny, "--quiet")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"lvq: error: a.png: {said}")
    assert len(tree(small)) == 3


def test_the_report_is_exact(photos, small, tiny):
    report = small.parent / "report.jsonl"
    batch(photos, small, "-m", tiny, "--psnr", "--report", report)
    *told, ignored = lines(report)
    assert [line["source"] for line in told] == list(NAMES)
    assert (ignored["source"], ignored["status"], ignored["kind"]) == (
        "notes.txt",
        "ignored",
        ".txt",
    )
    for line in told:
        source, output = (photos / line["source"]).read_bytes(), small / line["output"]
        with Image.open(photos / line["source"]) as opened:
            picture = np.asarray(opened)
        data = output.read_bytes()
        assert line.pop("seconds") > 0
        assert line.pop("psnr") == psnr(picture, lvqcodec.decode(data))
        assert len(line.pop("settings_sha256")) == 64
        assert line == {
            "source": line["source"],
            "output": str(Path(line["source"]).with_suffix(".lvq")),
            "status": "done",
            "bytes_in": len(source),
            "bytes_out": len(data),
            "width": 40,
            "height": picture.shape[0],
            "bpp": 8 * len(data) / picture[..., 0].size
            if picture.ndim == 3
            else 8 * len(data) / picture.size,
            "quality": 50,
            "kind": None,
            "remarks": None,
            "error": None,
            "source_sha256": sha256(source).hexdigest(),
            "output_sha256": sha256(data).hexdigest(),
        }
    again = small.parent / "again.jsonl"
    batch(photos, small, "-m", tiny, "--psnr", "--report", again)
    repeated = [line for line in lines(again) if line["status"] != "ignored"]
    assert [(line["status"], line["seconds"]) for line in repeated] == [("skipped", 0)] * 4
    assert [line["psnr"] for line in lines(again)] == [line["psnr"] for line in lines(report)]


def test_the_summary_adds_up(photos, small, tiny):
    result = batch(photos, small, "-m", tiny, "--json", "--quiet", "--psnr")
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    made = tree(small)
    pixels = {
        "a.lvq": 24 * 40,
        "deep/b.lvq": 25 * 40,
        "deep/er/c.lvq": 26 * 40,
        "grey.lvq": 27 * 40,
    }
    rates = [8 * len(made[name]) / pixels[name] for name in made]
    assert summary["files"] == summary["done"] == 4
    assert summary["bytes_in"] == sum((photos / name).stat().st_size for name in NAMES)
    assert summary["bytes_out"] == sum(map(len, made.values()))
    assert summary["bpp"] == pytest.approx(np.mean(rates))
    assert summary["total_bpp"] == pytest.approx(8 * summary["bytes_out"] / sum(pixels.values()))
    assert 15 < summary["psnr"] < 60


def test_workers_and_threads_change_no_bit(photos, tmp_path, tiny):
    batch(photos, tmp_path / "one", "-m", tiny, "--jobs", 1)
    batch(photos, tmp_path / "four", "-m", tiny, "--jobs", 4, "--threads", 2)
    assert tree(tmp_path / "one") == tree(tmp_path / "four")


def test_size_and_psnr_hold_for_each_picture(photos, tmp_path, tiny):
    batch(photos, tmp_path / "sized", "-m", tiny, "--target-size", 300, "--include", "/*.png")
    plain = tree(tmp_path / "sized")
    assert sorted(plain) == ["a.lvq", "grey.lvq"]
    assert all(len(data) <= 300 for data in plain.values())
    batch(photos, tmp_path / "good", "-m", tiny, "--target-psnr", 26, "--include", "/*.png")
    for name, data in tree(tmp_path / "good").items():
        picture = np.asarray(Image.open((photos / name).with_suffix(".png")))
        assert psnr(picture, lvqcodec.decode(data)) >= 26


# what cannot be meant


def test_two_files_that_would_become_one_are_refused_before_any_is_coded(photos, small, tiny):
    Image.open(photos / "a.png").save(photos / "a.jpg")
    result = batch(photos, small, "-m", tiny)
    assert result.exit_code == 2
    assert "a.jpg and a.png -> a.lvq; give --keep-suffix" in result.stderr
    assert not small.exists()
    assert batch(photos, small, "-m", tiny, "--keep-suffix").exit_code == 0
    assert {"a.jpg.lvq", "a.png.lvq"} <= set(tree(small))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-q", 3, "--target-psnr", 30], "--quality and --target-psnr exclude each other"),
        (["--target-size", "9k", "--target-bpp", 1], "exclude each other"),
        (["--decode", "-q", 3], "--quality cannot go with --decode"),
        (["--decode", "-m", "tiny"], "--model cannot go with --decode"),
        (["--format", "png"], "--format and --background go with --decode"),
        (["--budget-metric", "psnr"], "--budget-metric goes with --target-bpp"),
        (["--address", "auto"], "--address is for --engine ray"),
        (["--exclude", "!"], "pattern"),
    ],
    ids=str,
)
def test_options_that_cannot_go_together(photos, small, tiny, options, said):
    result = batch(photos, small, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert tree(small) == {}


def test_an_unknown_model_and_a_missing_folder(photos, small, tiny):
    assert batch(photos, small, "-m", "nobody").exit_code == 4
    result = batch(photos / "nowhere", small)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "nowhere" in line


@pytest.mark.parametrize("destination", [".", "photos/.."])
def test_a_destination_that_holds_the_source_is_refused(photos, tiny, destination):
    result = batch(photos, photos / destination if destination == "." else photos.parent)
    assert result.exit_code == 2
    assert "name another folder" in result.stderr


def test_a_destination_inside_the_source_is_not_read(photos, tiny):
    inside = photos / "deep/out"
    assert (
        batch(photos, inside, "-m", tiny, "--include", "*.png", "--include", "*.lvq").exit_code == 0
    )
    result = batch(photos, inside, "-m", tiny, "--include", "*.png", "--include", "*.lvq", "--json")
    assert json.loads(result.stdout)["files"] == 2


def test_only_one_batch_writes_to_a_folder(photos, small, tiny):
    (small / STATE).mkdir(parents=True)
    with FileLock(small / STATE / "lock"):
        result = batch(photos, small, "-m", tiny)
    assert result.exit_code == 2
    assert "another lvq batch is writing to" in result.stderr
    assert tree(small) == {}


# links and names


def test_nothing_is_written_outside(photos, small, tmp_path, tiny):
    outside = tmp_path / "outside"
    outside.mkdir()
    small.mkdir()
    (small / "deep").symlink_to(outside)
    (small / "a.lvq").symlink_to(outside / "victim")
    (outside / "victim").write_text("mine")
    result = batch(photos, small, "-m", tiny, "--quiet", "--overwrite")
    assert result.exit_code == 1
    assert result.stderr.count("would be written outside") == 2  # deep/b.JPG and deep/er/c.webp
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "mine"
    assert (small / "a.lvq").is_file() and not (small / "a.lvq").is_symlink()


def test_the_state_folder_may_be_no_link(photos, small, tmp_path, tiny):
    small.mkdir()
    (tmp_path / "outside").mkdir()
    (small / STATE).symlink_to(tmp_path / "outside")
    assert batch(photos, small, "-m", tiny).exit_code == 2
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", "./a", ".."])
def test_names_that_lead_out_are_refused(tmp_path, name):
    store = LocalStore(str(tmp_path / "store"))
    with pytest.raises(UsageError, match="leads out of its folder"):
        store.write(name, b"")
    assert list(tmp_path.rglob("*")) == []


def test_folders_that_are_links_are_not_entered(photos, small, tiny):
    (photos / "loop").symlink_to(photos)
    (photos / "linked.png").symlink_to(photos / "a.png")
    assert batch(photos, small, "-m", tiny).exit_code == 0
    assert sorted(tree(small)) == ["a.lvq", "deep/b.lvq", "deep/er/c.lvq", "grey.lvq", "linked.lvq"]


def test_names_that_are_no_unicode_are_coded(photos, small, tiny):
    os.rename(photos / "a.png", os.fsencode(photos) + b"/\xff.png")
    assert batch(photos, small, "-m", tiny).exit_code == 0
    assert os.path.exists(os.fsencode(small) + b"/\xff.lvq")
    assert " 4 skipped" in batch(photos, small, "-m", tiny).stderr


def test_plan_keeps_the_order_of_names(photos, small):
    planned = plan(
        LocalStore(str(photos)), LocalStore(str(small)), suffixes=[".png"], new_suffix=".x"
    )
    assert [(item.source, item.output) for item in planned.items] == [
        ("a.png", "a.x"),
        ("grey.png", "grey.x"),
    ]


# killed and interrupted


@pytest.fixture
def many(tmp_path, photograph):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        picture = photograph(48 + number % 7, 64, seed=number)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return folder


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lvqcodec", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_some(folder: Path, process: subprocess.Popen[str]) -> None:
    while len(list(folder.glob("*.lvq"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_killed_batch_goes_on_to_the_same_bytes(many, small, tmp_path, tiny):
    process = start(many, small, "-m", tiny, "--jobs", 2)
    wait_for_some(small, process)
    process.kill()
    process.communicate()
    left = [name for name in tree(small) if name.endswith(".lvq")]
    assert 3 <= len(left) < 40
    (small / STATE / "0123456789abcdef.tmp").write_bytes(b"half")  # at another moment it would be
    result = batch(many, small, "-m", tiny, "--json")
    summary = json.loads(result.stdout)
    assert summary["skipped"] == len(left)
    assert summary["done"] + summary["skipped"] == 40
    batch(many, tmp_path / "undisturbed", "-m", tiny)
    assert tree(small) == tree(tmp_path / "undisturbed")
    assert not list((small / STATE).glob("*.tmp"))


def test_an_interrupted_batch_finishes_what_is_in_hand(many, small, tmp_path, tiny):
    process = start(many, small, "-m", tiny, "--jobs", 2, "--report", tmp_path / "report")
    wait_for_some(small, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    last = "lvq: error: interrupted: run the same command again to go on"
    assert stderr.splitlines()[-1] == last
    told = lines(tmp_path / "report")
    assert sorted(line["output"] for line in told) == sorted(tree(small))
    assert 3 <= len(told) < 40
    assert not list((small / STATE).glob("*.tmp"))
    assert json.loads(batch(many, small, "-m", tiny, "--json").stdout)["skipped"] == len(told)


def test_an_interrupted_search_is_given_up(photos, small, tiny, monkeypatch):
    job = Job(str(photos), str(small), Settings(model=tiny, effort=9))
    worker = Worker(job)

    def encode(*arguments):
        worker.stop()
        return encode_picture(*arguments)

    monkeypatch.setattr(work, "encode_picture", encode)
    assert worker.code(Item("a.png", "a.lvq")) is None
    assert worker.code(Item("grey.png", "grey.lvq")) is None  # not begun
    assert not small.exists()

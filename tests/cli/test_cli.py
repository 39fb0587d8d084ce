# SPDX-License-Identifier: Apache-2.0
"""`lvq` from outside: what it prints, how it exits, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import lvqcodec
from lvqcodec import catalog, codec
from lvqcodec.cli import main
from lvqcodec.format.container import Header, Section, pack, read_header
from lvqcodec.metrics import psnr
from lvqcodec.pictures import load

WIDTH, HEIGHT = 45, 34
LVQ = [sys.executable, "-m", "lvqcodec"]


def lvq(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    """Run `lvq` in this process; an exception that is no exit fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def complaint(result: Result) -> str:
    """The one line that an error consists of."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("lvq: error: ")
    return line.removeprefix("lvq: error: ")


def photo(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / (5 + c) + y / (9 - c)) for c in range(3)]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    return path


@pytest.fixture(scope="session")
def stream() -> bytes:
    """What encoding `photo()` gives: a whole file."""
    return lvqcodec.encode(photo())


@pytest.fixture
def file(tmp_path: Path, stream: bytes) -> Path:
    path = tmp_path / "in.lvq"
    path.write_bytes(stream)
    return path


def foreign(model: bytes = b"\xde\xad\xbe\xef") -> bytes:
    """An intact file of a model that nobody has."""
    header = Header(WIDTH, HEIGHT, 3, 50, "e8", model)
    return pack(header, [Section(1, bytes(12))])


# help and version


@pytest.mark.parametrize("name", [None, *main.commands])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(name: str | None, flag: str) -> None:
    result = lvq(*([name] if name else []), flag)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: lvq {name or ''}".rstrip())


def test_version() -> None:
    assert lvq("--version").stdout == f"lvq, version {lvqcodec.__version__}\n"


def test_importing_the_package_and_the_commands_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, lvqcodec, lvqcodec.cli; lvqcodec.list_models(); lvqcodec.read_header;"
        "sys.exit(bool({'numpy', 'torch', 'PIL'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve_and_others_do_not() -> None:
    for name in lvqcodec.__all__:
        assert getattr(lvqcodec, name) is not None
        assert name in dir(lvqcodec)
    with pytest.raises(AttributeError, match="no_such_name"):
        lvqcodec.no_such_name  # noqa: B018


# encode and decode


def test_encode_and_decode_with_default_names(png: Path) -> None:
    result = lvq("encode", png, "--psnr")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    data = png.with_suffix(".lvq").read_bytes()
    bpp = 8 * len(data) / (WIDTH * HEIGHT)
    (line,) = result.stderr.splitlines()
    assert f"photo.lvq: {len(data):,} bytes, {bpp:.3f} bpp, " in line
    psnr = float(line.split(", ")[2].removesuffix(" dB"))

    original = load.load(png)
    refused = lvq("decode", png.with_suffix(".lvq"))
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr
    assert np.array_equal(load.load(png), original)
    png.unlink()
    assert lvq("decode", png.with_suffix(".lvq")).exit_code == 0
    x_hat = load.load(png)
    assert x_hat.shape == original.shape
    error = np.mean((original.astype(float) - x_hat) ** 2)
    assert psnr == pytest.approx(10 * np.log10(255**2 / error), abs=0.006)


def test_options_reach_the_file(png: Path, tmp_path: Path) -> None:
    sizes = {}
    for quality, lattice in ((5, "z"), (95, "e8")):
        out = tmp_path / f"{quality}.lvq"
        command = ("encode", png, out, "-q", str(quality), "--lattice", lattice)
        result = lvq(*command, "-m", catalog.DEFAULT_MODEL, "--device", "cpu", "--threads", "1")
        assert result.exit_code == 0, result.stderr
        header = read_header(out.read_bytes())
        assert (header.quality, header.lattice) == (quality, lattice)
        assert (header.width, header.height, header.channels) == (WIDTH, HEIGHT, 3)
        sizes[quality] = out.stat().st_size
    assert sizes[5] < sizes[95]


def test_grey_stays_grey(tmp_path: Path) -> None:
    Image.fromarray(photo()[..., 0]).save(tmp_path / "grey.png")
    assert lvq("encode", tmp_path / "grey.png").exit_code == 0
    assert lvq("decode", tmp_path / "grey.lvq", tmp_path / "back.png").exit_code == 0
    with Image.open(tmp_path / "back.png") as back:
        assert (back.mode, back.size) == ("L", (WIDTH, HEIGHT))
    assert " grey, " in lvq("info", tmp_path / "grey.lvq").stdout


@pytest.mark.parametrize(
    ("suffix", "pillow"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("ppm", "PPM")]
)
def test_the_picture_format_follows_suffix_and_option(
    file: Path, tmp_path: Path, suffix: str, pillow: str
) -> None:
    by_suffix, by_option = tmp_path / f"out.{suffix}", tmp_path / "out.bin"
    assert lvq("decode", file, by_suffix).exit_code == 0
    assert lvq("decode", file, by_option, "--format", suffix).exit_code == 0
    assert lvq("decode", file, "--format", suffix).exit_code == 0
    stdout = lvq("decode", file, "-", "--format", suffix).stdout_bytes
    for target in (by_suffix, by_option, file.with_suffix(f".{suffix}"), io.BytesIO(stdout)):
        with Image.open(target) as picture:
            assert (picture.format, picture.size) == (pillow, (WIDTH, HEIGHT))


def test_an_unknown_suffix_is_a_usage_error(file: Path, tmp_path: Path) -> None:
    result = lvq("decode", file, tmp_path / "out.xyz")
    assert result.exit_code == 2
    assert "xyz" in complaint(result)
    assert list(tmp_path.iterdir()) == [file]


def test_stdin_defaults_to_stdout(png: Path, stream: bytes) -> None:
    encoded = lvq("encode", "-", stdin=png.read_bytes())
    assert encoded.stdout_bytes == stream
    assert encoded.stderr.startswith("stdin -> stdout: ")
    decoded = lvq("decode", "-", stdin=stream)
    assert load.load(io.BytesIO(decoded.stdout_bytes)).shape == (HEIGHT, WIDTH, 3)


def test_a_pipe_of_real_processes(png: Path, tmp_path: Path, file: Path) -> None:
    back = tmp_path / "back.png"
    python = f"'{sys.executable}' -m lvqcodec"
    line = f"cat '{png}' | {python} encode - - | {python} decode - - > '{back}'"
    subprocess.run(line, shell=True, check=True)
    assert np.array_equal(load.load(back), codec.decode(file.read_bytes()))


def test_targets_and_efforts_are_kept(png: Path, stream: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.lvq"
    limit = len(stream) + 100
    for size in (str(limit), f"{limit / 1000}k"):
        result = lvq("encode", png, out, "--target-size", size)
        assert result.exit_code == 0 and " dB" in result.stderr
        assert 0.9 * limit < out.stat().st_size <= limit
    assert lvq("encode", png, out, "--target-bpp", "1").exit_code == 0
    assert out.stat().st_size <= HEIGHT * WIDTH / 8
    assert lvq("encode", png, out, "--target-psnr", "30").exit_code == 0
    assert psnr(photo(), codec.decode(out.read_bytes())) >= 30
    for options in (["--effort", "2"], ["--max-seconds", "0.2"]):
        result = lvq("encode", png, out, *options)
        assert result.exit_code == 0
        said = float(re.search(r"([\d.]+) dB", result.stderr)[1])
        assert said == pytest.approx(psnr(photo(), codec.decode(out.read_bytes())), abs=0.006)


def test_an_existing_output_is_replaced(png: Path, stream: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.lvq"
    for old in (foreign(), b""):
        out.write_bytes(old)
        assert lvq("encode", png, out).exit_code == 0
        assert out.read_bytes() == stream


def test_input_and_output_may_not_be_one_file(png: Path, file: Path) -> None:
    for command, path in (("encode", png), ("decode", file)):
        before = path.read_bytes()
        result = lvq(command, path, path)
        assert result.exit_code == 2
        assert "both input and output" in complaint(result)
        assert path.read_bytes() == before


def test_binary_is_not_written_to_a_terminal(png: Path, file: Path) -> None:
    for command, path in (("encode", png), ("decode", file)):
        ours, theirs = pty.openpty()
        try:
            done = subprocess.run(
                [*LVQ, command, str(path), "-"], stdout=theirs, stderr=subprocess.PIPE, text=True
            )
        finally:
            os.close(theirs)
            os.close(ours)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("lvq: error: ")
        assert "terminal" in line


# what goes wrong


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_a_missing_file(command: str, tmp_path: Path) -> None:
    result = lvq(command, tmp_path / "nothing.here")
    assert result.exit_code == 2
    assert "nothing.here" in complaint(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_a_folder_instead_of_a_file(command: str, tmp_path: Path) -> None:
    result = lvq(command, tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path) in complaint(result)


def test_an_output_that_cannot_be_written(png: Path, file: Path, tmp_path: Path) -> None:
    for arguments in (("encode", png, tmp_path / "no" / "out.lvq"), ("encode", png, tmp_path)):
        assert lvq(*arguments).exit_code == 2
    result = lvq("decode", file, tmp_path / "no" / "out.png")
    assert result.exit_code == 2
    assert "no/out.png" in complaint(result)
    assert set(tmp_path.iterdir()) == {png, file}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(file: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*LVQ, "decode", str(file), "-"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "lvq: error: no space left on device\n"


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello\n",
    "png": lambda data: b"\x89PNG\r\n\x1a\n" + bytes(40),
    "half a magic": lambda data: data[:4],
    "half a header": lambda data: data[:20],
    "half a file": lambda data: data[: len(data) // 2],
    "all but the last byte": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "a flipped bit in the payload": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "a newer container": lambda data: data[:8] + b"\x63" + data[9:],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_broken_file_exits_3_and_leaves_nothing(kind: str, file: Path, tmp_path: Path) -> None:
    broken = GARBAGE[kind](file.read_bytes())
    file.write_bytes(broken)
    decoded = lvq("decode", file)
    assert decoded.exit_code == 3
    complaint(decoded)
    assert list(tmp_path.iterdir()) == [file]

    result = lvq("decode", "-", stdin=broken)
    assert (result.exit_code, result.stdout_bytes) == (3, b"")
    info = lvq("info", file)
    assert info.exit_code == 3
    assert complaint(info).startswith(f"{file}: ")


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_picture_exits_3(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    for result in (lvq("encode", path), lvq("encode", "-", stdin=data)):
        assert result.exit_code == 3
        complaint(result)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["I;16", "CMYK"])
def test_an_unsupported_picture_exits_5(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new(mode, (20, 10)).save(path)
    result = lvq("encode", path)
    assert result.exit_code == 5
    complaint(result)
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_is_not_there_exits_4(png: Path, tmp_path: Path) -> None:
    result = lvq("encode", png, "--model", "no-such-model")
    assert result.exit_code == 4
    assert "no-such-model" in complaint(result)

    path = tmp_path / "foreign.lvq"
    path.write_bytes(foreign())
    result = lvq("decode", path)
    assert result.exit_code == 4
    assert "deadbeef" in complaint(result)
    assert set(tmp_path.iterdir()) == {png, path}


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "in.png", "--quality", "101"),
        ("encode", "in.png", "--quality", "x"),
        ("encode", "in.png", "--lattice", "hexagonal"),
        ("encode", "in.png", "--device", "abacus"),
        ("encode", "in.png", "--threads", "0"),
        ("encode", "in.png", "--effort", "10"),
        ("encode", "in.png", "--max-seconds", "0"),
        ("encode", "in.png", "--target-size", "0"),
        ("encode", "in.png", "--target-size", "20T"),
        ("encode", "in.png", "--target-size", "nan"),
        ("encode", "in.png", "--target-psnr", "-3"),
        ("encode",),
        ("decode", "in.lvq", "--format", "gif"),
        ("info",),
        ("train", "--minutes", "0"),
        ("eval", "folder", "--qualities", "10;20"),
        ("eval", "folder", "--qualities", "10,200"),
        ("eval", "folder", "--efforts", "0,10"),
        ("export",),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    result = lvq(*arguments)
    assert result.exit_code == 2
    assert f"; see `lvq {arguments[0]}".removesuffix(" no-such-command") in complaint(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-q", "50", "--target-size", "900"), "--quality and --target-size exclude each other"),
        (("--target-bpp", "1", "--target-psnr", "30"), "--target-bpp and --target-psnr exclude"),
        (("--target-size", "20"), "its smallest file has"),
        (("--target-psnr", "95"), "out of reach"),
    ],
)
def test_wishes_that_cannot_be_met_are_said(
    png: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = lvq("encode", png, tmp_path / "out.lvq", *options)
    assert result.exit_code == 2
    assert words in complaint(result)
    assert set(tmp_path.iterdir()) == {png}


def test_no_gpu_is_a_usage_error(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = lvq("encode", png, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cpu" in complaint(result)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "x.lvq"), 2),
    ],
)
def test_trouble_half_way_is_one_line(
    png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*args: object, **kwargs: object) -> bytes:
        raise error

    monkeypatch.setattr(codec, "encode_image", fail)
    result = lvq("encode", png)
    assert result.exit_code == code
    complaint(result)
    assert list(tmp_path.iterdir()) == [png]


def test_a_bug_is_not_hidden(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> bytes:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(codec, "encode_image", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        lvq("encode", png)


def test_a_reader_that_leaves_early_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "f.lvq").write_bytes(foreign())
    line = f"'{sys.executable}' -m lvqcodec info {'f.lvq ' * 2000} | head -n 1"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


# transparency, metadata, frames


def test_transparency_and_metadata_go_through(tiny: str, tmp_path: Path) -> None:
    source, file, back = (tmp_path / name for name in ("a.webp", "a.lvq", "back.png"))
    alpha = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    xmp, exif = b"<x:xmpmeta/>", Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.dstack([photo(), alpha]))
    picture.save(source, lossless=True, exact=True, exif=exif, xmp=xmp)
    assert lvq("encode", source, "-m", tiny, "--psnr").exit_code == 0
    assert lvq("decode", file, back).exit_code == 0
    with Image.open(back) as shown:
        assert (shown.mode, shown.getexif()[0x0112], shown.info["xmp"]) == ("RGBA", 6, xmp)
        assert np.array_equal(np.asarray(shown)[..., 3], alpha)
    facts = json.loads(lvq("info", "--json", file).stdout)
    assert facts["alpha"] > 20 and facts["exif"] > 20 and facts["icc"] == 0
    assert facts["xmp"] == len(xmp) + 1
    assert f"XMP {len(xmp) + 1} bytes, " in lvq("info", file).stdout

    refused = lvq("decode", file, tmp_path / "back.jpg")
    assert refused.exit_code == 2 and "--background" in complaint(refused)
    assert not (tmp_path / "back.jpg").exists()
    flat = lvq("decode", file, tmp_path / "back.ppm", "--background", "white")
    assert flat.exit_code == 0 and flat.stderr.endswith(" s, without EXIF and XMP\n")
    assert load.load(tmp_path / "back.ppm").shape == (WIDTH, HEIGHT, 3)  # turned upright

    size = file.stat().st_size
    assert lvq("encode", source, "-m", tiny, "--alpha-quality", "40").exit_code == 0
    assert file.stat().st_size < size
    assert lvq("encode", source, "-m", tiny, "--strip").exit_code == 0
    facts = json.loads(lvq("info", "--json", file).stdout)
    assert (facts["exif"], facts["xmp"], facts["width"]) == (0, 0, HEIGHT)
    assert lvq("encode", source, "-m", tiny, "--target-size", str(size + 50)).exit_code == 0
    assert size - 100 < file.stat().st_size <= size + 50


def test_frames_are_chosen_and_others_converted(tiny: str, tmp_path: Path) -> None:
    pages, deep = tmp_path / "pages.tif", tmp_path / "deep.png"
    Image.fromarray(photo()).save(
        pages, save_all=True, append_images=[Image.fromarray(photo()[:20])]
    )
    refused = lvq("encode", pages, "-m", tiny)
    assert refused.exit_code == 5 and "--frame" in complaint(refused)
    assert lvq("encode", pages, "-m", tiny, "--frame", "3").exit_code == 2
    assert lvq("encode", pages, "-m", tiny, "--frame", "2").exit_code == 0
    assert read_header((tmp_path / "pages.lvq").read_bytes()).height == 20
    Image.fromarray(photo()[..., 0].astype(np.uint16) * 257).save(deep)
    refused = lvq("encode", deep, "-m", tiny)
    assert refused.exit_code == 5 and "--to-srgb8" in complaint(refused)
    assert lvq("encode", deep, "-m", tiny, "--to-srgb8").exit_code == 0
    assert read_header((tmp_path / "deep.lvq").read_bytes()).channels == 1


# info and models


def test_info_says_what_is_in_the_file(file: Path) -> None:
    size = file.stat().st_size
    facts = json.loads(lvq("info", "--json", file).stdout)
    card = catalog.find_model(catalog.DEFAULT_MODEL)
    assert facts == {
        "file": str(file),
        "bytes": size,
        "width": WIDTH,
        "height": HEIGHT,
        "channels": 3,
        "bpp": 8 * size / (WIDTH * HEIGHT),
        "quality": 50,
        "lattice": read_header(file.read_bytes()).lattice,
        "model": card.name,
        "digest": card.digest[:8],
        "stream_version": 1,
        **dict.fromkeys(("alpha", "icc", "exif", "xmp"), 0),
        "tiles": 1,
        "decode_memory": facts["decode_memory"],
    }
    assert 2**28 < facts["decode_memory"] < 2**30
    line = lvq("info", file).stdout
    assert line.startswith(f"{file}: {WIDTH}x{HEIGHT} RGB, {size:,} bytes, ")
    assert f"quality 50, lattice {facts['lattice']}, model {card.name} ({card.digest[:8]})" in line


def test_info_knows_files_of_absent_models(tmp_path: Path) -> None:
    path = tmp_path / "foreign.lvq"
    path.write_bytes(foreign())
    assert "model not installed (deadbeef)" in lvq("info", path).stdout
    facts = json.loads(lvq("info", "--json", "-", stdin=foreign()).stdout)
    assert (facts["file"], facts["model"], facts["digest"]) == ("-", None, "deadbeef")


def test_info_looks_at_all_files_and_reports_the_first_fault(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.lvq", tmp_path / "broken.lvq"
    good.write_bytes(foreign())
    broken.write_bytes(foreign()[:-1])
    result = lvq("info", "--json", good, broken, tmp_path / "missing.lvq", good)
    assert result.exit_code == 3
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == [str(good)] * 2
    faults = result.stderr.splitlines()
    assert [("broken.lvq" in line, "missing.lvq" in line) for line in faults] == [
        (True, False),
        (False, True),
    ]


def test_info_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    path = tmp_path / "f.lvq"
    path.write_bytes(foreign())
    code = (
        "import atexit, sys\n"
        "from lvqcodec.cli import main\n"
        "heavy = {'numpy', 'torch', 'PIL', 'constriction'}\n"
        "tell = lambda: print(*sorted(heavy & set(sys.modules)), 'seen', file=sys.stderr)\n"
        "atexit.register(tell)\n"
        f"main(['info', {str(path)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(path))
    assert done.stderr == "seen\n"


def test_models_lists_what_is_installed() -> None:
    listed = lvq("models").stdout.splitlines()
    cards = lvqcodec.list_models()
    assert [line[2:].split()[0] for line in listed] == [card.name for card in cards]
    assert any(line.startswith(f"* {catalog.DEFAULT_MODEL} ") for line in listed)

    facts = json.loads(lvq("models", "--json").stdout)
    assert [fact["name"] for fact in facts] == [card.name for card in cards]
    assert [fact["name"] for fact in facts if fact["default"]] == [catalog.DEFAULT_MODEL]
    assert all(Path(path).is_file() for fact in facts for path in fact["paths"])
    assert all(len(fact["digest"]) == 64 for fact in facts)


# train, export, eval


def test_train_needs_its_recipe_and_pictures(tmp_path: Path) -> None:
    recipe = tmp_path / "no.toml"
    result = lvq("train", "--config", recipe, "--data", tmp_path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "no.toml" in complaint(result)


def test_export_needs_a_run(tmp_path: Path) -> None:
    result = lvq("export", tmp_path / "no-run", "--name", "x", "--out", tmp_path / "models")
    assert result.exit_code == 2
    complaint(result)
    assert list(tmp_path.iterdir()) == []
    result = lvq("export", tmp_path, "--name", "x", "--minutes", "1")
    assert result.exit_code == 2
    assert "--data" in complaint(result)


def test_eval_prints_a_table_and_writes_json_and_plot(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(photo(176, 192)).save(folder / "a.png")
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    result = lvq(
        *("eval", folder, "--qualities", "60,20", "--lattice", "e8", "--limit", "1"),
        *("--json", out, "--plot", plot),
    )
    assert result.exit_code == 0, result.stderr
    assert "20" in result.stdout
    points = json.loads(out.read_text())["points"]
    assert [point["quality"] for point in points] == [20, 60]
    assert points[0]["bpp"] < points[1]["bpp"]
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_eval_of_no_pictures_is_a_usage_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        result = lvq("eval", folder)
        assert result.exit_code == 2
        complaint(result)


# hostile input


def test_pictures_beyond_max_pixels_are_refused(png: Path, file: Path, tmp_path: Path) -> None:
    pixels = WIDTH * HEIGHT
    for name, source in (("encode", png), ("decode", file)):
        out = tmp_path / f"{name}.out.ppm"
        result = lvq(name, source, out, "--max-pixels", pixels - 1)
        assert result.exit_code == 5
        assert f"limit of {pixels - 1} pixels" in complaint(result)
        assert not out.exists()
        assert lvq(name, source, out, "--max-pixels", pixels).exit_code == 0
        assert out.exists()
    assert lvq("decode", file, "-", "--max-pixels", 0).exit_code == 2


def test_a_size_that_the_bytes_cannot_fill_is_refused(tmp_path: Path, stream: bytes) -> None:
    header = Header(65535, 4096, 3, 50, "e8", read_header(stream).model)
    (tmp_path / "tiny.lvq").write_bytes(pack(header, [Section(1, bytes(12))]))
    result = lvq("decode", tmp_path / "tiny.lvq")
    assert result.exit_code == 3
    assert "too short for their picture" in complaint(result)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless file")
@pytest.mark.parametrize("command", ["decode", "info", "encode"])
def test_endless_input_of_another_kind_is_not_read_to_its_end(command: str) -> None:
    with open("/dev/zero", "rb") as endless:
        arguments = ["info", "-"] if command == "info" else [command, "-", "-"]
        result = subprocess.run(
            [*LVQ, *arguments], stdin=endless, capture_output=True, timeout=60, check=False
        )
    assert result.returncode == 3
    assert result.stdout == b""
    assert len(result.stderr.splitlines()) == 1


# what is said


def test_quiet_says_nothing(png: Path, tmp_path: Path) -> None:
    small, back = tmp_path / "small.lvq", tmp_path / "back.png"
    for arguments in (("encode", png, small, "--psnr"), ("decode", small, back)):
        result = lvq(*arguments, "--quiet")
        assert (result.exit_code, result.output) == (0, "")
    assert small.exists() and back.exists()
    assert complaint(lvq("decode", png, "--quiet"))  # errors are said all the same


def test_json_is_all_that_is_said(png: Path, tmp_path: Path) -> None:
    small, back = tmp_path / "small.lvq", tmp_path / "back.ppm"
    result = lvq("encode", png, small, "--json", "--quality", 30, "--psnr")
    assert result.exit_code == 0 and result.stderr == ""
    facts = json.loads(result.stdout)
    data = small.read_bytes()
    assert facts["source"] == str(png) and facts["file"] == str(small)
    assert facts["bytes"] == len(data) and facts["bpp"] == 8 * len(data) / (WIDTH * HEIGHT)
    assert (facts["width"], facts["height"], facts["channels"]) == (WIDTH, HEIGHT, 3)
    assert (facts["quality"], facts["model"]) == (30, "normal")
    assert facts["lattice"] == catalog.find_model("normal").lattice
    assert facts["psnr"] == pytest.approx(psnr(photo(), codec.decode(data)), abs=0.05)
    assert facts["seconds"] > 0
    assert json.loads(lvq("encode", png, small, "--json").stdout)["psnr"] is None

    result = lvq("decode", small, back, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts.pop("seconds") > 0
    assert facts == {
        "source": str(small),
        "file": str(back),
        "width": WIDTH,
        "height": HEIGHT,
        "channels": 3,
        "received": 1.0,
        "left_out": [],
    }


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_json_and_data_do_not_share_stdout(command: str, png: Path, file: Path) -> None:
    source = png if command == "encode" else file
    result = lvq(command, source, "-", "--json")
    assert result.exit_code == 2
    assert "--json writes to stdout" in complaint(result)


@pytest.mark.parametrize("command", ["info", "decode"])
def test_a_reader_that_has_had_enough_is_no_error(command: str, file: Path) -> None:
    arguments = ["info", *[str(file)] * 3000] if command == "info" else ["decode", str(file), "-"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        result = subprocess.run(
            [*LVQ, *arguments, *(["--quiet"] if command == "decode" else [])],
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert result.stderr == b""
    assert result.returncode in (1, -13)

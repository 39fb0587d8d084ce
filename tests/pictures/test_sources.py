# SPDX-License-Identifier: Apache-2.0
"""What the library takes: pictures and files as people have them, and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_photograph
from PIL import Image

import lvqcodec
from lvqcodec import codec
from lvqcodec.codec import decode, decode_picture, encode, estimate_bits, load_model
from lvqcodec.errors import (
    FormatError,
    LvqError,
    ModelMismatch,
    ModelNotFound,
    UnsupportedImage,
    UsageError,
)
from lvqcodec.format.container import read_header
from lvqcodec.options import EncodeOptions
from lvqcodec.pictures.picture import Picture
from lvqcodec.resources import admission

COLOUR, GREY = make_photograph(21, 34), make_photograph(21, 34, channels=1)
RGBA, LA = np.dstack([COLOUR, GREY]), np.dstack([GREY, GREY[::-1]])


def tensor(array: Any) -> torch.Tensor:
    """As torchvision reads pictures."""
    return torch.from_numpy(array).permute(2, 0, 1)


# pictures


@pytest.mark.parametrize("array", [COLOUR, GREY, RGBA, LA], ids=["RGB", "L", "RGBA", "LA"])
def test_the_same_picture_in_any_form_is_the_same_file(
    tiny: str, tmp_path: Path, array: Any
) -> None:
    wanted = encode(array, model=tiny)
    image = Image.fromarray(array)
    path = tmp_path / "a.png"
    image.save(path)
    forms = [path, str(path), io.BytesIO(path.read_bytes()), image, Image.open(path)]
    forms += [torch.from_numpy(array)] if array.ndim == 2 else [tensor(array)]
    if array.ndim == 2:
        forms.append(tensor(array[..., None]))
    for form in forms:
        assert encode(form, model=tiny) == wanted, type(form)
    with open(path, "rb") as file:
        assert encode(file, model=tiny) == wanted
    bits = estimate_bits(array[..., :3] if array.ndim == 3 else array, model=tiny)
    if array is COLOUR or array is GREY:
        assert estimate_bits(path, model=tiny) == bits


def test_metadata_come_with_files_and_images(tiny: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOUR).save(path, exif=exif, xmp=b"<x:xmpmeta/>")
    from_path = encode(path, model=tiny)
    assert decode_picture(from_path).exif and decode_picture(from_path).xmp == b"<x:xmpmeta/>"
    with Image.open(path) as image:
        assert encode(image, model=tiny) == from_path


def test_what_is_left_out_of_a_file_is_a_warning(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.fromarray(array).convert("P") for array in (GREY, GREY[::-1])]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="1 more frame"):
        encode(path, model=tiny)


def test_images_are_expanded_as_if_read_from_a_file(tiny: str, tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(32)
    transparent = palette.copy()
    transparent.info["transparency"] = 3
    bilevel = Image.fromarray(GREY).convert("1")
    for number, image in enumerate((palette, transparent, bilevel)):
        path = tmp_path / f"{number}.png"
        image.save(path)
        assert encode(image, model=tiny) == encode(path, model=tiny)


@pytest.mark.parametrize("mode", ["CMYK", "I", "I;16", "F", "YCbCr", "HSV", "LAB"])
def test_images_of_other_modes_are_refused_with_the_remedy(tiny: str, mode: str) -> None:
    with pytest.raises(UnsupportedImage, match=rf'mode {mode} .*image.convert\("RGB"\)'):
        encode(Image.new(mode, (8, 8)), model=tiny)


def test_a_transparent_colour_is_refused_with_the_remedy(tiny: str) -> None:
    image = Image.fromarray(COLOUR)
    image.info["transparency"] = (1, 2, 3)
    with pytest.raises(UnsupportedImage, match=r'image.convert\("RGBA"\)'):
        encode(image, model=tiny)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (torch.zeros(3, 8, 8), r"torch.float32 .*\(x \* 255\)"),
        (torch.zeros(3, 8, 8, dtype=torch.float16), "torch.float16"),
        (torch.zeros(3, 8, 8, dtype=torch.int16), "torch.int16 .*give uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"permute\(2, 0, 1\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"\(1, 3, 8, 8\) is no picture"),
        (torch.zeros(8, dtype=torch.uint8), r"\(8,\) is no picture"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), "8x0 is not supported"),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_tensors_that_are_no_picture_are_refused(tiny: str, wrong: Any, complaint: str) -> None:
    with pytest.raises(UnsupportedImage, match=complaint):
        encode(wrong, model=tiny)


@pytest.mark.parametrize("wrong", [None, 7, [[0, 1]], b"\x89PNG", {"a": 1}, object()], ids=type)
def test_what_is_no_picture_is_told_what_is(tiny: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"numpy array, a Picture, .* Pillow, .* torch, a path"):
        encode(wrong, model=tiny)


def test_files_that_are_no_pictures_are_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent.png"):
        encode(tmp_path / "absent.png", model=tiny)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(FormatError, match="no intact picture"):
        encode(tmp_path / "text.png", model=tiny)


def test_neither_pillow_nor_torch_is_loaded_to_tell_what_is_given() -> None:
    code = (
        "import sys, numpy; from lvqcodec.pictures.sources import to_picture\n"
        "to_picture(numpy.zeros((2, 2), numpy.uint8))\n"
        "assert not {'PIL', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# files


def test_a_file_in_any_form_is_the_same_picture(
    tiny: str, sample: tuple[Any, bytes], tmp_path: Path
) -> None:
    _, data = sample
    wanted, header = decode(data), read_header(data)
    path = tmp_path / "a.lvq"
    path.write_bytes(data)
    spaced = np.repeat(np.frombuffer(data, np.uint8), 2)[::2]
    forms = [bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), spaced]
    forms += [path, str(path), io.BytesIO(data)]
    for form in forms:
        assert np.array_equal(decode(form), wanted), type(form)
        assert np.array_equal(
            decode_picture(form if form is not forms[-1] else path).pixels, wanted
        )
    for form in (*forms[:-1], io.BytesIO(data)):
        assert read_header(form) == header, type(form)
    with open(path, "rb", buffering=0) as file:
        assert np.array_equal(decode(file), wanted)
    assert np.array_equal(decode(io.BytesIO(data[:-9]), partial=True).shape, wanted.shape)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs pipes as files")
def test_a_pipe_gives_what_it_has_in_pieces(tiny: str, sample: tuple[Any, bytes]) -> None:
    _, data = sample
    feed = "import sys, time; d = sys.stdin.buffer.read(); o = sys.stdout.buffer\n"
    feed += "for i in range(0, len(d), 50): o.write(d[i : i + 50]); o.flush(); time.sleep(0.01)"
    command = [sys.executable, "-c", feed]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin and child.stdout
        child.stdin.write(data)
        child.stdin.close()
        assert np.array_equal(decode(child.stdout), decode(data))


@pytest.mark.parametrize(
    "wrong",
    [None, 7, [1, 2], np.zeros(40), object(), io.StringIO("text")],
    ids=lambda v: repr(v)[:9],
)
def test_what_holds_no_file_is_told_what_does(tiny: str, wrong: Any) -> None:
    for function in (decode, read_header):
        with pytest.raises(UsageError, match=r"give bytes, .* a path or a binary file|\"rb\""):
            function(wrong)


def test_files_that_cannot_be_read_are_refused(tiny: str, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.lvq", tmp_path, "a\0b"):
        for function in (decode, read_header):
            with pytest.raises(UsageError, match="cannot read"):
                function(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a device without end")
def test_what_is_no_lvq_file_is_not_read_to_its_end() -> None:
    with pytest.raises(FormatError, match="not an lvq file"):
        decode("/dev/zero")
    with open("/dev/zero", "rb") as file, pytest.raises(FormatError, match="not an lvq file"):
        decode(file)


# models


def test_the_model_of_a_file_can_be_named(tiny: str, sample: tuple[Any, bytes]) -> None:
    _, data = sample
    wanted = decode(data)
    assert np.array_equal(decode(data, model=tiny), wanted)
    assert np.array_equal(decode(data, model=load_model(tiny)), wanted)
    for other in ("other", load_model("other")):
        with pytest.raises(ModelMismatch, match="leave model out"):
            decode(data, model=other)
    with pytest.raises(ModelNotFound, match="'absent'"):
        decode(data, model="absent")


def test_a_loaded_model_needs_no_installed_one(
    tiny: str, sample: tuple[Any, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = sample
    loaded, wanted = load_model(tiny), decode(data)
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    assert np.array_equal(decode(data, model=loaded), wanted)


@pytest.mark.parametrize("wrong", [7, Path("tiny")], ids=repr)
def test_what_is_no_model_is_refused(tiny: str, sample: tuple[Any, bytes], wrong: Any) -> None:
    for attempt in (
        lambda: encode(COLOUR, model=wrong),
        lambda: decode(sample[1], model=wrong),
        lambda: estimate_bits(COLOUR, model=wrong),
    ):
        with pytest.raises(UsageError, match="neither the name of a model nor a loaded one"):
            attempt()


# sizes


def test_target_bpp_is_target_bytes_by_the_pixel(tiny: str) -> None:
    picture = make_photograph(120, 160)
    size = 120 * 160 // 8
    data = encode(picture, model=tiny, target_bpp=1.0)
    assert data == encode(picture, model=tiny, target_bytes=size)
    assert size / 2 < len(data) <= size


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target_bpp": 0}, "target_bpp = 0 must be"),
        ({"target_bpp": float("nan")}, "target_bpp = nan must be"),
        ({"target_bpp": float("inf")}, "target_bpp = inf must be"),
        ({"target_bpp": 1.0, "quality": 50}, "quality and target_bpp exclude"),
        ({"target_bpp": 1.0, "target_bytes": 50}, "target_bytes and target_bpp exclude"),
        ({"target_bpp": 1.0, "target_psnr": 50}, "target_bpp and target_psnr exclude"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(tiny: str, options: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        encode(COLOUR, model=tiny, **options)


# memory


def huge(path: Path) -> Path:
    """A small file of a picture that takes gigabytes, whose pixels must not be looked at."""
    Image.new("1", (16000, 16000)).save(path)
    return path


def test_a_picture_is_refused_before_it_is_decoded(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = huge(tmp_path / "a.png")
    assert path.stat().st_size < 100_000

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(LvqError, match=r"16000x16000 needs about .* more than the 477 MiB"):
        encode(path, model=tiny, max_memory=500 * 10**6)
    with Image.open(path) as image, pytest.raises(LvqError, match="16000x16000 needs about"):
        encode(image, model=tiny, max_memory=500 * 10**6)
    with pytest.raises(FormatError, match="it was decoded"):
        encode(path, model=tiny, max_memory=2**40)


def test_the_command_refuses_a_picture_before_it_is_decoded(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from lvqcodec.cli import main

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    path = huge(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    done = CliRunner().invoke(main, ["encode", str(path), "-m", tiny, "--max-memory", "500M"])
    assert done.exit_code == 1 and "needs about" in done.output


def test_what_is_reckoned_holds_alpha_and_the_search() -> None:
    """And a source that is decoded to more than its samples."""
    seen: list[int] = []

    def needs(channels: int, effort: int = 0) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(admission, "check", lambda need, *_, **__: seen.append(need))
            admission.admission(EncodeOptions(effort=effort))(4000, 3000, channels)
        return seen[-1]

    pixels = 12_000_000
    assert needs(4) > needs(3) >= needs(1) and needs(2) > needs(1)
    assert needs(3, effort=2) > needs(3)
    assert needs(4) > 23 * pixels and needs(1) > 15 * pixels


def test_public_names_are_those_that_take_them() -> None:
    assert lvqcodec.encode is codec.encode and lvqcodec.decode is codec.decode
    assert lvqcodec.read_header is read_header and lvqcodec.Picture is Picture

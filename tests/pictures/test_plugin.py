# SPDX-License-Identifier: Apache-2.0
"""`import lvqcodec.plugin`, and Pillow knows .lvq files as it knows its own."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photograph
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

import lvqcodec
from lvqcodec import plugin
from lvqcodec.codec import decode, encode
from lvqcodec.format.container import Header, Section, pack, read_header, unpack
from lvqcodec.pictures.picture import Picture
from lvqcodec.pictures.sections import pack_sections


@pytest.fixture
def path(tmp_path, sample):
    path = tmp_path / "in.lvq"
    path.write_bytes(sample[1])
    return path


def saved(image, **options):
    file = BytesIO()
    image.save(file, "LVQ", **options)
    return file.getvalue()


# profiles


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("space", ["GRAY", "RGB"])
def test_a_profile_of_other_colours_is_neither_saved_nor_opened(tiny, mode, space):
    from test_load_and_save import SRGB, grey_profile

    icc = SRGB if space == "RGB" else grey_profile(2.2)
    image = Image.new(mode, (24, 16))
    if fits := (space == "RGB") == mode.startswith("RGB"):
        data = saved(image, model=tiny, icc_profile=icc)
    else:
        with pytest.warns(UserWarning, match=f"the colour profile is left out: it is of {space}"):
            data = saved(image, model=tiny, icc_profile=icc)
    with Image.open(BytesIO(data)) as image:
        assert image.info.get("icc_profile") == (icc if fits else None)
    # as older versions wrote them
    old = encode(Picture.of(np.zeros((8, 8, len(mode)), np.uint8).squeeze()), model=tiny)
    header, sections = unpack(old)
    kinds = [Section(kind, payload) for kind, payload in sections.items()]
    extras = pack_sections(Picture(np.zeros((8, 8), np.uint8), icc=icc))
    with Image.open(BytesIO(pack(header, [*extras, *kinds]))) as image:
        assert image.info.get("icc_profile") == (icc if fits else None)


# opening


def test_sanity(tiny, path, sample):
    _, data = sample
    with Image.open(path) as image:
        assert isinstance(image, plugin.LvqImageFile)
        assert (image.format, image.mode, image.size) == ("LVQ", "RGB", (52, 37))
        assert image.get_format_mimetype() == "image/x-lvq"
        assert image.info["quality"] == 50 and image.info["lattice"] == "e8"
        assert np.array_equal(np.asarray(image), decode(data))
    assert plugin.FORMAT in Image.ID and Image.EXTENSION[".lvq"] == "LVQ"


def test_grey_is_mode_l(tiny, photograph):
    data = encode(photograph(20, 30, channels=1), model=tiny)
    with Image.open(BytesIO(data)) as image:
        assert (image.mode, image.size) == ("L", (30, 20))
        assert np.array_equal(np.asarray(image), decode(data))


@pytest.mark.parametrize("kind", [str, Path, "file", "bytes"])
def test_paths_and_file_objects(tiny, path, sample, kind):
    if kind == "file":
        source = open(path, "rb")  # noqa: SIM115
    elif kind == "bytes":
        source = BytesIO(sample[1])
    else:
        source = kind(path)
    with Image.open(source) as image:
        image.load()
        assert np.array_equal(np.asarray(image), decode(sample[1]))
    if kind in ("file", "bytes"):
        source.close()


def test_a_file_within_a_file(tiny, sample):
    file = BytesIO(b"before" + sample[1])
    file.seek(6)
    image = plugin.LvqImageFile(file)
    assert np.array_equal(np.asarray(image), decode(sample[1]))


def test_files_are_closed_once_loaded(tiny, path):
    image = Image.open(path)
    file = image.fp
    image.load()
    assert file.closed
    image.load()  # and nothing is read again
    with Image.open(path) as image:
        file = image.fp
    assert file.closed


def test_opening_loads_no_torch(models_folder, path):
    code = (
        "import sys, lvqcodec.plugin; from PIL import Image\n"
        "image = Image.open(sys.argv[1])\n"
        "print(image.size, image.mode, 'torch' in sys.modules, 'numpy' in sys.modules)\n"
        "print(image.getpixel((0, 0)) is not None, 'torch' in sys.modules)\n"
    )
    environment = os.environ | {
        "LVQ_MODEL_PATH": str(models_folder),
        "PYTHONPATH": str(Path(lvqcodec.__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["(52, 37) RGB False False", "True True"]


def test_nothing_is_registered_before_the_import():
    code = "from PIL import Image; Image.init(); import lvqcodec; print('.lvq' in Image.EXTENSION)"
    environment = os.environ | {"PYTHONPATH": str(Path(lvqcodec.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_thumbnail(tiny, path):
    with Image.open(path) as image:
        image.thumbnail((26, 26))
        assert image.size == (26, 19)
        assert image.mode == "RGB"


def test_copies_and_conversions(tiny, path, sample):
    with Image.open(path) as image:
        grey = image.convert("L")
    assert grey.size == (52, 37)
    with Image.open(path) as image:
        assert image.copy().tobytes() == decode(sample[1]).tobytes()


# what is none


@pytest.mark.parametrize("data", [b"", bytes(100), b"\x8bLVQ\r\n\x1a\n", b"\x8bLVQ\n\x1a\n" * 9])
def test_what_is_no_lvq_file_is_not_identified(data):
    with pytest.raises(UnidentifiedImageError):
        Image.open(BytesIO(data))
    with pytest.raises(SyntaxError):
        plugin.LvqImageFile(BytesIO(data))


def test_a_broken_header_is_not_identified(sample):
    data = bytearray(sample[1])
    data[11] ^= 1
    with pytest.raises(UnidentifiedImageError):
        Image.open(BytesIO(data))


def test_every_truncation(tiny, sample):
    _, data = sample
    for end in range(len(data)):
        try:
            image = Image.open(BytesIO(data[:end]))
        except UnidentifiedImageError:
            continue
        with pytest.raises(OSError, match=r"truncated|ends before"):
            image.load()


def test_a_damaged_file_is_an_oserror_and_leaves_the_file_closed(tiny, path, sample):
    data = bytearray(sample[1])
    data[60] ^= 1
    path.write_bytes(data)
    with Image.open(path) as image:
        with pytest.raises(OSError, match="damaged"):
            image.load()
        file = image.fp
    assert file is None or file.closed


def test_a_missing_model_is_an_oserror(tiny):
    header = Header(8, 8, 3, 50, "e8", b"none")
    image = Image.open(BytesIO(pack(header, [Section(1, bytes(12))])))
    with pytest.raises(OSError, match="is needed"):
        image.load()


def test_verify(tiny, path, sample):
    with Image.open(path) as image:
        image.verify()
    for at in (30, 60, len(sample[1]) - 1):
        data = bytearray(sample[1])
        data[at] ^= 1
        with Image.open(BytesIO(data)) as image, pytest.raises(OSError):
            image.verify()
    with Image.open(path) as image:
        image.load()
        with pytest.raises(RuntimeError, match="directly after open"):
            image.verify()


def test_pillows_limit_on_pixels_holds(tiny, monkeypatch):
    large = pack(Header(65535, 4096, 3, 50, "e8", b"none"), [Section(1, bytes(12))])
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(large))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 52 * 37 - 1)
    data = encode(np.zeros((37, 52, 3), np.uint8), model=tiny)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(BytesIO(large)).size == (65535, 4096)


# saving


def test_save_is_encode(tiny, photograph):
    picture = photograph(37, 52)
    image = Image.fromarray(picture)
    for options in ({}, {"quality": 20}, {"lattice": "z", "quality": 90}, {"effort": 1}):
        assert saved(image, model=tiny, **options) == encode(picture, model=tiny, **options)
    grey = photograph(20, 30, channels=1)
    assert saved(Image.fromarray(grey), model=tiny) == encode(grey, model=tiny)


def test_save_to_paths(tiny, photograph, tmp_path):
    picture = photograph(20, 24)
    image = Image.fromarray(picture)
    for target in (tmp_path / "a.lvq", str(tmp_path / "b.LVQ")):
        image.save(target, model=tiny, quality=70)
        assert Path(target).read_bytes() == encode(picture, model=tiny, quality=70)
    with open(tmp_path / "c", "wb") as file:
        image.save(file, "lvq", model=tiny)
    assert read_header((tmp_path / "c").read_bytes()).width == 24


def test_an_opened_file_can_be_saved_over_itself(tiny, path):
    with Image.open(path) as image:
        image.save(path, model=tiny, quality=10)
    with Image.open(path) as image:
        image.load()
        assert image.info["quality"] == 10


@pytest.mark.parametrize("mode", ["CMYK", "I", "I;16", "F", "YCbCr", "HSV", "LAB"])
def test_wrong_modes(tiny, mode, tmp_path):
    image = Image.new(mode, (8, 8))
    with pytest.raises(OSError, match=f"mode {mode} is not coded"):
        saved(image, model=tiny)
    with pytest.raises(OSError):
        image.save(tmp_path / "x.lvq", model=tiny)
    assert not list(tmp_path.glob("*.lvq"))


@pytest.mark.parametrize(
    "options",
    [{"quality": 101}, {"quality": "high"}, {"effort": 10}, {"quality": 5, "target_bytes": 99}],
)
def test_wrong_options_are_value_errors(tiny, options):
    with pytest.raises(ValueError):
        saved(make_image(), model=tiny, **options)


def test_a_model_that_is_not_installed_is_an_oserror(tiny):
    with pytest.raises(OSError, match="no model 'absent'"):
        saved(make_image(), model="absent")


def test_what_another_plugin_takes_is_ignored(tiny):
    assert saved(make_image(), model=tiny, optimize=True) == saved(make_image(), model=tiny)


def make_image():
    return Image.fromarray(make_photograph(16, 16))


# alpha and metadata


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_come_back(tiny, mode, tmp_path):
    image = make_image().convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "a.lvq", model=tiny)
    with Image.open(tmp_path / "a.lvq") as opened:
        assert opened.mode == mode
        back = opened.copy()
    if mode.endswith("A"):
        assert np.array_equal(np.asarray(back.getchannel("A")), np.asarray(image.getchannel("A")))
    assert np.array_equal(np.asarray(back), decode((tmp_path / "a.lvq").read_bytes()))


def test_alpha_quality(tiny):
    image = Image.new("RGBA", (96, 96))
    image.putalpha(Image.effect_noise(image.size, 90))
    assert len(saved(image, model=tiny, alpha_quality=0)) < len(saved(image, model=tiny)) - 50


def test_metadata_come_back_without_loading(tiny):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    exif[ExifTags.Base.Orientation] = 6
    data = saved(make_image(), model=tiny, icc_profile=profile, exif=exif, xmp=b"<x/>")
    with Image.open(BytesIO(data)) as image:
        assert image.info["icc_profile"] == profile
        assert image.info["xmp"] == b"<x/>"
        assert image.getexif()[ExifTags.Base.Artist] == "somebody"
        assert image.tile, "not loaded so far"
        assert ImageOps.exif_transpose(image.resize((4, 8))).size == (8, 4)
        again = saved(image, model=tiny)
        without = saved(image, model=tiny, icc_profile=None)
    # as of Pillow's own formats: the profile stays, the rest must be given again
    with Image.open(BytesIO(again)) as image:
        assert image.info["icc_profile"] == profile
        assert "exif" not in image.info and "xmp" not in image.info
    assert "icc_profile" not in Image.open(BytesIO(without)).info
    raw = saved(make_image(), model=tiny, exif=exif.tobytes())
    assert raw == saved(make_image(), model=tiny, exif=exif)
    assert raw == saved(make_image(), model=tiny, exif=exif.tobytes().removeprefix(b"Exif\0\0"))


def test_broken_metadata_are_an_error_of_loading(tiny):
    data = bytearray(saved(make_image(), model=tiny, xmp=b"<packet/>"))
    at = data.index(b"<packet/>")
    data[at] ^= 1
    image = Image.open(BytesIO(data))
    assert "xmp" not in image.info
    with pytest.raises(OSError, match="damaged"):
        image.load()


def test_a_transparent_colour_is_refused(tiny):
    image = make_image()
    image.info["transparency"] = (1, 2, 3)
    with pytest.raises(OSError, match="transparent colour"):
        saved(image, model=tiny)


def test_pillows_parser_takes_it_in_pieces(tiny, sample):
    parser = ImageFile.Parser()
    for at in range(0, len(sample[1]), 20):
        parser.feed(sample[1][at : at + 20])
    assert np.array_equal(np.asarray(parser.close()), decode(sample[1]))

# SPDX-License-Identifier: Apache-2.0
"""What becomes of every kind of picture in every format: the table of docs/PICTURES.md, checked.

Every cell is a real file through `lvq encode` and `lvq decode`. Remake the table with
python tests/pictures/test_pictures.py.
"""

import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_photograph
from PIL import Image, ImageCms
from test_load_and_save import SRGB, grey_profile, profile

from lvqcodec.cli import main
from lvqcodec.codec import encode
from lvqcodec.errors import UsageError
from lvqcodec.metrics import psnr
from lvqcodec.pictures import load, save
from lvqcodec.pictures.colour import Colours, stated_to_srgb
from lvqcodec.pictures.metadata import parse_exif
from lvqcodec.pictures.picture import Picture, turn

PAGE = Path(__file__).parents[2] / "docs" / "PICTURES.md"
FORMATS = {"PNG": "png", "JPEG": "jpg", "WebP": "webp", "TIFF": "tif"}
HEIGHT, WIDTH = 21, 34

PHOTO = make_photograph(HEIGHT, WIDTH, seed=4)
GREY = PHOTO[..., 1]
MASK = np.clip(np.add.outer(9 * np.arange(HEIGHT), 5 * np.arange(WIDTH)), 40, 255).astype(np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">A\xc3\xa9</x:xmpmeta>'


def xyz(*values):
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * value) for value in values))


SRGB_CURVE = struct.pack(">4s4xHH5i", b"para", 3, 0, 157286, 62119, 3417, 5072, 2651)
P3 = profile(
    b"RGB ",
    {
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), SRGB_CURVE),
    },
)
# inks without a curve: a table of two steps an ink, to L* alone
INKS = profile(
    b"CMYK",
    {
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"A2B0": struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *(65536, 0, 0, 0) * 2, 65536)
        + bytes(range(256)) * 4
        + b"".join(bytes([max(255 - 64 * n.bit_count(), 0), 128, 128]) for n in range(16))
        + bytes(range(256)) * 3,
    },
)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "a photograph"
    return tags


def transparent_palette():
    image = Image.fromarray(PHOTO).quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return image


def palette_and_alpha():
    image = Image.fromarray(PHOTO).quantize(64)
    image.putalpha(Image.fromarray(MASK))
    assert image.mode == "PA"
    return image


def sixteen():
    rng = np.random.default_rng(0)
    return Image.fromarray(
        (256 * GREY.astype(int) + rng.integers(0, 256, GREY.shape)).astype(np.uint16)
    )


def with_metadata(form, name):
    """PHOTO with one piece of metadata; options of Pillow by format."""
    image = Image.fromarray(PHOTO)
    if name.startswith("EXIF"):
        return image, {"exif": exif(int(name[-1]))}
    if name == "ICC P3":
        return image, {"icc_profile": P3}
    if form == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return image, {"pnginfo": chunks}
    return image, {"tiffinfo": {700: XMP}} if form == "TIFF" else {"xmp": XMP}


KEPT, EXPANDED, ASKED = "kept", "kept, as RGB or grey", "refused; converted by `--to-srgb8`"
# kind: its samples, and what becomes of it in which formats
SAMPLES = {
    "RGB": (lambda: Image.fromarray(PHOTO), KEPT, "PNG JPEG WebP TIFF"),
    "RGBA": (lambda: Image.fromarray(np.dstack([PHOTO, MASK])), KEPT, "PNG WebP TIFF"),
    "L": (lambda: Image.fromarray(GREY), KEPT, "PNG JPEG TIFF"),
    "LA": (lambda: Image.fromarray(np.dstack([GREY, MASK])), KEPT, "PNG TIFF"),
    "P": (lambda: Image.fromarray(PHOTO).quantize(16), EXPANDED, "PNG TIFF"),
    "P + transparency": (transparent_palette, EXPANDED, "PNG"),
    "PA": (palette_and_alpha, EXPANDED, "TIFF"),
    "1": (lambda: Image.fromarray(GREY > 120), EXPANDED, "PNG TIFF"),
    "CMYK": (lambda: Image.fromarray(PHOTO).convert("CMYK"), ASKED, "JPEG TIFF"),
    "I;16": (sixteen, ASKED, "PNG TIFF"),
}
METADATA = [*(f"EXIF orientation {n}" for n in range(1, 9)), "ICC P3", "XMP"]
CELLS = [(kind, form) for kind, (_, _, forms) in SAMPLES.items() for form in forms.split()]


# Which profiles come with the pixels, by what these are, and which formats take them back.
LEFT_OUT = "left out, said"
SPACES = {"GRAY": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
PROFILES = {
    "none": (None, None),
    "sRGB": (SRGB, "RGB"),
    "Display P3": (P3, "RGB"),
    "grey of gamma 2.2": (grey_profile(2.2), "GRAY"),
    "linear grey": (grey_profile(1), "GRAY"),
    "CMYK": (INKS, "CMYK"),
    "unreadable": (b"no profile" * 20, None),
}
PALETTE_OF_GREYS = "palette of greys"
PIXELS = {
    "L": (lambda: Image.fromarray(GREY), "grey"),
    "LA": (lambda: Image.fromarray(np.dstack([GREY, MASK])), "grey"),
    "1": (lambda: Image.fromarray(GREY > 120), "grey"),
    "I;16": (sixteen, "grey"),
    "P of greys": (lambda: Image.fromarray(GREY).convert("P"), PALETTE_OF_GREYS),
    "RGB": (lambda: Image.fromarray(PHOTO), "colours"),
    "RGBA": (lambda: Image.fromarray(np.dstack([PHOTO, MASK])), "colours"),
    "P": (lambda: Image.fromarray(PHOTO).quantize(16), "colours"),
    "CMYK": (lambda: Image.fromarray(PHOTO).convert("CMYK"), "CMYK"),
}
CLASSES = ("grey", PALETTE_OF_GREYS, "colours", "CMYK")
ON_REQUEST = ("I;16", "CMYK")  # read with --to-srgb8
WRITTEN = ("png", "jpg", "webp", "avif", "tiff", "bmp", "ppm", "pgm")
ALPHA, NO_PROFILE = ("png", "webp", "avif", "tiff"), ("bmp", "ppm", "pgm")


def read_profile(name, pixels):
    """What becomes of a profile on reading, as the page says it."""
    data, space = PROFILES[name]
    fitting = {"grey": ["GRAY"], "colours": ["RGB"], "CMYK": ["CMYK"]}.get(pixels, ["GRAY", "RGB"])
    told = "-" if data is None else LEFT_OUT
    if space in fitting:
        told = "converted by `--to-srgb8`" if pixels == "CMYK" else "kept"
    if pixels == PALETTE_OF_GREYS:
        told += ", coded as " + ("RGB" if space == "RGB" else "grey")
    return told


def written_profile(grey, alpha, form):
    """What becomes of a profile that fits, on writing."""
    if form in NO_PROFILE or (grey and form == "webp") or (grey and alpha and form == "avif"):
        return LEFT_OUT
    return "kept, if this Pillow has grey AVIF" if grey and form == "avif" else "kept"


def profile_tables():
    """The tables of profiles as docs/PICTURES.md has them."""
    lines = [f"| profile | {' | '.join(CLASSES)} |", "|---" * (len(CLASSES) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(read_profile(name, pixels) for pixels in CLASSES)} |"
        for name in PROFILES
    ]
    read = "\n".join(lines) + "\n"
    lines = [f"| pixels | {' | '.join(WRITTEN)} |", "|---" * (len(WRITTEN) + 1) + "|"]
    for name, grey, alpha in (("grey", 1, 0), ("grey and alpha", 1, 1), ("RGB", 0, 0)):
        cells = (
            "refused" if form == "pgm" and not grey else written_profile(grey, alpha, form)
            for form in WRITTEN
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return read, "\n".join(lines) + "\n"


def table():
    """The table of kinds as docs/PICTURES.md has it."""
    lines = [f"| kind | {' | '.join(FORMATS)} |", "|---" * (len(FORMATS) + 1) + "|"]
    for kind, (_, outcome, forms) in SAMPLES.items():
        cells = (outcome if form in forms.split() else "-" for form in FORMATS)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for kind in ("EXIF orientation 1 to 8", "ICC P3", "XMP"):
        lines.append(f"| {kind} |" + f" {KEPT} |" * len(FORMATS))
    return "\n".join(lines) + "\n"


def test_the_page_has_this_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "remake it: python tests/pictures/test_pictures.py"


def with_table(text):
    """The page with its tables made anew: the runs of lines that begin with a bar."""
    tables = iter((table(), *profile_tables()))
    text = re.sub(r"(?:^\|.*\n)+", lambda _: next(tables), text, flags=re.MULTILINE)
    assert next(tables, None) is None, "the page lacks a table"
    return text


def lvq(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def through(path, *options, suffix="png"):
    """The picture that `lvq encode` and `lvq decode` make of a file."""
    file, back = path.with_suffix(".lvq"), path.with_name(f"back.{suffix}")
    result = lvq("encode", path, file, "-m", "tiny", "-q", 90, *options)
    assert result.exit_code == 0, result.stderr
    result = lvq("decode", file, back)
    assert result.exit_code == 0, result.stderr
    return load.load_picture(back)


def expected(image):
    """The samples and the alpha that Pillow shows of an opened picture."""
    image.load()
    grey = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB")), None
    bands = np.asarray(image.convert("LA" if grey else "RGBA"))
    return (bands[..., 0] if grey else bands[..., :3]), bands[..., -1]


@pytest.mark.parametrize(("kind", "form"), CELLS, ids=lambda value: value)
def test_samples(tiny, tmp_path, kind, form):
    make, outcome, _ = SAMPLES[kind]
    path = tmp_path / f"in.{FORMATS[form]}"
    image = make()
    image.save(path, lossless=True) if form == "WebP" else image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == image.mode
        pixels, alpha = (None, None) if outcome is ASKED else expected(stored)
    if outcome is ASKED:
        refused = lvq("encode", path, "-m", "tiny")
        assert refused.exit_code == 5 and "--to-srgb8" in refused.stderr
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        options = ["--to-srgb8"]
        if kind == "I;16":
            pixels = np.rint(np.asarray(image) / 257).astype(np.uint8)
        else:
            with Image.open(path) as stored:
                pixels = np.asarray(stored.convert("RGB"))
    else:
        options = []
    read = load.load_picture(path, to_srgb8=outcome is ASKED)
    assert np.array_equal(read.pixels, pixels)
    back = through(path, *options)
    assert back.pixels.shape == pixels.shape and psnr(back.pixels, pixels) > 15
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        assert alpha.min() < 255
        assert np.array_equal(read.alpha, alpha) and np.array_equal(back.alpha, alpha)
    assert (back.icc, back.exif, back.xmp) == (None, None, None)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", METADATA)
def test_metadata(tiny, tmp_path, kind, form):
    path = tmp_path / f"in.{FORMATS[form]}"
    image, options = with_metadata(form, kind)
    image.save(path, **options)
    read = load.load_picture(path)
    assert read.pixels.shape == PHOTO.shape
    if form in ("PNG", "TIFF"):
        assert np.array_equal(read.pixels, PHOTO)
    elif form == "JPEG":
        with Image.open(path) as stored:
            assert np.array_equal(read.pixels, np.asarray(stored))
    back = through(path)
    assert (back.icc, back.exif, back.xmp) == (read.icc, read.exif, read.xmp)
    assert psnr(back.pixels, read.pixels) > 15
    assert (read.icc == P3) == (kind == "ICC P3")
    assert (read.xmp == XMP) == (kind == "XMP")
    bare = through(path, "--strip")
    assert (bare.exif, bare.xmp) == (None, None)
    if kind.startswith("EXIF"):
        tags, orientation = parse_exif(back.exif), int(kind[-1])
        assert (tags[0x0112], tags[0x010E]) == (orientation, "a photograph")
        upright = turn(read.pixels, orientation)
        assert psnr(bare.pixels, upright) > 15 and bare.pixels.shape == upright.shape
    else:
        assert read.exif is None
        assert bare.icc == read.icc  # without it the colours would be others


@pytest.mark.parametrize("form", FORMATS)
def test_a_profile_is_converted_on_request(tiny, tmp_path, form):
    path = tmp_path / f"in.{FORMATS[form]}"
    vivid = np.dstack([GREY, 255 - GREY, GREY // 2])
    options = {"lossless": True} if form == "WebP" else {}
    Image.fromarray(vivid).save(path, icc_profile=P3, **options)
    kept, shown = load.load_picture(path), load.load_picture(path, to_srgb8=True)
    assert kept.icc == P3 and shown.icc is None
    matrix = [[1.2249, -0.2249, 0], [-0.0420, 1.0420, 0], [-0.0196, -0.0786, 1.0983]]
    by_numbers = stated_to_srgb(kept.pixels, Colours("P3", None, np.array(matrix)))
    error = np.abs(shown.pixels.astype(int) - by_numbers)
    # lcms counts in 8 bits, which is coarse in dark, clipped colours
    assert np.mean(error) < 1 and error.max() <= 8
    assert np.abs(shown.pixels.astype(int) - kept.pixels).max() > 10
    assert through(path, "--to-srgb8").icc is None


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_of_other_colours_is_read_or_written(kind, name):
    make, pixels = PIXELS[kind]
    data, _ = PROFILES[name]
    file = io.BytesIO()
    make().save(file, "TIFF" if kind == "CMYK" else "PNG", icc_profile=data)
    picture = load.load_picture(io.BytesIO(file.getvalue()), to_srgb8=kind in ON_REQUEST)
    outcome = read_profile(name, pixels)
    assert any("colour profile is left out" in said for said in picture.remarks) == (
        LEFT_OUT in outcome
    )
    converted = kind in ON_REQUEST and name in ("linear grey", "CMYK")
    assert picture.icc == (data if outcome.startswith("kept") and not converted else None)
    grey = picture.pixels.ndim == 2
    assert grey == (pixels == "grey" or outcome.endswith("as grey"))
    for form in WRITTEN:
        check_written(picture, form, grey)


def check_written(picture, form, grey):
    """The picture in a format: its profile is of its colours, and what was left out is said."""
    file = io.BytesIO()
    background = None if form in ALPHA else "white"
    if form == "pgm" and not grey:
        with pytest.raises(UsageError, match=r"PGM holds grey only.*; write ppm or png"):
            save.save(picture, file, form, background=background)
        return
    left_out = save.save(picture, file, form, background=background)
    with Image.open(file) as image:
        found, mode = image.info.get("icc_profile"), image.mode
    outcome = written_profile(grey, picture.alpha is not None, form)
    if outcome in ("kept", LEFT_OUT) or picture.icc is None:
        assert found == (picture.icc if outcome != LEFT_OUT else None), form
    assert left_out == (["the colour profile"] if picture.icc and not found else [])
    if found:
        space = ImageCms.ImageCmsProfile(io.BytesIO(found)).profile.xcolor_space
        assert space.strip() == ("GRAY" if mode in ("L", "LA", "1") else "RGB"), form


def test_a_grey_profile_does_not_follow_onto_a_coloured_background(tiny, tmp_path):
    path, file, back = tmp_path / "a.png", tmp_path / "a.lvq", tmp_path / "b.png"
    Image.fromarray(np.dstack([GREY, MASK])).save(path, icc_profile=grey_profile(2.2))
    assert lvq("encode", path, file, "-m", "tiny").exit_code == 0
    result = lvq("decode", file, back, "--background", "red")
    assert "without the colour profile" in result.stderr
    with Image.open(back) as image:
        assert image.mode == "RGB" and "icc_profile" not in image.info


@pytest.mark.parametrize("profile", [P3, b"no profile" * 20], ids=["RGB", "unreadable"])
def test_files_that_hold_a_profile_of_other_colours_decode_without_it(tiny, tmp_path, profile):
    file, back = tmp_path / "a.lvq", tmp_path / "a.png"
    file.write_bytes(encode(Picture(GREY, icc=profile), model="tiny"))
    result = lvq("decode", file, back)
    assert result.exit_code == 0 and "without the colour profile" in result.stderr
    with Image.open(back) as image:
        assert image.mode == "L" and "icc_profile" not in image.info


def test_what_is_left_out_of_a_picture_is_said(tiny, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path, icc_profile=P3)
    said = f"lvq: note: {path}: its colour profile is left out: it is of RGB, the pixels are GRAY\n"
    assert said in lvq("encode", path, "-m", "tiny").stderr
    assert "note" not in lvq("encode", path, "-m", "tiny", "--quiet").stderr
    result = lvq("encode", path, "-m", "tiny", "--json")
    assert json.loads(result.stdout)["remarks"] == [said.split(": ", 3)[3].strip()]


def test_orientation_is_as_viewers_take_it():
    for orientation in range(1, 9):
        file = io.BytesIO()
        Image.fromarray(PHOTO).save(file, "PNG", exif=exif(orientation))
        from PIL import ImageOps

        with Image.open(file) as image:
            assert np.array_equal(turn(PHOTO, orientation), ImageOps.exif_transpose(image))


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
import base64
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.pictures import load, save
from lvqcodec.pictures.metadata import parse_exif
from lvqcodec.pictures.picture import Picture

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
SMOOTH = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
SMOOTH_COLOUR = np.stack([SMOOTH, 200 - SMOOTH, 40 + SMOOTH // 2], axis=-1)


def written(mode="RGB", form="PNG", size=(7, 5), **options):
    file = io.BytesIO()
    Image.new(mode, size, options.pop("color", 0)).save(file, form, **options)
    return file.getvalue()


def saved(image, form):
    file = io.BytesIO()
    save.save(image, file, form)
    return file.getvalue()


def loaded(data):
    return load.load(io.BytesIO(data))


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width=2, height=1, depth=8, colour=2, rows=b"\0" + bytes(6), extra=b""):
    """A PNG of these parts; `extra` chunks stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels


def tiff(bits=(8, 8, 8), pixels=bytes(6), **tags):
    """A 2 x 1 uncompressed TIFF in RGB with these bits a sample; tags by number, as t254=1."""
    entries = {
        256: 2,
        257: 1,
        258: bits,
        259: 1,
        262: 2,
        273: 0,
        277: len(bits),
        278: 1,
        279: len(pixels),
    }
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    after = 8 + 2 + 12 * len(entries) + 4
    data, beyond = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}H", *values)
        if tag == 273:
            packed = struct.pack("<H", after + 2 * len(bits))
        elif len(packed) > 4:
            packed, beyond = struct.pack("<I", after), packed
        data += struct.pack("<HHI4s", tag, 3, len(values), packed)
    return data + bytes(4) + beyond.ljust(2 * len(bits), b"\0") + pixels


def profile(space, tags):
    """An ICC profile of version 2 for displays."""
    offset, table, content = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, offset + len(content), len(value))
        content += value
    header = struct.pack(
        ">I4sI4s4s4s12s4s28s12s48s",
        offset + len(content),
        *(b"", 0x02100000, b"mntr", space, b"XYZ ", b"", b"acsp", b""),
        struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D),  # the illuminant D50
        b"",
    )
    return header + struct.pack(">I", len(tags)) + table + content


def grey_profile(gamma):
    white = struct.pack(">4s4x3I", b"XYZ ", 0xF6D6, 0x10000, 0xD32D)
    curve = struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))
    return profile(b"GRAY", {b"wtpt": white, b"kTRC": curve})


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED_IS_GREEN = SRGB.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


@pytest.mark.parametrize("image", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("form", ["png", "webp", "tif", "tiff", "bmp", "ppm"])
def test_lossless_formats(form, image):
    result = loaded(saved(image, form))
    expected = np.stack([image] * 3, -1) if form == "webp" and image.ndim == 2 else image
    assert result.dtype == np.uint8
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("form", ["jpg", "jpeg", "avif"])
def test_lossy_formats_stay_close(form):
    error = loaded(saved(SMOOTH_COLOUR, form)).astype(int) - SMOOTH_COLOUR
    assert np.sqrt(np.mean(error**2)) < 3


def test_colour_is_not_subsampled():
    red_and_blue = np.zeros((16, 16, 3), np.uint8)
    red_and_blue[:, ::2, 0] = red_and_blue[:, 1::2, 2] = 255
    for form in ("jpg", "avif"):
        error = loaded(saved(red_and_blue, form)).astype(int) - red_and_blue
        assert np.sqrt(np.mean(error**2)) < 20, form


def test_result_is_the_callers_own(tmp_path):
    path = tmp_path / "a.png"
    save.save(COLOUR, path)
    result = load.load(str(path))
    result[:] = 0
    assert np.array_equal(load.load(path), COLOUR)


def test_stream_that_cannot_seek():
    read, write = os.pipe()
    with open(write, "wb") as file:
        save.save(GREY, file)
    with open(read, "rb") as file:
        assert np.array_equal(load.load(file), GREY)


@pytest.mark.parametrize("depth", [2, 4])
def test_fewer_bits_of_grey_are_scaled_exactly(depth):
    data = png(width=8 // depth, depth=depth, colour=0, rows=b"\0\x1b")
    levels = [0x1B >> shift & (1 << depth) - 1 for shift in range(8 - depth, -1, -depth)]
    assert loaded(data).tolist() == [[level * 255 // ((1 << depth) - 1) for level in levels]]


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def gamma(value):
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def frames(form):
    other = Image.new("RGB", (7, 5), "white")
    return written(form=form, save_all=True, append_images=[other])


def coloured_avif(primaries, transfer):
    data = saved(SMOOTH_COLOUR, "avif")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


# 16 x 16 of 10 bits, which Pillow can read but not write
DEEP_AVIF = (
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAA"
    "AAAAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAGwAAAChpaW5mAAAAAAAB"
    "AAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcG"
    "l4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAA"
    "I21kYXQSAAoIOAz/28CAgaQyDRlCYwTAADQAABB1hWE="
)

ODD = {
    "grey 16": (lambda: written("I;16"), "more than 8 bits a sample; reduce"),
    "png 16": (lambda: png(depth=16, rows=bytes(13)), "more than 8 bits a sample; reduce"),
    "ppm 16": (lambda: b"P6 2 1 65535\n" + bytes(12), "more than 8 bits a sample; reduce"),
    "pgm 16": (lambda: b"P5 2 1 65535\n" + bytes(4), "more than 8 bits a sample; reduce"),
    "tiff 16": (lambda: tiff((16, 16, 16), bytes(12)), "more than 8 bits a sample; reduce"),
    "avif 10": (lambda: base64.b64decode(DEEP_AVIF), "more than 8 bits a sample; reduce"),
    "cmyk": (lambda: written("CMYK", "JPEG"), "CMYK colours; convert"),
    "lab": (lambda: written("LAB", "TIFF"), "LAB colours; convert"),
    "gamma": (lambda: png(extra=gamma(1)), "gamma 1.0; convert"),
    "primaries": (
        lambda: png(extra=chunk(b"cHRM", struct.pack(">8I", *range(31270, 31278)))),
        "chromaticities of its own; convert",
    ),
    "png p3": (lambda: png(extra=chunk(b"cICP", b"\x0c\x0d\0\1")), "primaries 12 and transfer 13"),
}
HOPELESS = {
    "tiff float": (lambda: written("F", "TIFF"), "8 bits a sample, of no known range; reduce"),
    "tiff 32": (lambda: written("I", "TIFF"), "8 bits a sample, of no known range; reduce"),
    "tRNS 16": (
        lambda: png(depth=16, rows=bytes(13), extra=chunk(b"tRNS", bytes(6))),
        "a transparent colour of 16 bits; flatten",
    ),
    "tiff x": (lambda: tiff((8, 8, 8, 8), bytes(8), t338=0), "extra channels; drop"),
    "raw": (lambda: tiff(t254=1), "a thumbnail in the first place.*; develop"),
    "pages": (lambda: frames("TIFF"), "2 frames or pages; choose one with --frame"),
    "apng": (lambda: frames("PNG"), "2 frames or pages; choose one"),
    "animated webp": (lambda: frames("WEBP"), "2 frames or pages; choose one"),
    "animated avif": (lambda: frames("AVIF"), "2 frames or pages; choose one"),
    "no gamma": (lambda: png(extra=gamma(0)), "gamma 0.0, which cannot be converted"),
    "no primaries": (
        lambda: png(extra=chunk(b"cHRM", bytes(32))),
        "chromaticities of its own, which cannot be converted",
    ),
    "log": (
        lambda: png(extra=chunk(b"cICP", b"\x01\x09\0\1")),
        "transfer 9 of H.273, which cannot",
    ),
    "png pq": (lambda: png(extra=chunk(b"cICP", b"\x09\x10\0\1")), "the HDR transfer PQ; tone-map"),
    "avif hlg": (lambda: coloured_avif(9, 18), "the HDR transfer HLG; tone-map"),
    "wide": (lambda: png(width=65536, colour=0), "width 65536 is outside .*; scale it down"),
    "high": (lambda: b"P5 1 65536 255\n", "height 65536 is outside .*; scale it down"),
    "photoshop": (
        lambda: b"8BPS\0\1" + bytes(40),
        "is Photoshop, which is not read; convert",
    ),
    "jpeg 2000": (lambda: written(form="JPEG2000"), "is JPEG 2000, which is not read"),
}


@pytest.mark.parametrize(("data", "message"), (ODD | HOPELESS).values(), ids=ODD | HOPELESS)
def test_what_is_not_coded_is_refused_with_the_remedy(data, message):
    with pytest.raises(UnsupportedImage, match=message) as caught:
        loaded(data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [data for data, _ in ODD.values()], ids=ODD)
def test_what_is_not_coded_is_converted_on_request(data):
    picture = load.load_picture(io.BytesIO(data()), to_srgb8=True)
    assert picture.pixels.dtype == np.uint8 and picture.icc is None


@pytest.mark.parametrize(("data", "message"), HOPELESS.values(), ids=HOPELESS)
def test_what_cannot_be_converted_stays_refused(data, message):
    with pytest.raises(UnsupportedImage, match=message):
        load.load_picture(io.BytesIO(data()), to_srgb8=True)


def test_inks_with_an_unreadable_profile_are_taken_as_those_without():
    data = written("CMYK", "JPEG", icc_profile=b"x" * 200)
    picture = load.load_picture(io.BytesIO(data), to_srgb8=True)
    plain = load.load_picture(io.BytesIO(written("CMYK", "JPEG")), to_srgb8=True)
    assert picture.remarks == ("its colour profile is left out: it cannot be read",)
    assert np.array_equal(picture.pixels, plain.pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_load_refuses_transparency_and_load_picture_does_not(mode):
    data = written(mode, color=(9, 0) if mode == "LA" else (9, 9, 9, 0))
    with pytest.raises(UnsupportedImage, match="has transparency; flatten it first"):
        loaded(data)
    assert load.load_picture(io.BytesIO(data)).alpha.max() == 0


@pytest.mark.parametrize(
    "data",
    [
        written(icc_profile=SRGB),
        written("L", icc_profile=grey_profile(2.2)),
        written("L", icc_profile=SRGB),
        written(exif=exif(1)),
        png(extra=chunk(b"gAMA", struct.pack(">I", 45455))),
        png(extra=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0")),
        png(extra=chunk(b"cICP", b"\1\x0d\0\1")),
        coloured_avif(1, 13),
        tiff(t274=1),
        b"P6 2 1 255\n" + bytes(6),
    ],
)
def test_what_means_srgb_is_accepted(data):
    assert loaded(data).dtype == np.uint8


@pytest.mark.parametrize(
    "data",
    [
        png(width=65535, height=65535),
        b"P6 65535 65535 255\n",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 65535, 65535, 1, 24, *bytes(6)),
    ],
    ids=["png", "ppm", "bmp"],
)
def test_bombs_are_refused_from_the_header(data, monkeypatch):
    monkeypatch.setattr(Image.core, "fill", None)
    monkeypatch.setattr(Image.core, "new", None)
    with pytest.raises(UnsupportedImage, match=r"more than 268435456 pixels; scale it down or cut"):
        loaded(data)


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "avif", "bmp", "ppm", "tif"])
def test_cut_pictures_are_broken(form):
    data = saved(SMOOTH_COLOUR, form)
    for length in (0, 3, 20, len(data) // 2, len(data) - 60):
        with pytest.raises(FormatError):
            loaded(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        bytes(100),
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBPxxxx",
        b"II*\0" * 9,
    ],
)
def test_no_picture(data):
    with pytest.raises(FormatError, match=r"^the picture is "):
        loaded(data)


def test_only_the_first_bytes_of_other_files_are_read():
    file = io.BytesIO(bytes(1000))
    with pytest.raises(FormatError):
        load.load(file)
    assert file.tell() < 100


def test_unreadable_metadata_is_no_obstacle():
    text = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nno hex digits")
    assert loaded(png(extra=text)).shape == (1, 2, 3)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*gone.png: No such file or directory$"):
        load.load(tmp_path / "gone.png")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory$"):
        load.load(tmp_path)


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(written("I;16"))
    with pytest.raises(UnsupportedImage, match=r"^.*a\.png has more than 8 bits"):
        load.load(path)


@pytest.mark.parametrize(
    ("name", "form"), [("a.JPG", "JPEG"), ("a.b.tif", "TIFF"), ("a.webp", "WEBP"), ("a.ppm", "PPM")]
)
def test_suffix_names_the_format(tmp_path, name, form):
    save.save(COLOUR, tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == form


def test_format_before_suffix(tmp_path):
    save.save(COLOUR, tmp_path / "a.png", format=".bmp")
    assert (tmp_path / "a.png").read_bytes().startswith(b"BM")


@pytest.mark.parametrize("name", ["a.gif", "a", "a.lvq"])
def test_unknown_suffix_names_the_choices(tmp_path, name):
    with pytest.raises(UsageError, match=r"cannot write a picture as '.*'; choose one of png, "):
        save.save(COLOUR, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "image", [COLOUR / 255, COLOUR[..., :1], COLOUR[None], np.zeros(3, np.uint8)]
)
def test_what_is_no_picture_is_not_saved(image):
    with pytest.raises(UsageError, match=r"a picture is uint8 \(H,W,3\) or \(H,W\), not"):
        save.save(image, io.BytesIO())


def test_picture_too_large_for_the_format():
    with pytest.raises(UsageError, match=r"cannot write 16384 x 1 pixels as WEBP"):
        save.save(np.zeros((1, 16384), np.uint8), io.BytesIO(), "webp")


# transparency, metadata, frames

MASK = np.where(COLOUR[..., 1] > 90, 255, COLOUR[..., 2]).astype(np.uint8)
XMP = b"<x:xmpmeta>\xc3\xa9</x:xmpmeta>"


def exif_bytes(orientation):
    tags = exif(orientation)
    tags[0x010F] = "a make"
    return tags.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("form", ["png", "webp", "tiff", "avif", "jpg"])
@pytest.mark.parametrize("grey", [False, True])
def test_what_a_format_holds_is_written(form, grey):
    icc = grey_profile(1.8) if grey else RED_IS_GREEN
    alpha = None if form == "jpg" else MASK
    picture = Picture(GREY if grey else COLOUR, alpha, icc, exif_bytes(6), XMP)
    file = io.BytesIO()
    left_out = save.save(picture, file, form)
    back = load.load_picture(file := io.BytesIO(file.getvalue()))
    no_grey = form in ("webp", "avif")  # with alpha
    assert left_out == (["the colour profile"] if grey and no_grey else [])
    assert back.icc == (None if left_out else icc)
    assert back.xmp == XMP
    tags = parse_exif(back.exif)
    assert (tags[0x0112], tags[0x010F]) == (6, "a make")
    assert back.pixels.shape[:2] == COLOUR.shape[:2]
    if form in ("png", "webp", "tiff"):
        assert np.array_equal(back.alpha, MASK)
        shown = np.stack([GREY] * 3, -1) if grey and form == "webp" else picture.pixels
        assert np.array_equal(back.pixels, shown)


@pytest.mark.parametrize("form", ["bmp", "ppm"])
def test_what_a_format_does_not_hold_is_told_and_the_picture_turned(form):
    file = io.BytesIO()
    left_out = save.save(Picture(COLOUR, None, RED_IS_GREEN, exif_bytes(6), XMP), file, form)
    assert left_out == ["the colour profile", "EXIF", "XMP"]
    assert np.array_equal(loaded(file.getvalue()), np.rot90(COLOUR, -1))


def test_directories_of_exif_go_into_tiff():
    tags = exif(3)
    tags[0x8769] = {0x829A: (1, 250), 0x9003: "2026:01:02 03:04:05"}
    tags[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    tags[0x0103] = 6  # of a thumbnail: not of this file
    picture = Picture(COLOUR, exif=tags.tobytes()[6:])
    file = io.BytesIO()
    assert save.save(picture, file, "tiff") == []
    back = load.load_picture(io.BytesIO(file.getvalue()))
    found = parse_exif(back.exif)
    assert found.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
    assert found.get_ifd(0x8825)[1] == "N"
    assert np.array_equal(back.pixels, COLOUR)


def test_exif_that_cannot_be_put_together_again():
    tags = exif(6)
    tags[0x010F] = "a make"
    exif_of_it = tags.tobytes()[6:]
    resolution = struct.pack(">HHI", 0x011A, 2, 8)  # a rational that says it is text
    broken = exif_of_it.replace(struct.pack(">HHI", 0x010F, 2, 7), resolution)
    assert broken != exif_of_it
    for form in ("tiff", "avif", "png"):
        file = io.BytesIO()
        left_out = save.save(Picture(COLOUR, exif=broken), file, form)
        assert left_out == ([] if form == "png" else ["EXIF"])


def test_broken_exif_is_kept_where_it_is_not_taken_apart():
    for form, kept in (("png", True), ("jpg", True), ("webp", True), ("tiff", False)):
        file = io.BytesIO()
        left_out = save.save(Picture(COLOUR, exif=b"no TIFF structure"), file, form)
        assert left_out == ([] if kept else ["EXIF"])
        back = load.load_picture(io.BytesIO(file.getvalue()))
        assert back.exif == (b"no TIFF structure" if kept else None)


@pytest.mark.parametrize("form", ["jpg", "bmp", "ppm"])
def test_transparency_is_not_dropped_silently(form, tmp_path):
    picture = Picture(COLOUR, MASK)
    with pytest.raises(UsageError, match=r"holds no transparency; .*--background white"):
        save.save(picture, tmp_path / f"a.{form}")
    assert not list(tmp_path.iterdir())
    save.save(picture, tmp_path / f"a.{form}", background="white")
    if form != "jpg":
        weight = MASK[..., None] / 255
        flat = weight * COLOUR + (1 - weight) * 255
        assert np.abs(load.load(tmp_path / f"a.{form}") - flat).max() <= 0.5


def test_backgrounds():
    picture = Picture(GREY, np.zeros_like(GREY))
    for colour, pixel in (("#808080", 128), ("rgb(10, 20, 30)", [10, 20, 30])):
        file = io.BytesIO()
        save.save(picture, file, "ppm", background=colour)
        assert (loaded(file.getvalue()) == pixel).all()
    with pytest.raises(UsageError, match="'puce-ish' is no colour"):
        save.save(picture, io.BytesIO(), "ppm", background="puce-ish")


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "MPO"])
def test_frames_are_chosen_from_1(form):
    data = frames(form)
    for frame, level in ((1, 0), (2, 255)):
        picture = load.load_picture(io.BytesIO(data), frame=frame)
        assert picture.pixels.shape == (5, 7, 3) and (picture.pixels == level).all()
    with pytest.raises(UsageError, match="frame 3 does not exist: the picture has 2"):
        load.load_picture(io.BytesIO(data), frame=3)
    assert load.load_picture(io.BytesIO(written()), frame=1).pixels.shape == (5, 7, 3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_one_transparent_grey_of_any_depth(depth):
    key = chunk(b"tRNS", b"\0\1")
    data = png(width=8 // depth, depth=depth, colour=0, rows=b"\0\x1b", extra=key)
    picture = load.load_picture(io.BytesIO(data))
    levels = [0x1B >> shift & (1 << depth) - 1 for shift in range(8 - depth, -1, -depth)]
    expected = [0 if level == 1 else 255 for level in levels]
    assert (picture.alpha is None) == (min(expected) == 255)
    assert picture.alpha is None or picture.alpha.tolist() == [expected]


def test_one_transparent_grey_of_16_bits_is_compared_before_it_is_reduced():
    rows, key = b"\0" + struct.pack(">2H", 0x1234, 0x1235), chunk(b"tRNS", b"\x12\x34")
    data = png(depth=16, colour=0, rows=rows, extra=key)
    picture = load.load_picture(io.BytesIO(data), to_srgb8=True)
    assert picture.alpha.tolist() == [[0, 255]]
    assert picture.pixels.tolist() == [[18, 18]]


@pytest.mark.parametrize(("photometric", "levels"), [(1, [0, 128, 255]), (0, [255, 127, 0])])
def test_deep_grey_is_scaled_and_rounded(photometric, levels):
    pixels = struct.pack("<3H", 0, 0x8000, 0xFFFF)
    data = tiff((16,), pixels, t256=3, t262=photometric)
    picture = load.load_picture(io.BytesIO(data), to_srgb8=True)
    assert picture.pixels.tolist() == [levels]


def test_a_palette_of_greys_is_grey():
    picture = load.load_picture(io.BytesIO(saved(GREY, "png")))
    file = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(file, "PNG")
    assert np.array_equal(loaded(file.getvalue()), picture.pixels)


def test_gamma_becomes_that_of_srgb():
    rows = b"\0" + bytes([0, 55, 188, 255, 1, 99])
    picture = load.load_picture(io.BytesIO(png(rows=rows, extra=gamma(1))), to_srgb8=True)
    light = np.array([0, 55, 188, 255, 1, 99]) / 255
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert picture.pixels.ravel().tolist() == np.rint(255 * curve).tolist()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"\nexif\n    4\n49492a00\n", b"II*\0"),
        (b"\nexif\n    4\n4949\n2a00\nand more", b"II*\0"),
        (b"\nexif\n4\nno hex digits", None),
        (b"\nexif", None),
    ],
)
def test_exif_as_it_was_in_png_once(text, found):
    data = png(extra=chunk(b"tEXt", b"Raw profile type exif\0" + text))
    assert load.load_picture(io.BytesIO(data)).exif == found


def test_stripping_changes_nothing_that_shows():
    def stripped(**options):
        data = written(color=(10, 20, 30), size=(3, 2), **options)
        return load.load_picture(io.BytesIO(data), stripped=True)

    assert stripped(icc_profile=SRGB, exif=exif(6)).icc is None
    assert stripped(icc_profile=SRGB, exif=exif(6)).pixels.shape == (3, 2, 3)
    assert stripped(icc_profile=RED_IS_GREEN).icc == RED_IS_GREEN
    assert stripped(icc_profile=b"x" * 200).icc is None  # which no viewer heeds


def test_a_png_whose_pixels_fail_their_checksum_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    data[start + 4 + length] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="checksum of its pixels"):
        load.load(path)

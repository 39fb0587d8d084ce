# SPDX-License-Identifier: Apache-2.0
"""What a file holds beside one plain picture: told, refused by name, or put together."""

import base64
import io
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from test_load_and_save import COLOUR, GREY, SMOOTH_COLOUR, chunk, frames, png, saved, tiff, written

from lvqcodec import suffixes
from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.pictures import formats, save
from lvqcodec.pictures.colour import Colours, stated_to_srgb
from lvqcodec.pictures.formats import read_jxl_header
from lvqcodec.pictures.load import load as load_samples
from lvqcodec.pictures.load import load_picture
from lvqcodec.pictures.metadata import orientation, parse_exif
from lvqcodec.pictures.picture import Picture, turn
from lvqcodec.pictures.structure import all_boxes, boxes

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def load(data, **options):
    return load_picture(io.BytesIO(data), **options)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def plain_jpeg():
    return saved(SMOOTH_COLOUR, "jpg")


# several pictures


def test_the_primary_picture_of_a_jpeg_with_more_is_coded_and_that_is_told():
    picture = load(frames("MPO"))
    assert (picture.pixels == 0).all()
    assert picture.remarks == ("1 more picture in it is left out (--frame N chooses one)",)
    assert load(frames("MPO"), frame=2).remarks == ()


def test_ultra_hdr_is_a_jpeg_with_more():
    gain_map = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>')
    data = frames("MPO")
    index = data.index(b"MPF\0")
    assert index > 0
    data = with_segments(data, gain_map)
    assert load(data).remarks == ("1 more picture in it is left out (--frame N chooses one)",)


def test_pictures_that_an_index_only_tells_of_are_not_counted():
    data = frames("MPO")
    first = data[: data.index(b"\xff\xd9") + 2]
    assert load(first).remarks == ()


def test_an_index_that_cannot_be_read_is_no_obstacle():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = with_segments(plain_jpeg(), segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"))
        assert load(data).remarks == ()


def gif(*levels, **options):
    file = io.BytesIO()
    first, *others = (Image.new("P", (7, 5), level) for level in levels)
    for image in (first, *others):
        image.putpalette([level for n in range(256) for level in (n, 255 - n, n // 2)])
    first.save(file, "GIF", save_all=bool(others), append_images=others, **options)
    return file.getvalue()


def test_gif_is_read_and_of_an_animation_the_first_frame():
    assert load(gif(10)).pixels[0, 0].tolist() == [10, 245, 5]
    assert load(gif(10)).remarks == ()
    animation = gif(10, 20, 30)
    assert load(animation).pixels[0, 0].tolist() == [10, 245, 5]
    assert load(animation).remarks == ("2 more frames in it are left out (--frame N chooses one)",)
    assert load(animation, frame=3).pixels[0, 0].tolist() == [30, 225, 15]
    assert load(gif(10, transparency=10)).alpha.max() == 0


VIDEO = b"\0\0\0\x18ftypmp42" + bytes(range(1, 90))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (plain_jpeg() + VIDEO, "101 bytes behind the picture, a video, are left out"),
        (png() + png(), f"{len(png())} bytes behind the picture, PNG, are left out"),
        (saved(COLOUR, "webp") + png(), f"{len(png())} bytes behind the picture, PNG, are left"),
        (b"P5 2 1 255\n\1\2P5 2 1 255\n\3\4", "13 bytes behind the picture, PGM, are left out"),
        (b"P6 1 1 100\n\1\2\3P6 1 1 100\n\1\2\3", "14 bytes behind the picture, PPM, are left out"),
        (b"P4 9 1\n\1\2P4 9 1\n\1\2", "9 bytes behind the picture are left out"),
    ],
    ids=["jpeg", "png", "webp", "pgm", "ppm", "pbm"],
)
def test_data_behind_a_picture_are_told(data, said):
    (remark,) = load(data).remarks
    assert remark.startswith(said)


@pytest.mark.parametrize("data", [plain_jpeg(), png(), saved(COLOUR, "webp"), b"P5 2 1 255\n\1\2"])
def test_padding_behind_a_picture_is_not_told(data):
    assert load(data + bytes(100) + b"\n").remarks == ()


@pytest.mark.parametrize("head", [b"P5 2 1 65535\n", b"P5 2 1 300\n", b"P6 2 1 65535\n"])
def test_wide_samples_are_not_taken_for_data_behind_the_picture(head):
    size = 4 if head.startswith(b"P5") else 12
    assert load(head + b"\1" * size, to_srgb8=True).remarks == ()
    assert load(head + b"\1" * size + b"PGM", to_srgb8=True).remarks != ()


def test_a_frame_larger_than_is_read_is_no_broken_file():
    data = bytearray(gif(10))
    at = data.index(b"\x2c")
    data[at + 1 : at + 9] = struct.pack("<4H", 0, 0, 65535, 65535)
    with pytest.raises(UnsupportedImage, match="a size that is not"):
        load(bytes(data))


def test_pictures_within_a_tiff_are_told():
    assert load(tiff(t330=8)).remarks == ("1 smaller or raw pictures in it (SubIFDs) are left out",)


def test_auxiliary_pictures_are_told_but_for_alpha():
    data = saved(np.dstack([SMOOTH_COLOUR, SMOOTH_COLOUR[..., 0]]), "avif")
    assert load(data).remarks == () and load(data).alpha is not None
    depth = data.replace(b"auxiliary:alpha", b"auxiliary:depth")
    picture = load(depth)
    assert picture.alpha is None
    assert picture.remarks == (
        "auxiliary pictures in it (1, such as a gain or depth map) are left out",
    )


def test_a_crop_that_is_not_applied_is_told():
    data = saved(SMOOTH_COLOUR, "avif")
    crop = box(b"clap", struct.pack(">8I", 20, 1, 20, 1, 0, 1, 0, 1))
    parts = {part.kind: part for part in all_boxes(data)}
    end, entry = parts[b"ipco"].end, parts[b"ipma"].start + 10
    number = len(list(boxes(data, parts[b"ipco"].start, end))) + 1
    count = data[entry]
    after = entry + 1 + count
    grown = bytearray(data)
    grown[entry] += 1
    grown[after:after] = bytes([0x80 | number])
    grown[end:end] = crop
    for kind, more in ((b"ipco", 40), (b"ipma", 1), (b"iprp", 41), (b"meta", 41)):
        at = parts[kind].start - 8 + (40 if kind == b"ipma" else 0)
        struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + more)
    # where the pixels are: behind the number and the reference of the one item
    place = parts[b"iloc"].start + 4 + 2 + 2 + 4 + 2
    struct.pack_into(">I", grown, place, struct.unpack_from(">I", grown, place)[0] + 41)
    picture = load(bytes(grown))
    assert np.array_equal(picture.pixels, load(data).pixels)
    assert picture.remarks == ("its clean aperture is not applied: the whole picture is coded",)


# what is admitted


def test_a_picture_is_admitted_before_its_pixels_are_decoded(monkeypatch):
    class NotNow(Exception):
        pass

    asked = []

    def admit(*size):
        asked.append(size)
        raise NotNow

    inputs = [png(width=16000, height=16000, rows=b""), written("LA"), gif(1, 2), frames("MPO")]
    inputs += [saved(COLOUR, form) for form in ("jpg", "webp", "avif", "tiff", "bmp", "ppm")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for data in inputs:
        with pytest.raises(NotNow):
            load(data, admit=admit)
    assert asked[:4] == [(16000, 16000, 3), (7, 5, 2), (7, 5, 3), (7, 5, 3)]
    assert asked[4:] == [(7, 5, 3)] * 6


def test_the_page_that_was_chosen_is_admitted():
    asked = []
    file = io.BytesIO()
    Image.new("L", (3, 2)).save(
        file, "TIFF", save_all=True, append_images=[Image.new("RGBA", (9, 8))]
    )
    load(file.getvalue(), frame=2, admit=lambda *size: asked.append(size))
    load(gif(1, 2), frame=2, admit=lambda *size: asked.append(size))
    assert asked == [(9, 8, 4), (7, 5, 3)]


@pytest.mark.parametrize("error", [UnsupportedImage("too much"), ValueError("x"), MemoryError()])
def test_what_admission_raises_is_let_out_as_it_is(error):
    def admit(*size):
        raise error

    with pytest.raises(type(error)) as caught:
        load(png(), admit=admit)
    assert caught.value is error


# XMP

MAIN = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" '
    'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'dc:format="image/jpeg" {note}</rdf:Description></rdf:RDF></x:xmpmeta>'
)
GUID = "0123456789ABCDEF0123456789abcdef"
AS_ATTRIBUTE = f'xmpNote:HasExtendedXMP="{GUID}">'
AS_ELEMENT = f"><xmpNote:HasExtendedXMP>{GUID}</xmpNote:HasExtendedXMP>"
EXTENSION = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:my="urn:mine"><r:RDF '
    f'xmlns:r="{RDF}"><r:Description r:about=""><my:data>{"0123456789" * 12000}</my:data>'
    "</r:Description></r:RDF></x:xmpmeta>"
).encode()


def portions(extension=EXTENSION, guid=GUID):
    return [
        segment(
            0xE1,
            b"http://ns.adobe.com/xmp/extension/\0"
            + guid.encode()
            + struct.pack(">II", len(extension), at)
            + extension[at : at + 65000],
        )
        for at in range(0, len(extension), 65000)
    ]


def extended(note, parts):
    main = b"http://ns.adobe.com/xap/1.0/\0" + MAIN.replace("{note}", note).encode()
    return load(with_segments(plain_jpeg(), segment(0xE1, main), *parts))


@pytest.mark.parametrize("note", [AS_ATTRIBUTE, AS_ELEMENT])
@pytest.mark.parametrize("order", [1, -1])
def test_extended_xmp_is_put_together_into_one_packet(note, order):
    from xml.etree import ElementTree

    picture = extended(note, portions()[::order])
    assert picture.remarks == ()
    root = ElementTree.fromstring(picture.xmp)
    assert len(root.find(f"{{{RDF}}}RDF")) == 2
    assert len(root.find(".//{urn:mine}data").text) == 120000
    assert b"HasExtendedXMP" not in picture.xmp and b'dc:format="image/jpeg"' in picture.xmp


DTD = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]>'


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "all bytes are missing"),
        (portions()[:1], f"{len(EXTENSION) - 65000} bytes are missing"),
        (portions()[1:], "what follows byte 0 is missing"),
        (portions() * 2, "what follows byte 65000 is missing"),
        (portions(guid="0" * 32), "all bytes are missing"),
        (portions(b"no XML" * 20), "it cannot be parsed"),
        (portions(DTD + EXTENSION), "it has a DTD"),
        (portions(b"<a>" * 50000 + b"</a>" * 50000), "it cannot be parsed"),
    ],
)
def test_extended_xmp_that_is_not_intact_is_left_out_whole_and_told(parts, why):
    picture = extended(AS_ATTRIBUTE, parts)
    assert picture.xmp is None
    assert picture.remarks == (f"its XMP is left out: its extended part is not intact ({why})",)


def test_an_extension_that_is_not_told_of_is_told():
    picture = extended(">", portions())
    assert b"dc:format" in picture.xmp
    assert picture.remarks == ("XMP without its first part is left out",)


def turned_by(content):
    names = f'xmlns:r="{RDF}" xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:q="urn:q"'
    return f"<x {names}>{content}</x>"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('<r:RDF><r:Description t:Orientation="6"/></r:RDF>', 6),
        ("<r:RDF><r:Description t:Orientation = '3'/></r:RDF>", 3),
        ("<r:RDF><r:Description><t:Orientation>\n8 </t:Orientation></r:Description></r:RDF>", 8),
        ('<r:RDF><r:Description/><r:Description t:Orientation="5"/></r:RDF>', 5),
        ('<r:RDF><r:Description t:Orientation="9"/></r:RDF>', 1),
        ('<r:RDF><r:Description q:Orientation="6"/></r:RDF>', 1),
        ('<r:RDF><r:Description><q:a>tiff:Orientation="6"</q:a></r:Description></r:RDF>', 1),
        ('<!-- tiff:Orientation="6" --><r:RDF/>', 1),
        # of another picture, a thumbnail
        (
            '<r:RDF><r:Description><q:a><r:Description t:Orientation="6"/></q:a></r:Description>'
            "</r:RDF>",
            1,
        ),
    ],
)
def test_the_orientation_in_xmp_is_that_of_the_picture(content, found):
    packet = turned_by(content).encode()
    assert orientation(None, packet) == found
    assert orientation(None, DTD + packet) == 1
    assert orientation(None, packet[:-5]) == 1


def exif_of(turn, size=0):
    tags = Image.Exif()
    tags[0x0112] = turn
    if size:
        tags[0x010E] = "a" * size
    return tags.tobytes()[6:]


@pytest.mark.parametrize(("name", "size"), [("exif", 65528), ("xmp", 65503)])
def test_metadata_that_jpeg_cannot_hold_are_left_out_whole(name, size):
    xmp = turned_by('<r:RDF><r:Description t:Orientation="6"/></r:RDF>').encode()
    large = {"exif": exif_of(6, size - 64), "xmp": xmp}
    large[name] += b" " * (size - len(large[name]))
    if name == "xmp":
        large["exif"] = None
    file = io.BytesIO()
    picture = Picture(SMOOTH_COLOUR, **large)
    assert save.save(picture, file, "jpg") == [name.upper()]
    back = load(file.getvalue())
    assert getattr(back, name) is None
    # turned as it was, by what is left or by its pixels
    shown = turn(back.pixels, orientation(back.exif, back.xmp))
    assert np.abs(shown.astype(int) - turn(SMOOTH_COLOUR, 6)).mean() < 3
    large[name] = large[name][:-1]
    assert save.save(Picture(SMOOTH_COLOUR, **large), io.BytesIO(), "jpg") == []


# chunks are where the format puts them


def test_chunks_are_not_found_in_the_data_of_others():
    hdr = b"\0\0\0\x04cICP\x09\x10\0\1"
    assert load(png(extra=chunk(b"prVt", hdr))).pixels.shape == (1, 2, 3)
    names = b"colrnclx\0\x09\0\x10\0\0\0\0av1C\x81\0\x40\0"
    picture = Picture(SMOOTH_COLOUR, xmp=b"<x>" + names.replace(b"\0", b" ") + b"</x>")
    file = io.BytesIO()
    save.save(picture, file, "avif")
    data = file.getvalue().replace(names.replace(b"\0", b" "), names)
    assert load(data).pixels.shape == SMOOTH_COLOUR.shape


def test_colours_of_another_item_are_not_those_of_the_picture():
    data = saved(SMOOTH_COLOUR, "avif")
    at = data.index(b"colrnclx") + 8
    # the property is there but belongs to no item
    association = data.index(b"ipma") + 4
    loose = data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :]
    with pytest.raises(UnsupportedImage, match="HDR"):
        load(loose)
    count = association + 4 + 4 + 2
    assert loose[count] == 4
    index = loose.index(b"\x04", count + 1)
    loose = loose[:index] + b"\0" + loose[index + 1 :]
    assert load(loose).pixels.shape == SMOOTH_COLOUR.shape


# samples


def tiff_of(entries, strips, byte_order="<"):
    """A TIFF file of these tags, values as numbers or tuples of 16 bits, and strips of bytes."""
    entries = {256: 2, 257: 1, 259: 1, 262: 2, 278: 1, **entries}
    order = sorted([*entries, 273, 279])
    start, beyond = 8 + 2 + 12 * len(order) + 4, b""

    def put(content):
        nonlocal beyond
        beyond += content + bytes(len(content) % 2)
        return start + len(beyond) - len(content) - len(content) % 2

    own = {273: [put(strip) for strip in strips], 279: [len(strip) for strip in strips]}
    data = struct.pack("<2sHIH", b"II", 42, 8, len(order))
    for tag in order:
        values = own.get(tag, entries.get(tag))
        values = values if isinstance(values, tuple | list) else [values]
        packed = struct.pack(f"<{len(values)}{'I' if tag in own else 'H'}", *values)
        packed = struct.pack("<I", put(packed)) if len(packed) > 4 else packed
        data += struct.pack("<HHI4s", tag, 4 if tag in own else 3, len(values), packed)
    return data + bytes(4) + beyond


def grey_tiff(bits, pixels, **tags):
    entries = {258: bits, 277: 1, 262: 1} | {int(tag[1:]): value for tag, value in tags.items()}
    return tiff_of(entries, [pixels])


def rgb_tiff(bits, pixels, kind):
    return tiff_of({258: (bits,) * 3, 277: 3, 339: (kind,) * 3}, [pixels])


NOT_READ = {
    "signed 8": grey_tiff(8, b"\1\xff", t339=2),
    "signed 16": grey_tiff(16, bytes(4), t339=2),
    "float 16": grey_tiff(16, bytes(4), t339=3),
    "float 64": grey_tiff(64, bytes(16), t339=3),
    "complex": grey_tiff(64, bytes(16), t339=6),
    "signed 32": grey_tiff(32, bytes(8), t339=2),
    "unsigned 32": grey_tiff(32, bytes(8)),
    "6 bits": grey_tiff(6, bytes(2)),
    "mask": grey_tiff(8, bytes(2), t262=4),
    "filter array": grey_tiff(8, bytes(2), t262=32803),
    "signed RGB 8": rgb_tiff(8, bytes(6), 2),
    "signed RGB 16": rgb_tiff(16, bytes(12), 2),
    "float RGB 16": rgb_tiff(16, bytes(12), 3),
    "float RGB 32": rgb_tiff(32, bytes(24), 3),
    "mixed": tiff_of({258: (5, 6, 5), 277: 3}, [bytes(4)]),
    "mixed 16": tiff_of({258: (8, 8, 16), 277: 3}, [bytes(8)]),
    "RGB of 4 bits": tiff_of({258: (4, 4, 4), 277: 3}, [bytes(3)]),
    "grey of 3 samples": tiff_of({258: (8, 8, 8), 277: 3, 262: 1}, [bytes(6)]),
    "subsampled": tiff_of({258: (8, 8, 8), 277: 3, 262: 6}, [bytes(6)]),
    "planar grey and alpha": tiff_of(
        {258: (8, 8), 277: 2, 262: 1, 284: 2, 338: 2}, [b"\1\2", b"\3\4"]
    ),
    "jpeg 12": plain_jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
    "bmp": b"BM"
    + struct.pack("<IIIIiiHH9I", 70, 0, 66, 40, 1, 1, 1, 32, 3, 0, 0, 0, 0, 0, 7, 7, 7),
    "float map": b"Pf 1 1 -1.0\n" + bytes(4),
    "colour float map": b"PF 1 1 -1.0\n" + bytes(12),
    "PAM": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\1",
    "XV": b"P7 332\n#END_OF_COMMENTS\n1 1 255\n\1",
    "icon": b"\0\0\1\0\1\0" + bytes(40),
    "photoshop": b"8BPS\0\1" + bytes(40),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "jpeg xr": b"II\xbc\1" + bytes(40),
    "jpeg 2000 codestream": b"\xff\x4f\xff\x51" + bytes(40),
    "raw": b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
    "targa": struct.pack("<3B5s4H2B", 0, 0, 2, b"", 0, 0, 2, 1, 24, 0) + bytes(6),
    "openexr": b"\x76\x2f\x31\1" + bytes(40),
}


@pytest.mark.parametrize("name", NOT_READ)
@pytest.mark.parametrize("to_srgb8", [False, True])
def test_valid_files_of_kinds_that_are_not_read_are_no_broken_files(name, to_srgb8):
    with pytest.raises(UnsupportedImage, match=r"convert|reduce") as caught:
        load(NOT_READ[name], to_srgb8=to_srgb8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (grey_tiff(2, b"\x1b", t256=4), [[0, 85, 170, 255]]),
        (grey_tiff(2, b"\x1b", t256=4, t262=0), [[255, 170, 85, 0]]),
        (grey_tiff(4, b"\x1b"), [[17, 187]]),
        (grey_tiff(4, b"\x1b", t262=0), [[238, 68]]),
        (grey_tiff(8, b"\1\xff", t262=0), [[254, 0]]),
        (grey_tiff(8, b"\1\xff", t339=1), [[1, 255]]),
        (rgb_tiff(8, b"\1\2\3\4\5\6", 1), [[[1, 2, 3], [4, 5, 6]]]),
        (
            tiff_of({258: (8, 8, 8), 277: 3, 284: 2}, [b"\1\2", b"\3\4", b"\5\6"]),
            [[[1, 3, 5], [2, 4, 6]]],
        ),
        (b"P5 3 1 100\n\0\x32\x64", [[0, 128, 255]]),
        (b"P6 1 1 15\n\0\x07\x0f", [[[0, 119, 255]]]),
        (b"P2 2 1 15\n7 15", [[119, 255]]),
        (b"P4 8 1\n\x1b", [[255, 255, 255, 0, 0, 255, 0, 0]]),
    ],
)
def test_samples_of_fewer_bits_and_of_planes_are_read_as_they_are_meant(data, pixels):
    assert load(data).pixels.tolist() == pixels


# PGM


def test_pgm_holds_grey_alone(tmp_path):
    save.save(GREY, tmp_path / "a.pgm")
    assert (tmp_path / "a.pgm").read_bytes().startswith(b"P5")
    assert np.array_equal(load_samples(tmp_path / "a.pgm"), GREY)
    with pytest.raises(UsageError, match=r"PGM holds grey only, .*; write ppm or png"):
        save.save(COLOUR, tmp_path / "b.pgm")


# HEIC

HEIF = pytest.importorskip("pillow_heif")
JXL = pytest.importorskip("pillow_jxl")
BLOCKS = np.zeros((16, 24, 3), np.uint8)
BLOCKS[:8, :, 0], BLOCKS[:, :12, 1] = 255, 200


def heic(*images, **options):
    file = io.BytesIO()
    written = HEIF.HeifFile()
    for image in images:
        written.add_from_pillow(image)
    written.save(file, **{"quality": 90, "chroma": 444} | options)
    return file.getvalue()


def close(found, expected):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 6


def test_heic_is_read():
    assert close(load(heic(Image.fromarray(BLOCKS))).pixels, BLOCKS)
    assert close(load(heic(Image.fromarray(BLOCKS[..., 0]))).pixels, BLOCKS[..., 0])
    picture = load(heic(Image.fromarray(np.dstack([BLOCKS, BLOCKS[..., 0]]))))
    assert close(picture.alpha, BLOCKS[..., 0]) and picture.pixels.shape == BLOCKS.shape


@pytest.mark.parametrize("where", ["EXIF", "XMP"])
def test_heic_is_not_turned_twice(where):
    image = Image.fromarray(BLOCKS)
    file = io.BytesIO()
    if where == "EXIF":
        image.encoderinfo = {"exif": b"Exif\0\0" + exif_of(6), "chroma": 444}
        from pillow_heif.as_plugin import _save_heif

        _save_heif(image, file, "")
        assert b"irot" in file.getvalue()
        shown = turn(BLOCKS, 6)
    else:
        image.info["xmp"] = turned_by('<r:RDF><r:Description t:Orientation="6"/></r:RDF>').encode()
        file, shown = io.BytesIO(heic(image)), BLOCKS
    picture = load(file.getvalue())
    told = orientation(picture.exif, picture.xmp)
    assert close(picture.turned(told).pixels, shown)
    assert load(file.getvalue(), stripped=True).pixels.shape == shown.shape


def test_of_several_pictures_in_heic_the_primary_one_is_coded():
    two = heic(Image.fromarray(BLOCKS), Image.fromarray(BLOCKS[:, :8]), primary_index=1)
    picture = load(two)
    assert picture.pixels.shape == (16, 8, 3)
    assert picture.remarks == ("1 more picture in it is left out (--frame N chooses one)",)
    assert load(two, frame=1).pixels.shape == BLOCKS.shape


def test_deep_and_hdr_heic_are_refused():
    deep = HEIF.from_bytes("RGB;16", (24, 16), (BLOCKS.astype(np.uint16) * 257).tobytes())
    file = io.BytesIO()
    deep.save(file, quality=90, chroma=444)
    with pytest.raises(UnsupportedImage, match="more than 8 bits a sample; reduce"):
        load(file.getvalue())
    assert close(load(file.getvalue(), to_srgb8=True).pixels, BLOCKS)
    colours = {"matrix_coefficients": 9, "full_range_flag": 1}
    hdr = heic(Image.fromarray(BLOCKS), color_primaries=9, transfer_characteristics=16, **colours)
    with pytest.raises(UnsupportedImage, match="the HDR transfer PQ; tone-map"):
        load(hdr, to_srgb8=True)
    p3 = heic(Image.fromarray(BLOCKS), color_primaries=12, transfer_characteristics=13, **colours)
    with pytest.raises(UnsupportedImage, match=r"primaries 12 .*; convert it with --to-srgb8"):
        load(p3)


def test_metadata_of_heic_are_kept():
    from test_pictures import P3

    image = Image.fromarray(BLOCKS)
    image.info |= {"icc_profile": P3, "exif": b"Exif\0\0" + exif_of(1, 9), "xmp": b"<x/>"}
    picture = load(heic(image))
    assert (picture.icc, picture.xmp) == (P3, b"<x/>")
    assert parse_exif(picture.exif)[0x010E] == "a" * 9


# JPEG XL


def jxl(image, **options):
    file = io.BytesIO()
    image.save(file, "JXL", **{"lossless": True, "effort": 3} | options)
    return file.getvalue()


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


def contained(codestream, *others):
    """A JPEG XL file of these boxes, before those of the pixels."""
    start = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    return start + b"".join(others) + box(b"jxlc", codestream)


def bits(number, count):
    return "".join(str(number >> n & 1) for n in range(count))


def jxl_header(orientation=1, depth="000", animated=False, extra="00"):
    """The header of a lossy picture of 24 x 16; the codestream that belongs to it follows."""
    size = "1" + bits(1, 5) + bits(4, 3)
    more = bits(orientation - 1, 3) + "00" + ("1" + "0" * 7 if animated else "0")
    string = f"{size}01{more}{depth}1{extra}111001"
    packed = [int(string[at : at + 8][::-1], 2) for at in range(0, len(string), 8)]
    return b"\xff\x0a" + bytes(packed)


@pytest.fixture(scope="module")
def codestream():
    """What follows the header of the smallest kind, of two bytes."""
    data = jxl(Image.fromarray(BLOCKS), lossless=False, quality=95)
    assert read_jxl_header(data).width == 24
    return data[4:]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg_xl_is_read(mode):
    samples = np.asarray(Image.fromarray(np.dstack([BLOCKS, BLOCKS[..., 0]])).convert(mode))
    picture = load(jxl(Image.fromarray(samples)))
    assert np.array_equal(picture.array(), samples)
    assert (picture.icc, picture.remarks) == (None, ())


@pytest.mark.parametrize("turned", range(1, 9))
def test_jpeg_xl_is_not_turned_twice(codestream, turned):
    picture = load(jxl_header(turned) + codestream)
    assert close(picture.pixels, turn(BLOCKS, turned)) and picture.exif is None
    exif = box(b"Exif", bytes(4) + exif_of(turned))
    picture = load(contained(jxl(Image.fromarray(BLOCKS)), exif))
    assert parse_exif(picture.exif)[0x0112] == turned
    assert np.array_equal(turn(picture.pixels, turned), BLOCKS)


@pytest.mark.parametrize("offset", [bytes(4), b"\0\0\0\6Exif\0\0", b""])
def test_what_jpeg_xl_holds_beside_the_pixels_is_kept_or_told(offset):
    codestream = jxl(Image.fromarray(BLOCKS))
    told = [box(b"Exif", offset + exif_of(1, 9)), box(b"xml ", b"<x/>")]
    picture = load(contained(codestream, *told))
    assert parse_exif(picture.exif)[0x010E] == "a" * 9 and picture.xmp == b"<x/>"
    assert np.array_equal(picture.pixels, BLOCKS) and picture.remarks == ()
    packed = load(contained(codestream, box(b"brob", b"xml \x8b\1\x80<x/>\3")))
    assert packed.remarks == ("EXIF or XMP that is compressed by Brotli is left out",)


def test_a_jpeg_in_jpeg_xl_is_read_as_the_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    save.save(Picture(SMOOTH_COLOUR, exif=exif_of(6)), path)
    with Image.open(path) as image:
        data = jxl(image, lossless_jpeg=True)
    picture, original = load(data), load_picture(path)
    assert np.array_equal(picture.pixels, original.pixels)
    assert orientation(picture.exif, picture.xmp) == 6


def test_deep_jpeg_xl_is_refused_or_reduced(codestream):
    ten = jxl_header(depth="010") + codestream
    files = [(ten, BLOCKS)]
    try:
        deep = jxl(Image.fromarray(GREY.astype(np.uint16) * 257))
        # the encoder takes deep grey for linear light
        files.append((deep, stated_to_srgb(GREY, Colours("linear", 1.0, np.eye(3)))))
    except NotImplementedError:  # in older versions
        pass
    for data, pixels in files:
        with pytest.raises(UnsupportedImage, match="more than 8 bits a sample; reduce"):
            load(data)
        assert close(load(data, to_srgb8=True).pixels, pixels)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (jxl_header(animated=True), "frames of an animation; save the one you want as PNG"),
        (jxl_header(depth="100" + "0" * 4), "more than 8 bits a sample, of no known range"),
        (
            jxl_header(extra="10" + "0" + "01" + "0100" + "000" + "00" + "00"),
            "CMYK colours; convert",
        ),
    ],
    ids=["animation", "float", "inks"],
)
def test_jpeg_xl_that_cannot_be_coded_is_refused_by_its_header(data, why):
    with pytest.raises(UnsupportedImage, match=why):
        load(data + bytes(20), to_srgb8=True)


@pytest.mark.parametrize("length", [2, 3, 5, 40, -60])
def test_cut_jpeg_xl_and_heic_are_broken(length):
    for data in (jxl(Image.fromarray(SMOOTH_COLOUR)), heic(Image.fromarray(SMOOTH_COLOUR))):
        with pytest.raises(FormatError, match=r"damaged|intact|cut|codestream"):
            load(data[:length])


def test_jpeg_xl_and_heic_are_admitted_by_their_header(codestream, monkeypatch):
    def admit(*size):
        raise ValueError(size)

    monkeypatch.setattr(formats.JxlImageFile, "_decode", None)
    with pytest.raises(ValueError, match=r"\(16, 24, 3\)"):
        load(jxl_header(6) + codestream, admit=admit)
    with pytest.raises(ValueError, match=r"\(24, 16, 3\)"):
        load(heic(Image.fromarray(BLOCKS)), admit=admit)


@pytest.mark.parametrize("name", ["heic", "jxl"])
def test_without_the_packages_the_line_that_installs_them_is_named(name, monkeypatch):
    data = heic(Image.fromarray(BLOCKS)) if name == "heic" else jxl(Image.fromarray(BLOCKS))
    for module in ("pillow_heif", "pillow_heif.as_plugin", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedImage, match=r'`pip install "lvqcodec\[formats\]"`'):
        load(data)


def test_other_formats_load_no_packages():
    code = (
        "import base64, io, sys; from lvqcodec.pictures.load import load_picture; "
        "load_picture(io.BytesIO(base64.b64decode(sys.argv[1]))); "
        "print(*{'pillow_heif', 'pillow_jxl'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, base64.b64encode(png())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    "suffix", [".heic", ".heif", ".jxl", ".gif", ".mpo", ".jpe", ".jfif", ".apng"]
)
def test_suffixes_of_what_is_read_are_taken_from_folders(suffix):
    assert suffix in suffixes.READ

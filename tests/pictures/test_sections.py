# SPDX-License-Identifier: Apache-2.0
"""Alpha and metadata as sections: there and back, bombs, and any damage at all."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lvqcodec.codec import decode, decode_picture, encode
from lvqcodec.errors import FormatError, UnsupportedImage, UsageError
from lvqcodec.format.container import (
    MAX_METADATA_BYTES,
    NAMED_SECTIONS,
    SECTION_ALPHA,
    SECTION_LATENTS,
    Header,
    Section,
    pack,
    section_bytes,
    unpack,
)
from lvqcodec.pictures.picture import Picture, turn, turn_back
from lvqcodec.pictures.sections import pack_sections, unpack_sections

HEIGHT, WIDTH = 24, 40
HEADER = Header(WIDTH, HEIGHT, 3, 50, "e8", bytes(4))
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
RAMP = np.add.outer(3 * np.arange(HEIGHT), 4 * np.arange(WIDTH)).astype(np.uint8)
MASK = np.where(RAMP > 100, 255, 0).astype(np.uint8)
METADATA = {"icc": b"profile" * 50, "exif": b"II*\0", "xmp": b"<x/>" * 9}


def packed(alpha, quality=100):
    """The payload of an alpha."""
    pixels = np.zeros((*alpha.shape, 3), np.uint8)
    (section,) = pack_sections(Picture(pixels, alpha), quality)
    assert section.kind == SECTION_ALPHA
    return section.payload


def unpacked(payload, width=WIDTH, height=HEIGHT):
    header = Header(width, height, 3, 50, "e8", bytes(4))
    return unpack_sections(header, {SECTION_ALPHA: payload})["alpha"]


def as_png(alpha):
    file = io.BytesIO()
    Image.fromarray(alpha).save(file, "PNG")
    return b"\2" + file.getvalue()


def as_avif(alpha):
    file = io.BytesIO()
    Image.fromarray(alpha).save(file, "AVIF", quality=50, subsampling="4:0:0")
    return b"\3" + file.getvalue()


# there and back


@given(
    arrays.arrays(
        np.uint8,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 1, 128, 254, 255]),
    )
)
def test_any_alpha_comes_back(alpha):
    if alpha.min() == 255:
        assert pack_sections(Picture(np.zeros((*alpha.shape, 3), np.uint8), alpha)) == []
    else:
        height, width = alpha.shape
        assert np.array_equal(unpacked(packed(alpha), width, height), alpha)


@given(st.binary(max_size=500), st.sampled_from(["icc", "exif", "xmp"]))
def test_any_metadata_comes_back(data, name):
    sections = pack_sections(Picture(PIXELS, **{name: data}))
    found = unpack_sections(HEADER, {section.kind: section.payload for section in sections})
    assert found == ({name: data} if data else {})
    assert all(len(section.payload) <= len(data) + 1 for section in sections)


def test_constant_alpha_takes_two_bytes_and_opaque_none():
    assert packed(np.full((HEIGHT, WIDTH), 7, np.uint8)) == b"\0\7"
    assert np.array_equal(unpacked(b"\0\7"), np.full((HEIGHT, WIDTH), 7))
    assert pack_sections(Picture(PIXELS, np.full((HEIGHT, WIDTH), 255, np.uint8))) == []


def test_the_codings_that_files_may_have():
    assert packed(RAMP)[0] == 1
    assert np.array_equal(unpacked(as_png(RAMP)), RAMP)
    wide = np.tile(RAMP[:1], (1, 500))[:, :16400]
    assert packed(wide)[0] == 2  # VP8L has no such sides
    assert np.array_equal(unpacked(packed(wide), 16400, 1), wide)


def test_less_alpha_quality_is_fewer_bytes_and_little_error():
    y, x = np.mgrid[0:128, 0:160]
    soft = np.clip(128 + 127 * np.sin(x / 25) * np.cos(y / 19), 0, 255).astype(np.uint8)
    sizes = [len(packed(soft, quality)) for quality in (20, 60, 90, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 5
    back = unpacked(packed(soft, 60), 160, 128)
    assert 0 < np.abs(back.astype(int) - soft).max() < 12
    assert packed(MASK, 99) == packed(MASK)  # lossless where that is smaller


def test_metadata_is_squeezed_only_where_that_helps():
    sections = {
        section.kind: section.payload for section in pack_sections(Picture(PIXELS, **METADATA))
    }
    assert sections[NAMED_SECTIONS["exif"]] == b"\0II*\0"
    assert sections[NAMED_SECTIONS["icc"]] == b"\1" + zlib.compress(METADATA["icc"], 9)


def test_metadata_of_any_size_is_not_taken():
    with pytest.raises(UnsupportedImage, match=r"EXIF are more than 16777216; .*--strip"):
        pack_sections(Picture(PIXELS, exif=bytes(MAX_METADATA_BYTES + 1)))


# damage


@pytest.mark.parametrize(
    ("payload", "message"),
    {
        "empty": (b"", "the alpha section is empty"),
        "unknown": (b"\4abc", "coding 4 of the alpha is not known: upgrade"),
        "no constant": (b"\0", "0 bytes for one value"),
        "two constants": (b"\0\1\2", "2 bytes for one value"),
        "vp8l size": (packed(RAMP.T.copy()), "no VP8L stream of 40 x 24"),
        "vp8l signature": (b"\1\x30" + packed(RAMP)[2:], "no VP8L stream"),
        "png size": (as_png(RAMP.T.copy()), "no PNG of 40 x 24"),
        "png colour": (as_png(PIXELS), "no PNG of 40 x 24 in 8-bit grey"),
        "png tail": (as_png(RAMP)[:-20], "the alpha is damaged"),
        "avif": (b"\3abc", "the alpha is damaged"),
    }.values(),
)
def test_faults_of_alpha(payload, message):
    with pytest.raises(FormatError, match=message) as caught:
        unpacked(payload)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "message"),
    {
        "empty": (b"", "the XMP section is empty"),
        "nothing": (b"\0", "the XMP section has not 1 to 16777216 bytes"),
        "unknown": (b"\2abc", "coding 2 of the XMP section is not known: upgrade"),
        "junk": (b"\1abc", "the XMP section is damaged"),
        "cut": (b"\1" + zlib.compress(b"abcdefgh")[:-3], "cut or too long"),
        "more": (b"\1" + zlib.compress(b"abc") + b"!", "cut or too long"),
        "bomb": (b"\1" + zlib.compress(bytes(MAX_METADATA_BYTES + 1)), "not 1 to 16777216"),
    }.values(),
)
def test_faults_of_metadata(payload, message):
    with pytest.raises(FormatError, match=message):
        unpack_sections(HEADER, {NAMED_SECTIONS["xmp"]: payload})


def test_a_bomb_is_not_unpacked():
    bomb = b"\1" + zlib.compress(bytes(300_000_000), 9)
    tracemalloc.start()
    with pytest.raises(FormatError):
        unpack_sections(HEADER, {NAMED_SECTIONS["exif"]: bomb})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_METADATA_BYTES


@pytest.mark.parametrize("coding", ["vp8l", "png", "avif"])
def test_any_damage_to_alpha_is_an_error_or_an_alpha_of_that_size(coding):
    """The container's CRC is what tells; behind its back no other exception may come out."""
    smooth = RAMP // 2 + 60
    payload = {"vp8l": packed(RAMP), "png": as_png(RAMP), "avif": as_avif(smooth)}[coding]
    for end in range(1, len(payload)):
        tolerate(payload[:end])
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(payload)
        for place in rng.integers(1, len(payload), rng.integers(1, 4)):
            damaged[place] ^= 1 << int(rng.integers(0, 8))
        tolerate(bytes(damaged))


def tolerate(payload):
    try:
        alpha = unpacked(payload)
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        assert alpha.shape == (HEIGHT, WIDTH) and alpha.dtype == np.uint8


# through the codec


@pytest.fixture
def picture(photograph):
    return Picture(photograph(HEIGHT, WIDTH), RAMP, **METADATA)


def test_a_picture_comes_back_whole(tiny, picture):
    data = encode(picture, model=tiny)
    back = decode_picture(data)
    assert np.array_equal(back.alpha, RAMP)
    assert {name: getattr(back, name) for name in METADATA} == METADATA
    plain = encode(picture.pixels, model=tiny)
    assert np.array_equal(back.pixels, decode(plain))
    header, sections = unpack(data)
    assert list(sections) == [*NAMED_SECTIONS.values(), SECTION_LATENTS]  # the latents last
    assert len(data) == len(plain) + sum(
        section_bytes(section) for section in pack_sections(picture)
    )
    assert pack(header, [Section(SECTION_LATENTS, sections[SECTION_LATENTS])]) == plain


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_with_alpha(tiny, photograph, channels):
    picture = Picture(photograph(HEIGHT, WIDTH, channels=channels), MASK)
    assert picture.array().shape == (HEIGHT, WIDTH, channels + 1)
    data = encode(picture.array(), model=tiny)
    assert data == encode(picture, model=tiny)
    back = decode(data)
    assert back.shape == (HEIGHT, WIDTH, channels + 1)
    assert np.array_equal(back[..., -1], MASK)
    assert np.array_equal(back, decode_picture(data).array())


def test_every_truncation_and_bit_is_refused(tiny, picture):
    data = encode(Picture(picture.pixels, MASK, exif=b"II*\0"), model=tiny)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:end])
    for place in range(0, 8 * len(data), 5):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(FormatError):
            unpack(bytes(damaged))


@pytest.mark.parametrize("effort", [0, 2])
@pytest.mark.parametrize("spare", [150, 250, 400])
def test_a_size_is_kept_with_all_that_is_in_the_file(tiny, photograph, spare, effort):
    picture = Picture(photograph(96, 128), np.tile(RAMP, (4, 4))[:, :128], **METADATA)
    beside = sum(section_bytes(section) for section in pack_sections(picture))
    data = encode(picture, model=tiny, target_bytes=beside + spare, effort=effort)
    assert beside + spare / 2 < len(data) <= beside + spare


def test_a_size_that_alpha_and_metadata_leave_no_room_in(tiny, picture):
    beside = sum(section_bytes(section) for section in pack_sections(picture))
    with pytest.raises(UsageError, match=rf"alone take {beside} of {beside} bytes; .*--strip"):
        encode(picture, model=tiny, target_bytes=beside)
    with pytest.raises(UsageError, match=rf"beside {beside} bytes .* not fit into 9 bytes"):
        encode(picture, model=tiny, target_bytes=beside + 9)


# pictures


def test_alpha_belongs_to_its_pixels():
    with pytest.raises(UnsupportedImage, match=r"alpha of these pixels is uint8 \(24, 40\), not"):
        Picture(PIXELS, RAMP.T)
    with pytest.raises(UnsupportedImage, match="not float64"):
        Picture(PIXELS, RAMP / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_undoes_turning(orientation):
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(turn_back(turn(image, orientation), orientation), image)
    turned = Picture(image, image[..., 0]).turned(orientation)
    assert np.array_equal(turned.alpha, turned.pixels[..., 0])

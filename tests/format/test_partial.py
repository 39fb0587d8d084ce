# SPDX-License-Identifier: Apache-2.0
"""Files whose end is missing: what is there comes out as it was, the rest is predicted."""

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvqcodec import stream
from lvqcodec.cli import main
from lvqcodec.codec import Picture, decode, decode_picture, encode, load_model
from lvqcodec.coding.rangecoder import PartialDecoder, SymbolEncoder
from lvqcodec.coding.rows import RowTable
from lvqcodec.errors import FormatError, LvqError, StreamError, UnsupportedImage
from lvqcodec.format import fields, tiling
from lvqcodec.format.container import (
    SECTION_LATENTS,
    SECTION_TILES,
    Header,
    Section,
    pack,
    unpack,
    unpack_partial,
)
from lvqcodec.metrics import psnr
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.pictures import load

SIDE = 32  # pixels of a tile: four positions


@pytest.fixture(scope="module")
def loaded(models_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        yield load_model("tiny", device="cpu")


def what_is_there(data, **options):
    return decode(data, partial=True, device="cpu", **options)


def refused(data, complaint=None):
    with pytest.raises(FormatError, match=complaint) as caught:
        what_is_there(data)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def head_bytes(data):
    """Up to where the words of the only tile begin."""
    _, sections = unpack(data)
    return len(data) - fields.CHECK_BYTES - len(sections[SECTION_LATENTS]) + 4


# symbols

TABLE = RowTable.from_rows(
    [np.array([1.0, 6.0, 1.0, 0.1]), np.arange(1.0, 40.0), np.array([1.0, 1e-6])], [1, -3, 0]
)
BITS = RowTable.from_rows([np.array([1 - p, p]) for p in (0.01, 0.5)], [0, 0])
integers = st.one_of(st.integers(-3, 45), st.sampled_from([-32768, 32768]))
batches = st.lists(st.tuples(integers, st.integers(0, 2)), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(batches, max_size=4), st.data())
def test_symbols_are_those_of_the_whole_stream_or_none(calls, data):
    pairs = [np.array(call, int).reshape(-1, 2).T for call in calls]
    encoder = SymbolEncoder()
    for values, rows in pairs:
        encoder.encode_bits(values & 1, rows % 2, BITS)
        encoder.encode_integers(values, rows, TABLE)
    words = encoder.finish()
    cut = data.draw(st.integers(0, len(words)))
    decoder = PartialDecoder(words[:cut])
    count = 0
    for values, rows in pairs:
        over = decoder.ended
        bits = decoder.decode_bits(rows % 2, BITS)
        if not decoder.ended:
            assert bits.tolist() == (values & 1).tolist()
        assert not ((bits != (values & 1)) & (bits != 0)).any()
        found = decoder.decode_integers(rows, TABLE)
        assert found[decoder.known].tolist() == values[decoder.known].tolist()
        assert not found[~decoder.known].any()
        assert not (over and decoder.known.any())
        assert decoder.ended or decoder.known.all()
        count += int(decoder.known.sum())
    assert decoder.received == count


def test_hardly_a_word_is_lost():
    """All bits but the few that a next symbol could still change are used, at any cut."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 2, 4000))
    values = np.where(rows == 0, rng.integers(-1, 2, 4000), rng.integers(3, 40, 4000))
    encoder = SymbolEncoder()
    encoder.encode_integers(values, rows, TABLE)
    words = encoder.finish()
    costs = np.cumsum(TABLE.integer_bits(values, rows))
    for cut in range(0, len(words) - 8, 41):
        decoder = PartialDecoder(words[:cut])
        found = decoder.decode_integers(rows, TABLE)
        count = decoder.received
        assert decoder.ended and not decoder.known[count:].any()
        assert found[:count].tolist() == values[:count].tolist()
        assert costs[count] > 32 * (cut // 4) - 34


def test_words_that_no_encoder_writes_are_an_error():
    rows = np.zeros(1000, int)
    with pytest.raises(StreamError, match="damaged"):
        PartialDecoder(b"\xff" * 64).decode_integers(rows, TABLE)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 2**32 - 1))
def test_garbage_is_numbers_or_a_stream_error(data, seed):
    rows = np.random.default_rng(seed).integers(0, 3, 400)
    decoder = PartialDecoder(data)
    try:
        values = decoder.decode_integers(rows, TABLE)
    except StreamError:
        return
    assert np.abs(values).max() <= 32768 and decoder.received == decoder.known.sum()


@pytest.mark.parametrize("lattice", ["z", "e8"])
def test_coordinates_of_vectors_are_right_or_zero(lattice):
    tables = parametric_tables()
    quantizer = Quantizer(lattice, tables)
    torch.manual_seed(0)
    bins = torch.randint(0, 64, (3000,))
    j = quantizer.choose(torch.randn(3000) * bins, bins).numpy()
    encoder = SymbolEncoder()
    quantizer.write(j, bins.numpy(), encoder)
    words = encoder.finish()
    shares = []
    for cut in range(0, len(words) - 3, 97):
        decoder = PartialDecoder(words[:cut])
        found = quantizer.read(bins.numpy(), decoder)
        assert ((found == j) | (found == 0)).all()
        assert (found == j).sum() >= decoder.received
        shares.append(decoder.received)
        assert not quantizer.read(bins.numpy(), decoder).any()
    assert shares == sorted(shares) and shares[-1] > 2500


# latents


def steps(loaded, read, monkeypatch):
    """What `read` returns, and each parallel step's means and latents."""
    entropy = type(loaded.model.entropy)
    code, seen = entropy.code, []

    def recording(self, coder, *arguments):
        def recorded(plane, positions, channels, mean, scale):
            found = coder(plane, positions, channels, mean, scale)
            seen.append((mean, found))
            return found

        return code(self, recorded, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(entropy, "code", recording)
        return read(), seen


@pytest.mark.parametrize(("lattice", "channels"), [("e8", 3), ("z", 3), ("e8", 1)])
def test_latents_are_those_of_the_whole_file_or_their_means(
    loaded, photograph, monkeypatch, lattice, channels
):
    picture = photograph(61, 90, channels=channels)
    data = encode(picture, model=loaded, quality=70, lattice=lattice)
    header, sections = unpack(data)
    payload, grid = sections[SECTION_LATENTS], loaded.model.grid(61, 90)
    coder = stream.TileCoder(header, loaded)
    whole = steps(loaded, lambda: coder.read(payload, grid), monkeypatch)[1]
    decoders = []

    def kept(words):
        decoders.append(PartialDecoder(words))
        return decoders[-1]

    monkeypatch.setattr(stream, "PartialDecoder", kept)
    shares, within = [], 0
    for cut in range(4, len(payload), 61):
        read = partial(coder.read_partial, payload[:cut], grid)
        y_hat, seen = steps(loaded, read, monkeypatch)
        left = decoders[-1].received
        for (mean, found), (_, full) in zip(seen, whole, strict=True):
            if left >= found.numel():
                assert torch.equal(found, full)
            elif left > 0:
                assert ((found == full) | (found == mean)).all()
                assert (found == full).sum() >= left
                within += 1
            else:
                assert torch.equal(found, mean)
            left = max(left - found.numel(), 0)
        shares.append(decoders[-1].received / y_hat.numel())
    assert shares == sorted(shares) and shares[-1] > 0.5
    assert within > 1  # a step is not all or nothing


# pictures


def test_every_cut_is_refused_or_a_picture(tiny, sample):
    picture, data = sample
    first = head_bytes(data)
    for end in range(len(data)):
        if end <= first:
            refused(data[:end], r"truncated|is empty|ends before its latents")
        else:
            found = what_is_there(data[:end])
            assert found.shape == picture.shape and found.dtype == np.uint8
        with pytest.raises(FormatError):
            decode(data[:end])
    refused(data + b"\0")


def test_an_intact_file_is_decoded_with_all_checks(tiny, sample):
    _, data = sample
    assert np.array_equal(what_is_there(data), decode(data))
    for place in range(0, len(data) - 4, 3):
        damaged = bytearray(data)
        damaged[place] ^= 64
        try:
            length = unpack_partial(bytes(damaged))[2]
        except FormatError:
            refused(bytes(damaged))
        else:  # the length of the section alone has no check of its own
            assert length > 0 and place == head_bytes(data) - 5


def test_latents_that_are_whole_are_checked(tiny, photograph):
    data = encode(photograph(48, 80), model=tiny, quality=60)
    for lost in range(1, 5):
        assert np.array_equal(what_is_there(data[:-lost]), decode(data))
    damaged = bytearray(data[:-4])
    damaged[-9] ^= 1
    with pytest.raises(StreamError, match="checksum"):
        what_is_there(bytes(damaged))


def test_more_of_the_file_is_a_better_picture(tiny, photograph):
    picture = photograph(192, 256)
    data = encode(picture, model=tiny, quality=60)
    found = [psnr(picture, what_is_there(data[: len(data) * n // 20])) for n in range(1, 21)]
    assert all(later > earlier - 0.3 for earlier, later in pairwise(found))
    assert found[-1] > found[9] + 1 > found[0] + 2
    assert psnr(picture, what_is_there(data[:-20])) > found[-1] - 0.5


def test_parts_of_a_truncated_file(tiny, photograph):
    data = encode(photograph(100, 130), model=tiny, quality=60)
    data = data[: len(data) // 2]
    found = what_is_there(data, region=(40, 20, 33, 50))
    assert np.abs(found.astype(int) - what_is_there(data)[20:70, 40:73]).max() <= 1


def test_alpha_and_metadata_are_whole_or_the_file_is_refused(tiny, photograph):
    alpha = (np.indices((64, 72)).sum(0) * 2 % 256).astype(np.uint8)
    picture = Picture(photograph(64, 72), alpha, xmp=b"<x:xmpmeta/>", exif=b"II*\0\x08\0\0\0\0\0")
    data = encode(picture, model=tiny)
    begin = head_bytes(data)
    back = decode_picture(data[: begin + 60], partial=True, device="cpu")
    assert np.array_equal(back.alpha, alpha)
    assert (back.xmp, back.exif) == (picture.xmp, picture.exif)
    for end in range(0, begin + 1, 3):
        refused(data[:end])
    for place in range(0, begin - 7, 5):
        damaged = bytearray(data[: begin + 60])
        damaged[place] ^= 16
        refused(bytes(damaged))


# tiles


@pytest.fixture(scope="module")
def tiled(loaded, photograph):
    return encode(photograph(77, 101), model=loaded, quality=60, tile=SIDE)


def test_tiles_that_are_there_are_as_they_were(tiny, loaded, tiled):
    header, sections = unpack(tiled)
    layout, tiles, _ = tiling.find_tiles(header, sections)
    full = decode(tiled)
    lengths = [len(tile) for tile in tiles]
    reach = loaded.model.transform.synthesis_reach
    end = len(tiled) - fields.CHECK_BYTES
    for cut in range(1, len(tiles)):
        begin = end - sum(lengths[cut:])
        for there in (0, 2, lengths[cut] // 2, lengths[cut] - 1):
            part = tiled[: begin + there]
            assert tiling.find_tiles(*unpack_partial(part))[2] == cut
            found = what_is_there(part)
            assert found.shape == full.shape and not np.array_equal(found, full)
            same = 8 * max(layout[cut].rows.start - reach, 0)
            assert np.array_equal(found[:same], full[:same])


def test_every_cut_of_tiles(tiny, tiled):
    tiles = tiling.find_tiles(*unpack(tiled))[1]
    words = len(tiled) - fields.CHECK_BYTES - sum(map(len, tiles))
    for end in range(words + 5):
        refused(tiled[:end])
    for end in range(words + 5, len(tiled), 53):
        assert what_is_there(tiled[:end]).shape == (77, 101, 3)
    for end in range(len(tiled) - 4, len(tiled)):
        assert np.array_equal(what_is_there(tiled[:end]), decode(tiled))


def test_a_whole_tile_that_is_damaged_is_refused(tiny, tiled):
    _, sections = unpack(tiled)
    begin = len(tiled) - fields.CHECK_BYTES - len(sections[SECTION_TILES])
    damaged = bytearray(tiled[:-30])
    damaged[begin + 40] ^= 1
    refused(bytes(damaged))


# hostile files


def cut_file(loaded, width, height, payload, claimed):
    """A file with right checks that ends within its latents, of which there were so many bytes."""
    header = Header(width, height, 3, 50, "e8", loaded.digest)
    head = pack(header, [Section(SECTION_LATENTS, b"")])[:-6]
    return head + b"\1" + fields.to_varint(claimed) + payload


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.binary(min_size=5, max_size=300))
def test_any_words_are_a_picture_or_an_error(loaded, models_folder, width, height, payload):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        try:
            found = what_is_there(cut_file(loaded, width, height, payload, 400))
        except StreamError:
            return
    assert found.shape == (height, width, 3)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1), st.floats(0, 1), st.binary(min_size=1, max_size=8))
def test_any_cut_with_any_damage_is_a_picture_or_an_error(tiny, tiled, end, place, new):
    data = bytearray(tiled[: int(end * len(tiled))])
    at = int(place * len(data))
    data[at : at + len(new)] = new
    try:
        assert what_is_there(bytes(data)).shape == (77, 101, 3)
    except LvqError as error:
        assert error.exit_code in (3, 4)


def test_a_size_is_held_to_the_limits(tiny, loaded):
    bomb = cut_file(loaded, 16384, 16384, bytes(12), 2**30)
    with pytest.raises(LvqError, match=r"16384x16384 needs about .* GiB"):
        what_is_there(bomb, max_memory=8 * 10**9)
    with pytest.raises(UnsupportedImage, match="limit of 1000 pixels"):
        what_is_there(bomb, max_pixels=1000)


# the command


def lvq(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command(tiny, photograph, tmp_path):
    picture = photograph(60, 80)
    data = encode(picture, model=tiny, quality=60)
    file, out = tmp_path / "a.lvq", tmp_path / "a.png"
    file.write_bytes(data[:-100])
    result = lvq("decode", file, out)
    assert result.exit_code == 3 and not out.exists()
    assert "100 bytes are missing" in result.stderr and "--partial" in result.stderr

    result = lvq("decode", "--partial", file, out)
    assert result.exit_code == 0
    size = len(unpack(data)[1][SECTION_LATENTS])
    assert f"from {100 * (size - 96) / size:.1f} % of the latents" in result.stderr
    assert np.array_equal(load.load(out), what_is_there(data[:-100]))
    result = lvq("decode", "--partial", "--json", file, out)
    assert json.loads(result.stdout)["received"] == pytest.approx((size - 96) / size)

    file.write_bytes(data)
    result = lvq("decode", "--partial", file, out)
    assert result.exit_code == 0 and "latents" not in result.stderr
    assert np.array_equal(load.load(out), decode(data))

    file.write_bytes(data[:30])
    out.unlink()
    assert lvq("decode", "--partial", file, out).exit_code == 3
    assert not out.exists()

# SPDX-License-Identifier: Apache-2.0
"""Large pictures in tiles: geometry, bytes, seams, regions, damage, memory."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import prepared, read_latents
from hypothesis import given, settings
from hypothesis import strategies as st

import lvqcodec
from lvqcodec import metrics, stream
from lvqcodec.cli import main
from lvqcodec.codec import decode, encode, encode_image, load_model
from lvqcodec.encoder import search
from lvqcodec.encoder.original import cut as cut_latents
from lvqcodec.errors import FormatError, LvqError, StreamError, UsageError
from lvqcodec.format import geometry, tiling
from lvqcodec.format.container import SECTION_LATENTS, SECTION_TILES, Header, Section, pack, unpack
from lvqcodec.format.fields import checked, to_varint
from lvqcodec.format.geometry import Window
from lvqcodec.format.tiling import Tiling
from lvqcodec.model.transforms.lapped import LappedTransform
from lvqcodec.pictures import load, save
from lvqcodec.reconstruction import Reconstruction
from lvqcodec.resources import admission, available, estimate

SIDE = 32  # pixels: four positions, about as far as the networks of "tiny" see
HEIGHT, WIDTH = 77, 101


@pytest.fixture(scope="module")
def loaded(models_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        yield load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def files(loaded, photograph):
    """A picture in tiles, one in a single tile and a grey one in tiles, each as it decodes."""
    colour, grey = photograph(HEIGHT, WIDTH), photograph(HEIGHT, WIDTH, channels=1)
    made = [
        encode(colour, model=loaded, quality=60, tile=SIDE),
        encode(colour, model=loaded, quality=60),
        encode(grey, model=loaded, quality=60, tile=2 * SIDE),
    ]
    return [(data, decode(data, device="cpu")) for data in made]


def parts(data):
    """The header, the tiling and the tiles of a file."""
    header, sections = unpack(data)
    return header, *tiling.find_tiles(header, sections)[:2]


def box(window):
    """X, Y, W, H of rows and columns."""
    height, width = window.grid
    return window.columns.start, window.rows.start, width, height


# --- geometry -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 6))
def test_tiles_make_up_the_grid(height, width, exponent):
    cut = Tiling((height, width), 1 << exponent)
    seen = np.zeros((height, width), int)
    for index in range(len(cut)):
        seen[cut[index]] += 1
        for length, size in zip(cut[index].grid, cut.size, strict=True):
            assert cut.side / 2 <= length < 1.5 * cut.side or length == size < cut.side / 2
    assert (seen == 1).all()
    tops = [(tile.rows.start, tile.columns.start) for tile in map(cut.__getitem__, range(len(cut)))]
    assert tops == sorted(tops)
    assert cut.largest == tuple(np.max([cut[i].grid for i in range(len(cut))], axis=0))


def test_windows_shift_grow_and_meet():
    window, origin = Window(slice(5, 9), slice(0, 4)), Window(slice(3, 20), slice(0, 7))
    assert window.seen_from(origin) == Window(slice(2, 6), slice(0, 4))
    assert window.seen_from(origin).shifted(origin) == window
    assert window.grown(3, (10, 6)) == Window(slice(2, 10), slice(0, 6))
    assert window.common(Window(slice(0, 6), slice(2, 9))) == Window(slice(5, 6), slice(2, 4))
    assert window.pixels(70, 30, 8) == Window(slice(40, 70), slice(0, 30))
    assert window.pixels(130, 30, 16) == Window(slice(80, 130), slice(0, 30))
    pixels = Window(slice(7, 17), slice(8, 16))
    assert geometry.covering(pixels, 8) == Window(slice(0, 3), slice(1, 2))
    assert geometry.covering(pixels, 16) == Window(slice(0, 2), slice(0, 1))


@pytest.mark.parametrize(
    ("size", "tile", "count", "side"),
    [
        ((1920, 1080), None, 1, 240),
        ((2048, 1024), None, 1, 256),
        ((2049, 1024), None, 2, 128),
        ((12000, 9000), None, 12 * 9, 128),
        ((1500, 1500), 1024, 1, 188),  # what is left belongs to the last tile
        ((100, 100), 32, 9, 4),
        ((100, 100), 32768, 1, 13),
    ],
)
def test_only_large_pictures_are_cut_unless_asked_for(size, tile, count, side):
    cut = tiling.choose(Header(*size, 3, 50, "e8", bytes(4)), tile)
    assert (len(cut), cut.side) == (count, side)


def test_sides_are_in_pixels_whatever_the_stride():
    wide = {stride: Header(3000, 2000, 3, 50, "e8", bytes(4), stride=stride) for stride in (8, 16)}
    for tile, side in ((None, 1024), (256, 256)):
        cut = [tiling.choose(header, tile) for header in wide.values()]
        assert [(c.stride * c.side, len(c)) for c in cut] == [(side, len(cut[0]))] * 2
        assert len({c.window * c.stride for c in cut}) == 1
    assert tiling.choose(wide[16]).size == (125, 188)
    assert tiling.untiled(wide[16]).stride == 16
    with pytest.raises(UsageError, match="from 64 to 32768"):
        tiling.choose(wide[16], 32)


@pytest.mark.parametrize("tile", [0, -32, 16, 100, 65536])
def test_sides_that_the_format_lacks_are_refused(loaded, photograph, tile):
    with pytest.raises(UsageError, match=rf"tiles of {tile} pixels.* from 32 to 32768"):
        encode(photograph(40, 40), model=loaded, tile=tile)


@pytest.mark.parametrize("levels", [((8, 6, 2),), ((4, 6, 1), (8, 8, 1)), ((2, 4, 1), (8, 4, 1))])
def test_the_networks_see_as_far_as_they_say_and_no_farther(levels):
    torch.manual_seed(0)
    transform = LappedTransform(LappedTransform.Config("lapped", 24, levels, levels[::-1]))
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    transform, quality = transform.double(), torch.tensor([50.0], dtype=torch.float64)
    side, middle = 25, 12

    def reach(gradient, unit):
        rows = gradient.abs().sum((0, 1)).nonzero()[:, 0] // unit
        return middle - int(rows.min()), int(rows.max()) - middle

    x = torch.rand(1, 3, 8 * side, 8 * side, dtype=torch.float64, requires_grad=True)
    y = transform.analysis(x, quality)
    (gradient,) = torch.autograd.grad(y[:, :, middle, middle].abs().sum(), x)
    assert reach(gradient, 8) == (transform.analysis_reach,) * 2
    y = torch.randn(1, 24, side, side, dtype=torch.float64, requires_grad=True)
    pixels = slice(8 * middle, 8 * middle + 8)
    (gradient,) = torch.autograd.grad(
        transform.synthesis(y, quality)[:, :, pixels, pixels].abs().sum(), y
    )
    assert reach(gradient, 1) == (transform.synthesis_reach,) * 2


# --- no seam --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [32, 64])
def test_latents_are_those_of_the_whole_picture(loaded, photograph, tile):
    picture = photograph(150, 210)
    (whole,) = prepared(picture, loaded, quality=60).sources()
    cut = prepared(picture, loaded, quality=60, tile=tile)
    for source in cut.sources():
        wanted = cut_latents(whole.target, whole.grid, source.core)
        assert torch.allclose(source.target, wanted, rtol=0, atol=1e-4)  # of a step


@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_synthesis_of_all_latents(loaded, photograph, tile, channels):
    picture = photograph(150, 210, channels=channels)
    header, cut, tiles = parts(data := encode(picture, model=loaded, quality=60, tile=tile))
    latents = torch.zeros(1, *cut.size, 24)
    for index in range(len(tiles)):
        y_hat = read_latents(data, loaded, index)
        latents[(slice(None), *cut[index])] = torch.unflatten(y_hat, 1, cut[index].grid)
    x_hat = loaded.model.synthesis(
        latents.flatten(1, 2), cut.size, stream.quality_of(header, loaded)
    )
    x_hat = x_hat[0, :, :150, :210]
    wanted = (x_hat.mean(0) if channels == 1 else x_hat.permute(1, 2, 0)).clamp(0, 1) * 255
    error = np.abs(decode(data, device="cpu") - wanted.numpy())
    assert error.max() < 0.501


def test_tiles_cost_little(loaded, photograph):
    picture = photograph(300, 300)
    whole, cut = (encode(picture, model=loaded, quality=60, tile=tile) for tile in (None, 128))
    assert len(whole) < len(cut) < 1.1 * len(whole)
    errors = [metrics.mse(picture, decode(data)) for data in (whole, cut)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_progress_is_told_tile_by_tile(loaded, photograph):
    told = []
    data = encode(photograph(64, 96), model=loaded, tile=SIDE, report=told.append)
    decode(data, device="cpu", report=told.append)
    shares = [progress.done for progress in told]
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1] * 2)


# --- regions --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2), ends=st.data())
def test_a_region_is_the_crop_of_the_whole(loaded, files, which, ends):
    data, whole = files[which]
    left, top = ends.draw(st.integers(0, WIDTH - 1)), ends.draw(st.integers(0, HEIGHT - 1))
    width, height = (
        ends.draw(st.integers(1, WIDTH - left)),
        ends.draw(st.integers(1, HEIGHT - top)),
    )
    found = decode(data, region=(left, top, width, height), device="cpu")
    wanted = whole[top : top + height, left : left + width]
    assert found.shape == wanted.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        ((0, 0, WIDTH + 1, 1), f"not in the picture, which is {WIDTH}x{HEIGHT}"),
        ((WIDTH, 0, 1, 1), "not in the picture"),
        ((0, HEIGHT - 1, 1, 2), "not in the picture"),
        ((-1, 0, 5, 5), "region -1,0,5,5 is none"),
        ((0, 0, 0, 5), "W and H of at least 1"),
    ],
)
def test_regions_outside_are_refused(files, region, complaint):
    for data, _ in files:
        with pytest.raises(UsageError, match=complaint):
            decode(data, region=region)


# --- bytes ----------------------------------------------------------------------------------------

HEADER = Header(40, 33, 3, 50, "e8", bytes(4))  # 5 x 5 positions: at k = 2, one row and column
WIDE = Header(96, 32, 3, 50, "e8", bytes(4))  # 4 x 12 positions: three tiles
TILES = [b"crc1", b"crc2xyz", b"crc3" + bytes(200)]
TABLE = bytes([2, 4, 7, 0xCC, 0x01])


ALL = b"".join(TILES)


def payload_of(table, tiles=ALL):
    return {SECTION_TILES: checked(table) + tiles}


def test_the_section_is_as_specified():
    cut = tiling.choose(WIDE, 32)
    section = tiling.to_section(cut, TILES)
    assert section == Section(3, checked(TABLE) + b"".join(TILES))
    found, tiles, _ = tiling.find_tiles(*unpack(pack(WIDE, [section])))
    assert found == cut
    assert [bytes(tile) for tile in tiles] == TILES


def test_a_picture_of_one_tile_is_a_section_of_latents(loaded, photograph):
    picture = photograph(HEIGHT, WIDTH)
    data = encode(picture, model=loaded, tile=128)
    assert data == encode(picture, model=loaded) and unpack(data)[1].keys() == {SECTION_LATENTS}
    original = prepared(picture, loaded)
    (source,) = original.sources()
    payload = source.write().payload
    assert data == pack(original.header, [Section(SECTION_LATENTS, payload)])
    assert len(tiling.choose(HEADER, 32)) == 1


@pytest.mark.parametrize(
    ("sections", "complaint"),
    {
        "empty": ({3: b""}, "section of tiles is empty"),
        "small": (payload_of(b"\1" + TABLE[1:]), r"2\^1 positions are not known"),
        "large": (payload_of(b"\15" + TABLE[1:]), r"2\^13 positions are not known"),
        "no table": ({3: b"\2"}, "3 tiles do not fit into 1 bytes"),
        "few bytes": ({3: bytes([2]) + bytes(18)}, "3 tiles do not fit into 19 bytes"),
        "table": ({3: TABLE + bytes(4) + ALL}, "table of tiles is damaged"),
        "form": (payload_of(b"\2\x84\0\7\xcc\1"), "table of tiles has a number that is not in"),
        "endless": (payload_of(b"\2" + b"\xff" * 9), "table of tiles has a number of more than 5"),
        "short tile": (payload_of(bytes([2, 3, 8, 0xCC, 1])), "tiles of 3 bytes and more, 215 in"),
        "less": (payload_of(TABLE, ALL[1:]), "215 in all, are not what 214 bytes hold"),
        "more": (payload_of(TABLE, ALL + b"!"), "215 in all, are not what 216 bytes"),
        "huge": (payload_of(b"\2\4\4" + to_varint(2**34)), "are not what"),
    }.values(),
)
def test_faults_of_the_table(sections, complaint):
    with pytest.raises(FormatError, match=complaint) as caught:
        tiling.find_tiles(WIDE, sections)
    assert "\n" not in str(caught.value)


def test_two_pictures_or_none_are_refused():
    both = [Section(SECTION_LATENTS, b"crc1"), Section(SECTION_TILES, b"")]
    for sections in (both, both[::-1]):
        with pytest.raises(FormatError, match="two pictures"):
            pack(WIDE, sections)
    alone = [pack(WIDE, [section]) for section in both]
    start = len(alone[0]) - 10
    with pytest.raises(FormatError, match="two pictures"):
        unpack(alone[0] + alone[1][start:])


def test_the_number_of_tiles_allocates_nothing():
    header = Header(65535, 4096, 3, 50, "e8", bytes(4))
    tracemalloc.start()
    with pytest.raises(FormatError, match="262144 tiles do not fit into 10001 bytes"):
        tiling.find_tiles(header, {SECTION_TILES: b"\2" + bytes(10_000)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # the edges of rows and columns


def test_every_truncation_is_refused(loaded, photograph):
    data = encode(photograph(40, 70), model=loaded, quality=10, tile=SIDE)
    header, sections = unpack(data)
    payload = sections[SECTION_TILES]
    assert len(data) < 300
    for end in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:end])
    for end in range(len(payload)):  # as if somebody had repaired the container
        with pytest.raises(FormatError):
            decode(pack(header, [Section(SECTION_TILES, payload[:end])]))


def test_every_changed_byte_is_refused(files, loaded):
    data = files[0][0]
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(data))[:300]:
        damaged = bytearray(data)
        damaged[place] ^= int(rng.integers(1, 256))
        with pytest.raises(LvqError):
            decode(bytes(damaged))


def test_damage_to_a_tile_is_seen_where_it_shows(files):
    """With the container's CRC repaired, the CRC of the tile's integers is what tells."""
    data, whole = files[0]
    header, cut, tiles = parts(data)
    kept = [bytes(tile) for tile in tiles]
    kept[0] = kept[0][:6] + bytes([kept[0][6] ^ 1]) + kept[0][7:]
    damaged = pack(header, [tiling.to_section(cut, kept)])
    with pytest.raises(StreamError):
        decode(damaged)
    with pytest.raises(StreamError):
        decode(damaged, region=(40, 40, 1, 1))  # in another tile, but within the synthesis' reach
    far = box(cut[len(cut) - 1].pixels(HEIGHT, WIDTH, cut.stride))
    found = decode(damaged, region=far)
    assert np.array_equal(found, decode(data, region=far))
    assert np.abs(found.astype(int) - whole[far[1] :, far[0] :]).max() <= 1


def test_tiles_depend_on_no_other(loaded, photograph):
    picture = photograph(130, 130)
    other = picture.copy()
    other[100:, 100:] = 255 - other[100:, 100:]
    first, second = (parts(encode(p, model=loaded, tile=SIDE))[2] for p in (picture, other))
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same[0] and not same[-1]
    # what is beyond the reach of the analysis stays the same byte for byte
    cut = tiling.choose(Header(130, 130, 3, 50, "e8", bytes(4)), SIDE)
    reach = loaded.model.transform.analysis_reach
    for index, equal in enumerate(same):
        seen = cut[index].grown(reach, cut.size).pixels(130, 130, cut.stride)
        assert equal or min(seen.rows.stop, seen.columns.stop) > 100


# --- searching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_efforts_find_better_files_in_tiles_too(loaded, photograph, level, channels):
    picture = photograph(120, 150, channels=channels)
    plain = prepared(picture, loaded, tile=64)
    first = search.search(plain, 0)
    told = []
    found = encode_image(picture, model=loaded, tile=64, effort=level, report=told.append)
    back = decode(found.data, device="cpu")
    assert found.psnr == pytest.approx(metrics.psnr(picture, back), abs=0.01)
    bpp = metrics.bpp(len(found.data), 150, 120)
    assert bpp + plain.weight / 255**2 * metrics.mse(picture, back) <= first.loss * (1 + 1e-9)
    assert level == 1 or found.data != first.data
    done = [progress.done for progress in told]
    assert done == sorted(done) and (level == 1 or done[-1] == 1.0)


@pytest.mark.parametrize("level", [0, 2])
def test_targets_are_met_in_tiles_too(loaded, photograph, level):
    picture = photograph(110, 120)
    size = len(encode(picture, model=loaded, quality=60, tile=64))
    found = encode_image(picture, model=loaded, target_bytes=size, tile=64, effort=level)
    assert 0.97 * size <= len(found.data) <= size
    assert SECTION_TILES in unpack(found.data)[1]
    if level:
        return
    found = encode_image(picture, model=loaded, target_psnr=34, tile=64)
    assert 34 <= metrics.psnr(picture, decode(found.data, device="cpu")) <= 34.1


# --- memory ---------------------------------------------------------------------------------------

_CHILD = """
import sys
import numpy as np
from pathlib import Path
from lvqcodec import codec
from lvqcodec.evaluation.peak_memory import _peak
model = codec.load_model("tiny", device="cpu")
side, tile, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
y, x = np.mgrid[0:side, 0:side].astype(np.int32)
picture = (128 + 60 * np.sin(x / 9) + x * y % 41).astype(np.uint8)
del x, y
codec.encode(picture[:64, :64], model=model, tile=32)
before = _peak()
if file.exists():
    codec.decode(file.read_bytes(), device="cpu")
else:
    file.write_bytes(codec.encode(picture, model=model, tile=tile, quality=30))
print(_peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_memory_grows_with_the_tile_and_not_with_the_picture(models_folder, tmp_path):
    environment = os.environ | {
        "LVQ_MODEL_PATH": str(models_folder),
        "PYTHONPATH": str(Path(lvqcodec.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }

    def peak(side, tile):
        file = tmp_path / f"{tile}.lvq"
        arguments = [sys.executable, "-c", _CHILD, str(side), str(tile), str(file)]
        runs = [
            subprocess.run(arguments, env=environment, capture_output=True, check=True).stdout
            for _ in ("encode", "decode")
        ]
        return [int(run) for run in runs]

    side = 1400  # 2 megapixels
    whole, cut = peak(side, 32768), peak(side, 256)
    for most, least in zip(whole, cut, strict=True):
        assert most > 40 * 2**20
        assert least < most / 3


@pytest.mark.parametrize("region", [None, (40, 333, 700, 130)])
def test_the_synthesis_of_small_tiles_costs_no_more_than_that_of_larger_ones(
    loaded, photograph, monkeypatch, region
):
    """Window by window of one tile each, the margins of 32 x 32 pixels were 20 times the tiles."""
    data = encode(photograph(600, 800, channels=1), model=loaded, tile=32, quality=10)
    looked_at = []
    show = Reconstruction._show

    def watched(synthesis, window):
        height, width = window.grown(synthesis._reach, synthesis._tiling.size).grid
        looked_at.append(height * width * synthesis._tiling.stride**2)
        show(synthesis, window)

    monkeypatch.setattr(Reconstruction, "_show", watched)
    picture = decode(data, region=region)
    assert sum(looked_at) < 2.5 * picture.size + 64 * 64
    whole = decode(data)
    x, y, width, height = region or (0, 0, 800, 600)
    difference = whole[y : y + height, x : x + width].astype(int) - picture
    assert np.abs(difference).max() <= 1


def test_what_is_reckoned_for_small_tiles_holds_their_windows():
    header = Header(4000, 3000, 3, 30, "e8", bytes(4))
    small, larger = (
        estimate.decoding(header, tiling.choose(header, side), tiling.region(header, None))
        for side in (32, 256)
    )
    assert small > 0.9 * larger


def test_a_picture_that_needs_more_is_refused_before_anything_is_decoded(
    files, loaded, photograph, monkeypatch
):
    for call in (
        lambda: decode(files[0][0], max_memory=10**8),
        lambda: encode(photograph(9, 9), model=loaded, max_memory=10**8),
    ):
        with pytest.raises(LvqError, match=r"needs about \d+ MiB of memory.* 96 MiB.*--max-memory"):
            call()
    claim = Header(16384, 16384, 3, 50, "e8", loaded.digest)
    bomb = pack(claim, [Section(SECTION_LATENTS, bytes(12))])
    with pytest.raises(StreamError, match="too short for their picture"):
        decode(bomb, max_memory=8 * 10**9)
    monkeypatch.setattr(stream, "require", lambda *bits: None)  # as if there were enough bytes
    with pytest.raises(LvqError, match=r"16384x16384 needs about .* GiB"):
        decode(bomb, max_memory=8 * 10**9)


def test_the_limit_is_a_share_of_what_is_available(monkeypatch):
    header = Header(100, 100, 3, 50, "e8", bytes(4))
    monkeypatch.setattr(available, "available", lambda: 2000)
    admission.check(1000, None, header, remedy="")
    with pytest.raises(LvqError, match="more than the 1 MiB it may take: think again"):
        admission.check(1001, None, header, remedy="think again")
    monkeypatch.setattr(available, "available", lambda: None)
    admission.check(10**15, None, header, remedy="")


def test_control_groups_limit_what_is_available(tmp_path):
    def group(name, limit, use, **statistics):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        old = name.startswith("memory")
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{use}\n")
        lines = [f"{key} {value}\n" for key, value in statistics.items()]
        (folder / "memory.stat").write_text("".join(lines))

    def left(text):
        membership = tmp_path / "cgroup"
        membership.write_text(text)
        return list(available._groups(membership, tmp_path))

    group("user/job", 1000, 400, anon=300, inactive_file=100)
    group("user", "max", 700, inactive_file=1)
    assert left("0::/user/job\n") == [700]
    group("user", 900, 700, inactive_file=0)
    assert left("0::/user/job\n") == [700, 200]
    group("memory", 500, 600, total_inactive_file=20, inactive_file=300)
    assert left("5:cpu:/a\n4:memory:/not/seen/from/here\n") == [0]
    assert list(available._groups(tmp_path / "none", tmp_path)) == []


def test_what_is_available_is_no_more_than_the_machine_has():
    there = available.available()
    assert there is None or 0 <= there <= available._machine()


def test_large_pictures_need_little_more_than_small_ones():
    sizes = {}
    for width, height in ((1024, 1024), (4000, 3000), (12000, 9000)):
        header = Header(width, height, 3, 30, "e8", bytes(4))
        cut = tiling.choose(header)
        sizes[width] = estimate.decoding(header, cut, tiling.region(header, None))
        assert estimate.encoding(header, cut) < estimate.encoding(header, cut, 1, weighed=True)
        assert estimate.encoding(header, cut) < 2.5 * 2**30
        assert estimate.decoding(header, cut, tiling.region(header, (0, 0, 512, 512))) < 1.3 * 2**30
    assert sizes[1024] < sizes[4000] < sizes[12000] < 2.5 * 2**30


# --- the command ----------------------------------------------------------------------------------


def lvq(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_decoding_a_region(tiny, files, tmp_path):
    data, whole = files[0]
    file, out = tmp_path / "a.lvq", tmp_path / "a.png"
    file.write_bytes(data)
    result = lvq("decode", file, out, "--region", "30,20,40,50")
    assert result.exit_code == 0, result.stderr
    assert "40x50" in result.stderr
    crop = whole[20:70, 30:70]
    assert np.abs(load.load(out).astype(int) - crop).max() <= 1


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (("--region", "60,0,42,5"), 2, f"{WIDTH}x{HEIGHT}"),
        (("--region", "1,2,3"), 2, "no region like 0,0,640,480"),
        (("--region", "a,b,c,d"), 2, "no region like"),
        (("--max-memory", "much"), 2, "no size like"),
        (("--max-memory", "100M"), 1, "--max-memory"),
    ],
)
def test_refusals_leave_no_picture(tiny, files, tmp_path, options, code, complaint):
    file, out = tmp_path / "a.lvq", tmp_path / "a.png"
    file.write_bytes(files[0][0])
    result = lvq("decode", file, out, *options)
    assert result.exit_code == code
    assert complaint in result.stderr
    assert not out.exists()


def test_encoding_keeps_to_the_limit(tiny, photograph, tmp_path):
    picture = tmp_path / "a.png"
    save.save(photograph(50, 60), picture)
    refused = lvq("encode", picture, "-m", "tiny", "--max-memory", "0.1G")
    assert refused.exit_code == 1 and "60x50 needs about" in refused.stderr
    assert not picture.with_suffix(".lvq").exists()
    assert lvq("encode", picture, "-m", "tiny", "--max-memory", "2G").exit_code == 0


def test_info_tells_tiles_and_memory(tiny, files, tmp_path):
    file = tmp_path / "a.lvq"
    file.write_bytes(files[0][0])
    line = lvq("info", file).stdout
    assert ", 9 tiles, decodes in " in line and line.endswith("MiB\n")
    header, sections = unpack(files[0][0])
    broken = bytearray(sections[SECTION_TILES])
    broken[1] += 1
    file.write_bytes(pack(header, [Section(SECTION_TILES, bytes(broken))]))
    refused = lvq("info", file)
    assert refused.exit_code == 3 and "table of tiles is damaged" in refused.stderr

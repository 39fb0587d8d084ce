# SPDX-License-Identifier: Apache-2.0
"""A file is opened once and handed on; each of its tiles is opened once."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import prepared

from lvqcodec import codec, stream
from lvqcodec.batch.plan import Item
from lvqcodec.batch.records import DONE
from lvqcodec.batch.work import Job, Settings, Worker
from lvqcodec.cli import main
from lvqcodec.errors import FormatError, StreamError, UnsupportedImage
from lvqcodec.format import container, lvqfile
from lvqcodec.format.container import NAMED_SECTIONS, unpack
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.pictures.picture import Picture


@pytest.fixture(scope="module")
def data(models_folder, photograph):
    """A picture in twelve tiles, with transparency and metadata."""
    alpha = (np.indices((90, 120)).sum(0) % 256).astype(np.uint8)
    picture = Picture(photograph(90, 120), alpha, xmp=b"<x/>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        return codec.encode(picture, model="tiny", tile=32)


def test_what_a_file_says(tmp_path, data):
    (tmp_path / "a.lvq").write_bytes(data)
    for source in (data, tmp_path / "a.lvq", BytesIO(data), np.frombuffer(data, np.uint8)):
        file = open_lvq(source)
        header, sections = unpack(data)
        assert (file.header, file.sections, file.size) == (header, sections, len(data))
        assert len(file.tiles) == len(file.tiling) == file.whole == 12
        assert file.received == 1 and file.sections[NAMED_SECTIONS["xmp"]]
        assert file.region((3, 4, 5, 6)).grid == (6, 5) and file.region().grid == (90, 120)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            open_lvq(data[:end])
    with pytest.raises(UnsupportedImage, match="limit of 9 pixels"):
        open_lvq(data, max_pixels=9)


def test_what_is_there_of_a_file_that_is_cut(data):
    file = open_lvq(data[: len(data) * 3 // 4], partial=True)
    assert 0 < file.whole < 11 and 0.3 < file.received < 0.8
    whole = open_lvq(data)
    assert file.tiles[: file.whole] == whole.tiles[: file.whole]
    assert not file.tiles[-1] and whole.tiles[-1]


def test_an_opened_file_is_decoded(tiny, data):
    for options in ({}, {"region": (30, 40, 50, 20)}):
        wanted = codec.decode(data, **options)
        assert np.array_equal(codec.decode(open_lvq(data), **options), wanted)
    part = data[: len(data) // 2]
    opened = open_lvq(part, partial=True)
    assert np.array_equal(codec.decode(opened), codec.decode(part, partial=True))


@pytest.fixture
def parses(monkeypatch):
    """How often a file is parsed, and with how many bytes a tile is opened."""
    found = {"files": 0, "tiles": []}
    unpack, opened = lvqfile.unpack, stream.SymbolDecoder

    def parse(data):
        found["files"] += 1
        return unpack(data)

    def open_words(words):
        found["tiles"].append(len(words))
        return opened(words)

    monkeypatch.setattr(lvqfile, "unpack", parse)
    monkeypatch.setattr(stream, "SymbolDecoder", open_words)
    return found


def test_files_and_tiles_are_opened_once(tiny, data, tmp_path, parses):
    (tmp_path / "lvq").mkdir()
    (tmp_path / "lvq/a.lvq").write_bytes(data)
    source, out = str(tmp_path / "lvq/a.lvq"), str(tmp_path / "a.png")
    lengths = [len(tile) - 4 for tile in open_lvq(data).tiles]
    worker = Worker(Job(str(tmp_path / "lvq"), str(tmp_path / "out"), Settings(decode=True)))
    for work in (
        lambda: codec.decode(data),
        lambda: CliRunner().invoke(main, ["decode", source, out], catch_exceptions=False),
        lambda: worker.code(Item("a.lvq", "a.png")),
    ):
        parses.update(files=0, tiles=[])
        work()
        assert parses == {"files": 1, "tiles": lengths}
    assert worker.code(Item("a.lvq", "a.png")).status != DONE  # it is there already
    parses.update(files=0, tiles=[])
    assert CliRunner().invoke(main, ["info", source]).exit_code == 0
    assert parses == {"files": 1, "tiles": []}


def test_all_tiles_are_found_long_enough_before_one_is_opened(tiny, data, parses, monkeypatch):
    looked_at = []

    def require(bits, left):
        looked_at.append(left)
        if len(looked_at) == 12:
            raise StreamError("the last is too short")

    monkeypatch.setattr(stream, "require", require)
    with pytest.raises(StreamError, match="the last"):
        codec.decode(data)
    assert parses["tiles"] == []


def test_what_is_beside_the_picture_is_packed_once(tiny, photograph, monkeypatch):
    """No file is unpacked to put something into it."""
    pack, packed = container.pack, []
    monkeypatch.setattr(
        "lvqcodec.encoder.original.pack", lambda *parts: packed.append(1) or pack(*parts)
    )
    monkeypatch.setattr(container, "unpack_partial", None)
    alpha = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    data = codec.encode(Picture(photograph(32, 32), alpha, xmp=b"<x/>"), model=tiny)
    assert packed == [1]
    monkeypatch.undo()
    assert set(unpack(data)[1]) == {NAMED_SECTIONS["alpha"], NAMED_SECTIONS["xmp"], 1}


# what the encoder starts from


def test_a_picture_is_prepared_once_for_all_qualities(models_folder, photograph, monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(models_folder))
    loaded, picture = codec.load_model("tiny", device="cpu"), photograph(64, 80)
    prepare, seen = codec.prepare, []
    monkeypatch.setattr(codec, "prepare", lambda *given: seen.append(1) or prepare(*given))
    codec.encode(picture, model=loaded, target_bytes=1200)
    assert seen == [1]
    original = prepared(picture, loaded, quality=20)
    again = original.at(70)
    assert again.tiling is original.tiling and again.sections is original.sections
    plain = codec.encode(picture, model=loaded, quality=70)
    assert again.assemble([source.write().payload for source in again.sources()]) == plain

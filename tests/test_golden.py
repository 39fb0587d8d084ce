# SPDX-License-Identifier: Apache-2.0
"""Files of the past decode as they did, and damaged ones fail as they should.

A failure here is a defect of the decoder, never a reason to change a file: `tests/golden.py`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
from click.testing import CliRunner
from golden import CORPUS, GOLDEN, load_index
from PIL import Image

from lvqcodec import catalog
from lvqcodec.cli import main
from lvqcodec.codec import decode, encode
from lvqcodec.format.container import (
    NAMED_SECTIONS,
    SECTION_LATENTS,
    SECTION_TILES,
    read_header,
    unpack,
)

FILES, DAMAGED = load_index(GOLDEN), load_index(CORPUS)
WEIGHTS = "b45a7bb7c53a1805b619abb9c14d85e171e39ef66f7ed0acb38659e9d340d3e8"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(GOLDEN))


def test_every_file_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.lvq")} == set(FILES)
    assert {path.stem for path in GOLDEN.glob("*.png")} == set(FILES)
    assert {path.stem for path in CORPUS.glob("*.lvq")} == set(DAMAGED)


def test_the_model_is_the_one_of_the_files():
    card = catalog.find_model(golden.MODEL)
    assert card.digest == WEIGHTS
    catalog.read_files(card)


@pytest.mark.parametrize("name", FILES)
def test_golden_files_decode_for_ever(name):
    data = (GOLDEN / f"{name}.lvq").read_bytes()
    assert hashlib.sha256(data).hexdigest() == FILES[name]["sha256"], "the file was changed"
    assert golden.integers_digest(data) == FILES[name]["integers"]
    listed = {key: FILES[name][key] for key in FILES[name].keys() & {"icc", "exif", "xmp"}}
    assert golden.metadata_digests(data) == listed
    picture = decode(data, device="cpu")
    with Image.open(GOLDEN / f"{name}.png") as image:
        expected = np.array(image)
    assert picture.shape == expected.shape
    if name.startswith("alpha"):
        assert np.array_equal(picture[..., -1], expected[..., -1])
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_golden_files_cover_the_format():
    headers = [read_header((GOLDEN / f"{name}.lvq").read_bytes()) for name in FILES]
    seen = {(header.lattice, header.channels) for header in headers}
    assert seen == {(lattice, channels) for lattice in ("z", "e8") for channels in (1, 3)}
    assert {0, 100} <= {header.quality for header in headers}
    kinds = set().union(*(unpack((GOLDEN / f"{name}.lvq").read_bytes())[1] for name in FILES))
    assert kinds > {SECTION_LATENTS, SECTION_TILES, *NAMED_SECTIONS.values()}


def test_the_encoder_still_writes_them():
    """Not promised for ever: what it found best once it may surpass. The integers then change."""
    name = "colour-e8-q50"
    make, quality, lattice = golden.CASES[name]
    data = encode(make(), model=golden.MODEL, quality=quality, lattice=lattice, device="cpu")
    assert len(data) <= 1.02 * (GOLDEN / f"{name}.lvq").stat().st_size


def test_adding_leaves_what_is_there(tmp_path):
    script = Path(golden.__file__)
    before = {path: path.read_bytes() for path in script.parent.joinpath("data").rglob("*.*")}
    subprocess.run([sys.executable, script], check=True)
    after = {path: path.read_bytes() for path in script.parent.joinpath("data").rglob("*.*")}
    assert before == after


# damage


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_end_in_their_exit_code(name, tmp_path):
    out = tmp_path / "out.png"
    arguments = ["decode", str(CORPUS / f"{name}.lvq"), str(out), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == DAMAGED[name]["exit_code"], result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("lvq: error: ") and DAMAGED[name]["message"] in line
    assert result.stdout == "" and not out.exists()


def test_what_the_container_shows_is_seen_without_decoding():
    """`lvq info` refuses what is damaged on the outside, and knows nothing of the inside."""
    inside = {"model", "size-not-of-the-file", "size-beyond-the-bytes"}
    for name, expected in DAMAGED.items():
        result = CliRunner().invoke(main, ["info", "--json", str(CORPUS / f"{name}.lvq")])
        beside = ("latents-", "tiles-flipped", "alpha-", "icc-", "exif-", "xmp-")
        if name in inside or name.endswith("of-another") or name.startswith(beside):
            assert result.exit_code == 0
            assert json.loads(result.stdout)["width"] > 0
        else:
            assert (name, result.exit_code) == (name, expected["exit_code"])

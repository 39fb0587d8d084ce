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
from lvqcodec.errors import LvqError
from lvqcodec.format.container import (
    LATTICES,
    NAMED_SECTIONS,
    SECTION_LATENTS,
    SECTION_TILES,
    read_header,
    unpack,
)

FILES, DAMAGED = load_index(GOLDEN), load_index(CORPUS)
WEIGHTS = {
    golden.MODEL: "b45a7bb7c53a1805b619abb9c14d85e171e39ef66f7ed0acb38659e9d340d3e8",
    golden.LATTICE_MODEL: "b804169da484f5cd7a2fe462ddc7ba1c51233505b3e3f3d94eb2797a341b0410",
}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(GOLDEN))


def test_every_file_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.lvq")} == set(FILES)
    assert {path.stem for path in GOLDEN.glob("*.png")} == set(FILES)
    assert {path.stem for path in CORPUS.glob("*.lvq")} == set(DAMAGED)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_models_are_those_of_the_files(name):
    card = catalog.find_model(name)
    assert card.digest == WEIGHTS[name]
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
    assert seen == {("z", 1), ("e8", 1), *((lattice, 3) for lattice in LATTICES)}
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


@pytest.mark.parametrize("lattice", LATTICES)
def test_no_mutation_gives_another_picture(lattice):
    quality = 90 if lattice in golden.PACKINGS else 50
    data = (GOLDEN / f"colour-{lattice}-q{quality}.lvq").read_bytes()
    whole, rng, ends = decode(data), np.random.default_rng(0), []
    for _ in range(20):
        mutated = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            mutated[place] ^= int(rng.integers(1, 256))
        try:
            assert np.array_equal(decode(bytes(mutated)), whole)
        except LvqError as error:
            ends.append(error.exit_code)
    assert len(ends) > 15 and set(ends) <= {3, 4}


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

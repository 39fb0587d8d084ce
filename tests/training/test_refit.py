# SPDX-License-Identifier: Apache-2.0
"""`lvq refit`: rows fitted anew, networks as they are."""

import hashlib
import os
import tomllib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lvqcodec import codec
from lvqcodec.catalog import find_model, read_files
from lvqcodec.cli import main
from lvqcodec.errors import UsageError
from lvqcodec.format.container import read_header
from lvqcodec.model.loaded import load_model
from lvqcodec.model.weights import pack_parts, unpack_weights
from lvqcodec.training import fit_tables, refit


@pytest.fixture
def pictures(tmp_path, photograph):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(photograph(128, 160, seed=seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def out(tmp_path, tiny, models_folder, monkeypatch):
    """Where new models go: seen beside those that are there."""
    folder = tmp_path / "new"
    folder.mkdir()
    monkeypatch.setenv("LVQ_MODEL_PATH", f"{folder}:{models_folder}")
    for name, value in {"FIT_CROPS": 8, "FIT_CROP": 64}.items():
        monkeypatch.setattr(refit, name, value)
    monkeypatch.setattr(fit_tables, "_ROUNDS", 3)
    return folder


def test_rows_are_fitted_and_all_else_is_as_it_was(out, pictures, photograph):
    path = refit.refit("tiny", name="mine", data=[pictures], out=out, device="cpu")
    assert path == out / "mine.safetensors"
    old, new = (load_model(name, device="cpu") for name in ("tiny", "mine"))
    assert old.digest != new.digest
    for name, value in old.model.state_dict().items():
        assert np.array_equal(value, new.model.state_dict()[name]), name
    picture = photograph(128, 160, seed=1)  # one that they were fitted to
    before, after = (codec.encode(picture, model=name, quality=60) for name in ("tiny", "mine"))
    assert len(after) < len(before)
    assert codec.decode(after).shape == picture.shape
    assert np.array_equal(
        codec.decode(before), codec.decode(codec.encode(picture, quality=60, model="tiny"))
    )


def test_a_lattice_gets_the_rows_that_it_lacked(out, pictures, photograph):
    picture = photograph(96, 128)
    with pytest.raises(UsageError, match=r"no rows for lattice 'd4'.*lvq refit"):
        codec.encode(picture, model="tiny", lattice="d4")
    arguments = ["refit", "tiny", "--name", "more", "--data", str(pictures), "--lattice", "d4"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    old, new = (load_model(name, device="cpu").tables for name in ("tiny", "more"))
    assert set(new.names) == {"z", "e8", "d4"}
    kept = old.to_arrays()
    assert all(np.array_equal(array, new.to_arrays()[name]) for name, array in kept.items())
    data = codec.encode(picture, model="more", lattice="d4", quality=70)
    assert read_header(data).lattice == "d4"
    assert codec.decode(data).shape == picture.shape
    again = refit.refit("more", name="again", data=[pictures], out=out, device="cpu")
    assert set(load_model("again", device="cpu").tables.names) == {"z", "e8", "d4"}, again


def test_the_card_says_where_it_comes_from(out, pictures, models_folder):
    source = find_model("tiny")
    card = models_folder / "tiny.toml"
    text = card.read_text()
    try:
        card.write_text(text + 'limits = "none" # kept\n# measured\n\n[[measured]]\nbpp = [1.0]\n')
        refit.refit("tiny", name="x", data=[pictures], lattices=["z"], out=out, device="cpu")
    finally:
        card.write_text(text)
    written = (out / "x.toml").read_text("utf-8")
    assert "# kept" in written
    raw = tomllib.loads(written)
    assert raw["name"] == "x" and raw["weights"] == ["x.safetensors"]
    assert raw["profile"] == "test" and "measured" not in raw
    (entry,) = raw["training"]
    assert entry["refit"] == ["z"] and entry["of"] == source.digest


def test_a_shared_transform_stays_shared(out, pictures, tmp_path, monkeypatch):
    card, folder = find_model("tiny"), tmp_path / "shared"
    folder.mkdir()
    parts = pack_parts(unpack_weights(*read_files(card)))
    for name, part in zip(("common", "two"), parts, strict=True):
        (folder / f"{name}.safetensors").write_bytes(part)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    text = card.paths[0].with_suffix(".toml").read_text()
    text = text.replace('"tiny"', '"two"').replace(card.digest, digest)
    names = 'weights = ["common.safetensors", "two.safetensors"]\n'
    lines = [line for line in text.splitlines() if not line.startswith("weights")]
    (folder / "two.toml").write_text(names + "\n".join(lines))
    monkeypatch.setenv("LVQ_MODEL_PATH", os.pathsep.join((str(folder), str(out))))
    options = {"name": "three", "data": [pictures], "lattices": ["z"], "device": "cpu"}
    refit.refit("two", out=out, **options)
    assert (out / "common.safetensors").read_bytes() == parts[0]
    assert tomllib.loads((out / "three.toml").read_text())["weights"] == [
        "common.safetensors",
        "three.safetensors",
    ]
    assert load_model("three", device="cpu").tables.names == ("z", "e8")
    (out / "common.safetensors").write_bytes(parts[0] + b" ")
    with pytest.raises(UsageError, match=r"is not the transform of 'two'; choose another --out"):
        refit.refit("two", out=out, **{**options, "name": "four"})
    (out / "common.safetensors").unlink()


def test_what_cannot_be_is_refused_before_pictures_are_read(out, tmp_path):
    def refused(complaint, **changes):
        options = {"name": "new", "data": ["no such folder"], "out": out, "device": "cpu"}
        with pytest.raises(UsageError, match=complaint):
            refit.refit("tiny", **{**options, **changes})
        assert not list(out.glob("new.*"))

    refused("unknown lattice 'k12'; choose from z, e8", lattices=["k12"])
    refused("is no name of a file", name="../x")
    (out / "there.toml").write_text("")
    refused(r"there.toml' exists; choose another --name", name="there")
    refused("neither a folder nor a tar")

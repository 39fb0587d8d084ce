# SPDX-License-Identifier: Apache-2.0
import hashlib
import os

import pytest

from lvqcodec import catalog
from lvqcodec.errors import ModelMismatch, ModelNotFound

CARD = 'name = "{name}"\ndigest = "{digest}"\nprofile = "baseline"\ndescription = "a test"\n'


def install(directory, name, weights=b"weights"):
    directory.mkdir(exist_ok=True)
    digest = hashlib.sha256(weights).hexdigest()
    (directory / f"{name}.safetensors").write_bytes(weights)
    (directory / f"{name}.toml").write_text(CARD.format(name=name, digest=digest) + "[rd]\nx = 1\n")
    return digest


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A directory that is searched, and nothing else."""
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "src" / "package")
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path / "own"))
    return tmp_path / "own"


def test_card(models):
    digest = install(models, "small")
    card = catalog.find_model("small")
    assert (card.name, card.digest, card.profile) == ("small", digest, "baseline")
    assert card.description == "a test"
    assert card.path == models / "small.safetensors"
    assert card.raw["rd"] == {"x": 1}
    assert catalog.find_by_digest(bytes.fromhex(digest)[:4]) == card
    catalog.verify_digest(card)


def test_models_are_listed_by_name(models):
    for name in ("b", "a", "c"):
        install(models, name, name.encode())
    assert [card.name for card in catalog.list_models()] == ["a", "b", "c"]


def test_first_directory_wins(models, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    digest = install(first, "same", b"one")
    install(second, "same", b"two")
    install(second, "other", b"three")
    monkeypatch.setenv("LVQ_MODEL_PATH", os.pathsep.join([str(first), "", str(second)]))
    assert [card.name for card in catalog.list_models()] == ["other", "same"]
    assert catalog.find_model("same").digest == digest


@pytest.mark.parametrize("place", ["src/package/models", "models"])
def test_wheel_and_source_checkout(models, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    install(tmp_path / place, "shipped")
    assert catalog.find_model("shipped").path.parent == tmp_path / place


def test_only_pairs_of_card_and_weights_count(models):
    install(models, "a")
    (models / "pyproject.toml").write_text("[project]\n")
    (models / "checkpoint.safetensors").write_bytes(b"")
    assert [card.name for card in catalog.list_models()] == ["a"]


def test_missing_model_names_what_there_is(models):
    with pytest.raises(
        ModelNotFound, match=r"no model 'big'; installed: none \(in .*own, .*models"
    ):
        catalog.find_model("big")
    install(models, "a")
    install(models, "b")
    with pytest.raises(ModelNotFound, match=r"no model 'big'; installed: a, b "):
        catalog.find_model("big")


def test_missing_digest_says_which_and_how(models):
    install(models, "a")
    with pytest.raises(ModelNotFound, match=r"digest deadbeef\.\.\. .*LVQ_MODEL_PATH.*: a "):
        catalog.find_by_digest(bytes.fromhex("deadbeef"))


def test_changed_weights(models):
    install(models, "a")
    card = catalog.find_model("a")
    card.path.write_bytes(b"other")
    with pytest.raises(ModelMismatch, match=r"has digest d9298a10.*install the model again"):
        catalog.verify_digest(card)
    card.path.unlink()
    with pytest.raises(ModelNotFound, match=r"cannot read .*a.safetensors: No such file"):
        catalog.verify_digest(card)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("profile", "prof", "lacks 'profile'"),
        ('"a"', '"b"', "name is 'b', the file says 'a'"),
        ('digest = "', 'digest = "00', "is no SHA-256"),
        ('digest = "', 'digest = "x', "is no SHA-256"),
        ("digest =", "digest = 7 #", "is broken"),
        ("name =", "name", "is broken"),
    ],
)
def test_broken_card(models, old, new, message):
    install(models, "a")
    path = models / "a.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelMismatch, match=message):
        catalog.list_models()


def test_shipped_models(monkeypatch):
    monkeypatch.delenv("LVQ_MODEL_PATH", raising=False)
    cards = catalog.list_models()
    assert len({card.digest[:8] for card in cards}) == len(cards), "a file could mean two models"
    for card in cards:
        catalog.verify_digest(card)

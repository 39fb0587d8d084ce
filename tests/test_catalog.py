# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import os

import pytest
from click.testing import CliRunner

from lvqcodec import catalog
from lvqcodec.cli import main
from lvqcodec.errors import ModelMismatch, ModelNotFound

CARD = 'name = "{name}"\ndigest = "{digest}"\nprofile = "baseline"\ndescription = "a test"\n'


def install(directory, name, weights=b"weights"):
    """A model whose weights are one file; returns its digest."""
    directory.mkdir(exist_ok=True)
    digest = hashlib.sha256(weights).hexdigest()
    (directory / f"{name}.safetensors").write_bytes(weights)
    (directory / f"{name}.toml").write_text(CARD.format(name=name, digest=digest) + "[rd]\nx = 1\n")
    return digest


def install_parts(directory, name, **files):
    """A model whose weights are several files, in this order; returns its digest."""
    directory.mkdir(exist_ok=True)
    for stem, data in files.items():
        (directory / f"{stem}.safetensors").write_bytes(data)
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()
    weights = [f"{stem}.safetensors" for stem in files]
    text = CARD.format(name=name, digest=digest) + f"weights = {weights}\n"
    (directory / f"{name}.toml").write_text(text)
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
    assert card.paths == (models / "small.safetensors",)
    assert card.raw["rd"] == {"x": 1}
    assert catalog.find_by_digest(bytes.fromhex(digest)[:4]) == card
    catalog.read_files(card)


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
    assert catalog.find_model("shipped").paths[0].parent == tmp_path / place


def test_only_cards_with_weights_count(models):
    install(models, "a")
    (models / "note.toml").write_text("no TOML at all")
    (models / "recipe.toml").write_text('weights = "any"\n')
    (models / "folder.toml").mkdir()
    (models / "alone.toml").write_text(CARD.format(name="alone", digest="0" * 64))
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
    card.paths[0].write_bytes(b"other")
    with pytest.raises(ModelMismatch, match=r"has digest d9298a10.*install the model again"):
        catalog.read_files(card)
    card.paths[0].unlink()
    with pytest.raises(ModelNotFound, match=r"cannot read .*a.safetensors: No such file"):
        catalog.read_files(card)


def test_models_share_files(models):
    parts = {"photo": b"shared", "one": b"1"}
    one = install_parts(models, "one", **parts)
    two = install_parts(models, "two", photo=b"shared", own=b"2")
    assert one == hashlib.sha256(b"shared1").hexdigest()
    cards = catalog.list_models()
    assert [card.name for card in cards] == ["one", "two"]
    assert cards[0].paths == (models / "photo.safetensors", models / "one.safetensors")
    assert cards[1].paths == (models / "photo.safetensors", models / "own.safetensors")
    for card, digest in zip(cards, (one, two), strict=True):
        assert catalog.find_by_digest(bytes.fromhex(digest)[:4]) == card
        catalog.read_files(card)


@pytest.mark.parametrize("damaged", ["photo", "own"])
def test_every_file_of_a_model_counts(models, damaged):
    install_parts(models, "split", photo=b"shared", own=b"rest")
    card, path = catalog.find_model("split"), models / f"{damaged}.safetensors"
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + b"X")
    with pytest.raises(
        ModelMismatch, match=r"photo.safetensors \+ .*own.safetensors has digest .*install"
    ):
        catalog.read_files(card)
    path.write_bytes(intact)
    catalog.read_files(card)
    path.unlink()
    assert catalog.find_model("split") == card  # asked for, it says what it lacks
    with pytest.raises(ModelNotFound, match=rf"{damaged}.safetensors: No such.*'split' needs it"):
        catalog.read_files(card)


def test_the_order_of_files_counts(models):
    install_parts(models, "split", photo=b"shared", own=b"rest")
    path = models / "split.toml"
    right = '["photo.safetensors", "own.safetensors"]'
    wrong = '["own.safetensors", "photo.safetensors"]'
    text = path.read_text().replace("'", '"')
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(ModelMismatch, match="has digest"):
        catalog.read_files(catalog.find_model("split"))


@pytest.mark.parametrize(
    "weights",
    [
        "'a.safetensors'",
        "[]",
        "{ a = 1 }",
        "[3]",
        "['']",
        "['a.toml']",
        "['.safetensors']",
        "['..']",
        "['../a.safetensors']",
        "['/a.safetensors']",
        "['sub/a.safetensors']",
        r"['sub\a.safetensors']",
        "['c:a.safetensors']",
        r'["a\u0000.safetensors"]',
    ],
)
def test_files_of_other_folders_are_refused(models, weights):
    install(models, "a")
    path = models / "a.toml"
    path.write_text(f"weights = {weights}\n" + path.read_text())
    with pytest.raises(ModelMismatch, match=r"a.toml is broken: weights .* is no (list|name) of"):
        catalog.find_model("a")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("profile", "prof", "lacks 'profile'"),
        ('"a"', '"b"', "name is 'b', the file says 'a'"),
        ('digest = "', 'digest = "00', "is no SHA-256"),
        ('digest = "', 'digest = "x', "is no SHA-256"),
        ("digest =", "digest = 7 #", "is broken"),
        ("name =", "name", "is broken"),
        ('"baseline"', "3", "profile = 3 is no text"),
        ("digest =", "lattice = 8\ndigest =", "lattice = 8 is no name"),
        ('"a test"', "['a test']", r"description = \['a test'\] is no text"),
        ('"a test"', r'"\u001b[2Ja"', r"description = '\\x1b\[2Ja' is not to be printed"),
        ('"a test"', r'"\u202ea"', r"description = '\\u202ea' is not to be printed"),
    ],
)
def test_broken_card(models, old, new, message):
    install(models, "a")
    path = models / "a.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelMismatch, match=message):
        catalog.find_model("a")


def test_a_broken_card_names_itself_and_disables_nothing_else(models):
    digest = install(models, "sound")
    install(models, "bad", b"other")
    path = models / "bad.toml"
    path.write_text(path.read_text().replace("digest =", "digest = 7 #"))
    assert [card.name for card in catalog.list_models()] == ["sound"]
    assert catalog.find_model("sound").digest == digest
    assert catalog.find_by_digest(bytes.fromhex(digest)[:4]).name == "sound"
    with pytest.raises(ModelMismatch, match=r"bad.toml is broken: digest = 7 is no text"):
        catalog.find_model("bad")
    with pytest.raises(ModelNotFound, match=r"installed: sound \(.*\); model card .*bad.toml is"):
        catalog.find_by_digest(bytes(4))
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0
    sound, bad = result.stdout.splitlines()
    assert sound.split()[0] == "sound" and bad.split()[:2] == ["bad", "broken"]
    facts = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert facts[1].keys() == {"name", "error"} and "bad.toml" in facts[1]["error"]


def test_a_broken_card_hides_what_comes_later(models, tmp_path, monkeypatch):
    """Another model than the one that was put first would be a surprise."""
    install(tmp_path / "first", "same")
    (tmp_path / "first" / "same.toml").write_text("no TOML at all")
    install(tmp_path / "second", "same")
    places = [str(tmp_path / name) for name in ("first", "second")]
    monkeypatch.setenv("LVQ_MODEL_PATH", os.pathsep.join(places))
    with pytest.raises(ModelMismatch, match="first"):
        catalog.find_model("same")


def test_control_characters_never_reach_the_terminal(models):
    install(models, "a")
    hostile = models / "a\x1b[2J\x9b.toml"
    (models / "a.toml").rename(hostile)
    (models / "a.safetensors").rename(hostile.with_suffix(".safetensors"))
    for arguments in (["models"], ["models", "--json"], ["encode", "x.png", "-m", "a\x1b[2J"]):
        result = CliRunner().invoke(main, arguments)
        assert result.output.replace("\n", "").isprintable(), arguments
    with pytest.raises(ModelNotFound) as caught:
        catalog.find_model("b")
    assert str(caught.value).isprintable() and r"\x1b[2J\x9b" in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a device without end")
@pytest.mark.parametrize("kind", ["card", "weights"])
def test_a_device_is_not_read(models, kind):
    install(models, "a")
    path = models / ("a.toml" if kind == "card" else "a.safetensors")
    card = None if kind == "card" else catalog.find_model("a")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises((ModelMismatch, ModelNotFound), match="no regular file"):
        catalog.find_model("a") if card is None else catalog.read_files(card)


def test_files_are_read_up_to_a_sane_size(models):
    install(models, "a")
    with open(models / "a.safetensors", "ab") as file:
        file.truncate(catalog.MAX_WEIGHTS + 1)  # a hole, which takes no room
    with pytest.raises(ModelNotFound, match=f"{catalog.MAX_WEIGHTS + 1} bytes are more than"):
        catalog.read_files(catalog.find_model("a"))
    with open(models / "a.toml", "ab") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(ModelMismatch, match="bytes are more than"):
        catalog.find_model("a")


def test_the_command_lists_files_and_what_is_missing(models):
    install(models, "plain")
    install_parts(models, "split", photo=b"shared", own=b"rest")
    (models / "photo.safetensors").unlink()
    result = CliRunner().invoke(main, ["models"])
    plain, split = result.stdout.splitlines()
    assert plain.endswith("a test") and split.endswith("a test  (lacks photo.safetensors)")
    facts = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    assert facts[0]["paths"] == [str(models / "plain.safetensors")]
    assert facts[1]["paths"] == [str(models / f"{stem}.safetensors") for stem in ("photo", "own")]


def test_shipped_models(monkeypatch):
    monkeypatch.delenv("LVQ_MODEL_PATH", raising=False)
    cards = catalog.list_models()
    assert len({card.digest[:8] for card in cards}) == len(cards), "a file could mean two models"
    for card in cards:
        catalog.read_files(card)

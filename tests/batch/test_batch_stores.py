# SPDX-License-Identifier: Apache-2.0
"""Batches on object stores: the same files, reports and reruns as on folders."""

from __future__ import annotations

import json
import sys
import uuid

import pytest
from batches import batch, tree

from lvqcodec.batch import remote_store, work
from lvqcodec.batch.local_store import LocalStore
from lvqcodec.batch.remote_store import RemoteStore
from lvqcodec.batch.stores import open_store, relative
from lvqcodec.errors import UsageError
from lvqcodec.files import FileInTheWay

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url():
    """A folder in memory that no other test has."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def photos(tmp_path, photograph):
    from PIL import Image

    for number, name in enumerate(("a.png", "deep/b.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(24, 40, seed=number)).save(path)
    return tmp_path / "photos"


def test_a_store_in_memory_gets_and_gives_the_same_files(photos, tmp_path, tiny, url):
    assert batch(photos, tmp_path / "small", "-m", tiny).exit_code == 0
    assert batch(photos, f"{url}/small", "-m", tiny).exit_code == 0
    store = open_store(f"{url}/small")
    made = {entry.name: store.read(entry.name).data for entry in store.entries()}
    assert made == tree(tmp_path / "small")

    assert json.loads(batch(photos, f"{url}/small", "-m", tiny, "--json").stdout)["skipped"] == 2
    store.write("a.lvq", b"")
    summary = json.loads(batch(photos, f"{url}/small", "-m", tiny, "--json").stdout)
    assert (summary["kept"], summary["skipped"]) == (1, 1)
    assert store.read("a.lvq").data == b""
    again = batch(photos, f"{url}/small", "-m", tiny, "--json", "--overwrite")
    assert (json.loads(again.stdout)["done"], json.loads(again.stdout)["skipped"]) == (1, 1)

    assert batch(f"{url}/small", tmp_path / "back", "--decode").exit_code == 0
    assert sorted(tree(tmp_path / "back")) == ["a.png", "deep/b.png"]


def test_objects_that_batch_did_not_write_are_left(photos, tiny, url):
    store = open_store(f"{url}/small")
    store.write("a.lvq", b"mine")
    result = batch(photos, f"{url}/small", "-m", tiny, "--dry-run")
    assert result.stdout.startswith("kept    a.png -> a.lvq: a.lvq is in its place")
    assert [entry.name for entry in store.entries()] == ["a.lvq"]
    summary = json.loads(batch(photos, f"{url}/small", "-m", tiny, "--json").stdout)
    assert (summary["kept"], summary["done"]) == (1, 1)
    with pytest.raises(FileInTheWay):
        store.write("a.lvq", b"new", replace=False)
    assert store.read("a.lvq").data == b"mine"
    assert batch(photos, f"{url}/small", "-m", tiny, "--overwrite").exit_code == 0
    assert store.read("a.lvq").data != b"mine"


def test_a_place_where_nothing_can_be_put_is_told_before(photos, tiny, url, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Access denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    monkeypatch.setattr(work, "read_picture", refuse)
    result = batch(photos, f"{url}/small", "-m", tiny)
    assert result.exit_code == 2
    assert result.stderr == f"lvq: error: cannot write to {url}/small: Access denied\n"


def test_file_urls_are_folders(photos, tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    result = batch(photos.as_uri(), (tmp_path / "small").as_uri(), "-m", tiny)
    assert result.exit_code == 0, result.stderr
    assert sorted(tree(tmp_path / "small")) == ["a.lvq", "deep/b.lvq"]


def test_without_fsspec_the_remedy_is_told(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    result = batch(photos, "s3://bucket/small")
    assert result.exit_code == 2
    assert "pip install 'lvqcodec[remote]'" in result.stderr


def test_unknown_protocols_are_refused(photos):
    result = batch(photos, "nonsense://bucket/small")
    assert result.exit_code == 2
    assert "cannot open nonsense://bucket/small" in result.stderr


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//b", ""])
def test_names_that_lead_out_are_refused(url, name):
    with pytest.raises(UsageError, match="leads out"):
        RemoteStore(url).write(name, b"")


def test_lines_are_held_back_for_seconds_and_kept_in_order(url, monkeypatch):
    store = RemoteStore(url)
    store.append("log", b"1\n")
    store.append("log", b"2\n")
    assert RemoteStore(url).log("log") == b""
    store.flush()
    monkeypatch.setattr(remote_store, "_FLUSH_SECONDS", 0)
    store.append("log", b"3\n")
    assert RemoteStore(url).log("log") == b"1\n2\n3\n"
    assert list(store.entries()) == []


def test_which_store_lies_in_which(tmp_path, url):
    for outer, inner in (
        (LocalStore(str(tmp_path)), LocalStore(str(tmp_path / "a/b"))),
        (RemoteStore(url), RemoteStore(f"{url}/a/b/")),
    ):
        assert relative(inner, outer) == "a/b"
        assert relative(outer, outer) == ""
        assert relative(outer, inner) is None
    assert relative(RemoteStore(url + "x"), RemoteStore(url)) is None
    assert relative(LocalStore(str(tmp_path)), RemoteStore(url)) is None

# SPDX-License-Identifier: Apache-2.0
"""Every example of `lvq batch` in the pages, run as it stands there on pictures of its own."""

from __future__ import annotations

import re
import shlex
import uuid
from pathlib import Path

import numpy as np
import pytest
from batches import batch, tree
from PIL import Image
from test_docs import LVQ_LINES, long_options, section

from lvqcodec.cli import main

TEXT = section("batch")
TABLE = re.findall(r"^\| (.*) \| .* \| `lvq batch ([^|]*)` \|$", TEXT, re.MULTILINE)
FENCED = [shlex.join(words[1:]) for words in LVQ_LINES if words[0] == "batch"]
EXAMPLES = [example for _, example in TABLE] + FENCED


def test_the_table_has_every_option_in_its_example() -> None:
    told = set()
    for options, example in TABLE:
        named = re.findall(r"`(--?[a-z0-9-]+)`", options)
        assert any(option in shlex.split(example) for option in named), example
        told |= {option for option in named if option.startswith("--")}
    assert told == set(long_options(main.commands["batch"]))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(example, tmp_path, tiny, photograph, monkeypatch):
    if "--engine ray" in example:
        pytest.skip("see test_batch_ray.py")
    for number, name in enumerate(("2024/a.png", "2024/06/b.png", "drafts/c.png", "._d.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(168, 176, seed=number)).save(path)
    monkeypatch.chdir(tmp_path)
    if "s3://" in example:
        fsspec = pytest.importorskip("fsspec")
        bucket = f"memory://{uuid.uuid4().hex}"
        files = fsspec.filesystem("memory")
        files.put("photos", f"/{bucket[9:]}/photos", recursive=True)
        result = batch(*shlex.split(example.replace("s3://bucket", bucket)), "-m", tiny)
        assert result.exit_code == 0, result.stderr
        made = files.find(f"/{bucket[9:]}/small")
        assert [path for path in made if path.endswith("/small/2024/a.lvq")]
        assert not [path for path in made if "drafts" in path]
        return
    if "--decode" in example:
        batch("photos", "small", "-m", tiny)
    result = batch(*shlex.split(example), *([] if "--decode" in example else ["-m", tiny]))
    assert result.exit_code == 0, result.stderr
    assert bool(tree(Path(shlex.split(example)[1]))) == ("--dry-run" not in example)
    assert np.asarray(Image.open("photos/2024/a.png")).shape == (168, 176, 3)

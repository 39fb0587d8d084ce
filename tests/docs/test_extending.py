# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/extending.md, run in their order, in a process and a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import EXTENDING, fenced

BLOCKS = fenced("python", EXTENDING)
START = "import warnings\nwarnings.simplefilter('error')\n"


def run(blocks: list[str], folder: Path) -> None:
    (folder / "page.py").write_text(START + "\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_page_has_an_example_for_every_axis_and_a_command() -> None:
    text = "\n".join(BLOCKS)
    for line in ('TRANSFORMS["dct"]', 'ENTROPY_MODELS["per-channel"]', 'LATTICES["bcc"]'):
        assert f"\n{line} = " in text
    assert "\nmain.add_command(densest)\n" in text


def test_every_example_of_the_page_runs(tmp_path: Path) -> None:
    run(BLOCKS, tmp_path)
    assert {path.name for path in tmp_path.glob("*.lvq")} == {"fine.lvq", "coarse.lvq"}


def test_a_wrong_example_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_name"):
        run(["no_such_name"], tmp_path)

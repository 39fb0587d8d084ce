# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/extending.md, run in their order, in a process and a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_docs import EXTENDING, fenced

BLOCKS = fenced("python", EXTENDING)
LATTICE = [block for block in BLOCKS if "D3" in block]
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
    for line in ('TRANSFORMS["dct"]', 'ENTROPY_MODELS["per-channel"]', 'LATTICES["d3"]'):
        assert f"\n{line} = " in text
    assert "\nmain.add_command(densest)\n" in text
    assert len(LATTICE) == 2


def test_transform_entropy_model_and_command_of_the_page_code_a_picture(tmp_path: Path) -> None:
    run([block for block in BLOCKS if block not in LATTICE], tmp_path)
    assert {path.name for path in tmp_path.glob("*.lvq")} == {"fine.lvq", "coarse.lvq"}


@pytest.mark.xfail(
    find_spec("lvqcodec.lattices.parity") is None,
    reason="the page tells of lattices that bring their own tables",
    strict=True,
)
def test_lattice_of_the_page_writes_what_it_reads(tmp_path: Path) -> None:
    before = ["import numpy as np\nimport torch\nfrom dataclasses import dataclass\n"]
    run(before + LATTICE, tmp_path)


def test_a_wrong_example_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_name"):
        run(["no_such_name"], tmp_path)

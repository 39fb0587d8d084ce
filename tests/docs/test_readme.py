# SPDX-License-Identifier: Apache-2.0
"""The examples of README.md and docs/, run by a shell as they stand, on pictures of their own.

A small codec bears the names of the shipped ones, and a short recipe those of the recipes. Left to
`.ci/run` is what installs something; the examples of `lvq batch` are run by test_batch_readme.py,
those of docs/extending.md by test_extending.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CODEC_TABLES, free_port, install, make_model
from PIL import Image
from test_docs import EXTENDING, PAGES, ROOT, fenced

from lvqcodec import codec
from lvqcodec.format.container import LATTICES
from lvqcodec.model.lattices.tables import parametric_tables

ELSEWHERE = re.compile(r"^(git|pip|make|lvq batch) ", re.MULTILINE)
BLOCKS = [block for block in dict.fromkeys(fenced("sh")) if not ELSEWHERE.search(block)]
PYTHON = fenced("python", *(name for name in PAGES if name != EXTENDING))
ANCHORS = {"Other": {"bpp": [0.5, 1.5, 3.0, 5.0], "psnr": [15.0, 20.0, 25.0, 30.0]}}
RECIPE = f"""
init_crops = 3
{CODEC_TABLES}
[[stage]]
name = "joint"
steps = 2
train = ["klt", "analysis", "synthesis", "entropy", "steps"]
batch = 2
crop = 48
"""
TABLE = """
minutes = 1
qualities = [20, 80]
base = "plain"
recipe = "recipes/normal.toml"

[[row]]
name = "plain"
"""


def shell(block: str, folder: Path) -> str:
    """Run a block in `folder`, where it must not fail; return what it wrote to stdout."""
    environment = {
        **os.environ,
        "LVQ_MODEL_PATH": str(folder / "installed"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "PET_MASTER_PORT": str(free_port()),  # torchrun's own default may be taken
    }
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, photograph):
    """A folder as the reader of the pages has it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("installed", "kodak", "pictures", "recipes", "runs"):
        (folder / name).mkdir()
    model = make_model()
    tables = parametric_tables("z").including(LATTICES)
    for name in ("baseline", "normal", "extra"):
        install(model, folder / "installed", name, tables=tables)
    Image.fromarray(photograph(180, 260)).save(folder / "photo.png")
    for number in range(2):
        Image.fromarray(photograph(168, 176, seed=number)).save(folder / f"kodak/{number}.png")
        Image.fromarray(photograph(256, 256, seed=number)).save(folder / f"pictures/{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(folder / "installed"))
        for name, sides in {
            "photo": (180, 260),
            "small": (180, 260),
            "large": (1300, 1600),
        }.items():
            (folder / f"{name}.lvq").write_bytes(codec.encode(photograph(*sides)))
    (folder / "kodak.json").write_text(json.dumps(ANCHORS))
    (folder / "recipes/normal.toml").write_text(RECIPE)
    (folder / "table.toml").write_text(TABLE)
    (folder / "bench").symlink_to(ROOT / "bench")
    shell("lvq train --config recipes/normal.toml --data pictures --out trained", folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "reader", symlinks=True))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_block_of_commands_runs(block, folder):
    if "lvq export" in block:
        for run in ("mine", "normal", "extra"):
            shutil.copytree(folder / "trained", folder / "runs" / run)
        block = block.replace("--minutes 10", "")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    told = shell(block, folder)
    made = [path for path in folder.rglob("*") if path.stat().st_mtime_ns != before.get(path)]
    assert told or made
    assert all(path.stat().st_size for path in made if path.is_file())


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[0])
def test_every_block_of_python_runs(block, folder):
    (folder / "example.py").write_text(f"import warnings\nwarnings.simplefilter('error')\n{block}")
    shell("python example.py", folder)

# SPDX-License-Identifier: Apache-2.0
"""Peak memory is that of the coding process: all of it, and of no other."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvqcodec.errors import UsageError
from lvqcodec.memory import peak_memory
from lvqcodec.peers import PEERS, Peer

MIB = 2**20


def test_it_grows_with_the_picture_and_not_with_the_parent(tmp_path: Path) -> None:
    ballast = np.ones(400 * MIB, np.uint8)  # resident in this process while the children run
    paths = {side: tmp_path / f"{side}.png" for side in (64, 3000)}
    for side, path in paths.items():
        Image.new("RGB", (side, side), (90, 60, 30)).save(path, compress_level=1)
    peaks = {
        side: peak_memory(PEERS["jpeg"], 80, path, tmp_path, threads=1)
        for side, path in paths.items()
    }
    assert ballast[-1] == 1
    samples = 3 * 3000**2
    for small, large in zip(peaks[64], peaks[3000], strict=True):
        assert 5 * MIB < small < 200 * MIB
        assert samples < large - small < 12 * samples


def test_what_goes_wrong_in_the_child_is_told(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(picture)
    missing = Peer("odd", "ODD", ".odd", (1,), plugin="no_such_plugin")
    with pytest.raises(UsageError, match=r"cannot measure memory .*no_such_plugin"):
        peak_memory(missing, 1, picture, tmp_path, threads=1)


def test_modules_of_the_current_folder_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, elsewhere = tmp_path / "a.png", tmp_path / "elsewhere"
    Image.new("L", (8, 8)).save(picture)
    elsewhere.mkdir()
    for name in ("pickle", "numpy", "lvqcodec", "PIL"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(elsewhere)
    assert min(peak_memory(PEERS["jpeg"], 80, picture, tmp_path, threads=1)) > 5 * MIB


def test_every_child_that_is_started_leaves_the_current_folder_alone() -> None:
    """Interpreters are started with -P or -I, in the library and in its benchmarks."""
    root = Path(__file__).parents[1]
    started = 0
    for path in [*root.glob("src/**/*.py"), *root.glob("bench/*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "sys.executable" in line:
                started += 1
                assert re.search(r'sys.executable, "-[PI]"', line), (path.name, line)
    assert started >= 1

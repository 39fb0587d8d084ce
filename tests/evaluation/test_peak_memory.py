# SPDX-License-Identifier: Apache-2.0
"""Peak memory is that of the coding process: all of it, and of no other."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvqcodec import codec
from lvqcodec.catalog import find_model, list_models, read_card
from lvqcodec.errors import LvqError, ModelMismatch, UsageError
from lvqcodec.evaluation.codecs import PEERS, Peer
from lvqcodec.evaluation.peak_memory import peak_memory
from lvqcodec.format import tiling
from lvqcodec.format.container import Header
from lvqcodec.resources import estimate

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
    root = Path(__file__).parents[2]
    started = 0
    for path in [*root.glob("src/**/*.py"), *root.glob("bench/*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "sys.executable" in line:
                started += 1
                assert re.search(r'sys.executable, "-[PI]"', line), (path.name, line)
    assert started >= 1


# --- what a model says it takes -------------------------------------------------------------------


@pytest.fixture
def card(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of a model of its own folder, to be changed."""
    for suffix in ("toml", "safetensors"):
        name = f"tiny.{suffix}"
        (tmp_path / name).write_bytes((models_folder / name).read_bytes())
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    return tmp_path / "tiny.toml"


def test_cards_without_figures_have_those_of_the_largest_model(card: Path) -> None:
    assert find_model("tiny").memory == estimate.LARGEST == estimate.MemoryFigures()
    assert all(model.memory == estimate.LARGEST for model in list_models())


def test_a_card_says_what_its_model_takes(card: Path, photograph: Callable[..., Any]) -> None:
    picture = photograph(64, 64)
    data = codec.encode(picture, model="tiny", device="cpu")
    codec.decode(data, device="cpu")
    text = card.read_text()
    card.write_text(f"{text}[memory]\nbase = {2**40}\n")
    assert find_model("tiny").memory == estimate.MemoryFigures(base=2**40)
    for work in (
        lambda: codec.encode(picture, model="tiny", device="cpu"),
        lambda: codec.decode(data, device="cpu"),
    ):
        with pytest.raises(LvqError, match=r"needs about 1024.\d GiB of memory"):
            work()
    card.write_text(f"{text}[memory]\nbase = 0\n")
    assert codec.decode(data, device="cpu", max_memory=5 * MIB).shape == picture.shape


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("memory = 3", "must be a table"),
        ("[memory]\nbases = 3", "unknown setting 'bases'"),
        ("[memory]\nbase = 1.5", "base = 1.5 must be of type int"),
        ("[memory]\ntile = -1", r"tile = -1 is beyond 0\.\."),
        (f"[memory]\ntile = {2**41}", "is beyond"),
    ],
)
def test_figures_that_are_none_are_refused(card: Path, table: str, complaint: str) -> None:
    card.write_text(f"{card.read_text()}{table}\n")
    with pytest.raises(ModelMismatch, match=complaint):
        read_card(card)


def test_every_figure_counts() -> None:
    header = Header(3000, 2000, 3, 50, "e8", bytes(4))
    cut = tiling.choose(header)
    shown = tiling.region(header, None)

    def reckon(figures: estimate.MemoryFigures) -> set[int]:
        needs = [estimate.decoding(header, cut, shown, figures)]
        for effort in (0, 1, 3):
            needs.append(estimate.encoding(header, cut, effort, weighed=True, figures=figures))
        return set(needs)

    for entry in dataclasses.fields(estimate.MemoryFigures):
        more = dataclasses.replace(estimate.LARGEST, **{entry.name: entry.default * 2})
        assert reckon(more) != reckon(estimate.LARGEST), entry.name

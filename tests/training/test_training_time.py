# SPDX-License-Identifier: Apache-2.0
"""Training ends in time, and in good order when it is interrupted."""

import json
import os
import signal
import time

import pytest
import torch
from click.testing import CliRunner
from conftest import CODEC_TABLES, make_photograph
from PIL import Image

from lvqcodec.cli import main
from lvqcodec.errors import UsageError
from lvqcodec.training.checkpoint import CHECKPOINT
from lvqcodec.training.loop import train
from lvqcodec.training.recipe import Recipe
from lvqcodec.training.trainer import Trainer

STAGE = """
[[stage]]
name = "context"
steps = {steps}
train = ["entropy"]
batch = 2
crop = 64
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        Image.fromarray(make_photograph(300, 300, seed=seed)).save(folder / f"{seed}.png")
    return folder


def recipe(folder, steps):
    path = folder / "recipe.toml"
    path.write_text("init_crops = 4\n" + CODEC_TABLES + STAGE.format(steps=steps), "utf-8")
    return path


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send a signal to this process in the midst of a step."""

    def prepare(count, number):
        step = Trainer.train_step

        def interrupted(self, *arguments):
            if self.total_steps == count:
                os.kill(os.getpid(), number)
            return step(self, *arguments)

        monkeypatch.setattr(Trainer, "train_step", interrupted)

    return prepare


def test_minutes_are_kept_start_and_validation_included(pictures, tmp_path):
    minutes = 0.15
    start = time.monotonic()
    summary = train(
        recipe(tmp_path, 10**6),
        data=[pictures],
        out=tmp_path / "run",
        device="cpu",
        minutes=minutes,
        validation=pictures,
    )
    seconds = time.monotonic() - start
    assert summary["steps"] > 0 and not summary["finished"] and summary["validation"]
    assert seconds <= 60 * minutes * 1.1 + 5


def test_minutes_count_from_when_they_are_said_to(pictures, tmp_path):
    path = recipe(tmp_path, 10**6)
    began = time.monotonic() - 600
    with pytest.raises(UsageError, match=r"10 minutes are too few: starting takes 10"):
        train(path, data=[pictures], out=tmp_path / "run", device="cpu", minutes=10, started=began)


def test_too_few_minutes_are_refused_before_a_step(pictures, tmp_path):
    path, run = recipe(tmp_path, 10), tmp_path / "run"
    with pytest.raises(UsageError, match=r"0\.0001 minutes are too few: starting takes .* ending"):
        train(path, data=[pictures], out=run, device="cpu", minutes=1e-4, validation=pictures)
    assert not (run / CHECKPOINT).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(pictures, tmp_path, interrupt_at, number):
    path, run = recipe(tmp_path, 6), tmp_path / "run"
    before = signal.getsignal(number)
    interrupt_at(3, number)
    summary = train(path, data=[pictures], out=run, device="cpu", validation=pictures)
    assert signal.getsignal(number) is before
    assert summary["stopped"] == number.name and summary["steps"] == 4
    assert "validation" not in summary
    assert torch.load(run / CHECKPOINT, weights_only=True)["counters"][2] == 4
    summary = train(path, data=[pictures], out=run, device="cpu", resume=True)
    assert summary["finished"] and summary["steps"] == 6


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_the_command_says_how_to_go_on(pictures, tmp_path, interrupt_at, number, code, word):
    path, run = recipe(tmp_path, 6), tmp_path / "run"
    interrupt_at(3, number)
    arguments = ["train", "--config", path, "--data", pictures, "--out", run, "--device", "cpu"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code
    last = result.stderr.splitlines()[-1]
    assert last == f"lvq: error: {word}: the same command with --resume goes on from {run}"


def test_what_cannot_be_written_is_told_before_pictures_are_read(tmp_path):
    path = recipe(tmp_path, 6)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT).mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*checkpoint\.pt"):
        train(path, data=["no such folder"], out=tmp_path / "run", device="cpu", resume=True)


def test_a_report_takes_the_place_of_lines(pictures, tmp_path, capsys):
    told = []
    run = tmp_path / "run"
    train(
        recipe(tmp_path, 3),
        data=[pictures],
        out=run,
        device="cpu",
        minutes=5,
        log_seconds=0,
        report=lambda *facts: told.append(facts),
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and json.loads(said[-1])["finished"]
    assert [step for _, step, _ in told[:3]] == [f"loading picture {n} of 3" for n in (1, 2, 3)]
    assert [step for _, step, _ in told[3:]] == ["context"] * 3
    shares = [share for share, _, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 0.2
    assert len((run / "log.jsonl").read_text().splitlines()) == 3


def test_minutes_of_all_calls_together(pictures, tmp_path):
    path, run = recipe(tmp_path, 1), tmp_path / "run"
    call = {"data": [pictures], "out": run, "device": "cpu", "in_all": True, "resume": True}
    assert train(path, minutes=10, **call)["steps"] == 1
    path = recipe(tmp_path, 2)
    trainer = Trainer(Recipe.load(path), torch.device("cpu"))
    trainer.load(run)
    trainer.stage_index, trainer.stage_step, trainer.seconds = 0, 0, 600.0
    trainer.save(run)
    assert train(path, minutes=10, **call)["steps"] == 1
    assert train(path, minutes=20, **call)["steps"] == 3

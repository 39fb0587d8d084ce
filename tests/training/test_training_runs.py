# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, shared among processes, timed and validated on the way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CODEC_TABLES, free_port
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import lvqcodec
from lvqcodec.errors import UsageError
from lvqcodec.training.checkpoint import CHECKPOINT, read_checkpoint, read_weights
from lvqcodec.training.data import CropSampler
from lvqcodec.training.export import export
from lvqcodec.training.loop import train
from lvqcodec.training.ranks import Ranks
from lvqcodec.training.recipe import Recipe
from lvqcodec.training.throughput import PHASES
from lvqcodec.training.trainer import Trainer

CPU = torch.device("cpu")
RECIPE = f"""
seed = 3
init_crops = 3
ema = 0.9
{CODEC_TABLES}
[[stage]]
name = "context"
steps = 2
train = ["entropy"]
batch = 4
crop = 64

[[stage]]
name = "joint"
steps = 4
train = ["klt", "analysis", "synthesis", "entropy", "steps"]
batch = 4
crop = 48
"""
SHARES = [f"{phase}_share" for phase in PHASES]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photograph):
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(256, 300), (280, 256)]):
        Image.fromarray(photograph(*size, seed=index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one_thread():
    """With one thread, what is computed twice is equal to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, recipe, pictures, one_thread):
    """A run of one process without a pause, and what it returned; a record for every step."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    summary = train(recipe, data=[pictures], out=run, device="cpu", log_seconds=0)
    return run, summary


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


def environment(**more):
    package = str(Path(lvqcodec.__file__).parents[1])
    fixed = {"PYTHONPATH": package, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return os.environ | fixed | more


# killed


KILL = """
import os, signal, sys, torch
from lvqcodec.training import loop, trainer
how, count, config, data, out = sys.argv[1:]
step, save = trainer.Trainer.train_step, torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying_step(self, *arguments):
    if how == "step" and self.total_steps == int(count):
        die()
    return step(self, *arguments)

def dying_save(state, path):
    save(state, path)
    if how == "save" and sum(state["counters"][2:3]) == int(count):
        with open(path, "r+b") as file:
            file.truncate(1000)  # it had come so far
        die()

trainer.Trainer.train_step, torch.save = dying_step, dying_save
loop.train(config, data=[data], out=out, device="cpu", log_seconds=0, save_seconds=0)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole, recipe, pictures, tmp_path, one_thread):
    cases = [("step", 3, 3), ("save", 2, 1)]  # in the second stage; as the first one is saved
    children = [
        subprocess.Popen(
            [sys.executable, "-c", KILL, how, str(count), recipe, pictures, tmp_path / how],
            env=environment(),
            stderr=subprocess.PIPE,
        )
        for how, count, _ in cases
    ]
    said = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2, said
    wanted = read_checkpoint(whole[0])
    for how, _, left in cases:
        run = tmp_path / how
        assert read_checkpoint(run)["counters"][2] == left
        train(recipe, data=[pictures], out=run, device="cpu", resume=True, log_seconds=0)
        assert loss_and_step(records(run)[-1]) == loss_and_step(records(whole[0])[-1])
        found = read_checkpoint(run)
        assert found["counters"] == wanted["counters"]
        assert torch.equal(found["reference"], wanted["reference"])
        for kind in ("model", "average"):
            for name, value in wanted[kind].items():
                assert torch.equal(found[kind][name], value), (how, kind, name)


def loss_and_step(record):
    return record["stage"], record["step"], record["loss"], record["norm"]


def test_what_cannot_be_continued_is_refused(whole, recipe, pictures, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.toml"
    run.mkdir()
    data = (whole[0] / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(data)
    other.write_text(RECIPE.replace("hidden = 16", "hidden = 17"), encoding="utf-8")
    with pytest.raises(UsageError, match="another recipe"):
        train(other, data=[pictures], out=run, device="cpu", resume=True)
    for damaged in (data[: len(data) // 2], b"", b"weights"):
        (run / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(UsageError, match="no intact checkpoint"):
            train(recipe, data=[pictures], out=run, device="cpu", resume=True)
        with pytest.raises(UsageError, match="no intact checkpoint"):
            read_weights(run)


def replaced(**changes):
    """A change of a checkpoint: values by name; None takes one out."""
    return lambda state: {k: v for k, v in (state | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: [state], "it holds a list"),
        (lambda state: state["reference"], "it holds a Tensor"),
        (replaced(model=None), "it lacks 'model'"),
        (replaced(average=[1, 2]), "'average' is a list"),
        (replaced(average={"log_step.rows": 3}), "'average' holds what is no tensor"),
        (replaced(generator="dice"), "'generator' is a str"),
        (replaced(counters=[1, 2]), r"'counters' are \[1, 2\]"),
        (replaced(counters=[-1, 0, 0, 0]), "'counters' are"),
        (replaced(seconds=None), "it lacks 'seconds'"),
        (replaced(generator=torch.zeros(3)), "another recipe"),
        (replaced(reference=torch.zeros(3)), "another recipe"),
        (replaced(counters=[0, 1, 1, 1], optimizers=[{}, {}, {}, {}, {}]), "another recipe"),
    ],
    ids=range(12),
)
def test_checkpoints_of_wrong_content_are_refused(
    whole, recipe, pictures, tmp_path, change, complaint
):
    state = torch.load(whole[0] / CHECKPOINT, weights_only=True)
    torch.save(change(state), tmp_path / CHECKPOINT)
    (tmp_path / "recipe.toml").write_bytes(recipe.read_bytes())
    attempts = [
        lambda: train(recipe, data=[pictures], out=tmp_path, device="cpu", resume=True),
        lambda: export(tmp_path, name="x", out=tmp_path / "models", device="cpu"),
    ]
    if complaint != "another recipe":
        attempts.append(lambda: read_weights(tmp_path))
    for attempt in attempts:
        with pytest.raises(UsageError, match=complaint) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1


# together


def test_two_processes_equal_one(whole, recipe, pictures, tmp_path):
    command = [sys.executable, "-m", "lvqcodec", "train", "--config", str(recipe), "--data"]
    command += [str(pictures), "--out", str(tmp_path), "--device", "cpu"]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            command,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "2 x cpu" in said[0] and '"finished": true' in said[0]
    assert not any("Warning" in text for text in said)
    assert "megapixels on" not in said[1] and "steps" not in said[1]  # only the first one speaks
    found, wanted = read_checkpoint(tmp_path), read_checkpoint(whole[0])
    assert found["counters"] == wanted["counters"]
    assert torch.equal(found["generator"], wanted["generator"])
    assert torch.allclose(found["reference"], wanted["reference"], rtol=1e-5)
    for kind in ("model", "average"):
        for name, value in wanted[kind].items():
            error = torch.linalg.vector_norm(found[kind][name] - value)
            # Adam makes small gradients large, and their rounding errors with them
            assert error <= 1e-4 * torch.linalg.vector_norm(value), (kind, name)
    joint = [record for record in records(tmp_path) if record["stage"] == "joint"]
    steps = [record for record in records(whole[0]) if record["stage"] == "joint"]
    for key in ("loss", "bpp", "mse"):  # of the whole batch, not of a share
        mean = sum(step[key] for step in steps) / len(steps)
        assert joint[-1][key] == pytest.approx(mean, rel=1e-3, abs=2e-5)


def test_a_batch_that_cannot_be_shared_is_refused(recipe):
    with pytest.raises(UsageError, match=r"batch = 4 is no multiple of 3, the number of processes"):
        Trainer(Recipe.load(recipe), CPU, Ranks(0, 3))


def test_shares_are_parts_of_the_same_batch(photograph):
    sampler = CropSampler([photograph(64, 80), photograph(96, 64)], device=CPU)

    def sample(*share):
        return sampler.sample(6, 48, torch.Generator().manual_seed(1), *share)

    parts = [sample(Ranks(index, 3).share(6)) for index in range(3)]
    assert torch.equal(torch.cat(parts), sample())


# timed


def test_records_and_summary_say_where_the_time_goes(whole):
    run, summary = whole
    found = records(run)
    assert len(found) == 6
    for record in [*found, summary]:
        assert record["crops_per_s"] > 0
        assert sum(record[share] for share in SHARES) == pytest.approx(1, abs=1e-3)
        assert record["forward_share"] > 0.05 and record["backward_share"] > 0.05
    total = sum(4 / record["crops_per_s"] for record in found)
    assert summary["crops_per_s"] == pytest.approx(24 / total, rel=0.02)
    assert not any("skipped" in record for record in found)


class HostReads(TorchDispatchMode):
    """Refuses what makes the CPU wait for a GPU: numbers, or sizes, that are read from tensors."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique"), name
        return function(*arguments, **(keywords or {}))


def test_a_step_reads_no_number_from_the_device(recipe, photograph):
    loaded = Recipe.load(recipe)
    trainer = Trainer(loaded, CPU)
    crops = CropSampler([photograph(64, 80)], device=CPU).sample(4, 48, torch.Generator())

    class Drawn:  # what is drawn, is drawn on the CPU
        def sample(self, *arguments):
            return crops

    for stage in (*loaded.stages, dataclasses.replace(loaded.stages[1], simulate=True)):
        stage = dataclasses.replace(stage, crop=48)
        trainer.begin_stage(stage)
        trainer.train_step(Drawn(), stage)
        with HostReads():
            trainer.train_step(Drawn(), stage)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_never_waits_for_the_gpu(recipe, photograph):
    loaded, device = Recipe.load(recipe), torch.device("cuda")
    trainer = Trainer(loaded, device)
    sampler = CropSampler([photograph(64, 80)], device=device)
    for stage in loaded.stages:
        trainer.begin_stage(stage)
        trainer.train_step(sampler, stage)
        torch.cuda.set_sync_debug_mode("error")
        trainer.train_step(sampler, stage)
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.meter.read()["loss"] > -20


def test_skipped_steps_are_counted_apart(recipe, photograph):
    loaded = Recipe.load(recipe)
    trainer = Trainer(loaded, CPU)
    stage = loaded.stages[1]
    trainer.begin_stage(stage)
    sampler = CropSampler([photograph(64, 80)], device=CPU)

    class Broken:
        def sample(self, *arguments):
            return sampler.sample(*arguments) * torch.nan

    losses = [float(trainer.train_step(source, stage)["loss"]) for source in (sampler, Broken())]
    record = trainer.meter.read()
    assert record["skipped"] == 1 and record["loss"] == pytest.approx(losses[0], abs=1e-4)


# validated


def test_validation_on_the_way_and_last(recipe, pictures, tmp_path, capfd):
    timed = tmp_path / "timed.toml"
    timed.write_text("validate_minutes = 1e-6\n" + RECIPE, encoding="utf-8")
    summary = train(
        timed, data=[pictures], out=tmp_path, device="cpu", log_seconds=0, validation=pictures
    )
    found = [record for record in records(tmp_path) if "validation" in record]
    assert len(found) == 6
    assert found[-1]["validation"] == summary["validation"]
    assert found[0]["validation"] != found[-1]["validation"]
    last = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert last == json.loads(json.dumps(summary)) and list(last)[-1] == "validation"
    # validating leaves the training as it is
    plain = tmp_path / "plain"
    train(recipe, data=[pictures], out=plain, device="cpu")
    weights, same = read_weights(tmp_path), read_weights(plain)
    assert all(torch.allclose(weights[name], same[name], atol=1e-6) for name in same)

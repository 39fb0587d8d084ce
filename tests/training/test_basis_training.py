# SPDX-License-Identifier: Apache-2.0
"""Training of learned bases: alone on a frozen transform, with the penalty, from other weights."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import CODEC_TABLES
from PIL import Image

from lvqcodec.errors import UsageError
from lvqcodec.model.weights import unpack_weights
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.export import export
from lvqcodec.training.loop import train
from lvqcodec.training.optimizers import trainable
from lvqcodec.training.recipe import Recipe
from lvqcodec.training.trainer import Trainer

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")
PLAIN = f"""
init_crops = 2
{CODEC_TABLES}
[[stage]]
name = "all"
steps = 2
train = ["klt", "analysis", "synthesis", "entropy", "steps"]
batch = 2
crop = 64
"""
LEARNED = """
init_crops = 2
start_from = "START"

[codec.transform]
name = "basis"
dim = 8

[codec.transform.inner]
latent_channels = 24
analysis = [[8, 8, 1]]
synthesis = [[8, 8, 1]]

[codec.entropy]
name = "factorized"

[[stage]]
name = "basis"
steps = 8
train = ["basis", "entropy", "steps"]
batch = 2
crop = 64
lr = 1e-2
penalty = 0.1
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photograph):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        Image.fromarray(photograph(256, 260, seed=index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, pictures):
    """A run of a codec without bases."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.toml").write_text(PLAIN)
    train(folder / "plain.toml", data=[pictures], out=folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, plain):
    path = tmp_path_factory.mktemp("recipes") / "learned.toml"
    path.write_text(LEARNED.replace("START", str(plain)))
    return path


@pytest.fixture
def trainer(recipe, pictures):
    """A trainer as a run of the recipe begins, with its sampler."""
    trainer = Trainer(Recipe.load(recipe), CPU)
    sampler = CropSampler(load_pictures([pictures]), device=CPU)
    trainer.start_from_pictures(sampler)
    anew = trainer.load_weights(Path(trainer.recipe.start_from), sampler)
    assert anew == ["entropy"]
    return trainer, sampler


def test_it_starts_from_the_other_transforms_weights(trainer, plain, recipe):
    source = Trainer(Recipe.load(plain / "recipe.toml"), CPU)
    source.load(plain)
    for model in (trainer[0].model, trainer[0].average):
        inner = model.transform.inner.state_dict()
        for name, value in source.average.transform.state_dict().items():
            assert torch.equal(inner[name], value), name
        assert not model.transform.basis.logarithm.any()
        assert torch.equal(model.log_step.rows, source.average.log_step.rows)


def test_a_new_entropy_model_starts_from_the_latents_of_the_transform_taken(trainer):
    trainer, sampler = trainer
    model, middle = trainer.model, torch.tensor([40.0, 60.0])
    crops = sampler.sample(2, 256, torch.Generator())
    with torch.no_grad():
        deviations = model.analysis(crops, middle).flatten(0, 1).std(0)
        scales = torch.exp(model.entropy.cumulative.log_scale(middle)).mean(0)
    assert torch.allclose((deviations * scales).log().mean(), torch.zeros(()), atol=0.3)


def test_a_stage_of_bases_leaves_the_transform_alone(trainer):
    trainer, sampler = trainer
    (stage,) = trainer.recipe.stages
    trainer.begin_stage(stage)
    groups = trainable(trainer.model)
    before = {name: [p.clone() for p in group] for name, group in groups.items()}
    for _ in range(3):
        values = trainer.train_step(sampler, stage)
    changed = {
        name
        for name, group in groups.items()
        if any((p != old).any() for p, old in zip(group, before[name], strict=True))
    }
    assert changed == {"basis", "entropy", "steps"}
    assert values["penalty"] > 0 and values["penalty"].isfinite()
    matrix = trainer.model.transform.basis.matrix().detach()
    assert not torch.equal(matrix, torch.eye(8).expand(3, -1, -1))
    assert torch.allclose(matrix.norm(dim=2), torch.ones(3, 8), atol=1e-6)


def test_the_penalty_is_added_to_the_loss(trainer):
    trainer, sampler = trainer
    (stage,) = trainer.recipe.stages
    trainer.begin_stage(stage)
    logarithm = trainer.model.transform.basis.logarithm
    logarithm.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    crops, qualities = sampler.sample(2, 64, torch.Generator()), torch.tensor([20.0, 70.0])
    losses, gradients = [], []
    for weight in (0.0, 3.0):
        weighed = dataclasses.replace(stage, penalty=weight)
        loss, values = trainer._loss(weighed, crops, qualities, slice(None))
        assert ("penalty" in values) == (weight > 0)
        losses.append(loss)
        gradients += torch.autograd.grad(loss, logarithm)
    penalty = trainer.model.transform.penalty()
    assert torch.allclose(losses[1] - losses[0], 3 * penalty, rtol=1e-4)
    (wanted,) = torch.autograd.grad(3 * penalty, logarithm)
    assert torch.allclose(gradients[1] - gradients[0], wanted, atol=1e-3)


def test_penalties_below_zero_are_refused(recipe, tmp_path):
    path = tmp_path / "wrong.toml"
    for wrong in ("-0.1", "nan"):
        path.write_text(recipe.read_text().replace("penalty = 0.1", f"penalty = {wrong}"))
        with pytest.raises(UsageError, match=r"penalty = .* must be at least 0"):
            Recipe.load(path)


def test_a_run_is_trained_and_exported(recipe, pictures, tmp_path):
    train(recipe, data=[pictures], out=tmp_path / "run", device="cpu")
    (record,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert record["penalty"] > 0
    path = export(tmp_path / "run", name="learned", out=tmp_path / "models", device="cpu")
    basis = unpack_weights(path.read_bytes()).transform.basis
    assert basis.logarithm.any()
    assert torch.allclose(basis.matrix().norm(dim=2), torch.ones(3, 8), atol=1e-6)


def test_the_rows_of_the_experiment_are_valid_and_differ_in_their_bases_alone(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    loaded = importlib.import_module("table").Table.load(BENCH / "tables" / "learned.toml")
    rows = {row.name: Recipe.from_dict(row.recipe, row.name) for row in loaded.row if row.recipe}
    other = rows.pop("z, another seed")
    assert other == dataclasses.replace(rows["z"], seed=1)
    assert [*rows] == ["z", "free", "learned-8", "learned-16", "learned-32"]
    dims = [found.codec.transform.dim for row, found in rows.items() if row != "z"]
    assert dims == [0, 8, 16, 32]
    for row, found in rows.items():
        prior, stage = found.stages
        assert prior == rows["z"].stages[0]
        inner = getattr(found.codec.transform, "inner", found.codec.transform)
        assert inner == rows["z"].codec.transform and found.codec.lattice == "z"
        assert ("basis" in stage.train) == (row != "z")
        assert {"entropy", "steps"} <= set(stage.train)
        assert not {"klt", "analysis", "synthesis"} & set(stage.train)
        assert (stage.penalty > 0) == row.startswith("learned")
        alike = dataclasses.replace(stage, train=(), penalty=0.0)
        assert alike == dataclasses.replace(rows["z"].stages[1], train=(), penalty=0.0)

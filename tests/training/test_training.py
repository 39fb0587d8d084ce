# SPDX-License-Identifier: Apache-2.0
"""Crops, recipes, and whole runs of a few steps: train, stop, go on, export, code."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CODEC_TABLES, install
from PIL import Image

import lvqcodec
from lvqcodec import codec
from lvqcodec.catalog import find_model, read_files
from lvqcodec.cli import main
from lvqcodec.errors import ModelMismatch, ModelNotFound, UsageError
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.lattices.tables import CodingTables, parametric_tables
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training import coded
from lvqcodec.training import export as exporting
from lvqcodec.training import fit_tables as fitting
from lvqcodec.training.checkpoint import CHECKPOINT, read_weights
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.loop import train
from lvqcodec.training.optimizers import trainable
from lvqcodec.training.recipe import Recipe, Stage
from lvqcodec.training.start import initialise
from lvqcodec.training.trainer import Trainer
from lvqcodec.training.validate import validate

CPU = torch.device("cpu")
HEAD = f"""
profile = "tiny"
description = 'a "quoted" Größe'
seed = 5
init_crops = 3
ema = 0.9
{CODEC_TABLES}"""
STAGES = """
[[stage]]
name = "context"
steps = 3
train = ["entropy"]
batch = 2
crop = 64

[[stage]]
name = "joint"
steps = 4
train = ["klt", "analysis", "synthesis", "entropy", "steps"]
batch = 2
crop = 48
lr = 1e-3

[[stage]]
name = "integer"
steps = 2
train = ["synthesis", "entropy"]
batch = 2
crop = 64
simulate = true
"""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photograph):
    """A folder of pictures: two large enough to start from, and a small one in a tar file."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(256, 300), (280, 256)]):
        Image.fromarray(photograph(*size, seed=index)).save(folder / f"{index}.png")
    buffer = io.BytesIO()
    Image.fromarray(photograph(70, 64, channels=1)).save(buffer, "PNG")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for name in ("small.png", "note.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = len(buffer.getvalue())
            archive.addfile(entry, io.BytesIO(buffer.getvalue()))
    (folder / "readme.txt").write_text("no picture")
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(HEAD + STAGES, encoding="utf-8")
    return path


# data


def variants(crop):
    """The eight ways in which a crop (size, size, 3) may lie."""
    for turned in (crop, crop.transpose(1, 0, 2)):
        for flipped in (turned, turned[::-1]):
            yield from (flipped, flipped[:, ::-1])


def test_crops_are_parts_of_the_pictures():
    sizes = [(40, 52), (33, 64), (90, 32), (20, 200)]
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    sampler = CropSampler(pictures, device=CPU)
    assert sampler.total_pixels == sum(h * w for h, w in sizes)
    size = 32
    windows = {}
    for index, picture in enumerate(pictures):
        for i in range(picture.shape[0] - size + 1):
            for j in range(picture.shape[1] - size + 1):
                window = picture[i : i + size, j : j + size]
                windows[window[0, 0].tobytes() + window[-1, -1].tobytes()] = index, i, j
    crops = sampler.sample(400, size, generator())
    assert crops.shape == (400, 3, size, size) and crops.dtype == torch.float32
    seen = set()
    for crop in (crops * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        found = None
        for way, variant in enumerate(variants(crop)):
            place = windows.get(variant[0, 0].tobytes() + variant[-1, -1].tobytes())
            if place is not None:
                index, i, j = place
                window = pictures[index][i : i + size, j : j + size]
                if np.array_equal(variant, window):
                    found = index, i, j, way
        assert found is not None
        seen.add(found)
    assert {index for index, *_ in seen} == {0, 1, 2}  # the last one is too small
    assert {way for *_, way in seen} == set(range(8))
    rows = {i for index, i, *_ in seen if index == 2}
    assert min(rows) < 5 and max(rows) > 53  # all of a picture is used, its end too
    assert {i for index, i, *_ in seen if index == 1} == {0, 1}
    share = sum(index == 2 for index, *_ in seen) / len(seen)
    assert abs(share - 90 * 32 / (40 * 52 + 33 * 64 + 90 * 32)) < 0.12


def test_crops_hang_on_the_seed_alone(photograph):
    sampler = CropSampler([photograph(64, 80), photograph(96, 64)], device=CPU)
    first, again = (sampler.sample(8, 48, generator(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sampler.sample(8, 48, generator(2)))


def test_pictures_that_are_all_too_small_are_refused(photograph):
    sampler = CropSampler([photograph(64, 200)], device=CPU)
    with pytest.raises(UsageError, match="at least 65 pixels"):
        sampler.sample(1, 65, generator())


def test_folders_and_tar_files_are_read_in_a_fixed_order(pictures):
    found = load_pictures([pictures])
    assert [p.shape for p in found] == [(256, 300, 3), (280, 256, 3), (70, 64, 3)]
    assert np.array_equal(found[0], np.asarray(Image.open(pictures / "0.png")))
    assert np.array_equal(load_pictures([pictures / "shard.tar"])[0], found[2])
    assert len(load_pictures([pictures, pictures], limit=4)) == 4


def test_data_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("nothing")
    for source, complaint in (("absent", "neither"), ("a.txt", "neither"), ("", "no pictures")):
        with pytest.raises(UsageError, match=complaint):
            load_pictures([tmp_path / source])


# recipes


def test_recipes_are_read(recipe):
    found = Recipe.load(recipe)
    assert [stage.name for stage in found.stages] == ["context", "joint", "integer"]
    assert found.codec.entropy.hidden == 16 and found.codec.entropy.block == (2, 2)
    assert (
        found.stages[1].train == tuple(trainable(CodecModel(found.codec)))
        and found.stages[2].simulate
    )
    assert found.seed == 5 and found.ema == 0.9


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")))
def test_our_own_recipes_are_valid(path):
    recipe = Recipe.load(path)
    trained = {group for stage in recipe.stages for group in stage.train}
    assert "entropy" in trained and recipe.stages[-1].simulate
    assert ("synthesis" in trained) != bool(recipe.start_from)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("seed = 5", "sede = 5", "unknown setting 'sede'"),
        ("seed = 5", "seed = 'x'", "seed = 'x' must be of type int"),
        ("seed = 5", "stages = 5", r"each as a \[\[stage\]\]"),
        ("analysis = ", "analyses = ", r"unknown setting 'analyses' in \[recipe.codec.transform\]"),
        ("steps = 3", "steps = 'three'", "steps = 'three' must be of type int"),
        ("steps = 3", "steps = 0", "stage 'context': steps = 0 must be at least 1"),
        ("steps = 3", "steps = 3\nqualities = [60, 40]", r"qualities = \[60, 40\] must rise"),
        ("steps = 3", "steps = 3\nqualities = [-1, 40]", "within 0 to 100"),
        ("steps = 3", "steps = 3\nqualities = [40, nan]", "within 0 to 100"),
        ("steps = 3", "", "lacks 'steps'"),
        ('train = ["entropy"]', 'train = "entropy"', r"must be of type tuple\[str, \.\.\.\]"),
        ("simulate = true", "simulate = 1", "simulate = 1 must be of type bool"),
        ("simulate = true", "colour = 1", "unknown setting 'colour'"),
        ("simulate = true", "batch = 0", "no valid TOML"),
        ("[codec.entropy]", "[codec.entropy", "no valid TOML"),
    ],
)
def test_wrong_recipes_are_refused(recipe, old, new, complaint):
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    recipe.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=complaint):
        Recipe.load(recipe)


def test_recipes_without_stages_or_files_are_refused(recipe, tmp_path):
    recipe.write_text(HEAD, encoding="utf-8")
    with pytest.raises(UsageError, match="must list its stages"):
        Recipe.load(recipe)
    with pytest.raises(UsageError, match="cannot read recipe"):
        Recipe.load(tmp_path / "absent.toml")


def test_crops_that_are_no_whole_blocks_are_refused(recipe):
    recipe.write_text(HEAD + STAGES.replace("crop = 48", "crop = 50"), encoding="utf-8")
    with pytest.raises(UsageError, match="stage 'joint': crop = 50 is no multiple of 8"):
        Trainer(Recipe.load(recipe), CPU)


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ('["entropi"]', "stage 'context' trains 'entropi'; choose from klt, analysis, synthesis,"),
        ("[]", "stage 'context' trains nothing; choose from .*, entropy, steps$"),
    ],
)
def test_groups_that_the_model_lacks_are_refused(recipe, named, complaint):
    recipe.write_text(HEAD + STAGES.replace('["entropy"]', named, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=complaint):
        Trainer(Recipe.load(recipe), CPU)


# the start


def test_the_start_is_transform_coding(photograph, tiny_config):
    """Far better than random initialisation, and about as good as the theory of steps says."""
    crops = np.stack([photograph(256, 256, seed=seed) for seed in range(3)])
    crops = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    model = CodecModel(tiny_config)
    quality = torch.tensor([60.0])
    x = crops[:1, :, :128]

    def loss():
        with torch.no_grad():
            out = model(x, quality)
        distortion = 255**2 * (out.x_hat - x).square().mean()
        return float(out.bits) / (128 * 256) + tiny_config.lmbda(60) * float(distortion)

    before = loss()
    initialise(model, crops)
    after = loss()
    assert after < before / 5
    weight = model.transform.klt.weight.double()
    assert torch.allclose(weight @ weight.T, torch.eye(24, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(model.transform.inverse_klt.weight, model.transform.klt.weight.T)
    # the transform keeps what 24 of 192 components can, and predictors beat a plain mean
    y = model.transform.klt(model.transform.blocks(crops))
    assert y.flatten(2).var(2).mean(0).diff().max() < 0.2
    for _, layer in model.entropy.layers():
        assert torch.isfinite(layer.weight).all()


def test_every_parameter_belongs_to_one_group(tiny_config):
    model = CodecModel(tiny_config)
    groups = trainable(model)
    found = [parameter for group in groups.values() for parameter in group]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    counts = {name: len(group) for name, group in groups.items()}
    assert min(counts.values()) > 0 and counts["klt"] == 4 and counts["steps"] == 1


# runs


def weights_of(run):
    return torch.load(run / CHECKPOINT, weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """A run that went through all stages without a pause, and what it returned."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "tiny.toml"
    path.write_text(HEAD + STAGES, encoding="utf-8")
    summary = train(
        path, data=[pictures], out=folder / "run", device="cpu", validation=pictures / "shard.tar"
    )
    return folder / "run", summary


def test_a_run_goes_through_its_stages(finished):
    run, summary = finished
    assert summary["finished"] and summary["steps"] == 9
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["context", "joint", "integer"]
    assert [record["step"] for record in records] == [3, 4, 2]
    for record in records:
        assert all(np.isfinite(record[key]) for key in ("loss", "bpp", "mse", "norm"))
        assert record["bpp"] > 0 and record["norm"] > 0
    points = summary["validation"]
    assert [point["quality"] for point in points] == [5, 25, 50, 75, 95]
    assert points[0]["bpp_est"] < points[-1]["bpp_est"] and points[0]["psnr"] < points[-1]["psnr"]


def test_stages_train_what_they_name_and_nothing_else(recipe, pictures):
    loaded = Recipe.load(recipe)
    trainer = Trainer(loaded, CPU)
    sampler = CropSampler(load_pictures([pictures]), device=CPU)
    initialise(trainer.model, sampler.sample(3, 256, trainer.generator))
    for stage in loaded.stages:
        trainer.begin_stage(stage)
        assert trainer.model.entropy.mode == ("simulate" if stage.simulate else "float")
        before = {name: [p.clone() for p in g] for name, g in trainable(trainer.model).items()}
        for _ in range(2):
            log = trainer.train_step(sampler, stage)
        assert all(torch.isfinite(value) for value in log.values())
        changed = {
            group
            for group, parameters in trainable(trainer.model).items()
            if any((p != old).any() for p, old in zip(parameters, before[group], strict=True))
        }
        assert changed == set(stage.train)


def test_a_stage_may_train_one_quality_or_a_range(recipe, pictures, monkeypatch):
    trainer = Trainer(Recipe.load(recipe), CPU)
    sampler = CropSampler(load_pictures([pictures]), device=CPU)
    initialise(trainer.model, sampler.sample(3, 256, trainer.generator))
    seen = []
    original = trainer._loss

    def spy(stage, crops, qualities, share):
        seen.append(qualities)
        return original(stage, crops, qualities, share)

    monkeypatch.setattr(trainer, "_loss", spy)
    for qualities in ((30.0, 30.0), (20.0, 60.0)):
        stage = Stage("joint", 1, ("entropy",), batch=4, crop=48, qualities=qualities)
        trainer.begin_stage(stage)
        trainer.train_step(sampler, stage)
    assert seen[0].tolist() == [30.0] * 4
    for quality, low in zip(seen[1].tolist(), (20, 30, 40, 50), strict=True):
        assert low <= quality <= low + 10


@pytest.mark.parametrize(("option", "close"), [("sparse", 0), ("bfloat16", 1e-2)])
def test_cheaper_steps_see_the_same_and_learn_less_each(tiny_config, photograph, option, close):
    groups = ("klt", "analysis", "synthesis", "entropy", "steps")
    found = {}
    for value in (False, True):
        stage = Stage("a", 3, groups, batch=2, crop=64, **{option: value})
        trainer = Trainer(Recipe(tiny_config, (stage,), init_crops=4), torch.device("cpu"))
        sampler = CropSampler([photograph(300, 300)], device=torch.device("cpu"))
        trainer.start_from_pictures(sampler)
        trainer.begin_stage(stage)
        before = weights(trainer)
        loss = float(trainer.train_step(sampler, stage)["loss"])
        moved = {n for n, w in weights(trainer).items() if not torch.equal(w, before[n])}
        found[value] = loss, moved
    (loss, moved), (cheap_loss, cheap_moved) = found[False], found[True]
    assert cheap_loss == pytest.approx(loss, abs=close)
    assert cheap_moved < moved if option == "sparse" else cheap_moved == moved
    assert np.isfinite(cheap_loss)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("after", [2, 8])
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_been(
    finished, recipe, pictures, tmp_path, monkeypatch, after
):
    original, taken = Trainer.train_step, []

    def step(self, sampler, stage):
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(stage)
        return original(self, sampler, stage)

    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data=[pictures], out=run, device="cpu", log_seconds=0, save_seconds=0)
    assert not list(run.glob("*.part"))
    monkeypatch.setattr(Trainer, "train_step", original)
    with pytest.raises(UsageError, match="--resume"):
        train(recipe, data=[pictures], out=run, device="cpu")
    summary = train(recipe, data=[pictures], out=run, device="cpu", resume=True)
    assert summary["steps"] == 9 and summary["finished"]
    whole, pieced = weights_of(finished[0]), weights_of(run)
    assert pieced["counters"] == whole["counters"]
    for kind in ("model", "average"):
        for name, value in whole[kind].items():
            assert torch.allclose(pieced[kind][name], value, rtol=0, atol=1e-6), (kind, name)


def test_time_ends_a_run_which_then_goes_on(finished, recipe, pictures, tmp_path):
    run = tmp_path / "run"
    summary = train(recipe, data=[pictures], out=run, device="cpu", minutes=0)
    assert not summary["finished"] and summary["steps"] == 0
    summary = train(recipe, data=[pictures], out=run, device="cpu", resume=True)
    assert summary["finished"] and summary["steps"] == 9
    whole, pieced = (weights_of(folder)["average"] for folder in (finished[0], run))
    for name, value in whole.items():
        assert torch.allclose(pieced[name], value, rtol=0, atol=1e-6), name


def test_a_run_starts_from_another(finished, recipe, pictures, tmp_path):
    text = f'start_from = "{finished[0]}"\n' + HEAD + STAGES
    recipe.write_text(text, encoding="utf-8")
    train(recipe, data=[pictures], out=tmp_path / "run", device="cpu", minutes=0)
    found, wanted = weights_of(tmp_path / "run"), weights_of(finished[0])
    assert torch.equal(
        found["model"]["transform.klt.weight"], wanted["average"]["transform.klt.weight"]
    )
    recipe.write_text(text.replace(str(finished[0]), "absent"), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot start from 'absent"):
        train(recipe, data=[pictures], out=tmp_path / "run2", device="cpu", minutes=0)


def test_a_step_without_finite_gradients_leaves_no_trace(recipe, pictures, monkeypatch):
    loaded = Recipe.load(recipe)
    trainer = Trainer(loaded, CPU)
    stage = loaded.stages[1]
    trainer.begin_stage(stage)

    class Broken(CropSampler):
        def sample(self, *arguments):
            return super().sample(*arguments) * torch.nan

    sound, broken = (kind(load_pictures([pictures]), device=CPU) for kind in (CropSampler, Broken))
    trainer.train_step(sound, stage)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step(broken, stage)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert torch.isfinite(trainer.reference).all()
    log = trainer.train_step(sound, stage)
    assert all(torch.isfinite(value) for value in log.values())
    assert any((p != before[name]).any() for name, p in trainer.model.named_parameters())


def test_training_learns(pictures, recipe):
    """What is minimised, on crops that stay the same, falls."""
    loaded = Recipe.load(recipe)
    trainer = Trainer(loaded, CPU)
    sampler = CropSampler(load_pictures([pictures]), device=CPU)
    initialise(trainer.model, sampler.sample(3, 256, trainer.generator))
    crops, quality = sampler.sample(8, 64, generator()), torch.linspace(0, 100, 8)

    def loss():
        with torch.no_grad():
            out = trainer.model(crops, quality)
        mse = (out.x_hat - crops).square().mean((1, 2, 3))
        return float((out.bits / 64**2 + trainer._lmbda(quality) * 255**2 * mse).log().mean())

    stage = dataclasses.replace(loaded.stages[1], steps=60, batch=4, lr=1e-2)
    trainer.begin_stage(stage)
    before = loss()
    for _ in range(stage.steps):
        trainer.train_step(sampler, stage)
    assert loss() < before - 0.01  # on top of a start that is good already


def test_validation_measures_whole_pictures(new_model, photograph):
    model, picture = new_model(), photograph(50, 70)
    (point,) = validate(model, [picture], [50])
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    out = model(model.pad(x), torch.tensor([50.0]))
    back = (out.x_hat[0, :, :50, :70].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    psnr = 10 * np.log10(255**2 / np.mean((back - picture) ** 2))
    assert abs(point["psnr"] - psnr) < 0.01
    assert abs(point["bpp_est"] - float(out.bits) / 3500) < 1e-3


# export


@pytest.fixture
def quick_export(monkeypatch):
    monkeypatch.setattr(exporting, "FIT_CROPS", 8)
    monkeypatch.setattr(fitting, "_ROUNDS", 2)
    monkeypatch.setattr(exporting, "FIT_CROP", 64)


def test_an_exported_model_codes(finished, photograph, tmp_path, monkeypatch):
    path = exporting.export(finished[0], name="mine", out=tmp_path, minutes=None, device="cpu")
    assert path == tmp_path / "mine.safetensors"
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    card = find_model("mine")
    read_files(card)
    raw = tomllib.loads((tmp_path / "mine.toml").read_text("utf-8"))
    assert raw["profile"] == "tiny" and raw["description"] == 'a "quoted" Größe'
    (history,) = raw["training"]
    assert history["steps"] == 9 and history["seed"] == 5 and history["polish_minutes"] == 0
    picture = photograph(70, 100)
    for quality in (0, 60, 100):
        back = codec.decode(codec.encode(picture, model="mine", quality=quality))
        assert back.shape == picture.shape
        error = np.mean((back.astype(float) - picture) ** 2)
        assert error < 0.5 * picture.astype(float).var()
    again = exporting.export(finished[0], name="again", out=tmp_path, device="cpu")
    assert again.read_bytes() == path.read_bytes()


def test_fitted_tables_and_polish_make_better_files(
    finished, pictures, photograph, tmp_path, monkeypatch, quick_export
):
    plain = exporting.export(finished[0], name="plain", out=tmp_path, device="cpu")
    fitted = exporting.export(
        finished[0], name="fitted", out=tmp_path, data=[pictures], device="cpu"
    )
    polished = exporting.export(
        finished[0], name="polished", out=tmp_path, data=[pictures], minutes=0.15, device="cpu"
    )
    assert len({path.read_bytes() for path in (plain, fitted, polished)}) == 3
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    picture = photograph(256, 300)  # one that the tables were fitted on
    files = {
        name: codec.encode(picture, model=name, quality=60)
        for name in ("plain", "fitted", "polished")
    }
    assert len(files["fitted"]) < len(files["plain"])
    assert len(files["polished"]) == len(files["fitted"])  # only g_s has changed
    errors = {n: np.mean((codec.decode(f).astype(float) - picture) ** 2) for n, f in files.items()}
    assert errors["polished"] < errors["fitted"]


def test_tables_are_fitted_to_what_the_lattices_choose(
    finished, pictures, tmp_path, monkeypatch, quick_export
):
    fit, seen = CodingTables.fitted, []

    def spied(tables, counts):
        seen.append((tables.others["e8"].packing.first_bin, counts))
        return fit(tables, counts)

    monkeypatch.setattr(CodingTables, "fitted", spied)
    exporting.export(finished[0], name="x", out=tmp_path, data=[pictures], device="cpu")
    assert len(seen) == fitting._ROUNDS
    for first_bin, found in seen:
        scalars, coordinates = (found[name]["counts"] for name in ("z", "e8"))
        assert scalars.sum() == exporting.FIT_CROPS * 8 * 8 * 24  # all latents, as Z codes them
        assert coordinates[:, 1::2].sum() > 0  # halves
        assert 0 < coordinates.sum() < scalars.sum() and coordinates.sum() % 8 == 0
        assert coordinates[:first_bin].sum() == 0
        for counts in found.values():
            assert (counts["offsets"][counts["counts"] == 0] == 0).all()


def in_half_units(counts):
    """How often each distance from the mean was chosen, in vectors or not."""
    total = np.zeros(1025, int)
    total[::2] += counts["z"]["counts"].sum(0)
    return total + counts["e8"]["counts"].sum(0) if "e8" in counts else total


def test_crops_of_one_quality_are_coded_together(new_model, photograph):
    """As one by one, but for those of a step that fill no lattice vector, and what they lead to."""
    model = new_model()
    model.entropy.freeze()
    model.tables = parametric_tables()
    crops = np.stack([photograph(128, 192, seed=seed) for seed in range(2)])
    crops = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    for lattice, tolerance in (("z", 0), ("e8", 0.03)):
        quantizer = Quantizer(lattice, model.tables)
        found = []
        for parts in ((crops,), (crops[:1], crops[1:])):
            tally = coded.Choices(quantizer)
            latents = [
                coded.quantise(model, coded.analyse(model, part, 70), quantizer, tally)
                for part in parts
            ]
            found.append((torch.cat(latents), tally))
        (together, both), (apart, single) = found
        assert torch.equal(together, apart) == (lattice == "z")
        y = coded.analyse(model, crops, 70).y
        errors = [float((y_hat - y).square().mean()) for y_hat in (together, apart)]
        assert errors[0] == pytest.approx(errors[1], rel=tolerance)
        assert both.bits == pytest.approx(single.bits, rel=max(tolerance / 6, 1e-9))
        counts = [in_half_units(tally.counts) for tally in (both, single)]
        assert np.abs(counts[0] - counts[1]).sum() <= tolerance * counts[1].sum()


def test_a_card_keeps_its_history(finished, recipe, tmp_path):
    run, card = tmp_path / "run", tmp_path / "x.toml"
    exporting.export(finished[0], name="x", out=tmp_path, device="cpu")
    earlier = """
[[training]]
date = 2026-01-02
steps = 7
data = { pictures = 3, names = ["a", "b"] }

[[measured]]
bpp = [1.0]
"""
    card.write_text(card.read_text("utf-8") + earlier, encoding="utf-8")
    exporting.export(finished[0], name="x", out=tmp_path, device="cpu")
    raw = tomllib.loads(card.read_text("utf-8"))
    assert [entry["steps"] for entry in raw["training"]] == [7, 9]  # the same run counts once
    assert raw["training"][0] == tomllib.loads(earlier)["training"][0]
    assert "measured" not in raw
    run.mkdir()
    (run / CHECKPOINT).write_bytes((finished[0] / CHECKPOINT).read_bytes())
    (run / "recipe.toml").write_text("# another\n" + HEAD + STAGES, encoding="utf-8")
    exporting.export(run, name="x", out=tmp_path, device="cpu")
    raw = tomllib.loads(card.read_text("utf-8"))
    assert [entry["steps"] for entry in raw["training"]] == [7, 9, 9]
    card.write_text("no card", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot read the card"):
        exporting.export(run, name="x", out=tmp_path, device="cpu")


def test_export_says_what_is_missing(finished, tmp_path):
    with pytest.raises(UsageError, match="recipe"):
        exporting.export(tmp_path, name="x", out=tmp_path, device="cpu")
    (tmp_path / "recipe.toml").write_bytes((finished[0] / "recipe.toml").read_bytes())
    with pytest.raises(UsageError, match="no checkpoint"):
        exporting.export(tmp_path, name="x", out=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="need pictures"):
        exporting.export(finished[0], name="x", out=tmp_path, minutes=1, device="cpu")
    assert not list(tmp_path.glob("x.*"))


def altered(run, folder, name):
    """A copy of a run whose weights `name` differ."""
    folder.mkdir()
    (folder / "recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    state = weights_of(run)
    state["average"][name].mul_(1.5)
    torch.save(state, folder / CHECKPOINT)
    return folder


def digests(folder):
    """The SHA-256 of all weights files in a folder, by name."""
    return {p.stem: hashlib.sha256(p.read_bytes()).digest() for p in folder.glob("*.safetensors")}


def test_models_share_a_transform(finished, recipe, pictures, photograph, tmp_path, monkeypatch):
    """A richer model grown from a card, its transform left alone, needs no other transform file."""
    path = exporting.export(finished[0], name="base", share="photo", out=tmp_path, device="cpu")
    assert path == tmp_path / "base.safetensors"
    before = digests(tmp_path)
    assert before.keys() == {"photo", "base"}

    text = HEAD.replace("scales = 2", "scales = 2\nseeds = [8]")
    text = f'start_from = "{tmp_path / "base.toml"}"\n' + text
    recipe.write_text(text + STAGES[: STAGES.index("[[stage]]", 10)], encoding="utf-8")
    train(recipe, data=[pictures], out=tmp_path / "run", device="cpu")
    options = {"--name": "rich", "--share": "photo", "--out": str(tmp_path), "--device": "cpu"}
    arguments = [text for option in options.items() for text in option]
    result = CliRunner().invoke(main, ["export", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 0, result.stderr
    after = digests(tmp_path)
    assert after.keys() == {"photo", "base", "rich"} and before.items() <= after.items()

    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    picture = photograph(70, 100)
    for name in ("base", "rich"):
        card = find_model(name)
        read_files(card)
        assert card.raw["weights"] == ["photo.safetensors", f"{name}.safetensors"]
        assert codec.decode(codec.encode(picture, model=name)).shape == picture.shape


def test_a_transform_that_others_need_is_never_changed(
    finished, pictures, tmp_path, monkeypatch, quick_export
):
    models = tmp_path / "models"
    exporting.export(finished[0], name="base", share="photo", out=models, device="cpu")
    other = altered(finished[0], tmp_path / "run", "transform.klt.weight")
    before = digests(models)

    def refused(complaint, run=other, **options):
        with pytest.raises(UsageError, match=complaint):
            exporting.export(run, out=models, device="cpu", **options)
        assert digests(models) == before and len(list(models.iterdir())) == 3

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "fit_to_crops", None)  # refused before anything that takes long
        remedy = (
            r"base' needs the transform in .*choose another --share, or.*start_from = .*base.toml"
        )
        refused(remedy, name="x", share="photo", data=[pictures])
        remedy = (
            "0.01 minutes .* change photo.safetensors, which model 'base' needs; leave --minutes"
        )
        refused(remedy, finished[0], name="x", share="photo", data=[pictures], minutes=0.01)
        refused("'base' needs photo.safetensors as it is; choose another --name", name="photo")
    exporting.export(finished[0], name="same", share="photo", out=models, device="cpu")
    assert digests(models).items() >= before.items()
    for file in models.glob("same.*"):
        file.unlink()
    (models / "photo.safetensors").unlink()
    del before["photo"]
    with pytest.raises(UsageError, match=r"base' needs .*No such file.*put it back or choose"):
        exporting.export(other, name="x", share="photo", out=models, device="cpu")


def test_a_transform_that_no_other_needs_is_replaced(finished, tmp_path, monkeypatch):
    options = {"name": "base", "share": "photo", "out": tmp_path / "models", "device": "cpu"}
    exporting.export(finished[0], **options)
    before = digests(tmp_path / "models")
    other = altered(finished[0], tmp_path / "run", "transform.klt.weight")
    exporting.export(other, **options)
    after = digests(tmp_path / "models")
    assert after["photo"] != before["photo"] and after["base"] == before["base"]
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path / "models"))
    read_files(find_model("base"))


@pytest.mark.parametrize("wrong", ["", "..", "a/b", "/tmp/x", "a\\b"])
def test_names_with_folders_in_them_are_refused(tmp_path, wrong):
    for names in ({"name": wrong}, {"name": "x", "share": wrong}):
        with pytest.raises(UsageError, match="is no name of a file; leave folders to --out"):
            exporting.export(tmp_path, out=tmp_path, device="cpu", **names)
    with pytest.raises(UsageError, match="the model's own name"):
        exporting.export(tmp_path, out=tmp_path, device="cpu", name="x", share="x")


def test_a_card_names_all_files_of_a_model_to_start_from(new_model, tmp_path):
    install(new_model(), tmp_path, "whole")
    install(new_model(), tmp_path, "split", share="photo")
    wanted, found = (read_weights(tmp_path / f"{name}.toml") for name in ("whole", "split"))
    alone = read_weights(tmp_path / "whole.safetensors")
    for name, value in wanted.items():
        assert torch.equal(found[name], value) and torch.equal(alone[name], value)
    for stem, lacking in (("photo", "entropy"), ("split", "transform")):
        with pytest.raises(ModelMismatch, match=f"lack .*{lacking}.*that the model's card lists"):
            read_weights(tmp_path / f"{stem}.safetensors")
    shared = tmp_path / "photo.safetensors"
    shared.write_bytes(shared.read_bytes()[:-1] + b"X")
    with pytest.raises(ModelMismatch, match="digest"):
        read_weights(tmp_path / "split.toml")
    shared.unlink()
    with pytest.raises(ModelNotFound, match=r"cannot read .*photo"):
        read_weights(tmp_path / "split.toml")
    (tmp_path / "recipe.toml").write_text("seed = 1")
    for name, complaint in (("recipe", "has no weights"), ("nothing", "No such file")):
        with pytest.raises(UsageError, match=f"cannot start from .*{name}.toml.*{complaint}"):
            read_weights(tmp_path / f"{name}.toml")


def test_a_model_whose_bound_fails_is_not_exported(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_bytes((finished[0] / "recipe.toml").read_bytes())
    state = weights_of(finished[0])
    state["average"]["entropy.networks.0.0.predictor.weight"].mul_(1000)
    torch.save(state, run / CHECKPOINT)
    with pytest.raises(ModelMismatch, match="neighbours"):
        exporting.export(run, name="x", out=tmp_path, device="cpu")
    assert not list(tmp_path.glob("x.*"))


def test_training_never_loads_the_range_coder():
    code = (
        "import sys, lvqcodec.training.loop, lvqcodec.training.export;"
        "sys.exit('constriction' in sys.modules)"
    )
    package = os.path.dirname(os.path.dirname(lvqcodec.__file__))
    environment = os.environ | {"PYTHONPATH": package}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

# SPDX-License-Identifier: Apache-2.0
"""From a training run to an installable model: integers, fitted tables, a last polish, a card."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvqcodec import __version__, files
from lvqcodec.catalog import is_plain_name, read_card
from lvqcodec.coding.tables import CodingTables, Histograms, fit_tables, parametric_tables
from lvqcodec.config import QUALITIES
from lvqcodec.distortion import LOSS
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.model import CodecModel, LatentQuantizer, Sink
from lvqcodec.quantizer import Quantizer
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.loop import say
from lvqcodec.training.optimizers import group_of, make_optimizers, set_learning_rate
from lvqcodec.training.ranks import choose_device
from lvqcodec.training.recipe import Recipe
from lvqcodec.training.trainer import Trainer
from lvqcodec.weights import pack_parts, pack_weights

_CROP = 256
_FIT_CROPS = 202  # two for each quality
_FIT_ROUNDS = 5  # the choice depends on the tables and the tables on the choice
_FULL_ROUNDS = 2  # the last ones; a quarter of the crops will do for those before


def export(
    run_dir: str | Path,
    *,
    name: str,
    share: str | None = None,
    out: str | Path = "models",
    data: Sequence[str | Path] = (),
    minutes: float | None = None,
    device: str = "auto",
) -> Path:
    """Write `out`/`name`.safetensors and its card from the averaged weights of a run.

    With `share` the transform goes to `out`/`share`.safetensors, for several models to have in
    common; while another card there needs that file it must not change, so that what is exported
    must have been trained with this very transform.
    `data` (folders or tar files) is what the probability rows are fitted on; without it they stay
    those of a logistic distribution. `minutes` of training g_s alone on truly quantised latents
    may follow. A card that is there already is replaced, but for the [[training]] of other recipes:
    the weights may have gone through those too. Returns the path of the weights; raises UsageError.
    """
    if minutes and not data:
        raise UsageError(f"{minutes:g} minutes of training need pictures; name some with --data")
    where = torch.device(choose_device(device))
    folder, target = Path(run_dir), Path(out)
    user = _check_names(target, name, share)
    files.check(target / f"{name}.toml", parents=True)
    if user and minutes:
        raise UsageError(
            f"{minutes:g} minutes of training would change {share}.safetensors, which model"
            f" {user!r} needs; leave --minutes out or choose another --share"
        )
    config = folder / "recipe.toml"
    recipe = Recipe.load(config)
    trainer = Trainer(recipe, where)
    trainer.load(folder)
    model = trainer.average
    model.entropy.freeze()
    model.tables = parametric_tables()
    if user:
        _check_same(target / f"{share}.safetensors", pack_parts(model)[0], user)
    if data:
        sampler = CropSampler(load_pictures(data), device=where)
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        crops = sampler.sample(_FIT_CROPS, _CROP, generator)
        batches = _batches(model, crops)
        for index in range(_FIT_ROUNDS):
            every = 1 if index >= _FIT_ROUNDS - _FULL_ROUNDS else 4
            model.tables, bpp = _fit(model, batches[::every])
            say(f"tables {index + 1}/{_FIT_ROUNDS}: {bpp:.4f} bpp before this fit")
        if minutes:
            polish(model, sampler, generator, minutes=minutes)
    target.mkdir(parents=True, exist_ok=True)
    parts = [pack_weights(model)] if share is None else pack_parts(model)
    names = [f"{part}.safetensors" for part in (share, name) if part is not None]
    card = target / f"{name}.toml"
    entry = _training(trainer, hashlib.sha256(config.read_bytes()).hexdigest()[:16], minutes or 0)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    text = _card(name, names, digest, trainer, [*_earlier(card, entry), entry])
    for file, part in zip(names, parts, strict=True):
        files.write(target / file, part)
        say(f"{target / file}: {len(part) / 2**20:.1f} MiB")
    files.write(card, text.encode())
    return target / names[-1]


def _check_names(folder: Path, name: str, share: str | None) -> str | None:
    """Refuse names that cannot be; return another model in the folder that needs `share`."""
    for option, value in (("--name", name), ("--share", share)):
        if value is not None and not is_plain_name(value):
            raise UsageError(f"{option} {value!r} is no name of a file; leave folders to --out")
    if name == share:
        raise UsageError(f"--share {share!r} is the model's own name; choose another")
    users: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        with suppress(ModelMismatch):  # a broken card needs no file
            if path.stem != name and (card := read_card(path)) is not None:
                users |= {file.stem: card.name for file in card.paths}
    if name in users:
        raise UsageError(
            f"model {users[name]!r} needs {name}.safetensors as it is; choose another --name"
        )
    return users.get(share or "")


def _check_same(path: Path, transform: bytes, user: str) -> None:
    """Refuse to change the shared transform that the model `user` needs."""
    remedy = "choose another --share"
    try:
        if path.read_bytes() == transform:
            return
    except OSError as error:
        raise UsageError(
            f"model {user!r} needs {path}, but it cannot be read ({error.strerror}); put it back"
            f" or {remedy}"
        ) from None
    raise UsageError(
        f"model {user!r} needs the transform in {path}, and this run has another; {remedy}, or"
        f' train nothing but "entropy" and "steps" from start_from = "{path.with_name(user)}.toml"'
    )


@dataclass(frozen=True)
class _Batch:
    """Latents y (B, h * w, C) of crops of `pixels` in all, coded at one quality."""

    y: Tensor
    grid: tuple[int, int]
    quality: int
    pixels: int


@torch.no_grad()
def _batch(model: CodecModel, crops: Tensor, quality: int) -> _Batch:
    """Analyse crops (B, 3, H, W); exact networks take as many as share a quality at once."""
    at = torch.full((len(crops),), float(quality), device=crops.device)
    pixels = len(crops) * crops.shape[2] * crops.shape[3]
    return _Batch(model.analysis(crops, at), model.grid(*crops.shape[-2:]), quality, pixels)


def _batches(model: CodecModel, crops: Tensor) -> list[_Batch]:
    """Spread crops (B, 3, H, W) evenly over the qualities."""
    shares = [crops[quality :: len(QUALITIES)] for quality in QUALITIES]
    return [
        _batch(model, share, q) for q, share in zip(QUALITIES, shares, strict=True) if len(share)
    ]


@torch.no_grad()
def _quantise(model: CodecModel, batch: _Batch, quantizer: Quantizer, sink: Sink) -> Tensor:
    """Return the latents (B, h * w, C) as the codec would code them."""
    at = torch.full((len(batch.y),), float(batch.quality), device=batch.y.device)
    coder = LatentQuantizer(model.targets(batch.y, batch.grid, at), quantizer, sink)
    return model.entropy.code(coder, *batch.grid, at)


class _Tally:
    """A sink that adds up what a quantizer chooses, and its cost."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.histograms = Histograms.empty()
        self.bits = 0.0

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        self.histograms += self.quantizer.histograms(j, bins, residual)
        self.bits += self.quantizer.bits(j, bins)


def _ignore(j: Tensor, bins: Tensor, residual: Tensor) -> None:
    """A sink for those who want the latents alone."""


def _fit(model: CodecModel, batches: Sequence[_Batch]) -> tuple[CodingTables, float]:
    """Refit the tables to what is chosen by the present ones; also the bpp of these, with E8."""
    assert model.tables is not None
    z, e8 = _Tally(Quantizer("z", model.tables)), _Tally(Quantizer("e8", model.tables))
    for tally in (z, e8):
        for batch in batches:
            _quantise(model, batch, tally.quantizer, tally)
    # one set of scalar rows serves both lattices, and with Z^n every bin of it is seen
    counts = np.stack([z.histograms.counts[0], e8.histograms.counts[1]])
    offsets = np.stack([z.histograms.offsets[0], e8.histograms.offsets[1]])
    return fit_tables(Histograms(counts, offsets)), e8.bits / sum(b.pixels for b in batches)


def polish(
    model: CodecModel,
    sampler: CropSampler,
    generator: torch.Generator,
    *,
    minutes: float,
    batch: int = 4,
    lr: float = 2e-4,
) -> None:
    """Train g_s for some minutes on latents as the codec codes them: lattice, RDO and centroids.

    A third of the time goes into coding crops, because a step on what is coded already is several
    times cheaper than coding more.
    """
    start = time.monotonic()

    def progress() -> float:
        return (time.monotonic() - start) / (60 * minutes)

    coded: list[tuple[Tensor, Tensor, Tensor]] = []
    while not coded or progress() < 1 / 3:
        coded += _coded_crops(model, sampler.sample(batch, _CROP, generator), generator)
    model.requires_grad_(False)
    parameters = []
    for name, parameter in model.named_parameters():
        if group_of(name) == "synthesis" or ".inverse_klt." in name:
            parameters.append(parameter.requires_grad_(True))
    optimizers = make_optimizers(model, lr)
    grid = model.grid(_CROP, _CROP)
    step = 0
    while progress() < 1:
        turn = torch.randint(len(coded), (batch,), generator=generator).tolist()
        picked = zip(*(coded[index] for index in turn), strict=True)
        crops, latents, qualities = map(torch.cat, picked)
        mse = (model.synthesis(latents, grid, qualities) - crops).square().mean((1, 2, 3))
        # the logarithm balances the qualities: each counts by its relative error
        loss = torch.log(mse + 1e-6).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizers, lr * max(1 - progress(), 0))
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % 100 == 0:
            say(json.dumps({"polish": step, "log_mse": round(float(loss.detach()), 4)}))
    model.requires_grad_(False)


def _coded_crops(
    model: CodecModel, crops: Tensor, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Code crops (B, 3, H, W) at qualities spread over 0..100: (crop, latents, quality) of each."""
    assert model.tables is not None
    quantizer = Quantizer(model.config.lattice, model.tables)
    strata = torch.arange(len(crops)) + torch.rand(len(crops), generator=generator)
    qualities = (strata * (len(QUALITIES) / len(crops))).long().clamp(max=QUALITIES[-1]).tolist()
    coded = []
    for crop, quality in zip(crops, qualities, strict=True):
        latents = _quantise(model, _batch(model, crop[None], quality), quantizer, _ignore)
        coded.append((crop[None], latents, latents.new_full((1,), float(quality))))
    return coded


def _card(
    name: str,
    weights: Sequence[str],
    digest: str,
    trainer: Trainer,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """The model card: what a reader of the weights must know, as TOML."""
    recipe = trainer.recipe
    lines = {
        "name": name,
        "weights": list(weights),
        "digest": digest,
        "profile": recipe.profile,
        "description": recipe.description,
        "licence": "Apache-2.0",
        "lvqcodec": __version__,
        "parameters": sum(p.numel() for p in trainer.average.parameters()),
        "tune": recipe.tune,
        "loss": f"{LOSS[recipe.tune]}, lmbda = lmbda_min * (lmbda_max / lmbda_min)^(quality / 100)",
        "lmbda_range": [recipe.codec.lmbda_min, recipe.codec.lmbda_max],
    }
    return _toml(lines) + "".join(f"\n[[training]]\n{_toml(entry)}" for entry in history)


def _training(trainer: Trainer, recipe_digest: str, polish_minutes: float) -> dict[str, Any]:
    """What the card says about this run."""
    return {
        "recipe": recipe_digest,
        "date": datetime.date.today().isoformat(),
        "device": f"{trainer.device.type}, {platform.processor() or platform.machine()},"
        f" {torch.get_num_threads()} threads",
        "stages": ", ".join(f"{s.name} {s.steps}" for s in trainer.recipe.stages),
        "steps": trainer.total_steps,
        "minutes": round(trainer.seconds / 60, 1),
        "megapixels": round(trainer.pixels / 1e6),
        "polish_minutes": polish_minutes,
        "seed": trainer.recipe.seed,
    }


def _earlier(card: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The [[training]] of a card that is about to be replaced, without this run's own."""
    try:
        found = tomllib.loads(card.read_text(encoding="utf-8")).get("training", [])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the card {str(card)!r} to extend it: {error}") from None
    if not (isinstance(found, list) and all(isinstance(old, dict) for old in found)):
        raise UsageError(f"[[training]] in {str(card)!r} is no list of tables; mend it first")
    return [old for old in found if old.get("recipe") != entry["recipe"]]


def _toml(values: Mapping[str, Any]) -> str:
    """Write values as lines of TOML."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: Any) -> str:
    """Write a value as TOML does: strings, numbers and truth as JSON."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)

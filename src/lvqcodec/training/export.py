# SPDX-License-Identifier: Apache-2.0
"""From a training run to an installable model: integers, fitted tables, a last polish, a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lvqcodec import files
from lvqcodec.errors import UsageError
from lvqcodec.model.weights import pack_parts
from lvqcodec.training.card import card_text, earlier_entries, training_entry
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.fit_tables import FIT_CROP, FIT_CROPS, first_tables, fit_to_crops
from lvqcodec.training.install import check_names, check_same, install
from lvqcodec.training.loop import say
from lvqcodec.training.polish import polish
from lvqcodec.training.ranks import choose_device
from lvqcodec.training.recipe import RECIPE, Recipe
from lvqcodec.training.trainer import Trainer


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
    user = check_names(target, name, share)
    files.check(target / f"{name}.toml", parents=True)
    if user and minutes:
        raise UsageError(
            f"{minutes:g} minutes of training would change {share}.safetensors, which model"
            f" {user!r} needs; leave --minutes out or choose another --share"
        )
    trainer = Trainer(Recipe.load(folder / RECIPE), where)
    trainer.load(folder)
    model = trainer.average
    model.entropy.freeze()
    model.tables = first_tables(model)
    if user:
        check_same(target / f"{share}.safetensors", pack_parts(model)[0], user)
    if data:
        sampler = CropSampler(load_pictures(data), device=where)
        generator = torch.Generator().manual_seed(trainer.recipe.seed + 1)
        fit_to_crops(model, sampler.sample(FIT_CROPS, FIT_CROP, generator), say)
        if minutes:
            polish(model, sampler, generator, minutes=minutes, crop=FIT_CROP, report=say)
    entry = training_entry(trainer, folder / RECIPE, minutes or 0)
    history = [*earlier_entries(target / f"{name}.toml", entry), entry]

    def card(weights: Sequence[str], digest: str) -> str:
        return card_text(name, weights, digest, trainer, history)

    return install(model, target, card, name=name, share=share)

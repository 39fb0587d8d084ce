# SPDX-License-Identifier: Apache-2.0
"""The card beside a model's weights: what a reader of the weights must know, as TOML."""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
import torch

from lvqcodec import __version__
from lvqcodec.distortion import LOSS
from lvqcodec.errors import UsageError
from lvqcodec.training.trainer import Trainer

MEASURED = "# measured\n"
"""The line of a card behind which is what was measured of its weights, and nothing else."""


def card_text(
    name: str,
    weights: Sequence[str],
    digest: str,
    trainer: Trainer,
    history: Sequence[Mapping[str, Any]],
) -> str:
    """The model card: what a reader of the weights must know, as TOML."""
    recipe = trainer.recipe
    lines: dict[str, Any] = {
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
        "qualities": list(recipe.codec.qualities),
    }
    return tomlkit.dumps({**lines, "training": list(history)})


def training_entry(trainer: Trainer, recipe: Path, polish_minutes: float) -> dict[str, Any]:
    """What the card says about a run of the recipe in a file."""
    return {
        "recipe": hashlib.sha256(recipe.read_bytes()).hexdigest()[:16],
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


def earlier_entries(card: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The [[training]] of a card that is about to be replaced, without this run's own."""
    try:
        found = tomlkit.loads(card.read_text(encoding="utf-8")).unwrap().get("training", [])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the card {str(card)!r} to extend it: {error}") from None
    if not (isinstance(found, list) and all(isinstance(old, dict) for old in found)):
        raise UsageError(f"[[training]] in {str(card)!r} is no list of tables; mend it first")
    return [old for old in found if old.get("recipe") != entry["recipe"]]

# SPDX-License-Identifier: Apache-2.0
"""The training loop: stages of a recipe, bounded by time, resumable, fixed by its seed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvqcodec.errors import UsageError
from lvqcodec.training.checkpoint import CHECKPOINT
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.ranks import join_ranks
from lvqcodec.training.recipe import Recipe
from lvqcodec.training.trainer import Trainer
from lvqcodec.training.validate import validate

Record = dict[str, Any]


def train(
    config: str | Path,
    *,
    data: Sequence[str | Path],
    out: str | Path,
    minutes: float = math.inf,
    device: str = "auto",
    resume: bool = False,
    validation: str | Path | None = None,
    log_seconds: float = 20,
    save_seconds: float = 120,
) -> Record:
    """Train a recipe for at most `minutes` (data loading included) and leave a checkpoint in `out`.

    Returns the summary that is also printed: steps, minutes, crops/s, the share of each phase of a
    step in their time, and last the estimated rate-distortion points on `validation`. With `resume`
    the run continues where it stopped. Every `log_seconds` a record goes to `out`/log.jsonl and
    stderr, and with the first one after every `save_seconds` the checkpoint is replaced. Started by
    torchrun, several processes train together and return the same but for the points.
    """
    start = time.monotonic()
    recipe = Recipe.load(config)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    exists = (folder / CHECKPOINT).exists()  # asked before any other process may have saved
    if exists and not resume:
        raise UsageError(f"{str(folder)!r} holds a run already; add --resume to continue it")
    with join_ranks(device) as (ranks, where):
        trainer = Trainer(recipe, where, ranks)
        sampler = CropSampler(load_pictures(data), device=where)
        if exists:
            trainer.load(folder)
        else:
            trainer.start_from_pictures(sampler)
            if recipe.start_from:
                anew = trainer.load_weights(Path(recipe.start_from))
                if anew and ranks.first:
                    say(f"not in {recipe.start_from}, begun anew: {', '.join(anew)}")
            trainer.fit_linear(sampler)
        pictures = load_pictures([validation]) if validation is not None and ranks.first else []
        if ranks.first:
            say(f"{sampler.total_pixels / 1e6:.0f} megapixels on {ranks.count} x {where}")
            (folder / "recipe.toml").write_bytes(Path(config).read_bytes())
        saved, validated = time.monotonic(), _validations(trainer)
        for record in _run(trainer, sampler, start + 60 * minutes, log_seconds):
            if not ranks.first:
                continue
            _log(folder, record)
            if record["step"] == record["of"] or time.monotonic() - saved >= save_seconds:
                trainer.save(folder)
                saved = time.monotonic()
            if pictures and _validations(trainer) > validated:
                validated = _validations(trainer)
                _log(folder, {"minutes": record["minutes"], **_points(trainer, pictures)})
        summary: Record = {
            "steps": trainer.total_steps,
            "minutes": round(trainer.seconds / 60, 1),
            "finished": trainer.stage is None,
            **trainer.meter.total.report(),
        }
        if ranks.first:
            trainer.save(folder)
            if pictures:
                summary |= _points(trainer, pictures)
            say(json.dumps(summary))
    return summary


def _run(
    trainer: Trainer, sampler: CropSampler, deadline: float, log_seconds: float
) -> Iterator[Record]:
    """Train until the recipe or the time ends; yield records. What is done with them is not timed.

    All processes stop after the same step: the clock of the first one decides.
    """
    logged = time.monotonic()
    stop = trainer.ranks.agree(logged >= deadline)
    while (stage := trainer.stage) is not None and not stop:
        tick = time.monotonic()
        if trainer.stage_step == 0:
            trainer.begin_stage(stage)
        trainer.train_step(sampler, stage)
        ended = trainer.stage_step >= stage.steps
        stop = trainer.ranks.agree(time.monotonic() >= deadline)
        due = ended or stop or tick - logged >= log_seconds
        if due:
            trainer.meter.wait()
        seconds = time.monotonic() - tick
        trainer.seconds += seconds
        trainer.meter.add_time(stage.batch, seconds)
        if due:
            minutes = round(trainer.seconds / 60, 2)
            record: Record = {"stage": stage.name, "step": trainer.stage_step, "of": stage.steps,
                              "minutes": minutes, **trainer.meter.read()}  # fmt: skip
            if ended:
                trainer.stage_index += 1
                trainer.stage_step = 0
            yield record
            logged = time.monotonic()


def _validations(trainer: Trainer) -> int:
    """Return how many validations are due by now, the one at the end apart."""
    every = 60 * trainer.recipe.validate_minutes
    return int(trainer.seconds / every) if every else 0


def _points(trainer: Trainer, pictures: Sequence[np.ndarray]) -> Record:
    return {"validation": validate(trainer.average, pictures, tune=trainer.recipe.tune)}


def _log(folder: Path, record: Record) -> None:
    text = json.dumps(record)
    say(text)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(text + "\n")


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""The training loop: stages of a recipe, bounded by time, resumable, fixed by its seed."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvqcodec import files
from lvqcodec.errors import UsageError
from lvqcodec.interrupts import on_interrupt
from lvqcodec.training.checkpoint import CHECKPOINT
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.ranks import join_ranks
from lvqcodec.training.recipe import RECIPE, Recipe
from lvqcodec.training.trainer import Trainer
from lvqcodec.training.validate import QUALITIES, validate

LogEntry = dict[str, Any]
OnTraining = Callable[[float, str, str], None]
"""Is told the share that is done, 0 to 1, what is at work, and how it goes."""

_STATE_BYTES = 4 * 4  # of a parameter in a checkpoint: itself, its average, two of the optimiser


def train(
    config: str | Path,
    *,
    data: Sequence[str | Path],
    out: str | Path,
    minutes: float = math.inf,
    device: str = "auto",
    resume: bool = False,
    in_all: bool = False,
    validation: str | Path | None = None,
    log_seconds: float = 20,
    save_seconds: float = 120,
    report: OnTraining | None = None,
    started: float | None = None,
) -> LogEntry:
    """Train a recipe for at most `minutes`, all included, and leave a checkpoint in `out`.

    They count from `started` (of time.monotonic), by default from now. 0 minutes leave what
    training would start from; of more that are too few for a single step, UsageError is raised.
    With `in_all` it is the steps that the minutes are for, those before a resumption included.
    Returns the summary that is also printed: steps, minutes, crops/s, the share of each phase of a
    step in their time, and last the estimated rate-distortion points on `validation`. With `resume`
    the run continues where it stopped. Every `log_seconds` a record goes to `out`/log.jsonl and,
    unless there is a `report`, to stderr; with the first one after every `save_seconds` the
    checkpoint is replaced. SIGINT and SIGTERM end it after the step at hand, saved as always:
    `stopped` in the summary names the signal. Started by torchrun, several processes train together
    and return the same but for the points.
    """
    clock = _Clock(minutes, time.monotonic() if started is None else started)
    recipe = Recipe.load(config)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    exists = (folder / CHECKPOINT).exists()  # asked before any other process may have saved
    if exists and not resume:
        raise UsageError(f"{str(folder)!r} holds a run already; add --resume to continue it")
    with join_ranks(device) as (ranks, where):
        trainer = Trainer(recipe, where, ranks)
        size = _STATE_BYTES * sum(parameter.numel() for parameter in trainer.model.parameters())
        files.check(folder / CHECKPOINT, room=size)
        sampler = CropSampler(load_pictures(data, report=_loading(clock, report)), device=where)
        if exists:
            trainer.load(folder)
        else:
            trainer.start_from_pictures(sampler)
            if recipe.start_from:
                anew = trainer.load_weights(Path(recipe.start_from), sampler)
                if anew and ranks.first:
                    say(f"not in {recipe.start_from}, begun anew: {', '.join(anew)}")
            trainer.solve(sampler)
        pictures = load_pictures([validation]) if validation is not None and ranks.first else []
        if pictures and math.isfinite(minutes):
            clock.reserve(_seconds_to_validate(trainer, pictures))
        if in_all:
            clock.restart(trainer.seconds)
        elif ranks.agree(minutes > 0 and clock.over):
            raise UsageError(
                f"{minutes:.3g} minutes are too few: starting takes {clock.seconds / 60:.3g} and"
                f" ending {clock.reserved / 60:.3g}; give more, or fewer pictures"
            )
        if ranks.first:
            say(f"{sampler.total_pixels / 1e6:.0f} megapixels on {ranks.count} x {where}")
            (folder / RECIPE).write_bytes(Path(config).read_bytes())
        saved, validated = time.monotonic(), _validations(trainer)
        with on_interrupt(clock.stop):
            for record in _run(trainer, sampler, clock, log_seconds, report):
                if not ranks.first:
                    continue
                _log(folder, record, silent=report is not None)
                if record["step"] == record["of"] or time.monotonic() - saved >= save_seconds:
                    trainer.save(folder)
                    saved = time.monotonic()
                if pictures and _validations(trainer) > validated and not clock.over:
                    validated = _validations(trainer)
                    points = {"minutes": record["minutes"], **_points(trainer, pictures)}
                    _log(folder, points, silent=report is not None)
            if ranks.first:
                trainer.save(folder)
        summary: LogEntry = {
            "steps": trainer.total_steps,
            "minutes": round(trainer.seconds / 60, 1),
            "finished": trainer.stage is None,
            **trainer.meter.total.report(),
        }
        if clock.stopped_by is not None:
            summary["stopped"] = clock.stopped_by.name
        elif pictures:
            summary |= _points(trainer, pictures)
        if ranks.first:
            say(json.dumps(summary))
    return summary


class _Clock:
    """Says when training is to end, so that all of it is done in so many minutes."""

    def __init__(self, minutes: float, start: float) -> None:
        self._start = start
        self._length = 60 * minutes
        self._longest = 0.0
        self.reserved = 0.0
        self.stopped_by: signal.Signals | None = None

    def stop(self, number: signal.Signals) -> None:
        """End it now, because of a signal."""
        self.stopped_by = number

    def restart(self, seconds: float) -> None:
        """Count from now on, as if so many seconds were over."""
        self._start = time.monotonic() - seconds

    def reserve(self, seconds: float) -> None:
        """Keep some time for what follows the last step."""
        self.reserved += seconds

    def count(self, step_seconds: float) -> None:
        """Learn how long a step takes."""
        self._longest = max(self._longest, step_seconds)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether no step is to be begun any more."""
        end = self._length - self.reserved - self._longest
        return self.stopped_by is not None or self.seconds >= end

    @property
    def share(self) -> float:
        """Of the time, how much is over."""
        return min(self.seconds / self._length, 1.0) if self._length else 1.0


def _loading(clock: _Clock, report: OnTraining | None) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if report is not None:
            report(clock.share, f"loading picture {done} of {total}", "")

    return tell


def _seconds_to_validate(trainer: Trainer, pictures: Sequence[np.ndarray]) -> float:
    """Estimate how long validation takes, by the first of the pictures at one quality."""
    pixels = sum(picture[..., 0].size for picture in pictures)
    start = time.monotonic()
    validate(trainer.average, pictures[:1], QUALITIES[:1], tune=trainer.recipe.tune)
    seconds = time.monotonic() - start
    return seconds * len(QUALITIES) * pixels / pictures[0][..., 0].size


def _run(
    trainer: Trainer,
    sampler: CropSampler,
    clock: _Clock,
    log_seconds: float,
    report: OnTraining | None,
) -> Iterator[LogEntry]:
    """Train until the recipe or the time ends; yield records. What is done with them is not timed.

    All processes stop after the same step: the clock of the first one decides.
    """
    logged = time.monotonic()
    stop = trainer.ranks.agree(clock.over)
    while (stage := trainer.stage) is not None and not stop:
        tick = time.monotonic()
        if trainer.stage_step == 0:
            trainer.begin_stage(stage)
        trainer.train_step(sampler, stage)
        ended = trainer.stage_step >= stage.steps
        clock.count(time.monotonic() - tick)
        stop = trainer.ranks.agree(clock.over)
        due = ended or stop or tick - logged >= log_seconds
        if due:
            trainer.meter.wait()
        seconds = time.monotonic() - tick
        trainer.seconds += seconds
        trainer.meter.add_time(stage.batch, seconds)
        if due:
            minutes = round(trainer.seconds / 60, 2)
            record: LogEntry = {"stage": stage.name, "step": trainer.stage_step, "of": stage.steps,
                              "minutes": minutes, **trainer.meter.read()}  # fmt: skip
            if ended:
                trainer.stage_index += 1
                trainer.stage_step = 0
            if report is not None:
                report(_share(trainer, clock), stage.name, f"loss {record['loss']:.3f}")
            yield record
            logged = time.monotonic()


def _validations(trainer: Trainer) -> int:
    """Return how many validations are due by now, the one at the end apart."""
    every = 60 * trainer.recipe.validate_minutes
    return int(trainer.seconds / every) if every else 0


def _points(trainer: Trainer, pictures: Sequence[np.ndarray]) -> LogEntry:
    return {"validation": validate(trainer.average, pictures, tune=trainer.recipe.tune)}


def _share(trainer: Trainer, clock: _Clock) -> float:
    """How much is done of the recipe or of the time, whichever ends first."""
    steps = sum(stage.steps for stage in trainer.recipe.stages)
    return max(trainer.total_steps / steps, clock.share)


def _log(folder: Path, record: LogEntry, *, silent: bool) -> None:
    text = json.dumps(record)
    if not silent:
        say(text)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(text + "\n")


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""The training loop: stages of a recipe, bounded by time, resumable, fixed by its seed."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvqcodec.errors import UsageError
from lvqcodec.layers import QualityTable, channels_last
from lvqcodec.model import CodecModel
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.init import initialise
from lvqcodec.training.recipe import Recipe, Stage
from lvqcodec.training.transfer import adapt, read_state

CHECKPOINT = "checkpoint.pt"
_LOG_SECONDS = 20
_SAVE_SECONDS = 120
_BINS = 10
_LR_SCALE = {"klt": 1 / 30, "tables": 5.0, "predictor": 0.3, "networks": 1.0}


def group_of(name: str) -> str:
    """Return the trained group (see `recipe.GROUPS`) of a parameter of CodecModel."""
    if name.startswith("entropy."):
        return "entropy"
    if name.startswith("log_step."):
        return "steps"
    if ".klt." in name or ".inverse_klt." in name:
        return "klt"
    return "analysis" if ".analysis" in name else "synthesis"


def _rate_class(name: str, model: nn.Module) -> str:
    owner = model.get_submodule(name.rpartition(".")[0])
    if ".klt." in name or ".inverse_klt." in name:
        return "klt"
    if isinstance(owner, QualityTable):
        return "tables"
    return "predictor" if ".predictor." in name else "networks"


class Trainer:
    """What a checkpoint holds: weights, their average, optimiser, counters, random state."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.model = channels_last(CodecModel(recipe.codec).to(device))
        for stage in recipe.stages:
            if stage.crop % self.model.stride:
                raise UsageError(
                    f"stage {stage.name!r}: crop = {stage.crop} is no multiple of"
                    f" {self.model.stride}, the stride of the transform"
                )
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.reference = torch.zeros(_BINS, device=device)
        self.stage_index = 0
        self.stage_step = 0
        self.total_steps = 0
        self.seconds = 0.0
        self.pixels = 0
        self.optimizer: torch.optim.AdamW | None = None

    # --- a stage ------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage | None:
        """The stage at hand; None when the recipe is finished."""
        stages = self.recipe.stages
        return stages[self.stage_index] if self.stage_index < len(stages) else None

    def begin_stage(self, stage: Stage) -> None:
        """Choose what is trained and build its optimiser."""
        self.model.entropy.set_mode("simulate" if stage.simulate else "float")
        classes: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(group_of(name) in stage.train)
            if parameter.requires_grad:
                classes.setdefault(_rate_class(name, self.model), []).append(parameter)
        groups = [{"params": p, "scale": _LR_SCALE[c]} for c, p in sorted(classes.items())]
        self.optimizer = torch.optim.AdamW(
            groups, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def train_step(self, sampler: CropSampler, stage: Stage) -> dict[str, float]:
        """One step; return what to log."""
        assert self.optimizer is not None
        crops = sampler.sample(stage.batch, stage.crop, self.generator)
        crops = crops.contiguous(memory_format=torch.channels_last)
        strata = torch.arange(stage.batch) + torch.rand(stage.batch, generator=self.generator)
        quality = (strata * (100 / stage.batch)).to(self.device)
        lmbda = self._lmbda(quality)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(stage) * group["scale"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if stage.train == ("entropy",):
                # the distortion is out of reach: save the synthesis
                bits, mse = self.model.rate(crops, quality).bits, torch.zeros_like(quality)
            else:
                out = self.model(crops, quality)
                bits, mse = out.bits, (out.x_hat.float() - crops).square().mean((1, 2, 3))
        bpp = bits / stage.crop**2
        loss = bpp + lmbda * 255**2 * mse
        balanced = (loss / self._reference(loss.detach(), quality)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        balanced.backward()  # type: ignore[no-untyped-call]
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self._update_average()
        self.stage_step += 1
        self.total_steps += 1
        self.pixels += stage.batch * stage.crop**2
        return {"loss": float(loss.detach().log().mean()), "bpp": float(bpp.detach().mean()),
                "mse": float(mse.detach().mean()), "norm": float(norm)}  # fmt: skip

    def _lmbda(self, quality: Tensor) -> Tensor:
        low, high = self.recipe.codec.lmbda_min, self.recipe.codec.lmbda_max
        return low * torch.exp(quality / 100 * math.log(high / low))

    def _learning_rate(self, stage: Stage) -> float:
        progress = self.stage_step / stage.steps
        warm = min(1.0, (self.stage_step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warm * (stage.lr_end + (stage.lr - stage.lr_end) * cosine)

    def _reference(self, loss: Tensor, quality: Tensor) -> Tensor:
        """Running mean of the loss per band of quality: dividing by it, no band starves another."""
        band = (quality * (_BINS / 100)).long().clamp(max=_BINS - 1)
        old = self.reference[band]
        new = torch.where(old == 0, loss, 0.98 * old + 0.02 * loss)
        # a step that is skipped for its gradients must leave no trace here either
        self.reference[band] = torch.where(new.isfinite(), new, old)
        return new

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.stage_step) / (10 + self.stage_step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        trained = [(mean, value) for mean, value in pairs if value.requires_grad]
        torch._foreach_lerp_([m for m, _ in trained], [v for _, v in trained], 1 - decay)

    # --- checkpoints ----------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the checkpoint aside and rename it."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "reference": self.reference,
            "counters": [self.stage_index, self.stage_step, self.total_steps, self.pixels],
            "seconds": self.seconds,
        }
        aside = folder / (CHECKPOINT + ".part")
        torch.save(state, aside)
        os.replace(aside, folder / CHECKPOINT)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same recipe."""
        state = self._read(folder)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"].cpu())
        self.reference = state["reference"]
        self.stage_index, self.stage_step, self.total_steps, self.pixels = state["counters"]
        self.seconds = state["seconds"]
        if self.stage is not None:
            self.begin_stage(self.stage)
            if state["optimizer"] is not None and self.stage_step > 0:
                assert self.optimizer is not None
                self.optimizer.load_state_dict(state["optimizer"])

    def load_weights(self, source: Path) -> None:
        """Start from the averaged weights of another run, or from an exported weights file."""
        state = adapt(read_state(source, CHECKPOINT), self.model)
        self.model.load_state_dict(state)
        self.average.load_state_dict(state)

    def _read(self, folder: Path) -> dict[str, Any]:
        path = folder / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except OSError as error:
            raise UsageError(f"no checkpoint {str(path)!r}: {error.strerror}") from None
        return dict(state)


def train(
    config: str | Path,
    *,
    data: Sequence[str | Path],
    out: str | Path,
    minutes: float = math.inf,
    device: str = "auto",
    resume: bool = False,
    validation: str | Path | None = None,
) -> dict[str, Any]:
    """Train a recipe for at most `minutes` (data loading included) and leave a checkpoint in `out`.

    Returns the summary that is also printed: steps, seconds, crops/s and the estimated
    rate-distortion points on `validation`. With `resume` the run continues where it stopped.
    """
    start = time.monotonic()
    recipe = Recipe.load(config)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    where = torch.device(choose_device(device))
    exists = (folder / CHECKPOINT).exists()
    if exists and not resume:
        raise UsageError(f"{str(folder)!r} holds a run already; add --resume to continue it")
    sampler = CropSampler(load_pictures(data), device=where)
    say(f"{sampler.total_pixels / 1e6:.0f} megapixels on {where}")
    trainer = Trainer(recipe, where)
    if exists:
        trainer.load(folder)
    elif recipe.start_from:
        trainer.load_weights(Path(recipe.start_from))
    else:
        crops = sampler.sample(recipe.init_crops, 256, trainer.generator)
        initialise(trainer.model, crops)
        trainer.average.load_state_dict(trainer.model.state_dict())
    (folder / "recipe.toml").write_bytes(Path(config).read_bytes())

    deadline = start + 60 * minutes
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for record in _run(trainer, sampler, folder, deadline):
            log.write(json.dumps(record) + "\n")
            log.flush()
    trainer.save(folder)
    summary: dict[str, Any] = {
        "steps": trainer.total_steps,
        "minutes": round(trainer.seconds / 60, 1),
        "finished": trainer.stage is None,
    }
    if validation is not None:
        summary["validation"] = validate(trainer.average, load_pictures([validation]))
    say(json.dumps(summary))
    return summary


def _run(
    trainer: Trainer, sampler: CropSampler, folder: Path, deadline: float
) -> Iterator[dict[str, Any]]:
    """Train until the recipe or the time ends; yield log records and save now and then."""
    saved = logged = tick = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    while (stage := trainer.stage) is not None and time.monotonic() < deadline:
        if trainer.stage_step == 0:
            trainer.begin_stage(stage)
        for key, value in trainer.train_step(sampler, stage).items():
            sums[key] = sums.get(key, 0.0) + value
        count += 1
        now = time.monotonic()
        trainer.seconds += now - tick
        tick = now
        ended = trainer.stage_step >= stage.steps
        if ended or now - logged > _LOG_SECONDS:
            record = {"stage": stage.name, "step": trainer.stage_step, "of": stage.steps,
                      "minutes": round(trainer.seconds / 60, 2),
                      "crops_per_s": round(count * stage.batch / (now - logged), 2)}  # fmt: skip
            record |= {k: round(v / count, 5) for k, v in sums.items()}
            say(json.dumps(record))
            yield record
            sums, count, logged = {}, 0, now
        if ended:
            trainer.stage_index += 1
            trainer.stage_step = 0
        if ended or now - saved > _SAVE_SECONDS:
            trainer.save(folder)
            saved = tick = time.monotonic()


@torch.no_grad()
def validate(
    model: CodecModel,
    pictures: Sequence[np.ndarray],
    qualities: Sequence[int] = (5, 25, 50, 75, 95),
) -> list[dict[str, float]]:
    """Return estimated bpp and PSNR of whole pictures, means over the pictures, per quality."""
    device = next(model.parameters()).device
    points = []
    for quality in qualities:
        bpp = psnr = 0.0
        for picture in pictures:
            height, width = picture.shape[:2]
            x = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255
            out = model(model.pad(x), torch.full((1,), float(quality), device=device))
            x_hat = torch.round(out.x_hat[..., :height, :width].clamp(0, 1) * 255) / 255
            bpp += float(out.bits) / (height * width)
            psnr -= 10 * math.log10(max(float((x_hat - x).square().mean()), 1e-10))
        points.append({"quality": quality, "bpp_est": round(bpp / len(pictures), 4),
                       "psnr": round(psnr / len(pictures), 3)})  # fmt: skip
    return points


def choose_device(name: str) -> str:
    """Resolve `auto` to the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""Recipes: a TOML file that says what is trained, in which stages."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvqcodec.config import TUNES, from_table
from lvqcodec.errors import UsageError
from lvqcodec.metrics import MS_SSIM_MIN_SIDE
from lvqcodec.model.codec_model import CodecConfig
from lvqcodec.model.surrogates import SURROGATES

RECIPE = "recipe.toml"
"""The copy in a run folder of the recipe that it follows."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of trained groups and one learning-rate decay (cosine).

    `train` names the groups, see `optimizers.trainable`; the trainer, which has the model, checks.
    `batch` counts the crops of a step, over all processes that train together.
    """

    name: str
    steps: int
    train: tuple[str, ...]
    batch: int = 8
    crop: int = 256
    lr: float = 1e-3
    lr_end: float = 1e-4
    simulate: bool = False
    """Train the context networks with their integer arithmetic simulated."""
    bfloat16: bool = False
    """Convolve in bfloat16 on a CPU, as GPUs always do: quicker where the processor has it."""
    sparse: bool = False
    """Let a random part of the probability model learn in a step: cheaper steps, see
    `EntropyModel.sparse`."""
    qualities: tuple[float, float] = (0.0, 100.0)
    """The range of qualities trained for, evenly; both ends may be the same."""
    surrogate: str = "straight-through"
    """What stands for rounding, of `surrogates.SURROGATES`."""
    loss: str = ""
    """The distortion of this stage, as `Recipe.tune`; by default that."""
    penalty: float = 0.0
    """What `Transform.penalty` weighs beside the loss, which is about 1."""

    def __post_init__(self) -> None:
        _choose(f"stage {self.name!r}: surrogate", self.surrogate, SURROGATES)
        if self.loss:
            _choose(f"stage {self.name!r}: loss", self.loss, TUNES)
        low, high = self.qualities
        if not 0 <= low <= high <= 100:
            raise UsageError(
                f"stage {self.name!r}: qualities = [{low:g}, {high:g}] must rise within 0 to 100"
            )
        if not self.penalty >= 0:
            raise UsageError(f"stage {self.name!r}: penalty = {self.penalty:g} must be at least 0")
        for name in ("steps", "batch", "crop"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"stage {self.name!r}: {name} = {getattr(self, name)} must be at least 1"
                )


@dataclass(frozen=True)
class Recipe:
    """A codec and the stages that train it; `seed` fixes everything random."""

    codec: CodecConfig
    stages: tuple[Stage, ...]
    profile: str = "baseline"
    description: str = ""
    seed: int = 0
    init_crops: int = 400
    ema: float = 0.998
    start_from: str = ""
    """A run folder, weights file or card to start from; what it lacks starts from statistics of the
    data (see `transfer.adapt`)."""
    tune: str = "psnr"
    """The distortion: "psnr" for MSE, "ms-ssim" for 1 - MS-SSIM at about the same rates."""
    validate_minutes: float = 0.0
    """Minutes of training between validations; 0 validates at the end alone."""

    def __post_init__(self) -> None:
        _choose("tune", self.tune, TUNES)
        if not self.validate_minutes >= 0:
            raise UsageError(f"validate_minutes = {self.validate_minutes} must be at least 0")
        for stage in self.stages:
            if (stage.loss or self.tune) == "ms-ssim" and stage.crop < MS_SSIM_MIN_SIDE:
                raise UsageError(
                    f"stage {stage.name!r}: crop = {stage.crop} is too small for MS-SSIM; take at"
                    f" least {MS_SSIM_MIN_SIDE}"
                )

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe; anything missing, unknown or of a wrong type raises UsageError."""
        return cls.from_dict(read_toml(path, "recipe"), f"recipe {str(path)!r}")

    @classmethod
    def from_dict(cls, data: dict[str, Any], what: str) -> Recipe:
        """Build from the plain data of a recipe, called `what` in errors; see `load`."""
        stages = data.get("stage", [])
        if not stages or "stages" in data:
            raise UsageError(f"{what} must list its stages, each as a [[stage]]")
        rest = {name: value for name, value in data.items() if name != "stage"}
        return from_table(cls, {"codec": {}, **rest, "stages": stages}, "recipe")


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Return the plain data of a TOML file, called `what` in errors; raises UsageError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {what} {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{what} {str(path)!r} is no valid TOML: {error}") from None


def _choose(what: str, name: str, choices: Iterable[str]) -> None:
    """Raise UsageError for a name that is none of the choices."""
    if name not in choices:
        raise UsageError(f"{what} = {name!r} is unknown; choose from {', '.join(choices)}")

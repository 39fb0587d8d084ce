# SPDX-License-Identifier: Apache-2.0
"""Recipes: a TOML file that says what is trained, in which stages."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvqcodec.config import CodecConfig
from lvqcodec.errors import UsageError

GROUPS = ("klt", "analysis", "synthesis", "entropy", "steps")
"""What a stage may train: linear path, networks of g_a, of g_s, probability model, steps."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of trained groups and one learning-rate decay (cosine)."""

    name: str
    steps: int
    train: tuple[str, ...]
    batch: int = 8
    crop: int = 256
    lr: float = 1e-3
    lr_end: float = 1e-4
    simulate: bool = False
    """Train the context networks with their integer arithmetic simulated."""
    reset: bool = True
    """Start the optimiser's moments afresh."""


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
    """A run folder whose weights this run starts from, instead of from statistics of the data."""

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe; anything missing, unknown or of a wrong type raises UsageError."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read recipe {str(path)!r}: {error.strerror}") from None
        except ValueError as error:
            raise UsageError(f"recipe {str(path)!r} is no valid TOML: {error}") from None
        stages = tuple(_stage(entry, i) for i, entry in enumerate(data.pop("stage", [])))
        if not stages:
            raise UsageError(f"recipe {str(path)!r} has no [[stage]]")
        codec = CodecConfig.from_dict(data.pop("codec", {}))
        known = {f.name for f in dataclasses.fields(cls)} - {"codec", "stages"}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"unknown setting {unknown[0]!r} in recipe {str(path)!r}")
        return cls(codec=codec, stages=stages, **data)


def _stage(entry: dict[str, Any], index: int) -> Stage:
    known = {f.name for f in dataclasses.fields(Stage)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r} in stage {index}; known: {sorted(known)}")
    missing = {"name", "steps", "train"} - set(entry)
    if missing:
        raise UsageError(f"stage {index} lacks {sorted(missing)[0]!r}")
    wrong = sorted(set(entry["train"]) - set(GROUPS))
    if wrong:
        raise UsageError(f"stage {entry['name']!r} trains {wrong[0]!r}; choose from {GROUPS}")
    return Stage(**{**entry, "train": tuple(entry["train"])})

# SPDX-License-Identifier: Apache-2.0
"""What a codec is made of: one choice on each axis, as strict plain data (stored with the weights)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lvqcodec.errors import UsageError

QUALITIES = range(0, 101)
"""The rate points: 0 (smallest file) .. 100 (best picture)."""


@dataclass(frozen=True)
class TransformConfig:
    """The transform axis: which analysis/synthesis pair and its sizes.

    `width8` and `width16` are the channels of the residual networks at 1/8 and 1/16 resolution; the
    block counts are given for the analysis and the synthesis side.
    """

    name: str = "lapped"
    latent_channels: int = 384
    width8: int = 96
    width16: int = 192
    analysis_blocks8: int = 3
    analysis_blocks16: int = 3
    synthesis_blocks8: int = 4
    synthesis_blocks16: int = 3


@dataclass(frozen=True)
class EntropyConfig:
    """The entropy axis: which probability model and its sizes.

    `scales`, `block` (rows, columns of a subgroup block) and `seeds` (seed groups of
    `seed_channels` channels) fix the order of coding; `hidden`, `trunk` and `depth` are the widths
    and the number of residual layers of the context networks.
    """

    name: str = "msp"
    scales: int = 3
    block: tuple[int, int] = (2, 2)
    seeds: int = 0
    seed_channels: int = 32
    hidden: int = 192
    trunk: int = 128
    depth: int = 2


@dataclass(frozen=True)
class CodecConfig:
    """One composition: transform x lattice x entropy model, and the range of rate points.

    The Lagrangian of quality q is `lmbda_min * (lmbda_max / lmbda_min) ** (q / 100)` in
    bpp + lmbda * 255^2 * MSE, with the MSE of samples in [0, 1].
    """

    transform: TransformConfig = field(default_factory=TransformConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    lattice: str = "e8"
    lmbda_min: float = 4e-4
    lmbda_max: float = 0.6

    def lmbda(self, quality: float) -> float:
        """Return the Lagrange multiplier of a quality in 0..100."""
        return float(self.lmbda_min * (self.lmbda_max / self.lmbda_min) ** (quality / 100))

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CodecConfig:
        """Build from nested plain data; unknown keys and wrong types raise UsageError."""
        return _build(cls, data, "codec")


_T = TypeVar("_T")


def _build(kind: type[_T], data: Any, where: str) -> _T:
    if not isinstance(data, dict):
        raise UsageError(f"[{where}] must be a table, not {data!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r} in [{where}]; known: {', '.join(known)}")
    nested = {"transform": TransformConfig, "entropy": EntropyConfig}
    values: dict[str, Any] = {}
    reference = kind()
    for name, value in data.items():
        if name in nested:
            values[name] = _build(nested[name], value, f"{where}.{name}")
            continue
        default = getattr(reference, name)
        if isinstance(default, tuple) and isinstance(value, list | tuple):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if type(value) is not type(default):
            raise UsageError(
                f"[{where}] {name} = {value!r} must be {type(default).__name__}, like {default!r}"
            )
        values[name] = value
    return kind(**values)

# SPDX-License-Identifier: Apache-2.0
"""What a codec is made of: one choice on each axis, as strict plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lvqcodec.errors import UsageError

QUALITIES = range(0, 101)
"""The rate points: 0 (smallest file) .. 100 (best picture)."""

EFFORTS = range(0, 10)
"""How long to search for a smaller file: not at all .. longest."""

METRICS = ("psnr", "ms-ssim")
"""What pictures are judged by."""

TUNES = METRICS
"""What a codec or a file may be tuned for."""


@dataclass(frozen=True)
class TransformConfig:
    """The transform axis: which analysis/synthesis pair and its sizes.

    `analysis` and `synthesis` are the levels of their networks, in order, each as
    (pixels per position and direction, channels, residual blocks).
    """

    name: str = "lapped"
    latent_channels: int = 192
    analysis: tuple[tuple[int, int, int], ...] = ((4, 48, 2), (8, 96, 3))
    synthesis: tuple[tuple[int, int, int], ...] = ((8, 96, 3), (4, 48, 2))


@dataclass(frozen=True)
class EntropyConfig:
    """The entropy axis: which probability model and its sizes.

    `scales`, `block` (rows, columns of a subgroup block) and `seeds` (channels of each seed group)
    fix the order of coding; the first `linear` channels are predicted from each other's neighbours
    by a matrix; `hidden`, `trunk` and `depth` are the widths and the number of residual layers of
    the context networks.
    """

    name: str = "msp"
    scales: int = 4
    block: tuple[int, int] = (2, 2)
    seeds: tuple[int, ...] = ()
    linear: int = 96
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
        return from_table(cls, data, "codec")


_T = TypeVar("_T")


def from_table(kind: type[_T], data: Any, where: str) -> _T:
    """Build the dataclass `kind` from the plain data of the table [where].

    Whatever is missing, unknown or of a wrong type raises UsageError.
    """
    if not isinstance(data, dict):
        raise UsageError(f"[{where}] must be a table, not {data!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise UsageError(f"unknown setting {name!r} in [{where}]; known: {', '.join(known)}")
    for name, entry in known.items():
        required = entry.default is entry.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UsageError(f"[{where}] lacks {name!r}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, where, name) for name, value in data.items()})


def _value(kind: Any, value: Any, where: str, name: str) -> Any:
    """Check one value of a table; lists become tuples and whole numbers floats where wanted."""
    if dataclasses.is_dataclass(kind):
        return from_table(kind, value, f"{where}.{name}")  # type: ignore[arg-type]
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            return tuple(_value(k, v, where, name) for k, v in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        wanted = kind if get_origin(kind) else kind.__name__
        raise UsageError(f"[{where}] {name} = {value!r} must be of type {wanted}")
    return value

# SPDX-License-Identifier: Apache-2.0
"""What a codec is made of, as strict plain data: tables to dataclasses, checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
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


_MOST = 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class AxisConfig(ABC):
    """What a class of the transform or the entropy axis is made with: its `Config`, plain data.

    A subclass gives `name` its default, which is that in the registry, and adds whole numbers,
    tuples of them, or the `Config` of another class, which `from_table` chooses. Each number is 0
    to 1024, or as a `limited` field has it: in a weights file they say what is built before there
    is a tensor to compare with. Raises UsageError for others.
    """

    name: str

    def __post_init__(self) -> None:
        for entry in fields(self):
            most = entry.metadata.get("most", _MOST)
            length = entry.metadata.get("length", _MOST)
            _check_sizes(entry.name, getattr(self, entry.name), most, length)

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of layers, about: building one takes time, though it may allocate nothing."""


def limited(default: Any, *, most: int = _MOST, length: int = _MOST) -> Any:
    """Return a field of an AxisConfig: numbers up to `most`, in tuples of up to `length`."""
    return field(default=default, metadata={"most": most, "length": length})


def _check_sizes(name: str, value: Any, most: int, length: int) -> None:
    if isinstance(value, tuple):
        _check_sizes(f"the length of {name}", len(value), length, length)
        for inner in value:
            _check_sizes(name, inner, most, length)
    elif isinstance(value, int) and not 0 <= value <= most:
        raise UsageError(f"{name} = {value} is beyond 0..{most}")


def pick(choices: Mapping[str, Callable[..., _T]], name: str) -> Callable[..., _T]:
    """Return the class that an axis has under a name; raises UsageError."""
    if name not in choices:
        raise UsageError(f"unknown {name!r} in [codec]; choose one of {', '.join(choices)}")
    return choices[name]


def from_table(kind: type[_T], data: Any, where: str) -> _T:
    """Build the dataclass `kind` from the plain data of the table [where].

    A field with the metadata "choices", classes by name, holds the `Config` of that one which
    `name` in its table tells, by default its default's. Whatever is missing, unknown or of a wrong
    type raises UsageError.
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
    kinds: dict[str, Any] = get_type_hints(kind)
    for name, entry in known.items():
        if "choices" in entry.metadata:
            kinds[name] = _chosen(entry, data.get(name))
    return kind(**{name: _value(kinds[name], value, where, name) for name, value in data.items()})


def _chosen(entry: dataclasses.Field[Any], table: Any) -> Any:
    """Return the `Config` of the class that a table names, else that of the default."""
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str):  # whatever else is wrong is for the Config to say
        return entry.default_factory
    kind: Any = pick(entry.metadata["choices"], name)
    return kind.Config


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

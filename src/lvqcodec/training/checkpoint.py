# SPDX-License-Identifier: Apache-2.0
"""The one reader and writer of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvqcodec import files
from lvqcodec.catalog import MAX_WEIGHTS, read_card, read_files
from lvqcodec.errors import UsageError
from lvqcodec.model.weights import unpack_weights

CHECKPOINT = "checkpoint.pt"

_KINDS = {
    "model": Mapping,
    "average": Mapping,
    "optimizers": list,
    "generator": Tensor,
    "reference": Tensor,
    "counters": list,
    "seconds": float,
}
"""What is in a checkpoint, see `trainer.Trainer`; the first two hold tensors by name."""


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain data aside, then rename: the old file stays till the new is whole."""
    path = folder / CHECKPOINT
    aside = path.with_suffix(".pt.part")
    try:
        torch.save(state, aside)
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch
        raise UsageError(f"cannot write {str(path)!r}: {error}") from None


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `write_checkpoint` was given, on `device`; raises UsageError.

    It holds everything that a run continues from, of the right types.
    """
    path = folder / CHECKPOINT
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise UsageError(f"{str(path)!r} is no intact checkpoint: it is no regular file")
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise UsageError(f"no checkpoint {str(path)!r}: {error.strerror}") from None
    except (UsageError, MemoryError):
        raise
    except Exception:  # whatever a file that is none makes the reader stumble over
        raise UsageError(f"{str(path)!r} is no intact checkpoint; train again") from None
    if fault := _fault(state):
        raise UsageError(f"{str(path)!r} is no intact checkpoint: {fault}; train again")
    return dict(state)


def _fault(state: object) -> str | None:
    """What is wrong with the content of a checkpoint."""
    if not isinstance(state, Mapping):
        return f"it holds a {type(state).__name__}"
    for name, kind in _KINDS.items():
        if name not in state:
            return f"it lacks {name!r}"
        value = state[name]
        if not isinstance(value, kind):
            return f"{name!r} is a {type(value).__name__}"
        if isinstance(value, Mapping) and not all(
            isinstance(inner, Tensor) for inner in value.values()
        ):
            return f"{name!r} holds what is no tensor"
    counters = state["counters"]
    if len(counters) != 4 or not all(type(count) is int and count >= 0 for count in counters):
        return f"'counters' are {counters}"
    return None


def read_weights(source: Path) -> dict[str, Tensor]:
    """Return the weights of a run folder (its average) or of an exported model.

    Name such a model by its card (.toml) or, if it is a single file, by its weights. Its context
    networks are integers; the equivalent floats are returned. Raises UsageError; ModelMismatch for
    damaged or incomplete weights; ModelNotFound if a file that the card names is missing.
    """
    if source.is_dir():
        return dict(read_checkpoint(source)["average"])
    try:
        return dict(unpack_weights(*_parts(source)).state_dict())
    except OSError as error:
        raise UsageError(f"cannot start from {str(source)!r}: {error.strerror}") from None


def _parts(source: Path) -> list[bytes]:
    """The weights files of the model that a card names, else `source` itself."""
    if source.suffix != ".toml" or not source.is_file():
        return [files.read_regular(source, MAX_WEIGHTS)]
    card = read_card(source)
    if card is None:
        raise UsageError(f"cannot start from {str(source)!r}: it has no weights beside it")
    return read_files(card)

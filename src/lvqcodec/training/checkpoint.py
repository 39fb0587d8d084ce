# SPDX-License-Identifier: Apache-2.0
"""The one reader and writer of checkpoints."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvqcodec.catalog import read_card, verify_digest
from lvqcodec.errors import UsageError
from lvqcodec.weights import unpack_weights

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain data aside and rename them: what is there stays until all is."""
    path = folder / CHECKPOINT
    aside = path.with_suffix(".pt.part")
    try:
        torch.save(state, aside)
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch
        raise UsageError(f"cannot write {str(path)!r}: {error}") from None


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `write_checkpoint` was given, on `device`; raises UsageError."""
    path = folder / CHECKPOINT
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except OSError as error:
        raise UsageError(f"no checkpoint {str(path)!r}: {error.strerror}") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise UsageError(f"{str(path)!r} is no intact checkpoint; train again") from None


def read_weights(source: Path) -> dict[str, Tensor]:
    """Return the weights of a run folder (its average) or of an exported model.

    Such a model is named by its card (.toml) or, where it is all in one, by its weights file. Its
    context networks are integers; their float twins are returned. Raises UsageError; for damaged
    or incomplete weights ModelMismatch; for files that a card names in vain ModelNotFound.
    """
    if source.is_dir():
        return dict(read_checkpoint(source)["average"])
    try:
        return dict(unpack_weights(*(path.read_bytes() for path in _files(source))).state_dict())
    except OSError as error:
        raise UsageError(f"cannot start from {str(source)!r}: {error.strerror}") from None


def _files(source: Path) -> tuple[Path, ...]:
    """The files of the model that a card names, else `source` itself."""
    if source.suffix != ".toml" or not source.is_file():
        return (source,)
    card = read_card(source)
    if card is None:
        raise UsageError(f"cannot start from {str(source)!r}: it has no weights beside it")
    verify_digest(card)
    return card.paths

# SPDX-License-Identifier: Apache-2.0
"""Installed models, loaded: ready to code, on a device."""

from __future__ import annotations

from functools import lru_cache

import torch

from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, find_model, read_files
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.guard import own_torch
from lvqcodec.model.codec_model import (
    CodecModel,
)
from lvqcodec.model.weights import unpack_weights
from lvqcodec.resources.estimate import LARGEST, MemoryFigures

MODEL_ID_BYTES = 4


class LoadedModel:
    """A model on a device, ready to code, with the digest that its files name and what it takes.

    lattice: the one to code with by default; None for that of the model's configuration. Raises
    UsageError for a model in training, ModelMismatch for a lattice that it has no rows for.
    """

    def __init__(
        self,
        model: CodecModel,
        digest: bytes,
        device: torch.device,
        memory: MemoryFigures = LARGEST,
        lattice: str | None = None,
    ) -> None:
        if model.tables is None:
            raise UsageError("a model in training cannot code; export it first")
        self.model = model.to(device)
        self.tables = model.tables
        self.digest = digest[:MODEL_ID_BYTES]
        self.device = device
        self.memory = memory
        self.lattice = lattice or model.config.lattice
        if self.lattice not in self.tables.names:
            raise ModelMismatch(
                f"model has no rows for its default lattice {self.lattice!r}, but for"
                f" {', '.join(self.tables.names)}; mend its card or fit them: lvq refit"
            )


def load_model(name: str = DEFAULT_MODEL, *, device: str = "auto") -> LoadedModel:
    """Return an installed model, from memory if it was loaded before.

    Raises ModelNotFound, ModelMismatch for damaged weights, UsageError for a device that is absent.
    """
    return load_card(find_model(name), find_device(device))


@lru_cache(maxsize=4)
@own_torch()  # a model that is kept must not depend on who asked for it first
def load_card(card: ModelCard, device: torch.device) -> LoadedModel:
    """Return the model of a card, from memory if it was loaded before."""
    model = unpack_weights(*read_files(card))
    return LoadedModel(model, bytes.fromhex(card.digest), device, card.memory, card.lattice)


def find_device(name: str) -> torch.device:
    """Return the device called auto, cpu or cuda; UsageError where it is not available."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UsageError("device 'cuda' is not available here; use 'cpu' or 'auto'")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu or cuda")
    return torch.device(name)

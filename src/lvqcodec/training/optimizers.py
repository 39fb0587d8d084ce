# SPDX-License-Identifier: Apache-2.0
"""Which optimiser moves which parameters of a codec, and how fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lvqcodec.layers import QualityTable
from lvqcodec.training.muon import Muon

_LR_SCALE = {"klt": 1 / 30, "tables": 5.0, "predictor": 0.3, "networks": 1.0, "matrices": 1.5}


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
    if "_pyramid." in name and name.endswith(".weight"):
        return "matrices"
    sums = (".predictor.", ".linear.", ".activity.")
    return "predictor" if any(part in name for part in sums) else "networks"


def make_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Build what moves the parameters of a CodecModel that require gradients.

    Muon moves the matrices of the transform's networks: in a comparison from the same start, it
    was after 100 steps where Adam was not after 150.
    """
    classes: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            classes.setdefault(_rate_class(name, model), []).append(parameter)
    groups = {c: {"params": p, "scale": _LR_SCALE[c]} for c, p in sorted(classes.items())}
    matrices = groups.pop("matrices", None)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon([matrices], lr=lr, momentum=0.95))
    if groups:
        optimizers.append(
            torch.optim.AdamW(
                groups.values(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
            )
        )
    return optimizers


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Set the rate of the next step; every class of parameters has its own share of it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]

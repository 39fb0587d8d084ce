# SPDX-License-Identifier: Apache-2.0
"""Which optimiser moves which parameters of a codec, and how fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.layers import QualityTable
from lvqcodec.training.muon import Muon
from lvqcodec.training.ranks import Ranks

_LR_SCALE = {"klt": 1 / 30, "tables": 5.0, "predictor": 0.3, "networks": 1.0, "matrices": 1.5}


def trainable(model: CodecModel) -> dict[str, list[nn.Parameter]]:
    """Return the groups of parameters that a stage may name: the parts of both axes, and "steps".

    These are the steps by quality.
    """
    groups: dict[str, Sequence[nn.Module]] = {
        **model.transform.parts(),
        **model.entropy.parts(),
        "steps": [model.log_step],
    }
    return {
        name: [parameter for module in modules for parameter in module.parameters()]
        for name, modules in groups.items()
    }


def _rate_class(name: str, model: CodecModel) -> str:
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, QualityTable):
        return "tables"
    axis, _, inner = name.partition(".")
    return (model.transform if axis == "transform" else model.entropy).rate_class(inner)


def make_optimizers(
    model: CodecModel, lr: float, ranks: Ranks | None = None
) -> list[torch.optim.Optimizer]:
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
        optimizers.append(Muon([matrices], lr=lr, momentum=0.95, ranks=ranks))
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

# SPDX-License-Identifier: Apache-2.0
"""Start one codec from another: the same networks, or the same with more channel groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lvqcodec.entropy.msp import channel_groups
from lvqcodec.errors import UsageError
from lvqcodec.model import CodecModel


def adapt(state: Mapping[str, Tensor], model: CodecModel) -> dict[str, Tensor]:
    """Fit the weights of another codec to `model`, which may have more channel groups.

    A head over all channels is split among the groups, and what a group sees of earlier ones counts
    for nothing at first, so the grown model begins exactly as good as the one it came from.
    Raises UsageError where the two differ in anything else.
    """
    wanted = model.state_dict()
    channels = model.entropy.channels
    groups = channel_groups(model.entropy.config, channels)
    result: dict[str, Tensor] = {}
    for name, value in wanted.items():
        source = state.get(name)
        if ".heads." in name and (source is None or source.shape != value.shape):
            before, _, after = name.partition(".heads.")
            index, _, part = after.partition(".")
            group = groups[int(index)]
            whole = state.get(f"{before}.heads.0.{part}")
            dim = 0 if part == "weight" else 1  # weight (2 C, hidden), bias rows (nodes, 2 C)
            if whole is not None and whole.shape[dim] == 2 * channels:
                halves = torch.unflatten(whole, dim, (2, channels))
                source = halves.narrow(dim + 1, group.start, group.stop - group.start)
                source = source.flatten(dim, dim + 1)
        elif ".seed_inputs." in name and source is None:
            source = torch.zeros_like(value)
        if source is None or source.shape != value.shape:
            raise UsageError(f"cannot start from weights whose {name!r} differs; train from data")
        result[name] = source
    return result

# SPDX-License-Identifier: Apache-2.0
"""Start one codec from another: the same networks, or some of them grown or new."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lvqcodec.entropy.msp import channel_groups
from lvqcodec.errors import UsageError
from lvqcodec.model import CodecModel


def adapt(state: Mapping[str, Tensor], model: CodecModel) -> tuple[dict[str, Tensor], list[str]]:
    """Fit the weights of another codec to `model`: its state, and the parts that begin anew in it.

    A probability model may have more channel groups: a head over all channels is split among them,
    and what a group sees of earlier ones counts for nothing at first, so the grown model begins
    exactly as good as the one it came from. Each pyramid of the transform, and the probability
    model, stays as it is in `model` where its sizes differ in any other way.
    Raises UsageError where anything else differs.
    """
    wanted = model.state_dict()
    found = {name: _find(name, value, state, model) for name, value in wanted.items()}
    anew = sorted({_part(name) for name, value in found.items() if value is None})
    if "" in anew:
        name = next(n for n, value in found.items() if value is None and not _part(n))
        raise UsageError(f"cannot start from weights whose {name!r} differs; train from data")
    result: dict[str, Tensor] = {}
    for name, value in found.items():
        result[name] = wanted[name] if value is None or _part(name) in anew else value
    return result, anew


def _part(name: str) -> str:
    """Return which part of a codec that may begin anew a parameter belongs to, if any."""
    before, pyramid, _ = name.partition("_pyramid.")
    if pyramid:
        return f"{before}_pyramid"
    return "entropy" if name.startswith("entropy.") else ""


def _find(
    name: str, wanted: Tensor, state: Mapping[str, Tensor], model: CodecModel
) -> Tensor | None:
    """Return what `state` has for a parameter of `model`, grown where it must be; None if not."""
    source = state.get(name)
    if source is None and any(
        part in name for part in (".seed_inputs.", ".seed_blocks.", ".seed_scales.")
    ):
        source = wanted if ".inner." in name else torch.zeros_like(wanted)
    elif ".heads." in name and (source is None or source.shape != wanted.shape):
        source = _split_head(name, state, model)
    return source if source is not None and source.shape == wanted.shape else None


def _split_head(name: str, state: Mapping[str, Tensor], model: CodecModel) -> Tensor | None:
    """Cut the share of a channel group out of a head over all channels."""
    before, _, after = name.partition(".heads.")
    index, _, part = after.partition(".")
    channels = model.entropy.channels
    group = channel_groups(model.entropy.config, channels)[int(index)]
    whole = state.get(f"{before}.heads.0.{part}")
    dim = 0 if part == "weight" else 1  # weight (2 C, hidden), bias rows (nodes, 2 C)
    if whole is None or whole.shape[dim] != 2 * channels:
        return None
    halves = torch.unflatten(whole, dim, (2, channels))
    return halves.narrow(dim + 1, group.start, group.stop - group.start).flatten(dim, dim + 1)

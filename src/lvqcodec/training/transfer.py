# SPDX-License-Identifier: Apache-2.0
"""Start one codec from another: the same networks, or some of them grown or new."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lvqcodec.entropy.msp import channel_groups
from lvqcodec.errors import UsageError
from lvqcodec.model import CodecModel
from lvqcodec.transforms.base import NETWORKS

_OF_A_GROUP = re.compile(r"(.*)\.(heads|seed_inputs|seed_blocks|seed_scales)\.(\d+)\.(.*)")


def adapt(state: Mapping[str, Tensor], model: CodecModel) -> tuple[dict[str, Tensor], list[str]]:
    """Fit the weights of another codec to `model`: its state, and the parts that begin anew in it.

    A probability model may have other channel groups, or linear predictors that the other one
    lacked: what a group is told of new seeds, or such a predictor says, counts for nothing at
    first, so with finer groups it begins exactly as good as the one it came from. Each network of
    the transform, and the probability model, stays as it is in `model` where its sizes differ in
    any other way.
    Raises UsageError where anything else differs.
    """
    wanted = model.state_dict()
    try:
        found = {name: _find(name, value, state, model) for name, value in wanted.items()}
    except (LookupError, RuntimeError) as error:
        raise UsageError(f"cannot start from weights that are no codec's: {error}") from None
    parts = {name: _part(name, model) for name in found}
    anew = sorted({parts[name] for name, value in found.items() if value is None})
    if "" in anew:
        name = next(n for n, value in found.items() if value is None and not parts[n])
        raise UsageError(f"cannot start from weights whose {name!r} differs; train from data")
    result: dict[str, Tensor] = {}
    for name, value in found.items():
        result[name] = wanted[name] if value is None or parts[name] in anew else value
    return result, anew


def _part(name: str, model: CodecModel) -> str:
    """Return which part of a codec that may begin anew a parameter belongs to, if any."""
    parts = model.transform.parts()
    networks = [module for part in NETWORKS for module in parts[part]]
    for inner, module in model.transform.named_modules():
        if module in networks and name.startswith(f"transform.{inner}."):
            return f"transform.{inner}"
    return "entropy" if name.startswith("entropy.") else ""


def _find(
    name: str, wanted: Tensor, state: Mapping[str, Tensor], model: CodecModel
) -> Tensor | None:
    """Return what `state` has for a parameter of `model`, grown where it must be; None if not."""
    source = state.get(name)
    if match := _OF_A_GROUP.fullmatch(name):
        source = _of_group(match, wanted, state, model)
    elif source is None and (".linear." in name or ".gate." in name):
        # one factor of the product is zero; if both were, neither would ever learn
        source = torch.zeros_like(wanted) if ".linear." in name else wanted
    return source if source is not None and source.shape == wanted.shape else None


def _of_group(
    match: re.Match[str], wanted: Tensor, state: Mapping[str, Tensor], model: CodecModel
) -> Tensor | None:
    """Put a layer of a channel group together from those of the groups in `state`.

    Of seeds that those did not see it hears nothing yet.
    """
    before, kind, index, part = match.groups()
    edges = [0]
    while (head := state.get(f"{before}.heads.{len(edges) - 1}.weight")) is not None:
        edges.append(edges[-1] + len(head) // 2)
    if edges[-1] != model.entropy.channels:
        return None
    number = int(index) + (kind != "heads")  # the first group has no seeds
    new = channel_groups(model.entropy.config, edges[-1])[number]
    if kind in ("seed_inputs", "seed_blocks"):  # layers between features
        old = bisect.bisect_right(edges, new.start) - 1
        if old == 0:
            return wanted if part.startswith("inner.") else torch.zeros_like(wanted)
        return _widen(state[f"{before}.{kind}.{old - 1}.{part}"], wanted)
    dim = 0 if part == "weight" else 1  # weight (outputs, inputs), bias rows (nodes, outputs)
    if kind == "heads":
        layers = [state[f"{before}.heads.{n}.{part}"] for n in range(len(edges) - 1)]
        both = torch.cat([torch.unflatten(layer, dim, (2, -1)) for layer in layers], dim + 1)
        return both.narrow(dim + 1, new.start, new.stop - new.start).flatten(dim, dim + 1)
    layers = [state[f"{before}.seed_scales.{n}.{part}"] for n in range(len(edges) - 2)]
    shape = (edges[1], wanted.shape[1]) if part == "weight" else (wanted.shape[0], edges[1])
    layers.insert(0, wanted.new_zeros(shape))
    whole = torch.cat([_widen(layer, wanted) if dim == 0 else layer for layer in layers], dim)
    return whole.narrow(dim, new.start, new.stop - new.start)


def _widen(layer: Tensor, wanted: Tensor) -> Tensor:
    """Give a weight (..., inputs) as many inputs as `wanted`; new ones count for nothing."""
    return F.pad(layer, (0, wanted.shape[-1] - layer.shape[-1]))

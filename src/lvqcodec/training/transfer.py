# SPDX-License-Identifier: Apache-2.0
"""Start one codec from another: the same networks, or some of them grown or new."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lvqcodec.errors import UsageError
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.transforms.base import NETWORKS

_ENTROPY = "entropy."
_TRANSFORM = "transform."


def adapt(state: Mapping[str, Tensor], model: CodecModel) -> tuple[dict[str, Tensor], list[str]]:
    """Fit the weights of another codec to `model`: its state, and the parts that begin anew in it.

    What the axes make of another's is their own to say (`Transform.adapt`, `EntropyModel.adapt`).
    Each network of the transform, and the entropy model, stays as it is in `model` where its sizes
    differ in any other way.
    Raises UsageError where anything else differs.
    """
    wanted = model.state_dict()
    taken = {**state, **_of_transform(state, model)}
    found = {name: _same(taken.get(name), value) for name, value in wanted.items()}
    found |= _of_entropy(state, model)
    parts = {name: _part(name, model) for name in found}
    anew = sorted({parts[name] for name, value in found.items() if value is None})
    if "" in anew:
        name = next(n for n, value in found.items() if value is None and not parts[n])
        raise UsageError(f"cannot start from weights whose {name!r} differs; train from data")
    result: dict[str, Tensor] = {}
    for name, value in found.items():
        result[name] = wanted[name] if value is None or parts[name] in anew else value
    return result, anew


def _same(found: Tensor | None, wanted: Tensor) -> Tensor | None:
    return found if found is not None and found.shape == wanted.shape else None


def _of_transform(state: Mapping[str, Tensor], model: CodecModel) -> dict[str, Tensor]:
    """Return what the transform makes of another codec's state."""
    other = {n.removeprefix(_TRANSFORM): v for n, v in state.items() if n.startswith(_TRANSFORM)}
    return {_TRANSFORM + name: value for name, value in model.transform.adapt(other).items()}


def _of_entropy(state: Mapping[str, Tensor], model: CodecModel) -> dict[str, Tensor | None]:
    """Return what the entropy model takes of another codec's state, each None where it cannot."""
    other = {n.removeprefix(_ENTROPY): v for n, v in state.items() if n.startswith(_ENTROPY)}
    try:
        taken = model.entropy.adapt(other)
    except (LookupError, RuntimeError) as error:
        raise UsageError(f"cannot start from weights that are no codec's: {error}") from None
    names = model.entropy.state_dict()
    return {_ENTROPY + name: None if taken is None else taken[name] for name in names}


def _part(name: str, model: CodecModel) -> str:
    """Return which part of a codec that may begin anew a parameter belongs to, if any."""
    parts = model.transform.parts()
    networks = [module for part in NETWORKS for module in parts[part]]
    for inner, module in model.transform.named_modules():
        if module in networks and name.startswith(f"{_TRANSFORM}{inner}."):
            return f"{_TRANSFORM}{inner}"
    return "entropy" if name.startswith(_ENTROPY) else ""

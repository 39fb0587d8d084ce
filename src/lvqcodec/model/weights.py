# SPDX-License-Identifier: Apache-2.0
"""Weights files: safetensors with everything a decoder needs, no pickle anywhere.

    transform.*   float16   networks of g_a and g_s (the only floats between a file and its picture)
    log_step.*    float32   steps by quality
    entropy.*     integers  context networks; the bound of every sum is proved again on loading
    tables.*                probability rows bit for bit, ratios, centroids; own.*: those of priors
The metadata hold the configuration as JSON. A model is one such file or, so that several models
may share a transform, two: one with transform.* alone and no configuration, one with the rest.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lvqcodec.errors import LvqError, ModelMismatch
from lvqcodec.model.codec_model import CodecConfig, CodecModel
from lvqcodec.model.lattices.tables import CodingTables
from lvqcodec.model.layers import channels_last

WEIGHTS_VERSION = "1"
_MAX_LAYERS = 2000  # those of the shipped models are up to 450
_MAX_HEADER = 2**22  # bytes
_AXES = ("transform", "log_step", "entropy", "tables")


def pack_weights(model: CodecModel) -> bytes:
    """Return the bytes of the weights file of a frozen model with fitted tables."""
    return _pack(_transform(model) | _rest(model), model.config)


def pack_parts(model: CodecModel) -> tuple[bytes, bytes]:
    """Return the same as two files: the transform, which models may share, and the rest."""
    return _pack(_transform(model)), _pack(_rest(model), model.config)


def _transform(model: CodecModel) -> dict[str, Tensor]:
    state = model.transform.state_dict()
    return {f"transform.{name}": value.to(torch.float16) for name, value in state.items()}


def _rest(model: CodecModel) -> dict[str, Tensor]:
    if model.tables is None or model.entropy.mode != "exact":
        raise ModelMismatch("only a frozen model with fitted tables can be stored; export it")
    tensors: dict[str, Tensor] = {}
    for name, value in model.log_step.state_dict().items():
        tensors[f"log_step.{name}"] = value.to(torch.float32)
    for name, value in model.entropy.to_integers().items():
        tensors[f"entropy.{name}"] = value
    for name, array in model.tables.to_arrays().items():
        tensors[f"tables.{name}"] = torch.from_numpy(array)
    return tensors


def _pack(tensors: dict[str, Tensor], config: CodecConfig | None = None) -> bytes:
    metadata = {"lvqcodec_weights": WEIGHTS_VERSION}
    if config is not None:
        metadata["config"] = json.dumps(config.to_dict())
    tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}
    data = save_tensors(tensors, metadata)
    # the library leaves the order of metadata to chance; equal models must have equal digests
    header, end = _read_header(data)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file (u64 length, then JSON) and where it ends."""
    end = 8 + int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8:end])), end


def unpack_weights(*parts: bytes) -> CodecModel:
    """Build the model that weights files hold together, in whatever order.

    Raises ModelMismatch if one is damaged or of another version, or if they do not make one model.
    """
    config: Any = None
    axes: dict[str, dict[str, Tensor]] = {axis: {} for axis in _AXES}
    for part in parts:
        tensors, metadata = _unpack(part)
        config = metadata.get("config", config)
        for name, value in tensors.items():
            axis, _, rest = name.partition(".")
            if rest in axes.setdefault(axis, {}):
                raise ModelMismatch(f"{name!r} is in two of the weights files; take one model's")
            axes[axis][rest] = value
    lacking = [axis for axis in _AXES if not axes[axis]]
    if any(name.startswith("own.") for name in axes["tables"]):
        lacking = [axis for axis in lacking if axis != "entropy"]  # it may be these rows alone
    if lacking or config is None:
        raise ModelMismatch(
            f"the weights lack {', '.join(lacking) or 'their configuration'}; give all files that"
            " the model's card lists"
        )
    try:
        tables = CodingTables.from_arrays({k: v.numpy() for k, v in axes["tables"].items()})
        choices = CodecConfig.from_dict(json.loads(config))
        _check_layers(choices)
        with torch.device("meta"):  # shapes alone: every tensor is to be one of the file's
            model = CodecModel(choices, tables)
        for axis, module in (("transform", model.transform), ("log_step", model.log_step)):
            module.load_state_dict({k: v.float() for k, v in axes[axis].items()}, assign=True)
        model.entropy.load_integers(axes["entropy"])
        _check_own_rows(model.entropy.num_own_rows, tables)
    except (LookupError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelMismatch(f"the weights do not fit their configuration ({reason})") from None
    except LvqError as error:
        raise ModelMismatch(str(error)) from None
    model.requires_grad_(False).eval()
    return channels_last(model)


def _check_own_rows(needed: int, tables: CodingTables) -> None:
    """Hold the rows of their own to those that the entropy model needs; raises ModelMismatch."""
    found = 0 if tables.own is None else len(tables.own.sizes)
    if found != needed:
        raise ModelMismatch(
            f"the weights hold {found} rows of their own, not {needed}; install them again"
        )


def _check_layers(config: CodecConfig) -> None:
    """Hold the number of layers, about, to what any model may need; raises ModelMismatch.

    Building one takes time, though it allocates nothing.
    """
    layers = config.transform.layers + config.entropy.layers
    if layers > _MAX_LAYERS:
        raise ModelMismatch(f"{layers} layers in the weights are more than {_MAX_LAYERS}")


def _unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a weights file of this version."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        raise ModelMismatch(
            f"no intact weights file (a header of {length} bytes); install it again"
        )
    try:
        tensors = load_tensors(data)
        metadata = dict(_read_header(data)[0]["__metadata__"])  # the library's needs a path
        version = metadata["lvqcodec_weights"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelMismatch(f"no intact weights file ({error}); install it again") from None
    if version != WEIGHTS_VERSION:
        raise ModelMismatch(f"weights of version {version}, this is version {WEIGHTS_VERSION}")
    return tensors, metadata

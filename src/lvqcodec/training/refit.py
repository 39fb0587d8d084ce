# SPDX-License-Identifier: Apache-2.0
"""An installed model with its probability rows fitted anew: to other pictures or lattices."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import tomlkit
import torch

from lvqcodec import files
from lvqcodec.catalog import ModelCard, find_model, read_files
from lvqcodec.errors import UsageError
from lvqcodec.format.container import LATTICES
from lvqcodec.model.weights import pack_parts, unpack_weights
from lvqcodec.training.card import MEASURED
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.fit_tables import FIT_CROP, FIT_CROPS, fit_to_crops
from lvqcodec.training.install import check_names, install
from lvqcodec.training.loop import say
from lvqcodec.training.ranks import choose_device


def refit(
    model: str,
    *,
    name: str,
    data: Sequence[str | Path],
    lattices: Sequence[str] | None = None,
    out: str | Path = "models",
    device: str = "auto",
) -> Path:
    """Write `out`/`name`.safetensors: the installed `model` with rows fitted to pictures, and card.

    data: folders or tar files. lattices: whose rows are fitted, by default all that the model has
    rows for; one that it has none for gets them, the rows of others stay as they are. Networks and
    transform are those of `model`, and a file of the transform that it shares with others is shared
    by the new one too; but it is another model: no file of one is read with the other.
    Returns the path of the weights. Raises UsageError, also where there is such a model already,
    ModelNotFound and ModelMismatch.
    """
    for lattice in lattices or ():
        if lattice not in LATTICES:
            raise UsageError(f"unknown lattice {lattice!r}; choose from {', '.join(LATTICES)}")
    card, target = find_model(model), Path(out)
    weights = read_files(card)
    made = unpack_weights(*weights)
    shared = len(weights) == 2 and weights[0] == pack_parts(made)[0]
    share = card.paths[0].stem if shared else None
    check_names(target, name, share)
    for path in (target / f"{name}.toml", target / f"{name}.safetensors"):
        if path.exists():
            raise UsageError(f"{str(path)!r} exists; choose another --name or --out")
    files.check(target / f"{name}.toml", parents=True)
    there = target / f"{share}.safetensors"
    if share and there.exists() and there.read_bytes() != weights[0]:
        raise UsageError(f"{str(there)!r} is not the transform of {model!r}; choose another --out")
    where = torch.device(choose_device(device))
    made = made.to(where)
    assert made.tables is not None
    chosen = made.tables.names if lattices is None else tuple(dict.fromkeys(lattices))
    made.tables = made.tables.including(chosen)
    sampler = CropSampler(load_pictures(data), device=where)
    crops = sampler.sample(FIT_CROPS, FIT_CROP, torch.Generator().manual_seed(0))
    fit_to_crops(made, crops, say, chosen)
    entry = {
        "refit": list(chosen),
        "of": card.digest,
        "date": datetime.date.today().isoformat(),
        "megapixels": round(sampler.total_pixels / 1e6, 1),
    }
    return install(made, target, lambda *of: _card(card, name, entry, *of), name=name, share=share)


def _card(
    card: ModelCard, name: str, entry: dict[str, object], weights: Sequence[str], digest: str
) -> str:
    """The card of the model it came from, but for what no longer holds."""
    text = card.paths[-1].with_name(f"{card.name}.toml").read_text(encoding="utf-8")
    document = tomlkit.parse(text.partition(MEASURED)[0])
    document |= {"name": name, "weights": list(weights), "digest": digest}
    if "training" not in document:
        document["training"] = tomlkit.aot()
    document["training"].append(tomlkit.item(entry))
    return tomlkit.dumps(document)

# SPDX-License-Identifier: Apache-2.0
"""Weights and card put into a folder of models, where no other model is harmed by them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lvqcodec import files
from lvqcodec.catalog import is_plain_name, read_card
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.weights import pack_parts, pack_weights
from lvqcodec.training.loop import say

Card = Callable[[Sequence[str], str], str]
"""Makes the text of a card of the names of its weights files and of their digest in hex."""


def install(
    model: CodecModel, folder: Path, card: Card, *, name: str, share: str | None = None
) -> Path:
    """Write the weights of a frozen model and last its card; return the path of its weights.

    With `share` the transform goes to a file of that name. What is there is replaced, see
    `check_names` and `check_same`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [pack_weights(model)] if share is None else pack_parts(model)
    names = [f"{part}.safetensors" for part in (share, name) if part is not None]
    text = card(names, hashlib.sha256(b"".join(parts)).hexdigest())
    for file, part in zip(names, parts, strict=True):
        files.write(folder / file, part)
        say(f"{folder / file}: {len(part) / 2**20:.1f} MiB")
    files.write(folder / f"{name}.toml", text.encode())
    return folder / names[-1]


def check_names(folder: Path, name: str, share: str | None) -> str | None:
    """Refuse names that cannot be; return another model in the folder that needs `share`."""
    for option, value in (("--name", name), ("--share", share)):
        if value is not None and not is_plain_name(value):
            raise UsageError(f"{option} {value!r} is no name of a file; leave folders to --out")
    if name == share:
        raise UsageError(f"--share {share!r} is the model's own name; choose another")
    users: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        with suppress(ModelMismatch):  # a broken card needs no file
            if path.stem != name and (card := read_card(path)) is not None:
                users |= {file.stem: card.name for file in card.paths}
    if name in users:
        raise UsageError(
            f"model {users[name]!r} needs {name}.safetensors as it is; choose another --name"
        )
    return users.get(share or "")


def check_same(path: Path, transform: bytes, user: str) -> None:
    """Refuse to change the shared transform that the model `user` needs."""
    remedy = "choose another --share"
    try:
        if path.read_bytes() == transform:
            return
    except OSError as error:
        raise UsageError(
            f"model {user!r} needs {path}, but it cannot be read ({error.strerror}); put it back"
            f" or {remedy}"
        ) from None
    raise UsageError(
        f"model {user!r} needs the transform in {path}, and this run has another; {remedy}, or"
        f' train nothing but "entropy" and "steps" from start_from = "{path.with_name(user)}.toml"'
    )

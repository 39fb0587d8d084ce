# SPDX-License-Identifier: Apache-2.0
"""Which models are installed: cards `<name>.toml`, each beside its weights.

A card has at least `name`, `digest`, `profile` and `description`. The weights are one file,
`<name>.safetensors`, or those that the card lists, so that models may have some in common:

    weights = ["photo.safetensors", "normal.safetensors"]

These are names in the card's own folder. `digest` is the SHA-256, in hex, of the bytes of the
files one after the other, in this order. `lattice`, if there is one, is the default of encoders.
What coding with the model takes is in a table, of which any number may be left out, see
`resources.estimate.MemoryFigures`:

    [memory]
    base = 440401920
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvqcodec import files
from lvqcodec.config import QUALITIES, from_table
from lvqcodec.errors import ModelMismatch, ModelNotFound, UsageError
from lvqcodec.resources.estimate import MemoryFigures

DEFAULT_MODEL = "normal"
MODEL_PATH_VARIABLE = "LVQ_MODEL_PATH"
MAX_WEIGHTS = 2**30
"""Bytes of the largest weights file that is read."""

_PACKAGE = Path(__file__).resolve().parent
_SUFFIX = ".safetensors"
_MAX_CARD = 2**20  # bytes
# in no folder, on no system: a card must not reach outside its own
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\:]+")


@dataclass(frozen=True)
class ModelCard:
    """A model's card: `digest` in lower-case hex, `paths` of its weights, `raw` the whole TOML.

    qualities: those that its weights are for, [first, last] in the card, by default all.
    lattice: the default one; None: that of the weights.
    memory: what coding with it takes, a table of the card.
    """

    name: str
    digest: str
    profile: str
    description: str
    paths: tuple[Path, ...]
    qualities: range
    lattice: str | None
    memory: MemoryFigures
    raw: dict[str, Any] = field(repr=False, compare=False)


def list_models() -> list[ModelCard]:
    """Return the installed models by name; the first directory that has a name wins.

    Directories are those of LVQ_MODEL_PATH, then the package's own. The weights themselves are
    not looked at. Models whose cards are broken are left out; `broken_models` has them.
    """
    return [card for card in _survey().values() if isinstance(card, ModelCard)]


def broken_models() -> dict[str, ModelMismatch]:
    """Return what is wrong with the cards that `list_models` leaves out, by name."""
    return {name: card for name, card in _survey().items() if isinstance(card, ModelMismatch)}


def _survey() -> dict[str, ModelCard | ModelMismatch]:
    """Read all cards, by name in order; the error stands for one that is broken."""
    found: dict[str, ModelCard | ModelMismatch] = {}
    for directory in _search_path():
        for path in directory.glob("*.toml"):
            if path.stem in found:
                continue
            try:
                card: ModelCard | ModelMismatch | None = read_card(path)
            except ModelMismatch as error:
                card = error
            if card is not None:
                found[path.stem] = card
    return {name: found[name] for name in sorted(found)}


def find_model(name: str) -> ModelCard:
    """Return the model of that name; raises ModelNotFound, ModelMismatch if its card is broken."""
    cards = _survey()
    card = cards.get(name)
    if card is None:
        raise ModelNotFound(f"no model {name!r}; {_installed(cards)}")
    if isinstance(card, ModelMismatch):
        raise card
    return card


def find_by_digest(prefix: bytes) -> ModelCard:
    """Return the model whose digest begins with these bytes; raises ModelNotFound."""
    cards = _survey()
    for card in cards.values():
        if isinstance(card, ModelCard) and bytes.fromhex(card.digest).startswith(prefix):
            return card
    raise ModelNotFound(
        f"the model with digest {prefix.hex()}... is needed; put its card (.toml) and weights "
        f"(.safetensors) into a directory named in {MODEL_PATH_VARIABLE} or upgrade lvqcodec; "
        f"{_installed(cards)}"
    )


def read_files(card: ModelCard) -> list[bytes]:
    """Return the bytes of the weights files, which are those that the card was written for.

    Raises ModelMismatch if their digest differs, ModelNotFound where they cannot be read.
    """
    sha256, parts = hashlib.sha256(), []
    for path in card.paths:
        try:
            parts.append(files.read_regular(path, MAX_WEIGHTS))
            sha256.update(parts[-1])
        except OSError as error:
            raise ModelNotFound(
                f"cannot read {path}: {error.strerror}; model {card.name!r} needs it, put it there"
            ) from error
    digest = sha256.hexdigest()
    if digest != card.digest:
        names = " + ".join(map(str, card.paths))
        raise ModelMismatch(
            f"{names} has digest {digest[:16]}..., its card says {card.digest[:16]}...: "
            "install the model again"
        )
    return parts


def read_card(path: Path) -> ModelCard | None:
    """Read the card `path`; None for a TOML file that is none, as no weights belong to it.

    Raises ModelMismatch for a broken card.
    """
    own = path.with_suffix(_SUFFIX)
    try:
        raw = tomllib.loads(files.read_regular(path, _MAX_CARD).decode())
    except (OSError, ValueError, RecursionError) as error:
        if not own.is_file():
            return None
        raise _broken(path, error) from error
    if not (own.is_file() or raw.keys() >= {"weights", "digest"}):
        return None
    try:
        name, digest, profile, description = (
            raw[key] for key in ("name", "digest", "profile", "description")
        )
        for key in ("name", "digest", "profile", "description"):
            if not isinstance(raw[key], str):
                raise ValueError(f"{key} = {raw[key]!r} is no text")
            if not raw[key].isprintable():
                raise ValueError(f"{key} = {raw[key]!r} is not to be printed")
        if name != path.stem:
            raise ValueError(f"name is {name!r}, the file says {path.stem!r}")
        if len(digest) != 64 or len(bytes.fromhex(digest)) != 32:
            raise ValueError(f"digest {digest!r} is no SHA-256")
        paths = tuple(path.with_name(file) for file in _files(raw.get("weights", [own.name])))
        qualities = _qualities(raw.get("qualities", [QUALITIES[0], QUALITIES[-1]]))
        lattice = raw.get("lattice")
        if lattice is not None and not isinstance(lattice, str):
            raise ValueError(f"lattice = {lattice!r} is no name")
        memory = from_table(MemoryFigures, raw.get("memory", {}), "memory")
    except KeyError as error:
        raise ModelMismatch(f"model card {path} lacks {error}: install the model again") from error
    except (ValueError, TypeError, UsageError) as error:
        raise _broken(path, error) from error
    return ModelCard(
        name, digest.lower(), profile, description, paths, qualities, lattice, memory, raw
    )


def is_plain_name(name: object) -> bool:
    """Whether `name` may be that of a model or file: text that leads into no other folder."""
    return isinstance(name, str) and name.isprintable() and bool(_PLAIN_NAME.fullmatch(name))


def _files(names: object) -> list[str]:
    if not isinstance(names, list) or not names:
        raise ValueError(f"weights = {names!r} is no list of files")
    for name in names:
        if not (is_plain_name(name) and name.endswith(_SUFFIX)):
            raise ValueError(f"weights {name!r} is no name of a {_SUFFIX} file in its own folder")
    return names


def _qualities(ends: object) -> range:
    whole = isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends)
    if not (whole and QUALITIES[0] <= ends[0] <= ends[1] <= QUALITIES[-1]):  # type: ignore[index]
        raise ValueError(f"qualities = {ends!r} are not two that rise within 0 to 100")
    return range(ends[0], ends[1] + 1)  # type: ignore[index]


def _broken(path: Path, error: Exception) -> ModelMismatch:
    return ModelMismatch(f"model card {path} is broken: {error}")


def _search_path() -> list[Path]:
    named = os.environ.get(MODEL_PATH_VARIABLE, "").split(os.pathsep)
    own = _PACKAGE / "models"  # in a wheel; in a source checkout they lie at its root
    if not own.is_dir():
        own = _PACKAGE.parents[1] / "models"
    return [*(Path(directory) for directory in named if directory), own]


def _installed(cards: Mapping[str, ModelCard | ModelMismatch]) -> str:
    """Say what there is and where it was looked for, and what is wrong with it."""
    names = ", ".join(n for n, card in cards.items() if isinstance(card, ModelCard)) or "none"
    places = ", ".join(str(directory) for directory in _search_path())
    faults = "".join(f"; {card}" for card in cards.values() if isinstance(card, ModelMismatch))
    return f"installed: {names} (in {places}){faults}"

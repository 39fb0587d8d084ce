# SPDX-License-Identifier: Apache-2.0
"""Which models are installed: cards `<name>.toml`, each beside its weights.

A card has at least `name`, `digest`, `profile` and `description`. The weights are one file,
`<name>.safetensors`, or those that the card lists, so that models may have some in common:

    weights = ["photo.safetensors", "normal.safetensors"]

These are names in the card's own folder. `digest` is the SHA-256, in hex, of the bytes of the
files one after the other, in this order.
"""

import errno
import hashlib
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvqcodec.errors import ModelMismatch, ModelNotFound

DEFAULT_MODEL = "normal"
MODEL_PATH_VARIABLE = "LVQ_MODEL_PATH"

_PACKAGE = Path(__file__).resolve().parent
_SUFFIX = ".safetensors"
# in no folder, on no system: a card must not reach outside its own
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\:\x00-\x1f]+")


@dataclass(frozen=True)
class ModelCard:
    """A model's card: `digest` in lower-case hex, `paths` of its weights, `raw` the whole TOML."""

    name: str
    digest: str
    profile: str
    description: str
    paths: tuple[Path, ...]
    raw: dict[str, Any] = field(repr=False, compare=False)


def list_models() -> list[ModelCard]:
    """Return the installed models by name; the first directory that has a name wins.

    Directories are those of LVQ_MODEL_PATH, then the package's own. The weights themselves are
    not looked at. Raises ModelMismatch for a broken card.
    """
    cards: dict[str, ModelCard] = {}
    for directory in _search_path():
        for path in directory.glob("*.toml"):
            if path.stem not in cards and (card := read_card(path)) is not None:
                cards[card.name] = card
    return [cards[name] for name in sorted(cards)]


def find_model(name: str) -> ModelCard:
    """Return the model of that name; raises ModelNotFound."""
    cards = list_models()
    for card in cards:
        if card.name == name:
            return card
    raise ModelNotFound(f"no model {name!r}; {_installed(cards)}")


def find_by_digest(prefix: bytes) -> ModelCard:
    """Return the model whose digest begins with these bytes; raises ModelNotFound."""
    cards = list_models()
    for card in cards:
        if bytes.fromhex(card.digest).startswith(prefix):
            return card
    raise ModelNotFound(
        f"the model with digest {prefix.hex()}... is needed; put its card (.toml) and weights "
        f"(.safetensors) into a directory named in {MODEL_PATH_VARIABLE} or upgrade lvqcodec; "
        f"{_installed(cards)}"
    )


def verify_digest(card: ModelCard) -> None:
    """Hash the weights; raises ModelMismatch if the card differs, ModelNotFound without them."""
    sha256 = hashlib.sha256()
    for path in card.paths:
        try:
            if path.exists() and not path.is_file():  # reading a pipe may take for ever
                raise OSError(errno.EINVAL, "no regular file")
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: sha256)
        except OSError as error:
            raise ModelNotFound(
                f"cannot read {path}: {error.strerror}; model {card.name!r} needs it, put it there"
            ) from error
    digest = sha256.hexdigest()
    if digest != card.digest:
        files = " + ".join(map(str, card.paths))
        raise ModelMismatch(
            f"{files} has digest {digest[:16]}..., its card says {card.digest[:16]}...: "
            "install the model again"
        )


def read_card(path: Path) -> ModelCard | None:
    """Read the card `path`; None for a TOML file that is none, as no weights belong to it.

    Raises ModelMismatch for a broken card.
    """
    own = path.with_suffix(_SUFFIX)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
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
        if name != path.stem:
            raise ValueError(f"name is {name!r}, the file says {path.stem!r}")
        if len(digest) != 64 or len(bytes.fromhex(digest)) != 32:
            raise ValueError(f"digest {digest!r} is no SHA-256")
        paths = tuple(path.with_name(file) for file in _files(raw.get("weights", [own.name])))
    except KeyError as error:
        raise ModelMismatch(f"model card {path} lacks {error}: install the model again") from error
    except (ValueError, TypeError) as error:
        raise _broken(path, error) from error
    return ModelCard(name, digest.lower(), profile, description, paths, raw)


def is_plain_name(name: object) -> bool:
    """Whether `name` may be that of a model or file: text that leads into no other folder."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def _files(names: object) -> list[str]:
    if not isinstance(names, list) or not names:
        raise ValueError(f"weights = {names!r} is no list of files")
    for name in names:
        if not (is_plain_name(name) and name.endswith(_SUFFIX)):
            raise ValueError(f"weights {name!r} is no name of a {_SUFFIX} file in its own folder")
    return names


def _broken(path: Path, error: Exception) -> ModelMismatch:
    return ModelMismatch(f"model card {path} is broken: {error}")


def _search_path() -> list[Path]:
    named = os.environ.get(MODEL_PATH_VARIABLE, "").split(os.pathsep)
    own = _PACKAGE / "models"  # in a wheel; in a source checkout they lie at its root
    if not own.is_dir():
        own = _PACKAGE.parents[1] / "models"
    return [*(Path(directory) for directory in named if directory), own]


def _installed(cards: list[ModelCard]) -> str:
    """Say what there is and where it was looked for."""
    names = ", ".join(card.name for card in cards) or "none"
    places = ", ".join(str(directory) for directory in _search_path())
    return f"installed: {names} (in {places})"

# SPDX-License-Identifier: Apache-2.0
"""Which models are installed: cards `<name>.toml`, each beside its weights `<name>.safetensors`.

A card has at least `name`, `digest` (SHA-256 of the weights file in hex), `profile` and
`description`.
"""

import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvqcodec.errors import ModelMismatch, ModelNotFound

DEFAULT_MODEL = "baseline"
MODEL_PATH_VARIABLE = "LVQ_MODEL_PATH"

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ModelCard:
    """A model's card: `digest` in lower-case hex, `path` of its weights, `raw` the whole TOML."""

    name: str
    digest: str
    profile: str
    description: str
    path: Path
    raw: dict[str, Any] = field(repr=False, compare=False)


def list_models() -> list[ModelCard]:
    """Return the installed models by name; the first directory that has a name wins.

    Directories are those of LVQ_MODEL_PATH, then the package's own. Raises ModelMismatch for a
    broken card.
    """
    cards: dict[str, ModelCard] = {}
    for directory in _search_path():
        for path in directory.glob("*.safetensors"):
            if path.stem not in cards and path.with_suffix(".toml").is_file():
                cards[path.stem] = _read_card(path)
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
        f"the model with digest {prefix.hex()}... is needed; put its .safetensors and .toml "
        f"into a directory named in {MODEL_PATH_VARIABLE} or upgrade lvqcodec; {_installed(cards)}"
    )


def verify_digest(card: ModelCard) -> None:
    """Hash the weights; raises ModelMismatch if the card differs, ModelNotFound without them."""
    try:
        with open(card.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotFound(f"cannot read {card.path}: {error.strerror}") from error
    if digest != card.digest:
        raise ModelMismatch(
            f"{card.path} has digest {digest[:16]}..., its card says {card.digest[:16]}...: "
            "install the model again"
        )


def _search_path() -> list[Path]:
    named = os.environ.get(MODEL_PATH_VARIABLE, "").split(os.pathsep)
    own = _PACKAGE / "models"  # in a wheel; in a source checkout they lie at its root
    if not own.is_dir():
        own = _PACKAGE.parents[1] / "models"
    return [*(Path(directory) for directory in named if directory), own]


def _read_card(weights: Path) -> ModelCard:
    path = weights.with_suffix(".toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        name, digest, profile, description = (
            raw[key] for key in ("name", "digest", "profile", "description")
        )
        if name != weights.stem:
            raise ValueError(f"name is {name!r}, the file says {weights.stem!r}")
        if len(digest) != 64 or len(bytes.fromhex(digest)) != 32:
            raise ValueError(f"digest {digest!r} is no SHA-256")
    except KeyError as error:
        raise ModelMismatch(f"model card {path} lacks {error}: install the model again") from error
    except (OSError, ValueError, TypeError) as error:
        raise ModelMismatch(f"model card {path} is broken: {error}") from error
    return ModelCard(name, digest.lower(), profile, description, weights, raw)


def _installed(cards: list[ModelCard]) -> str:
    """Say what there is and where it was looked for."""
    names = ", ".join(card.name for card in cards) or "none"
    places = ", ".join(str(directory) for directory in _search_path())
    return f"installed: {names} (in {places})"

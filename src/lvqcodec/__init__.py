# SPDX-License-Identifier: Apache-2.0
"""A learned image codec: `encode` a picture to bytes, `decode` it on any machine.

Every public name is resolved on first use (PEP 562), so `import lvqcodec` loads neither numpy
nor torch, and `read_header` and `list_models` never do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvqcodec.catalog import list_models
    from lvqcodec.codec import decode, decode_picture, encode, load_model
    from lvqcodec.errors import LvqError
    from lvqcodec.format.container import read_header
    from lvqcodec.pictures.picture import Picture

__version__ = "0.1.0"
__all__ = [
    "LvqError",
    "Picture",
    "__version__",
    "decode",
    "decode_picture",
    "encode",
    "list_models",
    "load_model",
    "read_header",
]

_HOMES = {
    "LvqError": "errors",
    "Picture": "pictures.picture",
    "decode": "codec",
    "decode_picture": "codec",
    "encode": "codec",
    "list_models": "catalog",
    "load_model": "codec",
    "read_header": "format.container",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

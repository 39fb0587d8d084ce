# SPDX-License-Identifier: Apache-2.0
"""Pictures to bytes and back: where transform, entropy model, coder and container meet.

encode: pad -> analysis -> entropy.code(quantise and write) -> container.pack
decode: container.unpack -> weights by digest -> entropy.code(read) -> CRC check -> synthesis
Both directions walk the same `entropy.code`, so they cannot drift apart.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, find_by_digest, find_model, verify_digest
from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.config import QUALITIES
from lvqcodec.container import (
    MAX_PIXELS,
    MAX_SIDE,
    SECTION_LATENTS,
    Header,
    Section,
    pack,
    unpack,
)
from lvqcodec.entropy.base import MEAN_PARTS, LatentCoder
from lvqcodec.errors import FormatError, StreamError, UnsupportedImage, UsageError
from lvqcodec.model import CodecModel, LatentQuantizer, nearest_bin
from lvqcodec.quantizer import Quantizer
from lvqcodec.weights import unpack_weights

MODEL_ID_BYTES = 4
_CRC = struct.Struct("<I")


class LoadedModel:
    """A model on a device, ready to code, with the digest that its files name."""

    def __init__(self, model: CodecModel, digest: bytes, device: torch.device) -> None:
        if model.tables is None:
            raise UsageError("a model in training cannot code; export it first")
        self.model = model.to(device)
        self.tables = model.tables
        self.digest = digest[:MODEL_ID_BYTES]
        self.device = device


def load_model(name: str = DEFAULT_MODEL, *, device: str = "auto") -> LoadedModel:
    """Return an installed model, from memory if it was loaded before.

    Raises ModelNotFound, ModelMismatch for damaged weights, UsageError for a device that is absent.
    """
    return _load(find_model(name), _device(device))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # a model that is kept must not depend on who asked for it first
def _load(card: ModelCard, device: torch.device) -> LoadedModel:
    verify_digest(card)
    model = unpack_weights(*(path.read_bytes() for path in card.paths))
    return LoadedModel(model, bytes.fromhex(card.digest), device)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UsageError("device 'cuda' is not available here; use 'cpu' or 'auto'")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu or cuda")
    return torch.device(name)


# --- encode -------------------------------------------------------------------------------------


@torch.inference_mode()
def encode(
    image: NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int = 50,
    lattice: str | None = None,
    effort: int = 0,
    device: str = "auto",
) -> bytes:
    """Compress a picture, uint8 (H, W, 3) sRGB or (H, W) grey, to the bytes of an .lvq file.

    quality: 0 (smallest) .. 100 (best). lattice: "e8", "z" or None for the model's own choice.
    effort: 0, the only level so far. `device` counts when `model` is a name.
    Raises UsageError, UnsupportedImage (type, shape or size), ModelNotFound, ModelMismatch.
    """
    if effort != 0:
        raise UsageError(f"effort {effort} does not exist; the only effort so far is 0")
    header, loaded, quantizer, target = _prepare(image, model, quality, lattice, device)
    encoder = SymbolEncoder()

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        quantizer.write(j.cpu().numpy(), bins.cpu().numpy(), encoder)

    y_hat = _walk(loaded, LatentQuantizer(target, quantizer, sink), header)
    payload = _CRC.pack(_crc(y_hat)) + encoder.finish()
    return pack(header, [Section(SECTION_LATENTS, payload)])


@torch.inference_mode()
def estimate_bits(
    image: NDArray[np.uint8],
    *,
    model: str | LoadedModel = DEFAULT_MODEL,
    quality: int = 50,
    lattice: str | None = None,
    device: str = "auto",
) -> float:
    """Return the model's own estimate of the bits of `encode`'s file, headers left out."""
    header, loaded, quantizer, target = _prepare(image, model, quality, lattice, device)
    bits = 0.0

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        nonlocal bits
        bits += quantizer.bits(j, bins)

    _walk(loaded, LatentQuantizer(target, quantizer, sink), header)
    return bits


def _prepare(
    image: NDArray[np.uint8],
    model: str | LoadedModel,
    quality: int,
    lattice: str | None,
    device: str,
) -> tuple[Header, LoadedModel, Quantizer, Tensor]:
    """Check the arguments and compute the latents: (1, h * w, C) in sixteenths of a step."""
    if quality not in QUALITIES:
        raise UsageError(f"quality {quality!r} is not a whole number in 0..100")
    if not isinstance(image, np.ndarray):
        raise UnsupportedImage(f"a {type(image).__name__} is no picture; give a numpy array")
    grey = image.ndim == 2
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise UnsupportedImage(
            f"an array of {image.dtype} {image.shape} is no picture; give uint8 (H, W, 3) or (H, W)"
        )
    height, width = image.shape[:2]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise UnsupportedImage(
            f"a picture of {width}x{height} is not supported; sides of 1..{MAX_SIDE} and at most"
            f" {MAX_PIXELS} pixels are"
        )
    loaded = load_model(model, device=device) if isinstance(model, str) else model
    quantizer = Quantizer(lattice or loaded.model.config.lattice, loaded.tables)
    header = Header(
        width=width,
        height=height,
        channels=1 if grey else 3,
        quality=int(quality),
        lattice=quantizer.lattice.name,
        model=loaded.digest,
    )
    # a copy, because numpy arrays may be read-only or of negative strides
    x = torch.from_numpy(np.array(image)).to(loaded.device)
    x = x[None].expand(3, -1, -1) if grey else x.permute(2, 0, 1)
    x = loaded.model.pad(x[None].float() / 255).contiguous(memory_format=torch.channels_last)
    return header, loaded, quantizer, loaded.model.analysis(x, _quality(header, loaded))


# --- decode -------------------------------------------------------------------------------------


@torch.inference_mode()
def decode(data: bytes, *, device: str = "auto") -> NDArray[np.uint8]:
    """Decompress the bytes of an .lvq file to uint8 (H, W, 3) or (H, W) for a grey picture.

    Raises FormatError (StreamError) for damaged data, ModelNotFound, ModelMismatch.
    """
    header, sections = unpack(data)
    loaded = _load(find_by_digest(header.model), _device(device))
    y_hat = decode_latents(header, sections[SECTION_LATENTS], loaded)
    model = loaded.model
    grid = model.grid(header.height, header.width)
    x_hat = model.synthesis(y_hat, grid, _quality(header, loaded))
    x_hat = x_hat[0, :, : header.height, : header.width]
    if header.channels == 1:
        x_hat = x_hat.mean(0, keepdim=True)
    pixels = torch.round(x_hat.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[..., 0] if header.channels == 1 else pixels)


def decode_latents(header: Header, payload: bytes, loaded: LoadedModel) -> Tensor:
    """Read the latents (1, h * w, C), in sixteenths of a step, and check their CRC.

    Raises FormatError for a payload that is too short, StreamError if the integers are wrong.
    """
    if len(payload) < _CRC.size:
        raise FormatError(
            f"latents section of {len(payload)} bytes is too short; get the file again"
        )
    quantizer = Quantizer(header.lattice, loaded.tables)
    decoder = SymbolDecoder(payload[_CRC.size :])

    def read(positions: Tensor, channels: slice, mean: Tensor, scale: Tensor) -> Tensor:
        bins = nearest_bin(scale).flatten()
        j = torch.from_numpy(quantizer.read(bins.cpu().numpy(), decoder)).to(bins.device)
        return mean + quantizer.reconstruct(j, bins).to(mean.dtype).reshape(mean.shape)

    y_hat = _walk(loaded, read, header)
    if _crc(y_hat) != _CRC.unpack_from(payload)[0]:
        raise StreamError(
            "the decoded integers do not match their checksum: the file is damaged or was written"
            " with other weights"
        )
    return y_hat


def _walk(loaded: LoadedModel, coder: LatentCoder, header: Header) -> Tensor:
    grid = loaded.model.grid(header.height, header.width)
    return loaded.model.entropy.code(coder, *grid, _quality(header, loaded))


def _quality(header: Header, loaded: LoadedModel) -> Tensor:
    return torch.full((1,), float(header.quality), device=loaded.device)


def _crc(y_hat: Tensor) -> int:
    """CRC-32 of the latents as little-endian 32-bit integers, position by position."""
    whole = (y_hat.cpu() * MEAN_PARTS).to(torch.int32)
    return zlib.crc32(whole.numpy().astype("<i4").tobytes())

# SPDX-License-Identifier: Apache-2.0
"""One picture as one stream: where transform, entropy model, coder and container meet.

to bytes: analyse = pad -> analysis; write = entropy.code(quantise and write) -> container.pack
back: container.unpack -> read = entropy.code(read) -> CRC check; reconstruct = synthesis -> crop
Both directions walk the same `entropy.code`, so they cannot drift apart. What latents to write is
for `effort` to find, which quality for `ratecontrol`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, find_model, verify_digest
from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.config import QUALITIES
from lvqcodec.container import (
    MAX_PIXELS,
    MAX_SIDE,
    SECTION_LATENTS,
    Header,
    Section,
    pack,
)
from lvqcodec.distortion import TUNES, weight
from lvqcodec.entropy.base import MEAN_PARTS, LatentCoder
from lvqcodec.errors import FormatError, StreamError, UnsupportedImage, UsageError
from lvqcodec.metrics import MS_SSIM_MIN_SIDE
from lvqcodec.model import CodecModel, LatentQuantizer, Sink, nearest_bin
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
    return load_card(find_model(name), find_device(device))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # a model that is kept must not depend on who asked for it first
def load_card(card: ModelCard, device: torch.device) -> LoadedModel:
    """Return the model of a card, from memory if it was loaded before."""
    verify_digest(card)
    model = unpack_weights(*(path.read_bytes() for path in card.paths)).requires_grad_(False)
    return LoadedModel(model, bytes.fromhex(card.digest), device)


def find_device(name: str) -> torch.device:
    """Return the device called auto, cpu or cuda; UsageError where it is not available."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UsageError("device 'cuda' is not available here; use 'cpu' or 'auto'")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu or cuda")
    return torch.device(name)


# --- to bytes -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Source:
    """A picture at a quality, ready to be written as often as one likes.

    image: uint8 (H, W, 3) or (H, W); x: the same (1, 3, 8h, 8w) in [0, 1], padded; target: latents
    (1, h * w, C) in sixteenths of a step, as the analysis gives them; tune: one of
    `distortion.TUNES`, what the file is to be good for.
    """

    image: NDArray[np.uint8]
    header: Header
    loaded: LoadedModel
    quantizer: Quantizer
    x: Tensor
    target: Tensor
    tune: str

    @property
    def quality(self) -> Tensor:
        """The quality (1,)."""
        return _quality(self.header, self.loaded)

    @property
    def grid(self) -> tuple[int, int]:
        """Size of the latent grid."""
        return self.loaded.model.grid(self.header.height, self.header.width)

    @property
    def weight(self) -> float:
        """What the distortion of the tune costs in bits a pixel, at this quality."""
        return weight(self.tune, self.loaded.model.config.lmbda(self.header.quality))


@dataclass(frozen=True, eq=False)
class Encoded:
    """The bytes of a file, and the latents (1, h * w, C) in it in sixteenths of a step."""

    data: bytes
    y_hat: Tensor


def check(image: NDArray[np.uint8], quality: int, tune: str = "psnr") -> None:
    """Raise UnsupportedImage or UsageError for what cannot be encoded."""
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
    if tune not in TUNES:
        raise UsageError(f"tune {tune!r} is unknown; choose from {', '.join(TUNES)}")
    if tune == "ms-ssim" and min(height, width) < MS_SSIM_MIN_SIDE:
        raise UsageError(
            f"MS-SSIM takes pictures of at least {MS_SSIM_MIN_SIDE} x {MS_SSIM_MIN_SIDE} pixels,"
            f" not {width} x {height}: tune for psnr"
        )


@torch.inference_mode()
def analyse(
    image: NDArray[np.uint8],
    loaded: LoadedModel,
    quality: int,
    lattice: str | None = None,
    tune: str = "psnr",
) -> Source:
    """Compute the latents of a picture; see `codec.encode` for arguments and errors."""
    check(image, quality, tune)
    quantizer = Quantizer(lattice or loaded.model.config.lattice, loaded.tables)
    grey = image.ndim == 2
    height, width = image.shape[:2]
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
    target = loaded.model.analysis(x, _quality(header, loaded))
    return Source(image, header, loaded, quantizer, x, target, tune)


@torch.inference_mode()
def write(
    source: Source, target: Tensor | None = None, rdo_lambda: Tensor | None = None
) -> Encoded:
    """Quantise the target, by default the source's own, and write it.

    rdo_lambda: for each channel, (1 or h * w, C), by default the quantizer's for all.
    """
    encoder = SymbolEncoder()

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        source.quantizer.write(j.cpu().numpy(), bins.cpu().numpy(), encoder)

    y_hat = _quantise(source, sink, target, rdo_lambda)
    payload = _CRC.pack(_crc(y_hat)) + encoder.finish()
    return Encoded(pack(source.header, [Section(SECTION_LATENTS, payload)]), y_hat)


@torch.inference_mode()
def estimate_bits(source: Source) -> float:
    """Return the model's own estimate of the bits that `write` takes, headers left out."""
    bits = 0.0

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        nonlocal bits
        bits += source.quantizer.bits(j, bins)

    _quantise(source, sink)
    return bits


def _quantise(
    source: Source, sink: Sink, target: Tensor | None = None, rdo_lambda: Tensor | None = None
) -> Tensor:
    target = source.target if target is None else target
    coder = LatentQuantizer(target, source.quantizer, sink, rdo_lambda)
    return _walk(source.loaded, coder, source.header)


# --- and back -----------------------------------------------------------------------------------


@torch.inference_mode()
def reconstruct(header: Header, loaded: LoadedModel, y_hat: Tensor) -> NDArray[np.uint8]:
    """Return the picture of latents (1, h * w, C): uint8 (H, W, 3), or (H, W) for a grey one."""
    x_hat = loaded.model.synthesis(
        y_hat, loaded.model.grid(header.height, header.width), _quality(header, loaded)
    )
    x_hat = x_hat[0, :, : header.height, : header.width]
    if header.channels == 1:
        x_hat = x_hat.mean(0, keepdim=True)
    pixels = torch.round(x_hat.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[..., 0] if header.channels == 1 else pixels)


@torch.inference_mode()
def read(header: Header, payload: bytes, loaded: LoadedModel) -> Tensor:
    """Read the latents (1, h * w, C), in sixteenths of a step, and check their CRC.

    Raises FormatError for a payload that is too short, StreamError if the integers are wrong.
    """
    if len(payload) < _CRC.size:
        raise FormatError(
            f"latents section of {len(payload)} bytes is too short; get the file again"
        )
    quantizer = Quantizer(header.lattice, loaded.tables)
    decoder = SymbolDecoder(payload[_CRC.size :])
    # before anything of the picture's size is allocated: a few bytes can claim any size
    rows, columns = loaded.model.grid(header.height, header.width)
    latents = rows * columns * loaded.model.config.transform.latent_channels
    decoder.require(latents * loaded.tables.least_bits)

    def coder(positions: Tensor, channels: slice, mean: Tensor, scale: Tensor) -> Tensor:
        bins = nearest_bin(scale).flatten()
        j = torch.from_numpy(quantizer.read(bins.cpu().numpy(), decoder)).to(bins.device)
        return mean + quantizer.reconstruct(j, bins).to(mean.dtype).reshape(mean.shape)

    y_hat = _walk(loaded, coder, header)
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

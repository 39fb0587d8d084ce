# SPDX-License-Identifier: Apache-2.0
"""One picture as one stream: where transform, entropy model, coder and container meet.

to bytes, tile by tile: analysis of the pixels around -> write = entropy.code(quantise and write)
back, tile by tile: read = entropy.code(read) -> CRC check; `synthesis` puts the tiles together
Both directions walk the same `entropy.code`, so they cannot drift apart. A small picture is one
tile. What latents to write is for `effort` to find, which quality for `ratecontrol`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvqcodec import tiling
from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, find_model, read_files
from lvqcodec.coding.rangecoder import PartialDecoder, SymbolDecoder, SymbolEncoder
from lvqcodec.config import QUALITIES
from lvqcodec.container import MAX_PIXELS, MAX_SIDE, Header, pack
from lvqcodec.distortion import TUNES, weight
from lvqcodec.entropy.base import LATENT_UNITS
from lvqcodec.errors import FormatError, StreamError, UnsupportedImage, UsageError
from lvqcodec.guard import own_torch
from lvqcodec.likelihood import nearest_bin
from lvqcodec.metrics import MS_SSIM_MIN_SIDE
from lvqcodec.model import CodecModel, LatentQuantizer, Sink, reconstruct
from lvqcodec.quantizer import Quantizer
from lvqcodec.tiling import Tiling, Window
from lvqcodec.weights import unpack_weights

MODEL_ID_BYTES = 4
_CRC = struct.Struct("<I")
_MOST_BYTES = 16  # more than all symbols of a latent can take: 24 + 34 bits, and 14 in a vector


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
@own_torch()  # a model that is kept must not depend on who asked for it first
def load_card(card: ModelCard, device: torch.device) -> LoadedModel:
    """Return the model of a card, from memory if it was loaded before."""
    model = unpack_weights(*read_files(card))
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
class Original:
    """A picture at a quality, uint8 (H, W, 3) or (H, W), ready to be coded tile by tile.

    tune: one of `distortion.TUNES`, what the file is to be good for.
    """

    image: NDArray[np.uint8]
    header: Header
    loaded: LoadedModel
    quantizer: Quantizer
    tiling: Tiling
    tune: str = "psnr"

    def sources(self) -> Iterator[Source]:
        """The tiles in raster order, each analysed when it is its turn; a single one is kept."""
        if len(self.tiling) == 1:
            yield self._only
        else:
            yield from (_analyse(self, index) for index in range(len(self.tiling)))

    @cached_property
    def _only(self) -> Source:
        return _analyse(self, 0)

    @property
    def quality(self) -> Tensor:
        """The quality (1,)."""
        return quality_of(self.header, self.loaded)

    @property
    def weight(self) -> float:
        """What the distortion of the tune costs in bits a pixel, at this quality."""
        return weight(self.tune, self.loaded.model.config.lmbda(self.header.quality))


@dataclass(frozen=True, eq=False)
class Source:
    """A tile of a picture, ready to be written as often as one likes.

    core: its positions; around: these and the margin that the analysis looks at. x: the pixels of
    `around` (1, 3, 8h, 8w) in [0, 1], padded; surroundings: the latents of `around`; target: those
    of the tile, (1, h * w, C) in steps.
    """

    original: Original
    index: int
    core: Window
    around: Window
    x: Tensor
    surroundings: Tensor
    target: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the tile in positions."""
        return self.core.grid


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile as it is in the file, CRC and words, and its latents (1, h * w, C)."""

    payload: bytes
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


def prepare(
    image: NDArray[np.uint8],
    loaded: LoadedModel,
    quality: int,
    lattice: str | None = None,
    tune: str = "psnr",
    tile: int | None = None,
) -> Original:
    """Make a picture ready to be coded; see `codec.encode` for arguments and errors."""
    check(image, quality, tune)
    quantizer = Quantizer(lattice or loaded.model.config.lattice, loaded.tables)
    height, width = image.shape[:2]
    header = Header(
        width=width,
        height=height,
        channels=1 if image.ndim == 2 else 3,
        quality=int(quality),
        lattice=quantizer.lattice.name,
        model=loaded.digest,
        stride=loaded.model.stride,
    )
    tiles = tiling.choose(header, tile)
    narrowest = header.stride * min(s.stop - s.start for s in [*tiles.rows, *tiles.columns])
    if tune == "ms-ssim" and min(height, width, narrowest) < MS_SSIM_MIN_SIDE:
        raise UsageError(
            f"MS-SSIM takes pictures and tiles of at least {MS_SSIM_MIN_SIDE} x {MS_SSIM_MIN_SIDE}"
            f" pixels, not {width} x {height}: tune for psnr"
        )
    return Original(image, header, loaded, quantizer, tiles, tune)


@torch.inference_mode()
def _analyse(original: Original, index: int) -> Source:
    """Compute the latents of a tile; the pixels around it make them those of the whole picture."""
    header, model = original.header, original.loaded.model
    core = original.tiling[index]
    around = core.grown(model.transform.analysis_reach, original.tiling.size)
    pixels = around.pixels(header.height, header.width, header.stride)
    # a copy, because numpy arrays may be read-only or of negative strides
    x = torch.from_numpy(np.array(original.image[pixels])).to(original.loaded.device)
    x = x[None].expand(3, -1, -1) if header.channels == 1 else x.permute(2, 0, 1)
    x = model.pad(x[None].float() / 255).contiguous(memory_format=torch.channels_last)
    surroundings = model.analysis(x, original.quality)
    target = cut(surroundings, around.grid, core.seen_from(around))
    return Source(original, index, core, around, x, surroundings, target)


def cut(y: Tensor, grid: tuple[int, int], window: Window) -> Tensor:
    """Return a window's part of latents (1, h * w, C) of a grid."""
    whole = torch.unflatten(y, 1, grid)
    return whole[:, window.rows, window.columns].flatten(1, 2)


@torch.inference_mode()
def write(source: Source, target: Tensor | None = None, rdo_lambda: Tensor | None = None) -> Tile:
    """Quantise the target, by default the source's own, and write it.

    rdo_lambda: for each channel, (1 or h * w, C), by default the quantizer's for all.
    """
    encoder = SymbolEncoder()

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        source.original.quantizer.write(j.cpu().numpy(), bins.cpu().numpy(), encoder)

    y_hat = _quantise(source, sink, target, rdo_lambda)
    return Tile(_CRC.pack(_crc(y_hat)) + encoder.finish(), y_hat)


def assemble(original: Original, payloads: Sequence[bytes]) -> bytes:
    """Return the file of tiles in raster order."""
    return pack(original.header, [tiling.to_section(original.tiling, payloads)])


@torch.inference_mode()
def estimate_bits(original: Original) -> float:
    """Return the model's own estimate of the bits that `write` takes, headers left out."""
    bits = 0.0

    def sink(j: Tensor, bins: Tensor, residual: Tensor) -> None:
        nonlocal bits
        bits += original.quantizer.bits(j, bins)

    for source in original.sources():
        _quantise(source, sink)
    return bits


def _quantise(
    source: Source, sink: Sink, target: Tensor | None = None, rdo_lambda: Tensor | None = None
) -> Tensor:
    target = source.target if target is None else target
    original = source.original
    model, quality = original.loaded.model, original.quality
    targets = model.targets(target, source.grid, quality)
    coder = LatentQuantizer(targets, original.quantizer, sink, rdo_lambda)
    return model.entropy.code(coder, *source.grid, quality)


# --- and back -----------------------------------------------------------------------------------


@torch.inference_mode()
def read(
    header: Header,
    payload: bytes | memoryview,
    loaded: LoadedModel,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Read latents (1, h * w, C), in steps, and check their CRC.

    Those of a tile of `grid` positions, by default of the whole picture.
    Raises FormatError for a payload that is too short, StreamError if the integers are wrong.
    """
    grid = grid or loaded.model.grid(header.height, header.width)
    y_hat = _latents(header, open_tile(payload, loaded, grid), loaded, grid)
    if _crc(y_hat) != _CRC.unpack_from(payload)[0]:
        raise StreamError(
            "the decoded integers do not match their checksum: the file is damaged or was written"
            " with other weights"
        )
    return y_hat


@torch.inference_mode()
def read_partial(
    header: Header, payload: bytes | memoryview, loaded: LoadedModel, grid: tuple[int, int]
) -> tuple[Tensor, float]:
    """Do as `read` with the beginning of a payload: latents that are not there are their means.

    Returns the share of the latents that was there as well. Those are the very ones of the whole
    payload if this is the beginning of one; there is no CRC that could tell. Raises StreamError
    for words that no encoder writes.
    """
    most = _MOST_BYTES * grid[0] * grid[1] * loaded.model.transform.channels
    decoder = PartialDecoder(bytes(payload[_CRC.size :][:most]))
    y_hat = _latents(header, decoder, loaded, grid)
    return y_hat, decoder.received / y_hat.numel()


def _latents(
    header: Header, decoder: SymbolDecoder, loaded: LoadedModel, grid: tuple[int, int]
) -> Tensor:
    quantizer = Quantizer(header.lattice, loaded.tables)

    def coder(
        plane: str, positions: Tensor, channels: slice, mean: Tensor, scale: Tensor
    ) -> Tensor:
        bins = nearest_bin(scale).flatten()
        j = torch.from_numpy(quantizer.read(bins.cpu().numpy(), decoder)).to(bins.device)
        return reconstruct(quantizer, j, bins, mean)

    return loaded.model.entropy.code(coder, *grid, quality_of(header, loaded))


def open_tile(
    payload: bytes | memoryview, loaded: LoadedModel, grid: tuple[int, int]
) -> SymbolDecoder:
    """Return a decoder of the symbols of a tile; raises FormatError for one that is too short.

    Nothing of the tile's size is allocated before: a few bytes can claim any size.
    """
    if len(payload) < _CRC.size:
        raise FormatError(
            f"latents section of {len(payload)} bytes is too short; get the file again"
        )
    decoder = SymbolDecoder(bytes(payload[_CRC.size :]))
    latents = grid[0] * grid[1] * loaded.model.transform.channels
    decoder.require(latents * loaded.tables.least_bits)
    return decoder


def quality_of(header: Header, loaded: LoadedModel) -> Tensor:
    """The quality (1,) of a file, for the networks."""
    return torch.full((1,), float(header.quality), dtype=torch.float32, device=loaded.device)


def _crc(y_hat: Tensor) -> int:
    """CRC-32 of the latents as little-endian 32-bit integers, position by position."""
    whole = (y_hat.cpu() * LATENT_UNITS).to(torch.int32)
    return zlib.crc32(whole.numpy().astype("<i4").tobytes())

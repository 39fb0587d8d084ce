# SPDX-License-Identifier: Apache-2.0
"""Training pictures: held as uint8 in the memory of the device, cropped and flipped there."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvqcodec import suffixes
from lvqcodec.errors import UsageError

_SUFFIXES = set(suffixes.READ) - {".apng", ".gif", ".heic", ".heif", ".jxl", ".mpo"}
"""Of stills that Pillow reads by itself."""


def _encoded_pictures(sources: Sequence[str | Path]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, file bytes) of every picture in the folders and tar files, in a fixed order."""
    for source in map(Path, sources):
        if source.is_dir():
            for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES):
                yield path.name, path.read_bytes()
            for path in sorted(source.rglob("*.tar")):
                yield from _encoded_pictures([path])
        elif source.is_file() and tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                for member in archive:
                    if Path(member.name).suffix.lower() in _SUFFIXES:
                        handle = archive.extractfile(member)
                        if handle is not None:
                            yield member.name, handle.read()
        else:
            raise UsageError(f"training data {str(source)!r} is neither a folder nor a tar file")


def load_pictures(
    sources: Sequence[str | Path],
    *,
    limit: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray]:
    """Decode every picture of the folders and tar files to uint8 (H, W, 3), in a fixed order.

    For training only: alpha and profiles are dropped, any mode becomes RGB. `report` is called with
    the number of pictures decoded and of all.
    """
    encoded = list(_encoded_pictures(sources))[:limit]
    if not encoded:
        raise UsageError(f"no pictures found in {[str(s) for s in sources]}")

    def decode(item: tuple[str, bytes]) -> np.ndarray:
        with Image.open(io.BytesIO(item[1])) as image:
            return np.asarray(image.convert("RGB"))

    pictures = []
    with ThreadPoolExecutor() as pool:
        for picture in pool.map(decode, encoded):
            pictures.append(picture)
            report(len(pictures), len(encoded))
    return pictures


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to `device` without waiting for the work that a GPU has queued."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class CropSampler:
    """Random crops of pictures that live in one flat uint8 tensor (pixels, 3) on `device`.

    One gather makes a whole batch, so a GPU never waits. Pictures are drawn with a
    probability proportional to their area; pictures smaller than the crop are skipped.
    """

    def __init__(self, pictures: Sequence[np.ndarray], *, device: torch.device) -> None:
        self._shapes = torch.tensor([p.shape[:2] for p in pictures], dtype=torch.int64)
        areas = self._shapes.prod(dim=1)
        self._offsets = torch.cumsum(areas, 0) - areas
        flat = torch.empty(int(areas.sum()), 3, dtype=torch.uint8)
        for picture, offset in zip(pictures, self._offsets.tolist(), strict=True):
            height, width = picture.shape[:2]
            flat[offset : offset + height * width] = torch.from_numpy(picture.reshape(-1, 3).copy())
        self._pixels = flat.to(device)
        self._device = device
        self.total_pixels = int(areas.sum())

    def sample(
        self, count: int, size: int, generator: torch.Generator, share: slice = slice(None)
    ) -> Tensor:
        """Return float crops (count, 3, size, size) in [0, 1]; flips, transposition included.

        Of the `count` crops that the generator draws, only those in `share` are made.
        """
        fits = (self._shapes >= size).all(dim=1)
        if not fits.any():
            raise UsageError(f"no training picture is at least {size} pixels on both sides")
        weights = (self._shapes.prod(dim=1) * fits).double()
        index = torch.multinomial(weights, count, replacement=True, generator=generator)
        room = self._shapes[index] - size + 1
        corner = (torch.rand(count, 2, generator=generator) * room).long()
        flips = torch.randint(0, 2, (count, 3), generator=generator)
        width = self._shapes[index, 1]
        start = self._offsets[index] + corner[:, 0] * width + corner[:, 1]
        drawn = torch.cat([flips, width[:, None], start[:, None]], 1)[share]
        drawn = to_device(drawn, self._device)
        flips, width, start = drawn[:, :3].bool(), drawn[:, 3, None], drawn[:, 4, None]
        ramp = torch.arange(size, device=self._device)
        rows = torch.where(flips[:, :1], size - 1 - ramp, ramp)
        columns = torch.where(flips[:, 1:2], size - 1 - ramp, ramp)
        swap = flips[:, 2, None, None]
        down = torch.where(swap, rows[:, None, :], rows[:, :, None])
        across = torch.where(swap, columns[:, :, None], columns[:, None, :])
        pixels = self._pixels[start[:, :, None] + down * width[:, :, None] + across]
        crops: Tensor = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        return crops

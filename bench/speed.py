# SPDX-License-Identifier: Apache-2.0
"""Our whole encode and decode against the yardstick's networks, in one process and one run.

Ours is everything from samples to bytes and back, entropy coding included, at effort 0. The
yardstick is networks only (yardstick.py), as published and in the memory layout that suits the
CPU best. All are timed in turn, round by round, so that a busy moment hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from yardstick import HEIGHT, WIDTH, Yardstick

from lvqcodec import codec
from lvqcodec.catalog import DEFAULT_MODEL


def photograph(path: Path | None) -> np.ndarray:
    """A file's picture, or a cup of coffee, as uint8 (512,768,3): scaled and cropped to fit."""
    if path is None:
        from skimage import data

        image = Image.fromarray(data.coffee())
    else:
        image = Image.open(path).convert("RGB")
    return np.asarray(ImageOps.fit(image, (WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def sides(networks: Yardstick, x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The yardstick's encode and decode, ready to call."""
    latents = networks.encode(x)
    return lambda: networks.encode(x), lambda: networks.decode(*latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?", help="default: scikit-image's coffee")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--lattice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    picture = photograph(options.picture)
    model = codec.load_model(options.model, device="cpu")
    ours = {"model": model, "quality": options.quality, "lattice": options.lattice}
    data = codec.encode(picture, **ours, device="cpu")
    x = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255).contiguous()
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "ours": (
            lambda: codec.encode(picture, **ours, device="cpu"),
            lambda: codec.decode(data, device="cpu"),
        ),
        "yardstick": sides(Yardstick(), x),
        "yardstick, channels last": sides(
            Yardstick().to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        ),
    }
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    for count in range(options.rounds + 1):
        for name, calls in runs.items():
            for taken, call in zip(times[name], calls, strict=True):
                start = time.perf_counter()
                call()
                if count:  # the first round warms up
                    taken.append(time.perf_counter() - start)

    medians = {name: [statistics.median(side) for side in both] for name, both in times.items()}
    print(
        f"{WIDTH}x{HEIGHT}, {options.threads} threads, median of {options.rounds}, "
        f"{options.model} at quality {options.quality}: {len(data)} bytes"
    )
    print(f"{'':<26} encode s  decode s   ours takes of its encode, decode")
    for name, (encode_s, decode_s) in medians.items():
        ratios = (medians["ours"][0] / encode_s, medians["ours"][1] / decode_s)
        print(f"{name:<26} {encode_s:>8.3f} {decode_s:>9.3f}   {ratios[0]:.2f}, {ratios[1]:.2f}")


if __name__ == "__main__":
    main()

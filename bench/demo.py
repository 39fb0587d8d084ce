# SPDX-License-Identifier: Apache-2.0
"""`make run`: a photograph becomes a small file and comes back, beside JPEG, WebP and AVIF.

Each of the others is asked for its best picture at our file size: the highest quality whose file
is at most 2 % larger than ours, at the chroma subsampling (4:4:4 or 4:2:0) with the higher PSNR.
Times are the best of three after a first run, the model loaded.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from skimage import data

import lvqcodec
from lvqcodec import metrics
from lvqcodec.pictures import save

# before torch loads: it would spin for the cores against whatever else runs here
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

T = TypeVar("T")
ALLOWANCE = 1.02
RUNS = 3


@dataclass(frozen=True)
class Rival:
    """Another codec as Pillow writes it: its quality range and the settings to choose among."""

    name: str
    suffix: str
    lowest: int
    highest: int
    variants: tuple[dict[str, object], ...]


FULL_CHROMA, HALF_CHROMA = {"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}
BEST_JPEG = {"optimize": True, "progressive": True}
RIVALS = (
    Rival("JPEG", ".jpg", 1, 95, (FULL_CHROMA | BEST_JPEG, HALF_CHROMA | BEST_JPEG)),
    Rival("WebP", ".webp", 0, 100, ({"method": 6},)),
    Rival("AVIF", ".avif", 0, 100, (FULL_CHROMA, HALF_CHROMA)),
)


@dataclass(frozen=True)
class Row:
    """What one codec made of the picture; `setting` is its rate point."""

    codec: str
    setting: str
    num_bytes: int
    psnr: float
    encode_s: float
    decode_s: float


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """The result of `run` and its best time in seconds."""
    result = run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return result, min(times)


def written(image: np.ndarray, suffix: str, settings: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(image)
    picture.save(stream, format=Image.registered_extensions()[suffix], **settings)
    return stream.getvalue()


def read(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"))


def fit(image: np.ndarray, rival: Rival, variant: dict[str, object], limit: float) -> dict:
    """The variant at its highest quality whose file has at most `limit` bytes, else its lowest."""
    low, high = rival.lowest, rival.highest
    while low < high:
        middle = (low + high + 1) // 2
        if len(written(image, rival.suffix, variant | {"quality": middle})) <= limit:
            low = middle
        else:
            high = middle - 1
    return variant | {"quality": low}


def ours(image: np.ndarray, quality: int, folder: Path) -> Row:
    weights = lvqcodec.load_model()
    file, encode_s = timed(lambda: lvqcodec.encode(image, model=weights, quality=quality))
    (folder / "coffee.lvq").write_bytes(file)
    x_hat, decode_s = timed(lambda: lvqcodec.decode((folder / "coffee.lvq").read_bytes()))
    save.save(x_hat, folder / "coffee.lvq.png")
    psnr = metrics.psnr(image, x_hat)
    return Row("lvq", f"quality {quality}", len(file), psnr, encode_s, decode_s)


def theirs(image: np.ndarray, limit: float, rival: Rival, folder: Path) -> Row:
    tried = []
    for variant in rival.variants:
        settings = fit(image, rival, variant, limit)
        file = written(image, rival.suffix, settings)
        # One that cannot get down to our size does not win by being larger.
        tried.append((len(file) <= limit, metrics.psnr(image, read(file)), settings))
    _, psnr, settings = max(tried, key=lambda attempt: attempt[:2])
    file, encode_s = timed(lambda: written(image, rival.suffix, settings))
    (folder / f"coffee{rival.suffix}").write_bytes(file)
    _, decode_s = timed(lambda: read(file))
    setting = f"quality {settings['quality']} {settings.get('subsampling', '')}".strip()
    return Row(rival.name, setting, len(file), psnr, encode_s, decode_s)


def table(rows: list[Row], pixels: int) -> str:
    head = f"{'codec':<6} {'setting':<17} {'bytes':>8} {'bpp':>6} {'PSNR dB':>8}"
    lines = [f"{head} {'encode s':>9} {'decode s':>9}"]
    lines.append("-" * len(lines[0]))
    for row in rows:
        lines.append(
            f"{row.codec:<6} {row.setting:<17} {row.num_bytes:>8,} "
            f"{8 * row.num_bytes / pixels:>6.3f} {row.psnr:>8.2f} "
            f"{row.encode_s:>9.3f} {row.decode_s:>9.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", type=int, default=50, help="rate point, 0 to 100")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the files")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    image = data.coffee()  # 600x400, CC0, comes with scikit-image
    save.save(image, options.out / "coffee.png")
    rows = [ours(image, options.quality, options.out)]
    limit = ALLOWANCE * rows[0].num_bytes
    rows += [theirs(image, limit, rival, options.out) for rival in RIVALS]
    print(f"coffee, {image.shape[1]}x{image.shape[0]}, each at our size (+2 % at most):\n")
    print(table(rows, image.shape[0] * image.shape[1]))
    print(f"\nthe pictures and files are in {options.out}: compare coffee.png with coffee.lvq.png")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The picture at the top of README.md: one crop of a photograph, as each codec gives it back.

The other codecs are asked for their best picture at our file size, as in `bench/demo.py`. What is
shown is the crop, two pixels for one and without any smoothing, and PSNR and bytes of the whole.

    python bench/compare.py --quality 20 --out docs/results/compare.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from demo import ALLOWANCE, RIVALS, ours, theirs
from PIL import Image, ImageDraw, ImageFont
from skimage import data

CROP = (slice(70, 230), slice(230, 390))
ZOOM = 2
CAPTION = 40
GAP = 4


def panel(image: np.ndarray, *caption: str) -> Image.Image:
    """The crop of a picture, enlarged, with lines of text below."""
    crop = image[CROP].repeat(ZOOM, 0).repeat(ZOOM, 1)
    made = Image.new("RGB", (crop.shape[1] + GAP, crop.shape[0] + CAPTION), "white")
    made.paste(Image.fromarray(crop))
    text = "\n".join(caption)
    ImageDraw.Draw(made).text((4, crop.shape[0] + 4), text, "black", ImageFont.load_default(13))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", type=int, default=20, help="rate point, 0 to 100")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    options = parser.parse_args()

    image = data.coffee()  # 600x400, CC0, comes with scikit-image
    panels = [panel(image, "original", f"{image.nbytes:,} bytes of samples")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [(ours(image, options.quality, folder), "coffee.lvq.png")]
        for rival in (rival for rival in RIVALS if rival.name in ("AVIF", "JPEG")):
            row = theirs(image, ALLOWANCE * rows[0][0].num_bytes, rival, folder)
            rows.append((row, f"coffee{rival.suffix}"))
        for row, file in sorted(rows, key=lambda pair: -pair[0].psnr):
            with Image.open(folder / file) as picture:
                decoded = np.asarray(picture.convert("RGB"))
            facts = f"{row.num_bytes:,} bytes, {row.psnr:.2f} dB"
            panels.append(panel(decoded, f"{row.codec}, {row.setting}", facts))
    whole = Image.new("RGB", (sum(p.width for p in panels) - GAP, panels[0].height))
    place = 0
    for each in panels:
        whole.paste(each, (place, 0))
        place += each.width
    whole.save(options.out, optimize=True)


if __name__ == "__main__":
    main()

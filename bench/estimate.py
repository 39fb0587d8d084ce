# SPDX-License-Identifier: Apache-2.0
"""Real bytes against the model's own estimate, picture by picture: what the coder loses.

The estimate is the information content of the symbols under the model's own probabilities; a file
adds the container, the range coder's loss and rounding to words. Exits 1 if any file is further
off than 0.5 % + 40 bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lvqcodec import codec
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.evaluation.evaluate import list_pictures
from lvqcodec.pictures import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--qualities", default="10,50,90")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--lattice")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    model = codec.load_model(options.model, device=options.device)
    worst = 0.0
    print("picture                quality     bytes  estimate  off by  of what is allowed")
    for path in list_pictures(options.folder):
        picture = load.load(path)
        for quality in map(int, options.qualities.split(",")):
            settings = {"model": model, "quality": quality, "lattice": options.lattice}
            size = len(codec.encode(picture, **settings, device=options.device))
            estimate = codec.estimate_bits(picture, **settings) / 8
            used = abs(size - estimate) / (0.005 * estimate + 40)
            worst = max(worst, used)
            print(
                f"{path.name:<22} {quality:>7} {size:>9} {estimate:>9.1f} "
                f"{size - estimate:>+7.1f} {used:>8.0%}"
            )
    print(f"furthest off: {worst:.0%} of 0.5 % + 40 bytes")
    sys.exit(worst > 1)


if __name__ == "__main__":
    main()

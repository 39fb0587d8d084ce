# SPDX-License-Identifier: Apache-2.0
"""What choosing points by rate and distortion brings: plain rounding to Z beside it, in real files.

    python bench/rounding.py PICTURES --data TRAINING [--model normal] [--qualities 5,35,65]

Both have probability rows fitted to what they choose, on the pictures of --data. Prints both curves
and the BD-rate (PSNR) of plain rounding over the choice.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from lvqcodec.catalog import MODEL_PATH_VARIABLE
from lvqcodec.evaluation.evaluate import evaluate
from lvqcodec.model.quantizer import RDO_LAMBDA, Quantizer
from lvqcodec.training.refit import refit


def main() -> None:
    """Fit and measure both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pictures", help="folder of pictures to measure on")
    parser.add_argument("--data", required=True, action="append", help="pictures to fit rows to")
    parser.add_argument("--model", default="normal")
    parser.add_argument("--qualities", default="5,20,35,50,65,80")
    options = parser.parse_args()
    qualities = [int(quality) for quality in options.qualities.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        anchors = Path(folder) / "anchors.json"
        searched = [folder, os.environ.get(MODEL_PATH_VARIABLE, "")]
        os.environ[MODEL_PATH_VARIABLE] = os.pathsep.join(filter(None, searched))
        curves = {}
        for name, rdo_lambda in (("chosen", RDO_LAMBDA), ("rounded", 0.0)):
            with fixed(rdo_lambda):
                refit(options.model, name=name, data=options.data, lattices=["z"], out=folder)
                report = evaluate(
                    options.pictures,
                    qualities=qualities,
                    model=name,
                    lattice="z",
                    anchors=anchors if curves else None,
                )
            curves[name] = {
                key: [getattr(point, key) for point in report.points] for key in ("bpp", "psnr")
            }
            anchors.write_text(json.dumps(curves), encoding="utf-8")
        print(f"{'quality':>7}" + "".join(f"  {name + ' bpp':>11}  {'dB':>6}" for name in curves))
        for index, quality in enumerate(qualities):
            parts = (
                f"  {c['bpp'][index]:>11.4f}  {c['psnr'][index]:>6.2f}" for c in curves.values()
            )
            print(f"{quality:>7}" + "".join(parts))
        for rate in report.bd_rates:
            print(f"BD-rate of plain rounding over {rate.anchor}: {rate.percent:+.2f} %")


@contextmanager
def fixed(rdo_lambda: float):
    """Quantise with this multiplier, in squared steps a bit: with 0 to the nearest points."""
    with mock.patch.object(Quantizer.__init__, "__defaults__", (rdo_lambda,)):
        yield


if __name__ == "__main__":
    main()

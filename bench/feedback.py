# SPDX-License-Identifier: Apache-2.0
"""Where the gain of a lattice goes on pictures: what is chosen changes what is expected next.

    python bench/feedback.py PICTURES [--model normal] [--crops 202]

Quantises crops of pictures at all qualities with each lattice of a model and prints by how much
D / lambda + R differs from that of scalars, in per cent of their R: D is the squared error of
latents in steps, R their bits, lambda the quantizer's own, so that this is about the difference in
rate at equal error. First for latents whose means and bins are those that followed from scalars,
then for those that follow from what the lattice chose itself, then the same with rows that were
fitted to these very crops. Beside it the shares of latents and of bits that are above the packing's
first bin, and the mean bin of all latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lvqcodec.catalog import find_model, read_files
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.entropy.base import LATENT_UNITS
from lvqcodec.model.lattices.tables import CodingTables
from lvqcodec.model.quantizer import RDO_LAMBDA, Quantizer
from lvqcodec.model.weights import unpack_weights
from lvqcodec.training.coded import Batch, batches_of, choices_of, quantise
from lvqcodec.training.data import CropSampler, load_pictures
from lvqcodec.training.fit_tables import FIT_CROP


class Steps:
    """A sink that keeps bins and residuals of all parallel steps."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, j: Tensor, bins: Tensor, residual: Tensor) -> None:
        self.kept.append((bins, residual))

    @classmethod
    def of(cls, model: CodecModel, batches: Iterable[Batch], quantizer: Quantizer) -> Steps:
        steps = cls()
        for batch in batches:
            quantise(model, batch, quantizer, steps)
        return steps

    def cost(self, quantizer: Quantizer) -> Cost:
        """What a quantizer chooses of all latents costs."""
        first, scalar = quantizer.lattice.packing.first_bin, Quantizer("z", quantizer.tables)
        error = bits = below = 0.0
        for bins, residual in self.kept:
            j = quantizer.choose(residual, bins)
            units = quantizer.reconstruct(j, bins)
            error += float((residual - units / LATENT_UNITS).square().sum())
            bits += quantizer.bits(j, bins)
            low = bins < first
            below += scalar.bits(j[low], bins[low])
        return Cost(error, bits, below)

    def share(self, first: int) -> tuple[float, float]:
        """The share of latents from a bin on, and the mean bin."""
        bins = torch.cat([bins for bins, _ in self.kept])
        return float((bins >= first).double().mean()), float(bins.double().mean())


class Cost(NamedTuple):
    """Squared error in steps, bits, and how many of these are of latents below the first bin."""

    error: float
    bits: float
    below: float

    @property
    def loss(self) -> float:
        """D / lambda + R, in bits."""
        return self.error / RDO_LAMBDA + self.bits


def main() -> None:
    """Measure every lattice, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pictures", nargs="+", help="folders of pictures to take crops of")
    parser.add_argument("--model", default="normal")
    parser.add_argument("--crops", type=int, default=202)
    options = parser.parse_args()
    model = unpack_weights(*read_files(find_model(options.model)))
    sampler = CropSampler(load_pictures(options.pictures), device=torch.device("cpu"))
    crops = sampler.sample(options.crops, FIT_CROP, torch.Generator().manual_seed(0))
    batches = batches_of(model, crops)
    tables = model.tables
    assert tables is not None
    scalar = Quantizer("z", tables)
    plain = Steps.of(model, batches, scalar)
    whole = plain.cost(scalar)
    print(f"{options.crops} crops, {whole.bits / crops[:, 0].numel():.3f} bits a pixel\n")
    print(
        "| lattice | from bin | latents | bits | scalars' contexts | its own | fitted | mean bin |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in tables.names:
        quantizer = Quantizer(name, tables)
        own = Steps.of(model, batches, quantizer)
        cost = own.cost(quantizer)
        costs = plain.cost(quantizer), cost, fitted_cost(model, batches, name, tables)
        first = quantizer.lattice.packing.first_bin
        latents, mean = own.share(first)
        changes = (f"{100 * (each.loss - whole.loss) / whole.bits:+.2f} %" for each in costs)
        cells = [name, first, f"{latents:.1%}", f"{1 - cost.below / cost.bits:.0%}"]
        print(f"| {' | '.join([*map(str, cells), *changes, f'{mean:.3f}'])} |", flush=True)


def fitted_cost(
    model: CodecModel, batches: Sequence[Batch], name: str, tables: CodingTables
) -> Cost:
    """The cost with rows fitted twice to the batches that are measured."""
    for _ in range(2):
        tables = tables.fitted(choices_of(model, batches, Quantizer(name, tables)).counts)
    quantizer = Quantizer(name, tables)
    return Steps.of(model, batches, quantizer).cost(quantizer)


if __name__ == "__main__":
    main()

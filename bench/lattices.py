# SPDX-License-Identifier: Apache-2.0
"""What every lattice gains and costs: its cell, its speed, and its rate against scalars.

    python bench/lattices.py [--samples 200000] [--quick] [--out lattices.png]

Prints Markdown tables and draws a picture. Everything runs in one thread; whatever is timed runs in
turns with what it is compared to, after a round that warms up. The sources are Gaussian residuals
whose standard deviation the bin tells. Rates are those of real bytes; tables are fitted to one
sample and measured on another.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable

import constriction
import numpy as np
import torch
from torch import Tensor

from lvqcodec.coding.rangecoder import SymbolDecoder, SymbolEncoder
from lvqcodec.coding.rows import LATENT_UNITS, SIGMAS
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.base import CODING_ORDER, Lattice, Packing
from lvqcodec.model.lattices.tables import parametric_tables
from lvqcodec.model.quantizer import Quantizer

PACKED = [name for name in LATTICES if name != "z"]
KISSING = {"bw16": 4320, "leech": 196560}
CHAIN = 256  # latents of a chain that are averaged for one sample of its error
RATES = (0.1, 0.5, 1.0, 2.0)
BELOW_03 = {"mean": math.log(0.3) - 0.8416 * 1.2, "spread": 1.2}  # 80 % below 0.3
CODEC = {"mean": -1.0, "spread": 1.0}  # 45 % go into vectors
ROUNDS = 9
ENTRIES = 4096


def source(count: int, seed: int, mean: float, spread: float) -> tuple[Tensor, Tensor]:
    """Residuals x (count,) in steps and their bins: log sigma is of this mean and spread."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.normal(mean, spread, count))
    ratio = math.log(SIGMAS[1] / SIGMAS[0])
    bins = np.rint(np.log(sigma / SIGMAS[0]) / ratio).clip(0, len(SIGMAS) - 1).astype(np.int64)
    return torch.from_numpy(rng.normal(size=count) * sigma).float(), torch.from_numpy(bins)


def fitted(name: str, packing: Packing, x: Tensor, bins: Tensor, rounds: int = 4) -> Quantizer:
    """A quantizer with tables fitted to its own choices."""
    tables = parametric_tables(name)
    if name in PACKED:
        others = {name: LATTICES[name].fit(packing=packing)}
        tables = dataclasses.replace(tables, others=others)
    for _ in range(rounds):
        quantizer = Quantizer(name, tables)
        tables = tables.fitted(quantizer.count(quantizer.choose(x, bins), bins, x))
    return Quantizer(name, tables)


def encode(quantizer: Quantizer, j: Tensor, bins: Tensor) -> bytes:
    encoder = SymbolEncoder()
    quantizer.write(j.numpy(), bins.numpy(), encoder)
    return encoder.finish()


def table(*rows: Iterable[str]) -> None:
    """Print rows in Markdown, the first one the head."""
    head, *body = map(list, rows)
    for row in (head, ["---"] * len(head), *body):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def places(lattice: Lattice, j: Tensor) -> Tensor:
    """Where j lies, in steps to 1/128: parametric tables have no centroids."""
    return lattice.reconstruct(j, torch.full_like(j, 30)) / LATENT_UNITS


def second_moment(lattice: Lattice, samples: int) -> tuple[float, float]:
    """The mean squared error of a volume of 1 and its standard error."""
    generator = torch.Generator().manual_seed(0)
    block = lattice.dim if lattice.dim > 1 else CHAIN
    x = 20 * torch.randn(samples // block * block // lattice.dim, lattice.dim, generator=generator)
    errors = (x - places(lattice, lattice.nearest(x))).square().view(-1, block).mean(-1).double()
    return errors.mean().item(), errors.std().item() / math.sqrt(len(errors))


def kissing_number(lattice: Lattice, samples: int) -> str:
    """Counted, or estimated by how often two of many shortest vectors are the same.

    Random directions are rounded to each of them equally often: symmetries of the lattice take
    every one to every other.
    """
    if lattice.dim == 1:
        return "2" if lattice.name == "z" else "-"
    x = torch.randn(samples // lattice.dim, lattice.dim, generator=torch.Generator().manual_seed(1))
    lengths = torch.linspace(1.1, 2.0, 10).repeat(len(x))[: len(x), None]
    j = lattice.nearest(lengths * x / x.norm(dim=-1, keepdim=True))
    squares = places(lattice, j).square().sum(-1)
    near = j[(squares > 0.01) & (squares < 1.2 * squares[squares > 0.01].min())]
    times = torch.unique(near, dim=0, return_counts=True)[1]
    if len(near) > 15 * len(times):
        return str(len(times))
    pairs = int((times * (times - 1)).sum()) / 2
    estimate = len(near) * (len(near) - 1) / 2 / pairs
    return f"{KISSING[lattice.name]} (estimate {estimate:.0f} ± {pairs**-0.5:.0%})"


def decibels(moment: float) -> float:
    """What a normalised second moment gains over that of a cube."""
    return -10 * math.log10(12 * moment)


def ball(dim: float) -> float:
    """The second moment of a ball of volume 1: no cell of that dimension has a smaller one."""
    return math.exp(2 / dim * math.lgamma(dim / 2 + 1)) / ((dim + 2) * math.pi)


def cells(samples: int) -> dict[str, tuple[int, float]]:
    """Print the table of cells; dimensions and gains in dB by name."""
    gains, rows = {}, []
    for name, kind in LATTICES.items():
        lattice = kind.fit()
        moment, error = second_moment(lattice, samples)
        gains[name] = lattice.dim, decibels(moment)
        facts = f"{moment:.5f} ± {error:.5f}", f"{gains[name][1]:.3f}"
        dim = "chain" if lattice.dim == 1 and name != "z" else str(lattice.dim)
        rows.append((name, dim, *facts, kissing_number(lattice, samples)))
    print(f"Cells of volume 1: {samples:,} random latents (mean ± standard error)\n")
    table(("lattice", "dimension", "second moment", "gain [dB]", "kissing number"), *rows)
    return gains


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of calls that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for count in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if count:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def gaussian_coder(x: Tensor, bins: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encode and decode of constriction's own Gaussians, a mean and a deviation a symbol."""
    means = np.random.default_rng(2).uniform(-8, 8, len(x))
    deviations = SIGMAS[bins.numpy()]
    symbols = np.rint(x.numpy() + means).astype(np.int32)
    family = constriction.stream.model.QuantizedGaussian(-4096, 4096)

    def write() -> np.ndarray:
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(symbols, family, means, deviations)
        return coder.get_compressed()

    words = write()
    decoder = constriction.stream.queue.RangeDecoder
    return write, lambda: decoder(words).decode(family, means, deviations)


def speeds(what: str, x: Tensor, bins: Tensor) -> None:
    """Print how fast latents of a source are coded and chosen."""
    calls = dict(zip(("Gaussians write", "Gaussians read"), gaussian_coder(x, bins), strict=True))
    for name in LATTICES:
        calls |= coder(name, fitted(name, CODING_ORDER, x, bins, rounds=1), x, bins)
    rates = {call: len(x) / seconds / 1e6 for call, seconds in medians(calls).items()}
    rows = []
    for name in ("Gaussians", *LATTICES):
        write, read = (rates[f"{name} {verb}"] for verb in ("write", "read"))
        ratios = write / rates["Gaussians write"], read / rates["Gaussians read"]
        facts = write, ratios[0], read, ratios[1], rates.get(f"{name} choose", math.nan)
        rows.append((name, *(f"{fact:.2f}" for fact in facts)))
    print(f"Million latents a second, {what}: {len(x):,}, median of {ROUNDS}\n")
    table(("coder", "write", "ratio", "read", "ratio", "choose"), *rows)


def coder(name: str, quantizer: Quantizer, x: Tensor, bins: Tensor) -> dict[str, Callable]:
    """The calls of one of ours, by name."""
    j, rows = quantizer.choose(x, bins), bins.numpy()
    data = encode(quantizer, j, bins)
    return {
        f"{name} write": lambda: encode(quantizer, j, bins),
        f"{name} read": lambda: quantizer.read(rows, SymbolDecoder(data)),
        f"{name} choose": lambda: quantizer.choose(x, bins),
    }


def exhaustive(latents: int) -> None:
    """Print what a vector quantizer without structure takes: all distances, by a product."""
    calls = {}
    for dim in (8, 16, 32):
        codebook, x = torch.randn(ENTRIES, dim), torch.randn(latents // dim, dim)
        halves = codebook.square().sum(-1) / 2
        calls[str(dim)] = lambda x=x, c=codebook, h=halves: (h - x @ c.T).argmin(-1)
    taken = {dim: f"{seconds / latents * 1e6:.2f}" for dim, seconds in medians(calls).items()}
    print(f"Microseconds a latent of an exhaustive vector quantizer of {ENTRIES} entries\n")
    table(("dimension", *taken), ("time", *taken.values()))


def rate_and_error(name: str, step: float, packing: Packing, samples: int) -> tuple[float, float]:
    """Bits of real bytes a latent, and squared error, of the mixture divided by a step."""
    mean = BELOW_03["mean"] - math.log(step)
    x, bins = source(samples, 4, mean, BELOW_03["spread"])
    quantizer = fitted(name, packing, x, bins)
    x, bins = source(samples, 5, mean, BELOW_03["spread"])
    j = quantizer.choose(x, bins)
    error = (quantizer.reconstruct(j, bins) / LATENT_UNITS - x).square().mean().item()
    return 8 * len(encode(quantizer, j, bins)) / samples, error * step**2


def step_of_rate(rate: float, samples: int) -> float:
    """The step at which scalars take about that many bits a latent."""
    low, high = 1 / 64, 16.0
    for _ in range(9):
        step = math.sqrt(low * high)
        found = rate_and_error("z", step, CODING_ORDER, samples)[0]
        low, high = (low, step) if found < rate else (step, high)
    return math.sqrt(low * high)


def savings(samples: int, packing: Packing) -> dict[str, list[float]]:
    """Print rates against those of scalars; percents saved by name, in the order of RATES."""
    saved: dict[str, list[float]] = {name: [] for name in PACKED}
    for target in RATES:
        step = step_of_rate(target, min(samples, 50_000))
        rate, error = rate_and_error("z", step, CODING_ORDER, samples)
        for name in PACKED:
            points = [rate_and_error(name, step * t, packing, samples) for t in (1.0, 1.06)]
            (fine, low), (coarse, high) = points
            share = math.log(error / low) / math.log(high / low)
            saved[name].append(100 * (1 - (fine + share * (coarse - fine)) / rate))
    order = "sorted by bin" if packing.by_bin else "in the order given"
    print(
        "Rate saved at equal squared error: a mixture, 80 % of its deviations below 0.3 at step 1"
    )
    print(f"({samples:,} latents, vectors from bin {packing.first_bin} on, {order})\n")
    rows = [(name, *(f"{percent:.1f} %" for percent in each)) for name, each in saved.items()]
    table(("bits a latent", *map(str, RATES)), *rows)
    return saved


def draw(gains: dict[str, tuple[int, float]], saved: dict[str, list[float]], path: str) -> None:
    """Draw gains over dimensions under the bound of spheres, and savings over rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    dims = np.geomspace(1, 32, 100)
    left.plot(dims, [decibels(ball(dim)) for dim in dims], color="grey", label="sphere bound")
    for name, (dim, gain) in gains.items():
        if dim == 1 and name != "z":
            left.axhline(gain, linestyle=":", label=f"{name}, a chain")
        else:
            left.plot(dim, gain, "o", color="crimson")
            left.annotate(f" {name}", (dim, gain), va="top")
    left.set_xscale("log", base=2)
    left.set(xlabel="dimension", ylabel="gain over scalars at high rate [dB]")
    for name, percents in saved.items():
        right.plot(RATES, percents, "o-", label=name)
    right.set(xlabel="bits a latent", ylabel="rate saved at equal squared error [%]")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=400_000, help="latents that are measured")
    parser.add_argument("--by-bin", action="store_true", help="sort vectors by bin")
    parser.add_argument("--quick", action="store_true", help="a tenth of all samples")
    parser.add_argument("--out", help="picture file to draw into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    less = 10 if options.quick else 1
    samples, latents = options.samples // less, 200_000 // less
    gains = cells(10 * samples)
    x, bins = source(latents, 6, **CODEC)
    speeds("scalars and vectors", x, bins)
    x, bins = source(4 * latents, 6, **CODEC)
    high = (bins >= CODING_ORDER.first_bin).nonzero().squeeze(-1)[:latents]
    speeds("vectors alone", x[high], bins[high])
    exhaustive(20_000)
    saved = savings(samples, Packing(CODING_ORDER.first_bin, options.by_bin))
    if options.out:
        draw(gains, saved, options.out)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Learned lattices from within: how far each B is from a rotation, and what quantising costs.

    python bench/learned.py matrices runs/learned/models/*.safetensors
    python bench/learned.py speed

`ablate.py` trains and compares them, by `tables/learned.toml`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lvqcodec.model.transforms.basis import Basis, BasisTransform
from lvqcodec.model.weights import unpack_weights

CODEWORDS = 2**12


def matrices(paths: Sequence[Path]) -> None:
    """Print the worst condition number and the largest cosine of two rows, of the weights."""
    print("row           blocks    dim  condition  |cos|  rotation")
    for path in paths:
        model = unpack_weights(path.read_bytes())
        if isinstance(model.transform, BasisTransform):
            basis = model.transform.basis.matrix()
            blocks, dim, _ = basis.shape
            eye = torch.eye(dim)
            condition = float(torch.linalg.cond(basis).max())
            cosine = float((basis @ basis.mT - eye).abs().max())
            moved = float(torch.linalg.matrix_norm(basis - eye).square().mean() / dim) ** 0.5
            name = f"{path.stem:<13} {blocks:>6} {dim:>6}"
            print(f"{name} {condition:>10.2f} {cosine:>6.3f} {moved:>9.3f}")
    print("rotation: root mean square length of what rows have moved from those of the identity")


def speed(rounds: int = 12) -> None:
    """Print nanoseconds a latent of one thread, the least of some rounds that all take in turns."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 192, 64, 96, generator=generator)  # as of a picture of 768x512
    latents = latents.contiguous(memory_format=torch.channels_last)
    quantise: dict[str, Callable[[], Tensor]] = {"scalar": partial(torch.round, latents)}
    for dim in (8, 16, 32, 192):
        basis = Basis(192, dim).requires_grad_(False)
        basis.logarithm.normal_(std=0.3 / dim**0.5, generator=generator)
        quantise[f"Babai, n = {dim}"] = partial(_round, basis, latents)
    for dim in (8, 16, 32):
        code = torch.randn(CODEWORDS, dim, generator=generator)
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, dim)
        quantise[f"VQ 2^12, n = {dim}"] = partial(_search, vectors, code)
    least = dict.fromkeys(quantise, math.inf)
    for _ in range(rounds):
        for name, run in quantise.items():
            start = time.perf_counter()
            run()
            least[name] = min(least[name], time.perf_counter() - start)
    for name, seconds in least.items():
        print(f"{name:<18} {1e9 * seconds / latents.numel():8.2f} ns")


def _round(basis: Basis, latents: Tensor) -> Tensor:
    return basis.points(torch.round(basis.coordinates(latents)))


def _search(vectors: Tensor, code: Tensor) -> Tensor:
    """Return the codeword next to each of vectors (V, n), of all of them (2^12, n)."""
    half = code.square().sum(1) / 2
    # in parts that stay in the cache
    found = [torch.addmm(half, part, code.T, alpha=-1).argmin(1) for part in vectors.split(256)]
    return code[torch.cat(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("matrices", "speed"))
    parser.add_argument("weights", type=Path, nargs="*", help="weights files, for `matrices`")
    options = parser.parse_args()
    if options.what == "matrices":
        matrices(options.weights)
    else:
        speed()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Learned lattices against scalars and against the same layer free, on a frozen transform.

    python bench/learned.py train --data PICTURES --out runs/learned [--minutes 10] [--rows z free]
                            [--steps 20]
    python bench/learned.py compare --data PICTURES --out runs/learned
    python bench/learned.py matrices --out runs/learned
    python bench/learned.py speed

Each row is trained by the recipe beside this file or a variant of it, and exported. `compare` codes
pictures to real files with all of them; `matrices` says how far each B is from a rotation; `speed`
times what quantises a latent. Run it in the root of the repository: rows start from models/.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit
import torch
from torch import Tensor

from lvqcodec.evaluation.evaluate import evaluate
from lvqcodec.model.transforms.basis import Basis, BasisTransform
from lvqcodec.model.weights import unpack_weights
from lvqcodec.training.export import export
from lvqcodec.training.loop import train

RECIPE = Path(__file__).with_suffix(".toml")
DIMS: dict[str, int | None] = {
    "z": None, "free": 0, "learned-8": 8, "learned-16": 16, "learned-32": 32
}  # fmt: skip
"""Channels of a basis in each row: none, all of them without a penalty, or so many with one."""

QUALITIES = (5, 20, 35, 50, 65, 80)
CODEWORDS = 2**12


def recipe(row: str, steps: int | None = None) -> str:
    """Return the recipe of a row; `steps` of each stage, by default its own."""
    data: Any = tomlkit.parse(RECIPE.read_text(encoding="utf-8"))
    transform, dim = data["codec"]["transform"], DIMS[row]
    if dim is None:
        data["codec"]["transform"] = transform["inner"]
    else:
        transform["dim"] = dim
    for stage in data["stage"]:
        if dim is None:
            stage["train"] = [part for part in stage["train"] if part != "basis"]
        if not dim:
            stage["penalty"] = 0.0
        stage["steps"] = steps or stage["steps"]
    data["description"] = f"row {row} of bench/learned.py"
    return tomlkit.dumps(data)


def train_rows(
    rows: Sequence[str], data: Path, out: Path, minutes: float, steps: int | None
) -> None:
    """Train each row for so long, go on with those that have begun, and export it."""
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = out / f"{row}.toml"
        path.write_text(recipe(row, steps), encoding="utf-8")
        print(f"--- {row}", flush=True)
        train(path, data=[data], out=out / row, minutes=minutes, resume=True)
        export(out / row, name=row, out=out / "models", data=[data])


def compare(rows: Sequence[str], data: Path, out: Path) -> None:
    """Print rates, PSNR and BD-rates of real files of all pictures in a folder."""
    os.environ["LVQ_MODEL_PATH"] = str(out / "models")
    report = evaluate(data, qualities=QUALITIES, model=",".join(rows), lattice="z")
    print(report.table())


def matrices(rows: Sequence[str], out: Path) -> None:
    """Print the worst condition number and the largest cosine of two rows, of the weights."""
    print("row           blocks    dim  condition  |cos|  rotation")
    for row in rows:
        model = unpack_weights((out / "models" / f"{row}.safetensors").read_bytes())
        if isinstance(model.transform, BasisTransform):
            basis = model.transform.basis.matrix()
            blocks, dim, _ = basis.shape
            eye = torch.eye(dim)
            condition = float(torch.linalg.cond(basis).max())
            cosine = float((basis @ basis.mT - eye).abs().max())
            moved = float(torch.linalg.matrix_norm(basis - eye).square().mean() / dim) ** 0.5
            print(f"{row:<13} {blocks:>6} {dim:>6} {condition:>10.2f} {cosine:>6.3f} {moved:>9.3f}")
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
    parser.add_argument("what", choices=("train", "compare", "matrices", "speed"))
    parser.add_argument("--rows", nargs="+", choices=DIMS, default=list(DIMS))
    parser.add_argument("--data", type=Path, help="a folder of pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each row")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the recipe's")
    options = parser.parse_args()
    if options.what == "train":
        train_rows(options.rows, options.data, options.out, options.minutes, options.steps)
    elif options.what == "compare":
        compare(options.rows, options.data, options.out)
    elif options.what == "matrices":
        matrices(options.rows, options.out)
    else:
        speed()


if __name__ == "__main__":
    main()

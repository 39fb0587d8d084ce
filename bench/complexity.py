# SPDX-License-Identifier: Apache-2.0
"""Parameters of a model and its multiply-accumulates per pixel, counted by torch's own counter.

    python bench/complexity.py [--model normal]

Counts matrix products and convolutions of a whole encode and decode of a 768x512 picture.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from lvqcodec import codec
from lvqcodec.catalog import DEFAULT_MODEL

HEIGHT, WIDTH = 512, 768


def kmac_per_pixel(run: object) -> float:
    """Thousands of multiply-accumulates a pixel of a call without arguments."""
    with FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return float(counter.get_total_flops()) / 2 / (HEIGHT * WIDTH) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    model = codec.load_model(args.model, device="cpu").model
    quality = torch.full((1,), 50.0)
    grid = model.grid(HEIGHT, WIDTH)
    x = torch.rand(1, 3, HEIGHT, WIDTH)
    y = torch.zeros(1, grid[0] * grid[1], model.transform.channels)
    with torch.no_grad():  # the counter does not see through inference mode
        analysis = kmac_per_pixel(lambda: model.analysis(x, quality))
        synthesis = kmac_per_pixel(lambda: model.synthesis(y, grid, quality))
        entropy = kmac_per_pixel(lambda: model.entropy.code(_mean, *grid, quality))
    count = {
        axis: sum(p.numel() for p in module.parameters())
        for axis, module in (("transform", model.transform), ("entropy model", model.entropy))
    }
    for axis, parameters in count.items():
        print(f"{axis}: {parameters / 1e6:.2f} M parameters")
    print(f"g_a {analysis:.1f}, g_s {synthesis:.1f}, entropy model {entropy:.1f} kMAC/pixel")
    print(f"encode {analysis + entropy:.1f}, decode {synthesis + entropy:.1f} kMAC/pixel")
    print(f"{model.entropy.num_steps} parallel steps")


def _mean(
    positions: torch.Tensor, channels: slice, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """A coder that takes every latent for its mean."""
    return mean


if __name__ == "__main__":
    main()

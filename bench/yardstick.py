# SPDX-License-Identifier: Apache-2.0
"""The yardstick of bench/speed.py: the networks of bmshj2018-hyperprior, with random weights.

Layer shapes of Balle et al. (2018, "Variational image compression with a scale hyperprior",
figure 4) at N=128, M=192, in plain float32 torch. Only the networks' forward passes are timed:
no rounding, no entropy coding, no file. Values do not matter to the time, so no weights are needed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

N, M = 128, 192
WIDTH, HEIGHT = 768, 512


class GDN(nn.Module):
    """Generalised divisive normalisation x / sqrt(beta + gamma x^2), or its inverse (same year)."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        norm = functional.conv2d(x * x, self.gamma, self.beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


def down(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)


def up(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


class Yardstick(nn.Module):
    """The four networks; `encode` and `decode` run what each side of that codec has to run."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Sequential(
            down(3, N), GDN(N), down(N, N), GDN(N), down(N, N), GDN(N), down(N, M)
        )
        self.h_a = nn.Sequential(
            nn.Conv2d(M, N, 3, padding=1), nn.ReLU(), down(N, N), nn.ReLU(), down(N, N)
        )
        self.h_s = nn.Sequential(
            up(N, N), nn.ReLU(), up(N, N), nn.ReLU(), nn.Conv2d(N, M, 3, padding=1), nn.ReLU()
        )
        self.g_s = nn.Sequential(
            up(M, N), GDN(N, True), up(N, N), GDN(N, True), up(N, N), GDN(N, True), up(N, 3)
        )

    @torch.inference_mode()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """g_a, h_a, h_s: (1,3,H,W) in [0,1] to y (1,M,H/16,W/16) and z (1,N,H/64,W/64)."""
        y = self.g_a(x)
        z = self.h_a(y.abs())
        self.h_s(z)
        return y, z

    @torch.inference_mode()
    def decode(self, y: Tensor, z: Tensor) -> Tensor:
        """h_s, g_s: the latents back to (1,3,H,W)."""
        self.h_s(z)
        x_hat: Tensor = self.g_s(y)
        return x_hat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks, x = Yardstick().eval(), torch.rand(1, 3, HEIGHT, WIDTH)
    times: list[tuple[float, float]] = []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        y, z = networks.encode(x)
        middle = time.perf_counter()
        networks.decode(y, z)
        times.append((middle - start, time.perf_counter() - middle))
    encode_s, decode_s = (statistics.median(side) for side in zip(*times[1:], strict=True))
    print(
        f"bmshj2018-hyperprior networks, {WIDTH}x{HEIGHT}, {options.threads} threads, "
        f"median of {options.rounds}: encode {encode_s:.3f} s, decode {decode_s:.3f} s"
    )


if __name__ == "__main__":
    main()

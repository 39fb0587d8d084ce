# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model, each on its own GPU, as `torchrun` starts them.

Every process draws the random numbers of the whole batch and works on its share of it. Losses and
gradients are exchanged, so all processes hold the same weights: up to rounding, those that one
process alone would have.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lvqcodec.errors import UsageError

_PATIENCE = datetime.timedelta(hours=1)
"""How long the others wait for the first process, which alone saves and validates."""


@dataclass(frozen=True)
class Ranks:
    """Process `index` of `count`; alone, there is nothing to exchange."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs, saves and validates."""
        return self.index == 0

    def share(self, batch: int) -> slice:
        """Return this process's part of a batch; all parts are equally large."""
        each = batch // self.count
        return slice(self.index * each, (self.index + 1) * each)

    def gather(self, share: Tensor) -> Tensor:
        """Put the shares (B / count, ...) of all processes together: (B, ...)."""
        if self.count == 1:
            return share
        parts = [torch.empty_like(share) for _ in range(self.count)]
        dist.all_gather(parts, share)
        return torch.cat(parts)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.count > 1:
            with _flattened(tensors) as flat:
                dist.all_reduce(flat)
                flat /= self.count

    @torch.no_grad()
    def total(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over the processes."""
        if self.count > 1:
            with _flattened(tensors) as flat:
                dist.all_reduce(flat)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.count > 1:
            with _flattened(tensors) as flat:
                dist.broadcast(flat, src=0)

    def agree(self, answer: bool) -> bool:
        """Return the answer of the first process; no GPU is waited for."""
        if self.count == 1:
            return answer
        flag = torch.tensor([answer])
        dist.broadcast(flag, src=0)
        return bool(flag)


@contextmanager
def _flattened(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield tensors as one vector, so that they travel in one message, and copy it back."""
    parts = list(tensors)
    flat = torch.cat([part.flatten() for part in parts])
    yield flat
    pieces = torch.split(flat, [part.numel() for part in parts])
    torch._foreach_copy_(parts, [p.view(t.shape) for p, t in zip(pieces, parts, strict=True)])


@contextmanager
def join_ranks(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that the environment names (RANK, WORLD_SIZE, LOCAL_RANK), if any.

    Yields this process's rank and its device: `device` resolved, a GPU of its own with CUDA.
    Waits until all processes have joined. Raises UsageError if there are too few GPUs.
    """
    where = torch.device(choose_device(device))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), where
        return
    if where.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU, there are"
                f" {torch.cuda.device_count()}: start as many processes"
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count), where
        dist.barrier()  # who leaves while others still talk to it may be aborted by its backend
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> str:
    """Resolve `auto` to the GPU if there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name

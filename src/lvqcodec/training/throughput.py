# SPDX-License-Identifier: Apache-2.0
"""What steps report and where their time goes; only reading it waits for the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

PHASES = ("data", "forward", "backward", "optimizer")
"""The parts of a training step, in order."""

Mark = float | torch.cuda.Event


@dataclass
class Tally:
    """Crops, seconds of the wall clock, and seconds in each of PHASES."""

    crops: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def report(self) -> dict[str, float]:
        """Return crops/s and the share of each phase in the time of the steps."""
        spent = sum(self.phases.values())
        shares = {
            f"{p}_share": round(s / spent, 4) if spent else 0.0 for p, s in self.phases.items()
        }
        rate = self.crops / self.seconds if self.seconds else 0.0
        return {"crops_per_s": round(rate, 2), **shares}


class Meter:
    """Sums over steps, kept on the device; `total` is what all reads so far have seen."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Mark]] = []
        self._sums: Tensor | None = None
        self._names: list[str] = []
        self._recent = Tally()
        self.total = Tally()

    def mark(self, ended: str = "") -> None:
        """Mark the end of a phase; without a name, the beginning of a step."""
        now: Mark = time.perf_counter()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        self._marks.append((ended, now))

    def add_values(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        """Add the values (scalars) of a step, unless it was `skipped` (1 or 0)."""
        row = torch.where(skipped > 0, 0.0, torch.stack(list(values.values())))
        row = torch.cat([row, torch.stack([1 - skipped, skipped])])
        self._sums = row if self._sums is None else self._sums + row
        self._names = list(values)

    def add_time(self, crops: int, seconds: float) -> None:
        """Add the crops of a step and the wall-clock seconds that it took."""
        self._recent.crops += crops
        self._recent.seconds += seconds

    def wait(self) -> None:
        """Wait until the device has done everything marked so far."""
        if self._marks and isinstance(last := self._marks[-1][1], torch.cuda.Event):
            last.synchronize()

    def read(self) -> dict[str, float]:
        """Return speed, shares and mean values since the last read, and begin anew."""
        self.wait()
        for (_, begin), (phase, end) in pairwise(self._marks):
            if phase:
                self._recent.phases[phase] += _seconds(begin, end)
        record = self._recent.report()
        self.total.crops += self._recent.crops
        self.total.seconds += self._recent.seconds
        for phase, seconds in self._recent.phases.items():
            self.total.phases[phase] += seconds
        if self._sums is not None:
            *sums, steps, skipped = self._sums.tolist()
            record |= {
                n: round(s / max(steps, 1), 6) for n, s in zip(self._names, sums, strict=True)
            }
            if skipped:
                record["skipped"] = skipped
        self._marks, self._sums, self._recent = [], None, Tally()
        return record


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float):
        assert isinstance(end, float)
        return end - begin
    assert not isinstance(end, float)
    return float(begin.elapsed_time(end)) / 1000

# SPDX-License-Identifier: Apache-2.0
"""Decoding through the library beside busy cores, with threads that wait quietly and as torch's do.

python bench/threads.py [--busy 2] [--number 5] [--model normal]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

_CHILD = """
import sys, time
if sys.argv[3] == "loud":
    import torch  # before us, with what OpenMP does by default
import numpy, lvqcodec
picture = (numpy.add.outer(numpy.arange(512), numpy.arange(768)) % 251).astype(numpy.uint8)
data = lvqcodec.encode(picture, model=sys.argv[2])
for _ in range(int(sys.argv[1])):
    start = time.perf_counter()
    lvqcodec.decode(data)
    print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes beside")
    parser.add_argument("--number", type=int, default=5, help="decodings, of 512 x 768 pixels")
    parser.add_argument("--model", default="normal")
    options = parser.parse_args()
    others = [multiprocessing.Process(target=_work, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_"))}
    for how in ("loud", "quiet"):
        command = [sys.executable, "-P", "-c", _CHILD, str(options.number), options.model, how]
        said = subprocess.run(command, env=kept, capture_output=True, text=True, check=True).stdout
        times = [float(line) for line in said.split()]
        print(f"{how}: {statistics.median(times):.2f} s, median of {len(times)}")
    for other in others:
        other.kill()


def _work() -> None:
    while True:
        time.perf_counter()


if __name__ == "__main__":
    main()

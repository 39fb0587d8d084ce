# SPDX-License-Identifier: Apache-2.0
"""Kills lvq at random times and looks at what is left: originals, halves of files, litter.

    python bench/kills.py [--kills 50] [--model baseline] [--seed 0]

encode, decode and batch both ways are started in turn and sent TERM, INT or KILL at a random time,
some of them while they write. After every kill the sources must be as they were, and every output
that is there whole; then the same command runs again, and must leave the very files of an
undisturbed run, with the bytes of one and with nothing beside them. Exits with 1 if anything was
lost.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
SIZE = 160, 224


def make_sources(folder: Path, model: str) -> None:
    """Some pictures, and the .lvq files of them."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "in/c", "in/d", "in/e"):
        path = folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path)
    lvq(folder, "batch", "pictures", "coded", "--model", model)
    shutil.rmtree(folder / "coded" / ".lvq-batch")


def commands(model: str) -> dict[str, list[str]]:
    """By name; each writes into `out`."""
    return {
        "encode": ["encode", "pictures/a.png", "out/a.lvq", "--model", model, "--effort", "1"],
        "decode": ["decode", "coded/a.lvq", "out/a.png"],
        "batch": ["batch", "pictures", "out", "--model", model],
        "batch --decode": ["batch", "coded", "out", "--decode"],
    }


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lvqcodec", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def lvq(folder: Path, *arguments: str) -> None:
    with start(folder, *arguments) as process:
        _, said = process.communicate()
    if process.returncode:
        sys.exit(f"lvq {' '.join(arguments)}: {said.decode()}")


def digests(folder: Path) -> dict[str, str]:
    """Of all files but what batch remembers, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != ".lvq-batch"
    }


def emptied(folder: Path) -> Path:
    """A folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def is_litter(name: str) -> bool:
    return name.endswith(".tmp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="baseline")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    faults: list[str] = []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="lvq-kills-") as scratch:
        folder = Path(scratch)
        make_sources(folder, args.model)
        todo = commands(args.model)
        whole, seconds = {}, {}
        for name, command in todo.items():
            out = emptied(folder / "out")
            begun = time.monotonic()
            lvq(folder, *command)
            seconds[name] = time.monotonic() - begun
            whole[name] = digests(out)
        sources = {kind: digests(folder / kind) for kind in ("pictures", "coded")}
        killed = 0
        while killed < args.kills:
            name, command = list(todo.items())[killed % len(todo)]
            out = emptied(folder / "out")
            number = SIGNALS[rng.randrange(3)]
            process = start(folder, *command)
            time.sleep(rng.uniform(0, seconds[name]))
            ended = process.poll() is not None
            process.send_signal(number)
            _, said = process.communicate()
            counts[f"{name}, {'over before' if ended else number.name}"] += 1
            killed += not ended

            found: list[str] = []
            # the interpreter's own start is not ours to guard
            if b"Traceback" in said and b"lvqcodec" in said:
                found.append("a traceback: " + said.decode().splitlines()[-1])
            left = digests(out)
            counts["temporary files left by KILL"] += sum(map(is_litter, left))
            for file, digest in left.items():
                if not is_litter(file) and digest != whole[name].get(file):
                    found.append(f"{file} is not whole")
                if is_litter(file) and number != signal.SIGKILL:
                    found.append(f"{file} is left")
            lvq(folder, *command)
            if digests(out) != whole[name]:
                found.append(
                    f"run again: {sorted(digests(out))} is not {sorted(whole[name])}, or differs"
                )
            for kind, before in sources.items():
                if digests(folder / kind) != before:
                    found.append(f"{kind} have changed")
            faults += (f"kill {killed} ({name}, {number.name}): {text}" for text in found)
            print(f"\r{killed}/{args.kills}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for what, count in sorted(counts.items()):
        print(f"{count:5}  {what}")
    print("\n".join(faults) or "nothing lost, nothing partial, nothing left behind")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

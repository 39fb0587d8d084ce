# SPDX-License-Identifier: Apache-2.0
"""Damage a file in every way at hand and see what `lvq decode` makes of it.

    python bench/fuzz.py [PICTURE] [--mutations 5000] [--quality 10] [--seed 0] [--repair]

Every truncation and so many random mutations (bits, bytes, runs, cuts, repeats) of one file go
through the command in this process. Each must end within 10 s with exit code 3 or 4, one line on
stderr and no output file. With --repair the container's checksums are made right again after each
mutation, so that damage gets as far as the entropy decoder. Prints a count of each outcome; exits
1 if any was wrong.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from lvqcodec import cli, codec, imageio

LIMIT_SECONDS = 10.0
ALLOWED = (3, 4)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes of any kind; never the data itself."""
    out = bytearray(data)
    while bytes(out) == data:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(out)) if out else 0
            kind = rng.randrange(6)
            if kind == 0 and out:
                out[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and out:
                out[at] = rng.randrange(256)
            elif kind == 2:
                out[at : at + rng.randint(1, 16)] = b""
            elif kind == 3:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            elif kind == 4:
                out[at : at + 8] = bytes([rng.choice((0, 255))]) * 8
            else:
                out[at:at] = out[at : at + rng.randint(1, 64)]
    return bytes(out)


def repair(data: bytes, header_end: int) -> bytes:
    """Recompute both checksums of a file of one section whose header ends at `header_end`."""
    head = data[: header_end - 4]
    body = data[header_end:-4]
    return b"".join(
        [
            head,
            zlib.crc32(head).to_bytes(4, "little"),
            body,
            zlib.crc32(body).to_bytes(4, "little"),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?")
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--quality", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repair", action="store_true")
    args = parser.parse_args()
    if args.picture:
        image = imageio.load(args.picture)
    else:
        y, x = np.mgrid[0:48, 0:64]
        image = np.stack([4 * x, 5 * y, 128 + 60 * np.sin(x * y / 90)], 2).astype(np.uint8)
    data = codec.encode(image, quality=args.quality)
    intact = codec.decode(data, device="cpu")
    # the fixed part is 17 bytes, then two varints and the checksum; see docs/FORMAT.md
    header_end = 17 + sum(1 if side < 128 else 2 if side < 16384 else 3 for side in image.shape[:2])
    header_end += 4
    rng = random.Random(args.seed)
    runner = CliRunner()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    wrong = 0
    cases = [data[:n] for n in range(len(data))] if not args.repair else []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "damaged.lvq", Path(folder) / "out.png"
        for index in range(len(cases) + args.mutations):
            case = cases[index] if index < len(cases) else mutate(data, rng)
            if args.repair:
                case = repair(case, header_end)
                if case == data:
                    continue
            source.write_bytes(case)
            start = time.perf_counter()
            result = runner.invoke(cli.main, ["decode", str(source), str(out), "--device", "cpu"])
            seconds = time.perf_counter() - start
            slowest = max(slowest, seconds)
            lines = result.stderr.splitlines()
            # checksums made right: another header is another picture of the same section, and the
            # last bits of the range coder may be free
            same = args.repair and (
                case[header_end:] == data[header_end:]
                or (out.exists() and np.array_equal(imageio.load(out), intact))
            )
            clean = (same and result.exit_code == 0) or (
                result.exit_code in ALLOWED
                and len(lines) == 1
                and lines[0].startswith("lvq: error: ")
                and not out.exists()
                and seconds < LIMIT_SECONDS
            )
            outcomes[f"exit {result.exit_code}" + ("" if clean else " WRONG")] += 1
            if result.exit_code == 0:
                out.unlink(missing_ok=True)
            if not clean:
                wrong += 1
                print(f"case {index}: exit {result.exit_code}, {seconds:.1f} s, {lines[:2]}")
    print(f"{len(data)} bytes: {len(cases)} truncations, {args.mutations} mutations")
    print(", ".join(f"{what}: {count}" for what, count in sorted(outcomes.items())))
    print(f"slowest {slowest:.2f} s, wrong {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

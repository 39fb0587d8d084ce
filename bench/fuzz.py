# SPDX-License-Identifier: Apache-2.0
"""Damage files in every way at hand and see what the decoder makes of them.

    python bench/fuzz.py [FILE.lvq ...] [--model NAME] [--mutations 20000] [--repair] [--partial]

Mutations of the files (by default the golden ones with their small model; with --model a small
picture at several qualities by that model) go through `decode` in a child process that may take
1 GiB more address space than it has once the model is loaded, and 10 s a file; it is started again
when it dies. Without --repair every truncation comes first, and nothing may decode: the checksums
are as damaged as the rest. (But a cut may happen to take out a section of metadata, whole.) With
--repair lengths and checksums of the container are made right after each mutation, so that damage
gets as far as the entropy decoder; what decodes then has passed the checksum of its integers. With
--partial files are decoded as what may have lost its end: what is cut in the latents, where no
checksum can tell, may then decode. Allowed is an LvqError of exit code 3, 4 or 5. Prints how often
each outcome came about; exits 1 if one was wrong, and puts such cases into --keep.
"""

from __future__ import annotations

import argparse
import collections
import functools
import multiprocessing
import os
import random
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from lvqcodec import codec
from lvqcodec.errors import LvqError
from lvqcodec.format.container import read_header, unpack
from lvqcodec.model.loaded import load_model

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 1 << 30
ALLOWED = (3, 4, 5)
GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden"
NUM_FIXED = 17
NUM_MAGIC = 8


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes of any kind; never the data itself."""
    out = bytearray(data)
    while bytes(out) == data:
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(out)) if out else 0
            kind = rng.randrange(7)
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
            elif kind == 5:
                out[at:at] = out[at : at + rng.randint(1, 64)]
            else:
                out[at:] = rng.randbytes(rng.choice((0, len(out) - at, 1000)))
    return bytes(out)


def mutate_parts(data: bytes, rng: random.Random) -> bytes:
    """Mutate header fields, sizes or sections and put the file together again, checksums right."""
    header, sections = unpack(data)
    fixed, parts = bytearray(data[:NUM_FIXED]), list(sections.items())
    sides = [header.width, header.height]
    while True:
        for _ in range(rng.randint(1, 2)):
            kind, which = rng.randrange(10), rng.randrange(len(parts)) if parts else 0
            if kind == 0:
                fixed[rng.randrange(NUM_MAGIC + 2, NUM_FIXED)] = rng.randrange(256)
            elif kind == 1:
                fixed[NUM_MAGIC + 3 : NUM_MAGIC + 5] = rng.randrange(101), rng.randrange(2)
            elif kind == 2:
                sides[rng.randrange(2)] = rng.randrange(rng.choice((9, 130, 3000, 1 << 17)))
            elif kind == 3:
                side = rng.randrange(2)
                sides[side] = max(sides[side] + rng.choice((-8, -1, 1, 8)), 0)
            elif kind == 4 and parts and rng.random() < 0.3:
                change = rng.randrange(3)
                if change == 0:
                    del parts[which]
                elif change == 1:
                    parts.insert(which, (rng.randrange(256), rng.randbytes(rng.randrange(40))))
                else:
                    parts[which] = rng.randrange(256), parts[which][1]
            elif parts:
                parts[which] = parts[which][0], mutate(parts[which][1], rng)
        head = bytes(fixed) + b"".join(varint(side) for side in sides)
        bodies = [bytes([kind]) + varint(len(payload)) + payload for kind, payload in parts]
        out = b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in (head, *bodies))
        if out != data:
            return out


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def cases(
    files: list[bytes], mutations: int, seed: int, repair: bool
) -> Iterator[tuple[str, bytes]]:
    """What to decode, each with a name from which it can be made again."""
    if not repair:
        for number, data in enumerate(files):
            for end in range(1, len(data)):
                yield f"truncation-{number}-{end}", data[:end]
    change = mutate_parts if repair else mutate
    for index in range(mutations):
        rng = random.Random(f"{seed}-{index}")
        yield f"mutation-{seed}-{index}", change(rng.choice(files), rng) or b"\0"


def lacks_a_section(case: bytes, data: bytes) -> bool:
    """Whether a case is a file without some whole sections, of those that a file may lack."""
    header, sections = unpack(case)
    whole, all_sections = unpack(data)
    return header == whole and sections.items() <= all_sections.items()


def serve(pipe: Connection, intact: bytes, partial: bool) -> None:
    """Decode what comes, in the child; answer with the outcome."""
    codec.find_by_digest = functools.cache(codec.find_by_digest)  # cards are no part of this
    codec.decode(intact, device="cpu")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send_bytes(b"ready")
    while data := pipe.recv_bytes():
        try:
            picture = codec.decode(data, device="cpu", partial=partial)
            header = read_header(data)
            right = picture.shape[:2] == (header.height, header.width)
            outcome = "decoded" if right and picture.dtype == np.uint8 else "WRONG shape"
        except LvqError as error:
            right = error.exit_code in ALLOWED and len(str(error).splitlines()) == 1
            outcome = f"{'' if right else 'WRONG '}exit {error.exit_code} {type(error).__name__}"
        except BaseException as error:  # a panic of the range coder is no Exception
            outcome = f"WRONG {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        pipe.send_bytes(outcome.encode())


class Child:
    """A process that decodes; started again whenever it had to be ended."""

    def __init__(self, intact: bytes, partial: bool) -> None:
        self._task = intact, partial
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *self._task), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv_bytes() == b"ready"

    def decode(self, data: bytes) -> str:
        """What became of a case, which is not empty."""
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(LIMIT_SECONDS):
                return self._pipe.recv_bytes().decode()
            outcome = f"WRONG hang of {LIMIT_SECONDS:.0f} s"
            self._process.kill()
            self._process.join()
        except (EOFError, OSError):
            self._process.join()
            outcome = f"WRONG crash ({self._process.exitcode})"
        self._start()
        return outcome

    def end(self) -> None:
        """Let the child go."""
        self._pipe.send_bytes(b"")
        self._process.join()


def make_files(model: str) -> list[bytes]:
    """A small picture by the model at several rates, on all of its lattices."""
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([4 * x, 5 * y, 128 + 60 * np.sin(x * y / 90)], 2).astype(np.uint8)
    loaded = load_model(model, device="cpu")
    return [
        codec.encode(image, model=loaded, quality=quality, lattice=lattice)
        for quality in (10, 50, 90)
        for lattice in loaded.tables.names
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end earlier")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    args = parser.parse_args()
    os.environ["LVQ_MODEL_PATH"] = f"{GOLDEN}{os.pathsep}{os.environ.get('LVQ_MODEL_PATH', '')}"
    paths = args.files or sorted(GOLDEN.glob("*.lvq"))
    files = make_files(args.model) if args.model else [path.read_bytes() for path in paths]
    outcomes: collections.Counter[str] = collections.Counter()
    child = Child(files[0], args.partial)
    start, slowest, count = time.monotonic(), 0.0, 0
    for name, case in cases(files, args.mutations, args.seed, args.repair):
        before = time.monotonic()
        if before - start > 60 * args.minutes:
            break
        outcome = child.decode(case)
        slowest = max(slowest, time.monotonic() - before)
        count += 1
        if outcome == "decoded" and not (args.repair or args.partial):
            lacking = any(lacks_a_section(case, data) for data in files)
            outcome = "decoded, without a section" if lacking else "WRONG decoded"
        outcomes[outcome] += 1
        if outcome.startswith("WRONG"):
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{name}.lvq").write_bytes(case)
            print(f"{name}: {outcome}", flush=True)
        if sys.stderr.isatty() and count % 100 == 0:
            print(f"\r{count}", end="\r", file=sys.stderr)
    child.end()
    seconds = time.monotonic() - start
    print(f"{len(files)} files, {count} cases, {count / seconds:.0f} a second")
    for outcome, times in sorted(outcomes.items()):
        print(f"{times:8d}  {outcome}")
    print(f"slowest {slowest:.2f} s")
    return 1 if any(outcome.startswith("WRONG") for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

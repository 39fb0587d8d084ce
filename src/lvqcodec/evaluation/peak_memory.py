# SPDX-License-Identifier: Apache-2.0
"""The peak memory of coding a picture, encoding and decoding each in a process of its own."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lvqcodec.errors import UsageError
from lvqcodec.pictures import load

# The child imports what unpickling its task asks for and nothing else: no torch for a peer.
_CHILD = "import pickle, sys; task, *what = pickle.load(sys.stdin.buffer); print(task(*what))"


class Coder(Protocol):
    """One way of coding pictures; `prepare` loads what it needs, or raises if it is missing."""

    def prepare(self) -> None:
        """Load what coding needs."""

    def encode(self, image: NDArray[np.uint8], quality: int) -> bytes:
        """Code a picture (H, W, 3) or (H, W) to the bytes of a file."""
        ...

    def decode(self, data: bytes, grey: bool) -> NDArray[np.uint8]:
        """Decode such bytes to (H, W, 3), or to (H, W) for a grey picture."""
        ...


def peak_memory(
    coder: Coder, quality: int, picture: Path, scratch: Path, threads: int
) -> tuple[int, int]:
    """Peak resident sets in bytes of encoding the file `picture`, and of decoding the result.

    Each runs in a fresh process that imports, loads the model if there is one, and codes once. So
    everything counts: interpreter, libraries (torch for a model, Pillow for a peer), weights,
    picture and file; only the memory of a GPU does not. `coder` is pickled; `scratch` is a folder.
    """
    file = scratch / "peak"
    grey = load.load(picture).ndim == 2
    encode = _run((_encode, coder, quality, picture, file), threads)
    return encode, _run((_decode, coder, file, grey), threads)


def _run(task: tuple[object, ...], threads: int) -> int:
    child = subprocess.run(
        # -P: what lies in the current folder is no part of us, whatever it is called
        [sys.executable, "-P", "-c", _CHILD],
        input=pickle.dumps(task),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(
            f"cannot measure memory ({said[-1] if said else f'exit code {child.returncode}'}): "
            "leave that out"
        )
    return int(child.stdout.split()[-1])


def _encode(coder: Coder, quality: int, picture: Path, file: Path) -> int:
    coder.prepare()
    file.write_bytes(coder.encode(load.load(picture), quality))
    return _peak()


def _decode(coder: Coder, file: Path, grey: bool) -> int:
    coder.prepare()
    coder.decode(file.read_bytes(), grey)
    return _peak()


def _peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:  # On Linux ru_maxrss starts at the parent's peak, which is carried over the exec.
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

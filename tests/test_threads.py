# SPDX-License-Identifier: Apache-2.0
"""The threads of torch: they wait quietly, and a forked child does not wait for them for ever."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lvqcodec

SOURCE = str(Path(lvqcodec.__file__).parents[1])
GNU = "linux" in sys.platform


def python(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Run a script with two threads and without settings of OpenMP; return what it prints."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_", "KMP_"))}
    kept |= {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "2", **environment}
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def waiting(code: str, folder: Path, **environment: str) -> str:
    """The number of turns that idle threads wait in a loop, as OpenMP says when it is loaded."""
    said = python(code, folder, OMP_DISPLAY_ENV="VERBOSE", **environment)
    found = re.search(r"GOMP_SPINCOUNT = '(.*)'", said)
    assert found, said
    return found[1]


QUIET = """
import os
before = dict(os.environ)
import {way}
assert dict(os.environ) == before
import sys
assert "torch" in sys.modules
"""


@pytest.mark.skipif(not GNU, reason="torch comes with another OpenMP")
@pytest.mark.parametrize(
    "way", ["lvqcodec; lvqcodec.decode", "lvqcodec.codec", "lvqcodec.plugin, lvqcodec.codec"]
)
def test_the_library_loads_torch_with_threads_that_wait_quietly(tmp_path: Path, way: str) -> None:
    assert waiting(QUIET.format(way=way), tmp_path) == "1000"


@pytest.mark.skipif(not GNU, reason="torch comes with another OpenMP")
def test_what_the_caller_has_chosen_stays(tmp_path: Path) -> None:
    ours = "import lvqcodec.codec"
    assert waiting(ours, tmp_path, OMP_WAIT_POLICY="ACTIVE") == "30000000000"
    assert waiting(ours, tmp_path, GOMP_SPINCOUNT="77") == "77"
    assert waiting(f"import torch; {ours}", tmp_path) == "300000"


FORK = """
import multiprocessing, sys, threading
import numpy, torch
import lvqcodec

def code():
    picture = numpy.arange(300 * 300 * 3, dtype=numpy.uint8).reshape(300, 300, 3)
    data = lvqcodec.encode(picture, model="tiny")
    return data, lvqcodec.decode(data).tobytes()

def work(queue, way):
    if way == "load":
        from lvqcodec.model import loaded
        loaded.load_card.cache_clear()
        lvqcodec.load_model("tiny")
    if way == "thread":
        thread = threading.Thread(target=lambda: queue.put(code()))
        thread.start()
        thread.join()
    else:
        queue.put(code())

if __name__ == "__main__":
    kind, way, *inside = sys.argv[1:]
    torch.set_num_threads(2)
    # a pool of threads, whoever has made use of it
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1 << 20).exp()
    wanted = code()
    context = multiprocessing.get_context(kind)
    for child in range(2 if kind == "fork" else 1):
        queue = context.Queue()
        process = context.Process(target=work, args=(queue, way), daemon=True)
        process.start()
        try:
            found = queue.get(timeout=30)
        except Exception:
            process.kill()
            sys.exit("hangs")
        process.join(30)
        assert found == wanted
    assert torch.get_num_threads() == 2
    assert code() == wanted
    print("same")
"""


@pytest.mark.parametrize("how", ["fork plain", "fork load", "fork thread", "spawn plain"])
def test_a_child_codes_after_its_parent_has(tmp_path: Path, models_folder: Path, how: str) -> None:
    """In a forked one the threads that torch waits for are no more (a fault of GNU's OpenMP)."""
    kind, way = how.split()
    if kind not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {kind} here")
    said = python(FORK, tmp_path, kind, way, LVQ_MODEL_PATH=str(models_folder))
    assert said.splitlines()[-1] == "same"

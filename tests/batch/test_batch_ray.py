# SPDX-License-Identifier: Apache-2.0
"""`lvq batch --engine ray`: the files of the local engine, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batches import batch, tree
from PIL import Image

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@pytest.fixture
def photos(tmp_path, photograph):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(60):
        Image.fromarray(photograph(64, 96, seed=number)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    options = ["-m", "tiny", "--engine", "ray", "--jobs", "2", "--json"]
    command = [sys.executable, "-m", "lvqcodec", "batch", *map(str, arguments), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the actors that descend from a batch's."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in table.stdout.splitlines()[1:]]
    family = {process.pid}
    for _ in range(5):
        family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
    return [int(r[0]) for r in rows if int(r[0]) in family and re.match(r"ray::Worker", r[2])]


@pytest.mark.slow
@needs_ray
def test_files_are_those_of_the_local_engine_though_a_worker_is_killed(photos, tmp_path, tiny):
    small = tmp_path / "small"
    with start(photos, small) as process:
        try:
            while len(list(small.glob("*.lvq"))) < 3:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            os.kill(workers(process)[0], signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 1
    assert any(line.startswith("lvq: error: bad.png: ") for line in stderr.splitlines())
    summary = json.loads(stdout)
    assert (summary["done"], summary["failed"]) == (60, 1)
    batch(photos, tmp_path / "local", "-m", tiny)
    assert tree(small) == tree(tmp_path / "local")


def test_without_ray_the_remedy_is_told(photos, tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = batch(photos, tmp_path / "small", "-m", tiny, "--engine", "ray")
    assert result.exit_code == 2
    assert "pip install 'lvqcodec[ray]'" in result.stderr


def test_stores_that_workers_cannot_see_are_refused(photos, tiny):
    pytest.importorskip("fsspec")
    result = batch(photos, "memory://x", "-m", tiny, "--engine", "ray")
    assert result.exit_code == 2
    assert "memory:// is not seen by Ray's workers" in result.stderr

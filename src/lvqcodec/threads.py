# SPDX-License-Identifier: Apache-2.0
"""The threads of OpenMP that torch works with: how they wait, and what a fork leaves of them.

GNU's OpenMP reads its settings when torch loads it, and lets idle threads wait in a busy loop.
Where other processes need the cores, work then takes up to thirty times longer. So threads wait
without a loop here, unless the environment says otherwise. In a forked child, the threads of the
pool no longer exist, and the thread that forked would wait for them for ever: it works alone there.
Threads that the child starts have pools of their own.
"""

from __future__ import annotations

import os
import sys
import threading

MAX_THREADS = 1024
FORCE_THREADS = "LVQ_FORCE_THREADS"
"""The variable that, if it is 1, lets --threads be more than there are cores."""

_orphan: int | None = None
"""The thread of this process that has lost its pool."""


def bounded(threads: int) -> int:
    """Return how many of the threads asked for are used: at most one for each core.

    More threads only wait for each other; thousands have crashed OpenMP.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if os.environ.get(FORCE_THREADS) == "1":
        return threads
    return min(threads, cores or 1)


def quiet() -> dict[str, str]:
    """Return the environment variables to add, if any, before torch is first imported.

    The threads may still loop for some microseconds. Without that, a search alone takes 1.2 to 1.5
    times as long; with it, two searches at once take 1.15 times as long.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def load_torch() -> None:
    """Import torch with threads that wait quietly, unless it is loaded; leave no trace of it."""
    if "torch" in sys.modules:
        return
    added = quiet()
    os.environ.update(added)
    try:
        import torch  # noqa: F401
    finally:
        for name in added:
            os.environ.pop(name, None)


def after_fork() -> None:
    """Make this thread work alone if a fork has left it without its pool of threads."""
    if _orphan == threading.get_ident():
        import torch

        torch.set_num_threads(1)


def _remember_fork() -> None:
    global _orphan
    if "torch" in sys.modules:
        _orphan = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)

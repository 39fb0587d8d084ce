# SPDX-License-Identifier: Apache-2.0
"""The threads of OpenMP that torch works with: how they wait, and what a fork leaves of them.

GNU's OpenMP reads its settings when torch loads it, and lets idle threads wait in a loop. Where
others want the cores this takes up to thirty times longer; so, unless whoever runs this process has
chosen, they wait without one. In a forked child the thread that forked finds a pool of threads that
are no more, and would wait for them for ever: there it works alone. Threads that a child starts
have pools of their own.
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
    """Return how many threads are used where so many are asked for: one for each core at most.

    More of them only wait for each other; thousands have crashed OpenMP.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if os.environ.get(FORCE_THREADS) == "1":
        return threads
    return min(threads, cores or 1)


def quiet() -> dict[str, str]:
    """Return the environment variables to add, if any, before torch is first imported.

    The threads may still loop for some microseconds: without, a lone search takes 1.2 to 1.5 times
    as long; with that, two at once take 1.15 times.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def load_torch() -> None:
    """Import torch with threads that wait quietly, if nobody has before; leave no trace of it."""
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
    """Make this thread work alone if a fork has taken its pool of threads from it."""
    if _orphan == threading.get_ident():
        import torch

        torch.set_num_threads(1)


def _remember_fork() -> None:
    global _orphan
    if "torch" in sys.modules:
        _orphan = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)

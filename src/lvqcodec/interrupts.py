# SPDX-License-Identifier: Apache-2.0
"""Work that ends in good order when it is interrupted by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_interrupt(end: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Let the first of SIGNALS call `end`, and every further one do what it did before.

    Only the main thread may handle signals: in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        end(signal.Signals(number))

    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:  # as nohup and shells set it for background jobs
            signal.signal(number, handle)
    try:
        yield
    finally:
        restore()

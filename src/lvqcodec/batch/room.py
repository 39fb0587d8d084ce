# SPDX-License-Identifier: Apache-2.0
"""How many pictures may be at work at once: some number, and no more than memory has room for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Lets in as many as `places` at a time, as long as what they need fits into `size` bytes.

    What needs more than `size` is let in when nobody else is there. None: of any size.
    """

    def __init__(self, places: int, size: int | None) -> None:
        self._places = places
        self._size = size
        self._needs: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, need: int) -> Iterator[None]:
        """Wait until there is room for `need` bytes, and keep them until the end of the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(need))
            self._needs.append(need)
        try:
            yield
        finally:
            with self._changed:
                self._needs.remove(need)
                self._changed.notify_all()

    def _fits(self, need: int) -> bool:
        if not self._needs:
            return True
        full = self._size is not None and sum(self._needs) + need > self._size
        return len(self._needs) < self._places and not full

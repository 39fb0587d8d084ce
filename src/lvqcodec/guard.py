# SPDX-License-Identifier: Apache-2.0
"""The entry points of the library: inside them torch has the settings that the codec needs.

A thread's own settings that would change numbers are put aside: autocast, inference mode, a default
device. The precision of float32 products is a setting of the process. It is put aside while any
thread is inside, so other threads compute with more digits than they asked for in the meantime.
The default dtype belongs to the process too, but nothing here depends on it. Deterministic
algorithms stay as they are, and so do denormals, which `torch.set_flush_denormal` may turn off: no
integer is denormal.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lvqcodec import threads

threads.load_torch()

import torch  # noqa: E402

_FULL = ("ieee", "none")
"""Names of the precision of all digits; the second is that of whatever is above."""


@contextmanager
def own_torch() -> Iterator[None]:
    """Put the caller's settings of torch aside; as a decorator, while a function runs."""
    threads.after_fork()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_precision)
        yield


class _Precision:
    """Products of float32 in all digits while at least one thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: list[int] = []  # threads, each as often as it has entered
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = [undo for switch in _switches() if (undo := _turn(*switch))]
            self._inside.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside.remove(threading.get_ident())
            self._leave()

    def after_fork(self) -> None:
        """Renew the lock: the child has only the thread that forked, which does not hold it."""
        self._lock = threading.Lock()
        self._inside = [thread for thread in self._inside if thread == threading.get_ident()]
        self._leave()

    def _leave(self) -> None:
        while self._undo and not self._inside:
            self._undo.pop()()


def _switches() -> Iterator[tuple[Any, str, tuple[Any, ...]]]:
    """Yield (object, attribute, right values), parents first; the first value is the one to set."""
    backends: Any = torch.backends
    cuda = torch.cuda.is_available()
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        yield _Products(), "precision", ("highest",)
        if cuda:
            yield backends.cudnn, "allow_tf32", (False,)
        return
    yield backends, "fp32_precision", _FULL
    for owner in (backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv):
        yield owner, "fp32_precision", _FULL
    if cuda:
        for owner in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv):
            yield owner, "fp32_precision", _FULL


class _Products:
    """The precision of matrix products, under the name that torch before 2.9 has for it."""

    precision = property(
        lambda self: torch.get_float32_matmul_precision(),
        lambda self, value: torch.set_float32_matmul_precision(value),
    )


def _turn(owner: Any, name: str, right: tuple[Any, ...]) -> Callable[[], None] | None:
    """Set an attribute to the first of some values unless it has one of them; return an undo."""
    before = getattr(owner, name)
    if before in right:
        return None
    setattr(owner, name, right[0])
    return lambda: setattr(owner, name, before)


_precision = _Precision()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_precision.after_fork)

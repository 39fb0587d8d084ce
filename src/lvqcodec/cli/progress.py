# SPDX-License-Identifier: Apache-2.0
"""How far work is, as one line on a terminal: name, percentage, bar, time left, facts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from lvqcodec.cli.io import is_terminal

_COLUMNS, _ROWS = 80, 24
_FORMAT = "{desc}: {percentage:3.0f}% |{bar:24}| {remaining} left{postfix}"


class Display:
    """Takes how much is done, 0 to 1, and facts to show beside it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._begun = False
        self._name = "" if bar is None else bar.desc

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._bar is not None

    def __call__(self, done: float, facts: str = "", *, step: str = "") -> None:
        """Show it. `step` names what is at work, after the name of the whole."""
        if self._bar is None:
            return
        if not self._begun:
            # what went before was another kind of work, and tells nothing of the time left
            self._bar.unpause()
            self._bar.initial = done
            self._begun = True
        self._bar.n = min(done, 1.0)
        self._bar.set_description_str(f"{self._name} {step}".rstrip(), refresh=False)
        self._bar.set_postfix_str(facts, refresh=False)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if self._bar is not None:
            self._bar.clear()
        click.echo(text, err=True)
        if self._bar is not None:
            self._bar.refresh()


@contextmanager
def display(name: str, *, quiet: bool = False, keep: bool = False) -> Iterator[Display]:
    """Show progress on stderr until the end of the block, if that is a terminal.

    keep: the line stays at the end, as far as work came; else it is wiped off.
    """
    if quiet or not is_terminal("stderr"):
        yield Display(None)
        return
    from tqdm import tqdm

    # columns and rows are given because tqdm shows nothing where a terminal says that it has none
    shape = {"ncols": _width(), "nrows": _ROWS}
    with tqdm(total=1.0, desc=name, bar_format=_FORMAT, leave=keep, **shape) as bar:
        yield Display(bar)


def _width() -> int:
    """Columns of the terminal that stderr is; some do not tell."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS

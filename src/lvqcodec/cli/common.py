# SPDX-License-Identifier: Apache-2.0
"""What the commands share: errors as one line and an exit code, summaries, threads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lvqcodec.cli.io import display_name
from lvqcodec.errors import UsageError
from lvqcodec.threads import bounded, quiet


def refuse_json_beside_data(as_json: bool, out: str) -> None:
    """Raise UsageError where both a picture and JSON would go to stdout."""
    if as_json and out == "-":
        raise UsageError("--json writes to stdout, and so does OUT: name an output file")


def summarise(
    source: str, out: str, words: Sequence[str], facts: Mapping[str, Any] | None, quiet: bool
) -> None:
    """Say what was made of what: `words` on stderr unless quiet, or `facts` on stdout as JSON."""
    if facts is not None:
        names = {"source": display_name(source), "file": display_name(out)}
        click.echo(json.dumps({**names, **facts}))
        return
    if quiet:
        return
    way = f"{display_name(source, 'stdin')} -> {display_name(out, 'stdout')}"
    click.echo(f"{way}: {', '.join(words)}", err=True)


def set_up_torch(device: str, threads: int | None) -> None:
    """Import torch with threads that let others run; UsageError if the device is absent."""
    os.environ.update(quiet())  # and so those of processes that this one starts
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is at hand: use --device auto or --device cpu")
    if threads is not None:
        torch.set_num_threads(bounded(threads))


def size_facts(num_bytes: int, width: int, height: int) -> list[str]:
    """Return bytes and bits a pixel, in words."""
    return [f"{num_bytes:,} bytes", f"{8 * num_bytes / (width * height):.3f} bpp"]


def _one(outs: tuple[str, ...], command: str) -> str | None:
    """Return OUT, if there is one; UsageError for several pictures on the command line."""
    if len(outs) > 1:
        raise UsageError(
            f"{command} takes IN and OUT, and here are {1 + len(outs)} names: for many pictures"
            f" there is `lvq batch FOLDER OUT{' --decode' if command == 'decode' else ''}`"
        )
    return outs[0] if outs else None

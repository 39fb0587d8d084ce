# SPDX-License-Identifier: Apache-2.0
"""`lvq info` and `lvq models`: what there is, without numpy and torch."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from lvqcodec.catalog import find_by_digest
from lvqcodec.cli.app import complain, explain
from lvqcodec.cli.common import size_facts
from lvqcodec.cli.io import display_name, read_file
from lvqcodec.errors import LvqError, ModelNotFound
from lvqcodec.format.container import NAMED_SECTIONS
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.resources import admission, estimate

_NAMES = {"alpha": "alpha", "icc": "ICC", "exif": "EXIF", "xmp": "XMP"}


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line a file.")
def info(files: tuple[str, ...], as_json: bool) -> None:
    """Check .lvq files and say what is in them, without decoding.

    `-` is stdin. Every length and checksum is verified. All files are looked at, and the exit
    code is that of the first that is broken.
    """
    code = 0
    for path in files:
        try:
            facts = _facts(path)
        except (LvqError, OSError) as error:
            message, exit_code = explain(error)
            complain(f"{display_name(path)}: {message}" if isinstance(error, LvqError) else message)
            code = code or exit_code
            continue
        click.echo(json.dumps(facts) if as_json else _facts_line(facts))
    sys.exit(code)


def _facts(path: str) -> dict[str, Any]:
    file = open_lvq(read_file(path))
    header = file.header
    try:
        card = find_by_digest(header.model)
        model, memory = card.name, card.memory
    except ModelNotFound:
        model, memory = None, estimate.LARGEST
    return {
        "file": display_name(path),
        "bytes": file.size,
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "bpp": 8 * file.size / (header.width * header.height),
        "quality": header.quality,
        "lattice": header.lattice,
        "model": model,
        "digest": header.model.hex(),
        "stream_version": header.stream_version,
        **{name: len(file.sections.get(kind, b"")) for name, kind in NAMED_SECTIONS.items()},
        "tiles": len(file.tiling),
        "decode_memory": estimate.decoding(header, file.tiling, file.region(), memory),
    }


def _facts_line(facts: dict[str, Any]) -> str:
    kind = "grey" if facts["channels"] == 1 else "RGB"
    return f"{facts['file']}: " + ", ".join(
        [
            f"{facts['width']}x{facts['height']} {kind}",
            *size_facts(facts["bytes"], facts["width"], facts["height"]),
            f"quality {facts['quality']}",
            f"lattice {facts['lattice']}",
            f"model {facts['model'] or 'not installed'} ({facts['digest']})",
            f"stream version {facts['stream_version']}",
            *(f"{_NAMES[name]} {facts[name]:,} bytes" for name in NAMED_SECTIONS if facts[name]),
            *([f"{facts['tiles']} tiles"] if facts["tiles"] > 1 else []),
            f"decodes in {admission.spell(facts['decode_memory'])}",
        ]
    )

# SPDX-License-Identifier: Apache-2.0
"""`lvq batch`, run in this process, and what it has written."""

from pathlib import Path

from click.testing import CliRunner, Result

from lvqcodec.batch.store import STATE
from lvqcodec.cli import main


def batch(*arguments: str | Path) -> Result:
    """Run `lvq batch` in this process; an exception that is no exit fails the test."""
    result = CliRunner().invoke(main, ["batch", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that is an output, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not name.startswith(STATE)}

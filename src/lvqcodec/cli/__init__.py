# SPDX-License-Identifier: Apache-2.0
"""The `lvq` command: parses, calls, prints.

Only the standard library, click and floor 0 are imported here; numpy and torch load inside the
command bodies that need them, so `lvq info` and `lvq --help` answer at once. Data goes to stdout,
everything said about it to stderr.
"""

import click

from lvqcodec import __version__
from lvqcodec.cli import batch, decode, encode, eval, export, info, models, refit, train
from lvqcodec.cli.app import Cli


@click.group(
    "lvq",
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lvq")
def main() -> None:
    """A learned image codec: pictures into small .lvq files, and back.

    \b
    Exit codes: 0 ok, 2 usage (wrong option, missing file), 3 broken file,
    4 model missing or different, 5 picture of an unsupported kind, 130 interrupted, 143 terminated.
    """


for command in (
    encode.encode,
    decode.decode,
    batch.batch,
    info.info,
    models.models,
    eval.evaluate,
    train.train,
    export.export,
    refit.refit,
):
    main.add_command(command)

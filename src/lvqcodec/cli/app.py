# SPDX-License-Identifier: Apache-2.0
"""The `lvq` command as a process: errors as one line and an exit code, signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from lvqcodec import files
from lvqcodec.cli.io import occupy_closed_streams
from lvqcodec.errors import LvqError, UsageError

_INTERRUPTED, _TERMINATED = 130, 143  # 128 + SIGINT or SIGTERM, as shells count


class Cli(click.Group):
    """Turns what bad input or a full machine raises into one line on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run `lvq`; a wrong command line ends in one line too."""
        extra |= {"args": args, "prog_name": prog_name, "complete_var": complete_var}
        if not standalone_mode:
            return super().main(standalone_mode=False, **extra)
        occupy_closed_streams()
        try:
            code = super().main(standalone_mode=False, **extra)
        except click.UsageError as error:
            if _asks_for_help(error):
                error.show()
                sys.exit(error.exit_code)
            help_of = self._command_of(error, sys.argv[1:] if args is None else args)
            fail(f"{error.format_message().rstrip('.')}; see `{help_of} --help`", error.exit_code)
        except click.Abort:
            fail("interrupted", _INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)

    def _command_of(self, error: click.UsageError, args: Sequence[str]) -> str:
        """Return the command whose help has the answer; not every error knows its context."""
        if error.ctx is not None:
            return error.ctx.command_path
        return " ".join(["lvq", *[name for name in args if name in self.commands][:1]])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever is not a defect of lvq itself ends in one line."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly: the reader has had enough
        except (LvqError, OSError) as error:
            fail(*explain(error))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            fail("not enough memory for a picture of this size", LvqError.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", _INTERRUPTED)
        except _Terminated:
            fail("terminated", _TERMINATED)


def interrupted_by(name: str, remedy: str) -> NoReturn:
    """Exit as after the signal of this name, which has ended work in good order."""
    if name == "SIGTERM":
        fail(f"terminated: {remedy}", _TERMINATED)
    fail(f"interrupted: {remedy}", _INTERRUPTED)


class _Terminated(BaseException):
    """SIGTERM was received: what is in hand is given up, and what was begun is removed."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise _Terminated at SIGTERM, unless it is ignored or handled otherwise."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _asks_for_help(error: click.UsageError) -> bool:
    # `lvq` alone: since click 8.2 an error, which shows the help
    return type(error).__name__ == "NoArgsIsHelpError"


def explain(error: LvqError | OSError) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if isinstance(error, LvqError):
        return str(error), error.exit_code
    where = "" if error.filename is None else f"{click.format_filename(error.filename)}: "
    return where + files.reason(error).lower(), UsageError.exit_code


def _out_of_memory(error: Exception) -> bool:
    # torch has no class for it on the CPU, and its wording differs between versions.
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def complain(message: str) -> None:
    """Say one line of an error on stderr."""
    click.echo(f"lvq: error: {one_line(message)}", err=True)


def one_line(message: str) -> str:
    """Make one line of a message, whatever is in the names that it tells."""
    return " ".join(message.split())


def fail(message: str, code: int) -> NoReturn:
    """Say what was wrong and exit."""
    complain(message)
    sys.exit(code)

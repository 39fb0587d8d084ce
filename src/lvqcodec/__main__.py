# SPDX-License-Identifier: Apache-2.0
"""`python -m lvqcodec` is `lvq`."""

import signal


def main() -> None:
    """Run `lvq`; an interrupt before the commands are there to say so ends it without a word."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lvqcodec.cli import main as lvq

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    lvq(prog_name="lvq")


if __name__ == "__main__":
    main()

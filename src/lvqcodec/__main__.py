# SPDX-License-Identifier: Apache-2.0
"""`python -m lvqcodec` is `lvq`."""

from lvqcodec.cli import main

if __name__ == "__main__":
    main(prog_name="lvq")

# SPDX-License-Identifier: Apache-2.0
"""What becomes of the pictures of folders when they are read, name by name, as a table.

    python bench/pictures.py FOLDER...

The second column is of `lvq encode` as it is, the third with --to-srgb8 where that differs. A
picture that is read is coded; the exit code is the one of a refusal.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from lvqcodec.errors import LvqError
from lvqcodec.pictures.load import load_picture


def outcome(path: Path, to_srgb8: bool) -> str:
    """What is kept, or why nothing is."""
    try:
        picture = load_picture(path, to_srgb8=to_srgb8)
    except LvqError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(str(path)).strip()
        return f"exit {error.exit_code}: {reason}".replace("|", "\\|")
    parts = ["alpha", "icc", "exif", "xmp"]
    there = [part for part in parts if getattr(picture, part) is not None]
    kept = " + ".join(["kept, grey" if picture.pixels.ndim == 2 else "kept", *there])
    return "; ".join([kept, *picture.remarks]).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        rows = [
            (path.name, *(outcome(path, to_srgb8) for to_srgb8 in (False, True)))
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
        for column, title in ((1, "as it is"), (2, "with --to-srgb8")):
            counts = Counter(re.match(r"kept|exit \d", row[column])[0] for row in rows)
            told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            print(f"{len(rows)} pictures {title}: {told}.", end=" " if column == 1 else "\n\n")
        print("| picture | as it is | with --to-srgb8 |\n|---|---|---|")
        for name, plain, converted in rows:
            print(f"| {name} | {plain} | {'' if converted == plain else converted} |")
        print()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Put what `lvq eval --json` measured on a model's card.

    python bench/card.py models/baseline.toml kodak=kodak.json val=val.json

Replaces everything after the line "# measured" by one [[measured]] table for each curve of each
report: where, with which command and machine, the points and the BD-rates.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from lvqcodec.imageio import atomic_write

MARK = "# measured\n"


def tables(name: str, report: dict) -> str:
    """One report as TOML: a [[measured]] table for every curve."""
    text = ""
    for curve in dict.fromkeys(point["curve"] for point in report["points"]):
        points = [p for p in report["points"] if p["curve"] == curve]
        rates = {
            rate["anchor"]: round(rate["percent"], 2)
            for rate in report["bd_rates"]
            if rate["curve"] == curve and rate["percent"] is not None
        }
        machine = report["machine"]
        lines = {
            "pictures": name,
            "count": len({p["picture"] for p in report["pictures"]}),
            "curve": curve,
            # where the pictures lay is nobody else's concern
            "command": re.sub(r"\S*/", "", report["command"]),
            "machine": f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads",
            "quality": [p["quality"] for p in points],
            "bpp": [round(p["bpp"], 5) for p in points],
            "psnr": [round(p["psnr"], 3) for p in points],
            "ms_ssim": [p["ms_ssim"] and round(p["ms_ssim"], 5) for p in points],
            "encode_s": [round(p["encode_s"], 3) for p in points],
            "decode_s": [round(p["decode_s"], 3) for p in points],
        }
        text += "\n[[measured]]\n"
        text += "".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items())
        if rates:
            inner = ", ".join(f"{json.dumps(k)} = {v}" for k, v in rates.items())
            text += f"bd_rate_percent = {{ {inner} }}\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("card", type=Path)
    parser.add_argument("report", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    text = args.card.read_text(encoding="utf-8").partition(MARK)[0].rstrip("\n") + "\n\n" + MARK
    for item in args.report:
        name, _, path = item.partition("=")
        text += tables(name, json.loads(Path(path).read_text(encoding="utf-8")))
    atomic_write(args.card, text.encode())


if __name__ == "__main__":
    main()

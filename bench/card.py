# SPDX-License-Identifier: Apache-2.0
"""Put what `lvq eval --json` measured on a model's card.

    python bench/card.py models/normal.toml kodak=kodak.json val=val.json

Replaces everything after the line "# measured" by one [[measured]] table for each curve of that
model in each report: where, with which command and machine, the points, the BD-rates over all other
curves and the anchors, and the peak memory if it was measured.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import tomlkit

from lvqcodec import files
from lvqcodec.training.card import MEASURED

LABELS = {"bd_rate_percent": "percent", "bd_rate_ms_ssim_percent": "ms_ssim_percent"}


def rates(report: dict, curve: str, key: str) -> tomlkit.items.InlineTable:
    """The BD-rates of a curve as an inline table, empty if there are none."""
    found = tomlkit.inline_table()
    for rate in report["bd_rates"]:
        if rate["curve"] == curve and rate[key] is not None:
            found[rate["anchor"]] = round(rate[key], 2)
    return found


def tables(name: str, report: dict, model: str) -> list[dict]:
    """One report: a [[measured]] table for every curve of the model."""
    found = []
    for curve, facts in report["curves"].items():
        if facts.get("model") != model:
            continue
        points = [p for p in report["points"] if p["curve"] == curve]
        machine = report["machine"]
        table = {
            "pictures": name,
            "count": len({p["picture"] for p in report["pictures"]}),
            "curve": curve,
            # where the pictures lay is nobody else's concern
            "command": re.sub(r"\S*/", "", report["command"]),
            "machine": f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads",
            "quality": [p["quality"] for p in points],
            "bpp": [round(p["bpp"], 5) for p in points],
            "psnr": [round(p["psnr"], 3) for p in points],
            "encode_s": [round(p["encode_s"], 3) for p in points],
            "decode_s": [round(p["decode_s"], 3) for p in points],
        }
        if all(p["ms_ssim"] for p in points):
            table["ms_ssim"] = [round(p["ms_ssim"], 5) for p in points]
        for peak in report["memory"]:
            if peak["curve"] == curve:
                table["encode_mib"] = round(peak["encode_bytes"] / 2**20)
                table["decode_mib"] = round(peak["decode_bytes"] / 2**20)
        for label, key in LABELS.items():
            if inner := rates(report, curve, key):
                table[label] = inner
        found.append(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("card", type=Path)
    parser.add_argument("report", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    kept = args.card.read_text(encoding="utf-8").partition(MEASURED)[0].rstrip("\n")
    text = f"{kept}\n\n{MEASURED}"
    for item in args.report:
        name, _, path = item.partition("=")
        measured = tables(name, json.loads(Path(path).read_text(encoding="utf-8")), args.card.stem)
        if not measured:
            parser.error(f"{path} has no curve of {args.card.stem}: evaluate that model first")
        text += "\n" + tomlkit.dumps({"measured": measured})
    files.write(args.card, text.encode())


if __name__ == "__main__":
    main()

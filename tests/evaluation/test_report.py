# SPDX-License-Identifier: Apache-2.0
"""What a report shows, on figures made up."""

from __future__ import annotations

import csv
import io
import runpy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lvqcodec.errors import UsageError
from lvqcodec.evaluation.report import (
    BdRate,
    EvaluationReport,
    Memory,
    Point,
    Ranking,
    ms_ssim_db,
    rd_curves,
)

CARD = Path(__file__).parents[2] / "bench" / "card.py"


def point(curve: str, quality: int, ms_ssim: float | None = None, **changes: Any) -> Point:
    made = Point(
        curve=curve,
        quality=quality,
        picture=None,
        num_bytes=None,
        width=None,
        height=None,
        bpp=quality / 50,
        psnr=25 + quality / 10,
        ms_ssim=ms_ssim,
        encode_s=0.25,
        decode_s=0.5,
    )
    return replace(made, **changes)


def report(ours: list[str], peers: list[str], ms_ssim: float | None = None) -> EvaluationReport:
    curves = {name: {"model": name.split()[0], "lattice": "z"} for name in ours}
    curves |= {name: {"format": "X", "settings": {}, "qualities": [10, 90]} for name in peers}
    names = [*curves, "anchor"]
    return EvaluationReport(
        command="lvq eval here/pictures",
        machine={"gpu": None, "processor": "abacus", "threads": 2},
        curves=curves,
        pictures=[
            point(name, 50, picture=f"{letter},.png", num_bytes=100, width=20, height=10)
            for letter in "ab"
            for name in curves
        ],
        points=[point(name, quality, ms_ssim) for name in curves for quality in (10, 90)],
        bd_rates=[
            BdRate(curve, other, 12.34, (25, 25 + index), ms_ssim and -3.21, ms_ssim and (5, 9))
            for curve in curves
            for index, other in enumerate(names)
            if other != curve
        ],
        anchors={"anchor": {"bpp": [0.1, 2], "psnr": [26, 35]}},
        ranking=Ranking(ours[0], "its mean", "dB", [("a.png", -2.0)], [("b.png", 3.5)], 4),
        memory=[Memory(ours[0], 90, "b.png", 300 * 2**20, 200 * 2**20)],
    )


def test_the_matrix_fits_100_columns_and_has_every_pair() -> None:
    ours = [f"quite a long name {number}" for number in range(14)]
    table = report(ours, ["jpeg"]).table()
    assert max(map(len, table.splitlines())) <= 100
    matrix = table.partition("BD-rate at equal PSNR")[2]
    assert matrix.count("+12.3") == 15 * 14 + 15
    assert matrix.count(" .") == 15
    assert matrix.count("+12.3~") == 2 * 14 + 14  # over the first three curves: 0, 1, 2 dB
    assert "MS-SSIM in %" not in table
    assert "MS-SSIM in %" in report(ours, ["jpeg"], 0.9).table()


def test_what_has_nothing_in_common_is_named() -> None:
    made = report(["a", "b"], [])
    rates = [
        replace(rate, percent=None, psnr_range=None) if rate.anchor == "anchor" else rate
        for rate in made.bd_rates
    ]
    assert "no BD-rate over anchor" in replace(made, bd_rates=rates).table()
    assert "no BD-rate over" not in made.table()


def test_table_tells_memory_and_extremes() -> None:
    lines = report(["ours"], []).table().splitlines()
    assert "peak memory for b.png: 300 MiB to encode, 200 MiB to decode" in lines
    at = lines.index(
        "PSNR at equal bpp of ours over its mean, picture by picture, 4 pictures without one"
    )
    assert lines[at + 1].split() == ["worst", "a.png", "-2.00", "dB"]
    assert lines[at + 2].split() == ["best", "b.png", "+3.50", "dB"]


def test_csv_has_a_line_for_each_file() -> None:
    made = report(["ours"], ["jpeg"])
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert [(row["picture"], row["curve"]) for row in rows] == [
        ("a,.png", "ours"),
        ("a,.png", "jpeg"),
        ("b,.png", "ours"),
        ("b,.png", "jpeg"),
    ]
    assert rows[0] == {
        **{"picture": "a,.png", "curve": "ours", "quality": "50", "bytes": "100", "width": "20"},
        **{"height": "10", "bpp": "1.0", "psnr": "30.0", "ms_ssim": "", "encode_s": "0.25"},
        "decode_s": "0.5",
    }


def test_ms_ssim_curves_are_in_db_and_whole() -> None:
    points = [point("a", 10, 0.9), point("a", 90, 0.999), point("b", 10, 0.9), point("b", 90)]
    curves = rd_curves(points, "ms-ssim")
    assert list(curves) == ["a"]
    assert curves["a"][1] == pytest.approx([10, 30])
    assert list(rd_curves(points)) == ["a", "b"]
    assert ms_ssim_db(1.0) == float("inf")


def test_plot_of_either_measure(tmp_path: Path) -> None:
    made = report(["ours", "two"], ["jpeg", "webp"], 0.9)
    for measure in ("psnr", "ms-ssim"):
        made.plot(tmp_path / f"{measure}.png", measure)
    with Image.open(tmp_path / "psnr.png") as a, Image.open(tmp_path / "ms-ssim.png") as b:
        assert a.tobytes() != b.tobytes()
    with pytest.raises(UsageError, match="plot PSNR instead"):
        report(["ours"], []).plot(tmp_path / "none.png", "ms-ssim")
    assert not (tmp_path / "none.png").exists()


def test_a_card_takes_the_curves_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "ours.toml"
    card.write_text('name = "ours"\n\n# measured\n\n[[measured]]\nold = 1\n')
    source = report(["ours z", "two z"], ["jpeg"], 0.9).to_json()
    source["memory"][0]["curve"] = "ours z"
    monkeypatch.setattr("json.loads", lambda text: source)
    monkeypatch.setattr("sys.argv", ["card.py", str(card), f"kodak={card}"])
    runpy.run_path(str(CARD), run_name="__main__")
    (measured,) = tomllib.loads(card.read_text())["measured"]
    assert measured["curve"] == "ours z"
    assert measured["count"] == 2
    assert measured["command"] == "lvq eval pictures"
    assert measured["bpp"] == [0.2, 1.8]
    assert measured["bd_rate_percent"] == {"two z": 12.34, "jpeg": 12.34, "anchor": 12.34}
    assert measured["bd_rate_ms_ssim_percent"]["jpeg"] == -3.21
    assert (measured["encode_mib"], measured["decode_mib"]) == (300, 200)

# SPDX-License-Identifier: Apache-2.0
"""The evaluation on a codec whose sizes and errors are known by construction."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvqcodec import codec, evaluate, metrics
from lvqcodec.errors import UsageError

HEIGHT, WIDTH = 24, 40
CALLS: list[tuple[Any, ...]] = []


def fake_load_model(name: str, *, device: str) -> str:
    return f"weights of {name} on {device}"


def fake_encode(image: Any, *, model: Any, quality: int, lattice: str | None, device: str) -> bytes:
    """The picture itself behind its size and its error; E8 files are 10 % smaller."""
    CALLS.append((model, quality, lattice, device))
    error = 11 - quality // 10
    size = (2700 if lattice == "e8" else 3000) * 2 ** (quality // 10)
    head = bytes([*image.shape[:2], image.ndim, error])
    samples = image.tobytes()
    return (head + samples).ljust(size, b"\0")


def fake_decode(data: bytes, *, device: str) -> Any:
    height, width, ndim, error = data[:4]
    shape = (height, width, 3)[:ndim]
    samples = np.frombuffer(data, np.uint8, math.prod(shape), offset=4).reshape(shape)
    return samples + np.uint8(error)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(codec, "load_model", fake_load_model)
    monkeypatch.setattr(codec, "encode", fake_encode)
    monkeypatch.setattr(codec, "decode", fake_decode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (10, 20, 30)).save(pictures / "b.png")
    Image.new("L", (WIDTH // 2, HEIGHT), 7).save(pictures / "a.PNG")
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def psnr_of(error: int) -> float:
    return 20 * math.log10(255 / error)


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    """`twin` is the fake codec (mean of the two pictures' bpp) and `half` needs half of it."""
    bpp = [bpp_of(quality) for quality in (10, 30, 50)]
    psnr = [psnr_of(error) for error in (10, 8, 6)]
    path = tmp_path / "anchors.json"
    curves = {
        "twin": {"bpp": bpp, "psnr": psnr, "source": "arithmetic"},
        "half": {"bpp": [rate / 2 for rate in bpp], "psnr": psnr},
        "elsewhere": {"bpp": [1, 2], "psnr": [60, 70]},
    }
    path.write_text(json.dumps(curves))
    return path


def bpp_of(quality: int) -> float:
    bits = 8 * 3000 * 2 ** (quality // 10)
    return (bits / (WIDTH * HEIGHT) + bits / (WIDTH // 2 * HEIGHT)) / 2


def test_points_are_means_of_file_sizes_and_errors(folder: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[30, 10, 30], device="cpu")
    assert [(p.curve, p.quality) for p in report.points] == [("baseline", 10), ("baseline", 30)]
    assert [p.bpp for p in report.points] == pytest.approx([bpp_of(10), bpp_of(30)])
    assert [p.psnr for p in report.points] == pytest.approx([psnr_of(10), psnr_of(8)])
    assert all(p.ms_ssim is None and p.picture is None for p in report.points)  # 24 pixels high
    assert [(p.picture, p.quality) for p in report.pictures] == [
        ("a.PNG", 10),
        ("a.PNG", 30),
        ("b.png", 10),
        ("b.png", 30),
    ]
    assert all(p.encode_s > 0 and p.decode_s > 0 for p in report.points)
    # One warm-up, then two pictures at two qualities; loaded weights and not their name.
    assert len(CALLS) == 5
    assert set(CALLS) == {("weights of baseline on cpu", q, None, "cpu") for q in (10, 30)}


def test_ms_ssim_is_the_mean_over_pictures_that_have_one(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 200, (161, 170), np.uint8)
    Image.fromarray(noise).save(folder / "c.png")
    report = evaluate.evaluate(folder, qualities=[50])
    assert report.points[0].ms_ssim == metrics.ms_ssim(noise, noise + np.uint8(6))


def test_bd_rate_against_anchors(folder: Path, anchors: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[10, 30, 50], anchors=anchors)
    rates = {rate.anchor: rate for rate in report.bd_rates}
    assert list(rates) == ["twin", "half", "elsewhere"]
    assert rates["twin"].percent == pytest.approx(0, abs=1e-9)
    assert rates["half"].percent == pytest.approx(100)
    assert rates["half"].psnr_range == pytest.approx((psnr_of(10), psnr_of(6)))
    assert rates["elsewhere"].percent is None
    assert rates["elsewhere"].psnr_range is None


def test_lattices_are_compared_with_the_first(folder: Path, anchors: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[10, 30, 50], lattice="z, e8", anchors=anchors)
    rates = {(rate.curve, rate.anchor): rate.percent for rate in report.bd_rates}
    assert rates["baseline e8", "baseline z"] == pytest.approx(-10)
    assert rates["baseline e8", "half"] == pytest.approx(80)
    assert ("baseline z", "baseline z") not in rates
    assert {call[2] for call in CALLS} == {"z", "e8"}


def test_table(folder: Path, anchors: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[10, 30, 50], anchors=anchors, device="cpu")
    table = report.table()
    assert table.startswith("2 pictures, ")
    lines = [line.split() for line in table.splitlines()]
    assert ["quality", "10", f"{bpp_of(10):.4f}", f"{psnr_of(10):.3f}", "-"] in [
        line[:5] for line in lines
    ]
    assert ["BD-rate", "against", "half", "+100.00", "%"] in [line[:5] for line in lines]
    assert "BD-rate against elsewhere                none: no common PSNR range" in table


def test_json_repeats_the_settings_and_is_strict(
    folder: Path, anchors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "psnr", lambda a, b: math.inf)
    report = evaluate.evaluate(folder, qualities=[50, 10], anchors=anchors, limit=1, device="cpu")
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["command"] == (
        f"lvq eval {folder} --qualities 10,50 --model baseline --device cpu "
        f"--anchors {anchors} --limit 1"
    )
    assert [point["picture"] for point in plain["pictures"]] == ["a.PNG", "a.PNG"]
    assert plain["points"][0]["psnr"] is None  # infinity has no JSON
    assert plain["bd_rates"][0]["percent"] is None
    assert plain["anchors"]["twin"]["source"] == "arithmetic"
    assert plain["machine"]["gpu"] is None
    assert {"lvqcodec", "python", "torch", "numpy"} <= set(plain["machine"]["versions"])


@pytest.mark.parametrize("lattice", [None, "z,e8"])
def test_plot(folder: Path, anchors: Path, tmp_path: Path, lattice: str | None) -> None:
    options: dict[str, Any] = {"qualities": [10, 50], "lattice": lattice}
    with_anchors = evaluate.evaluate(folder, anchors=anchors, **options)
    with_anchors.plot(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1650, 975)
    with_anchors.plot(tmp_path / "plot.svg")
    evaluate.evaluate(folder, **options).plot(tmp_path / "alone.png")
    with pytest.raises(UsageError, match=r"plot\.doc"):
        with_anchors.plot(tmp_path / "plot.doc")
    assert not (tmp_path / "plot.doc").exists()


def test_progress_counts_every_file(folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    evaluate.evaluate(folder, qualities=[10, 50], progress=lambda *step: told.append(step))
    names = ["a.PNG", "a.PNG", "b.png", "b.png", "done"]
    assert told == [(count, 4, name) for count, name in enumerate(names)]


def test_wrong_requests_name_the_remedy(folder: Path, anchors: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        evaluate.evaluate(tmp_path / "nowhere", qualities=[10])
    with pytest.raises(UsageError, match="no pictures in"):
        evaluate.evaluate(tmp_path, qualities=[10])
    for qualities in ([], [101], [10, -1]):
        with pytest.raises(UsageError, match="give one or more from 0 to 100"):
            evaluate.evaluate(folder, qualities=qualities)
    for text in ("[]", "{", '{"A": {"bpp": [1]}}', '{"A": {"bpp": [1, 2], "psnr": [1]}}'):
        anchors.write_text(text)
        with pytest.raises(UsageError, match="no anchors in"):
            evaluate.evaluate(folder, qualities=[10], anchors=anchors)
    assert CALLS == []  # all of it before anything is coded

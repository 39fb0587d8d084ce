# SPDX-License-Identifier: Apache-2.0
"""The evaluation on a codec whose sizes and errors are known by construction."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lvqcodec import codec, metrics
from lvqcodec.cli import main
from lvqcodec.errors import UsageError
from lvqcodec.evaluation import evaluate
from lvqcodec.evaluation.codecs import PEERS

HEIGHT, WIDTH = 24, 40
CALLS: list[tuple[Any, ...]] = []


def fake_load_model(name: str, *, device: str) -> str:
    return f"weights of {name} on {device}"


def fake_encode(
    image: Any,
    *,
    model: Any,
    quality: int,
    lattice: str | None,
    effort: int,
    tune: str,
    device: str,
) -> bytes:
    """The picture itself behind its size and its error.

    E8 files are 10 % smaller, every effort takes off 1 % more.
    """
    CALLS.append((model, quality, lattice, device))
    error = 11 - quality // 10
    size = (2700 if lattice == "e8" else 3000) * 2 ** (quality // 10) * (100 - effort) // 100
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
    assert [(p.curve, p.quality) for p in report.points] == [("normal", 10), ("normal", 30)]
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
    assert set(CALLS) == {("weights of normal on cpu", q, None, "cpu") for q in (10, 30)}


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
    assert rates["normal e8", "normal z"] == pytest.approx(-10)
    assert rates["normal e8", "half"] == pytest.approx(80)
    assert ("normal z", "normal z") not in rates
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
        f"lvq eval {folder} --qualities 10,50 --model normal --device cpu "
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


def test_models_and_lattices_make_a_curve_each(folder: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[10, 50], model="a, b", lattice="z,e8")
    assert list(report.curves) == ["a z", "a e8", "b z", "b e8"]
    assert report.curves["b e8"] == {
        "model": "b",
        "lattice": "e8",
        "effort": 0,
        "tune": "psnr",
    }
    assert {call[0] for call in CALLS} == {"weights of a on auto", "weights of b on auto"}
    pairs = {(rate.curve, rate.anchor): rate.percent for rate in report.bd_rates}
    assert len(pairs) == 4 * 3
    assert pairs["b e8", "a z"] == pytest.approx(-10)
    assert pairs["a z", "b e8"] == pytest.approx(100 / 0.9 - 100)


def test_every_effort_has_a_curve(folder: Path) -> None:
    report = evaluate.evaluate(folder, qualities=[10, 30, 50], lattice="e8", efforts=[0, 5])
    assert list(report.curves) == ["normal e8", "normal e8 effort 5"]
    rates = {(rate.curve, rate.anchor): rate.percent for rate in report.bd_rates}
    assert rates["normal e8 effort 5", "normal e8"] == pytest.approx(-5, abs=0.1)
    assert "--efforts 0,5" in report.command
    tuned = evaluate.evaluate(folder, qualities=[10, 30], efforts=[0, 2], tune="ms-ssim")
    assert list(tuned.curves) == ["normal", "normal effort 2 ms-ssim"]
    assert "--tune ms-ssim" in tuned.command


def test_ms_ssim_has_bd_rates_where_every_point_has_one(folder: Path, tmp_path: Path) -> None:
    """The anchor is the fake codec itself at twice the rate."""
    noise = np.random.default_rng(0).integers(0, 200, (161, 170), np.uint8)
    (tmp_path / "large").mkdir()
    Image.fromarray(noise).save(tmp_path / "large" / "c.png")
    points = evaluate.evaluate(tmp_path / "large", qualities=[50, 60, 70]).points
    double = {
        "bpp": [2 * point.bpp for point in points],
        "psnr": [point.psnr for point in points],
        "ms_ssim": [point.ms_ssim for point in points],
    }
    anchors = tmp_path / "anchors.json"
    anchors.write_text(json.dumps({"double": double, "psnr only": double | {"ms_ssim": None}}))
    options: dict[str, Any] = {"qualities": [50, 60, 70], "anchors": anchors}
    both, psnr_only = evaluate.evaluate(tmp_path / "large", **options).bd_rates
    assert (both.anchor, psnr_only.anchor) == ("double", "psnr only")
    assert both.ms_ssim_percent == pytest.approx(-50)
    ends = [-10 * math.log10(1 - (points[at].ms_ssim or 0)) for at in (0, -1)]
    assert both.ms_ssim_range == pytest.approx(ends)
    assert psnr_only.percent == pytest.approx(-50)
    assert psnr_only.ms_ssim_percent is None
    small = evaluate.evaluate(folder, **options).bd_rates
    assert all(rate.ms_ssim_percent is None for rate in small)


@pytest.fixture
def textured(tmp_path: Path) -> Path:
    """Noise on a slope, more of it from picture to picture."""
    pictures = tmp_path / "textured"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    slope = np.linspace(20, 120, 24 * 32 * 3).reshape(24, 32, 3)
    for number in range(4):
        noise = rng.uniform(0, 30 + 20 * number, slope.shape)
        Image.fromarray((slope + noise).astype(np.uint8)).save(pictures / f"{number}.png")
    return pictures


def test_peers_enter_the_same_tables(textured: Path) -> None:
    report = evaluate.evaluate(textured, qualities=[10, 50], codecs="jpeg,webp", limit=2)
    assert list(report.curves) == ["normal", "jpeg", "webp"]
    ladder = list(PEERS["jpeg"].qualities)
    assert report.curves["jpeg"]["qualities"] == PEERS["jpeg"].qualities
    assert [p.quality for p in report.points if p.curve == "jpeg"] == ladder
    files = [p for p in report.pictures if p.curve == "webp"]
    assert len(files) == 2 * len(PEERS["webp"].qualities)
    x = np.array(Image.open(textured / "0.png"))
    data = PEERS["webp"].encode(x, files[0].quality)
    assert (files[0].num_bytes, files[0].width, files[0].height) == (len(data), 32, 24)
    assert files[0].psnr == metrics.psnr(x, PEERS["webp"].decode(data, grey=False))
    assert "--codecs jpeg,webp" in report.command
    pairs = {(rate.curve, rate.anchor) for rate in report.bd_rates}
    assert len(pairs) == 6


def test_pictures_are_ranked_over_the_first_peer(
    textured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours spends the same bytes and error on each: worst where JPEG needs least, in the first."""
    monkeypatch.setitem(PEERS, "jpeg", replace(PEERS["jpeg"], qualities=(20, 40, 65, 80, 88)))
    report = evaluate.evaluate(textured, qualities=list(range(0, 101, 10)), codecs="jpeg")
    ranking = report.ranking
    assert ranking is not None
    assert (ranking.against, ranking.unit, ranking.unranked) == ("jpeg", "%", 0)
    rates = {}
    for path in sorted(textured.iterdir()):
        points = [point for point in report.pictures if point.picture == path.name]
        own, jpeg = (
            [[getattr(p, key) for p in points if p.curve == curve] for key in ("bpp", "psnr")]
            for curve in ("normal", "jpeg")
        )
        rates[path.name] = metrics.bd_rate(*jpeg, *own)
    order = sorted(rates.items(), key=lambda item: -(item[1] or 0))
    assert ranking.worst == order[:2]
    assert ranking.best == [order[3], order[2]]
    assert ranking.worst[0][0] == "0.png"


def test_without_a_peer_pictures_are_ranked_by_psnr_at_equal_bpp(folder: Path) -> None:
    """Both have the same PSNR, but "a.PNG", half as wide, needs twice the bpp."""
    report = evaluate.evaluate(folder, qualities=[10, 30, 50])
    ranking = report.ranking
    assert ranking is not None
    assert (ranking.against, ranking.unit) == ("its mean", "dB")
    assert [name for name, value in ranking.worst if value < 0] == ["a.PNG"]
    assert [name for name, value in ranking.best if value > 0] == ["b.png"]
    assert evaluate.evaluate(folder, qualities=[10, 30], limit=1).ranking is None


def test_memory_is_measured_for_each_curve_at_the_largest_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def peak_memory(coder: Any, quality: int, picture: Path, *rest: Any) -> tuple[int, int]:
        asked.append((coder.name, quality, picture, "weights" in vars(coder)))
        return 3, 2

    monkeypatch.setattr(evaluate, "peak_memory", peak_memory)
    report = evaluate.evaluate(folder, qualities=[10, 50], lattice="z,e8", memory=True)
    largest = folder / "b.png"
    assert asked == [(f"normal {name}", 50, largest, False) for name in ("z", "e8")]
    assert [(m.curve, m.encode_bytes, m.decode_bytes) for m in report.memory] == [
        ("normal z", 3, 2),
        ("normal e8", 3, 2),
    ]
    assert report.command.endswith(" --memory")
    assert evaluate.evaluate(folder, qualities=[10]).memory == []


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
    anchors.write_text('{"A": {"bpp": [1, 2], "psnr": [1, 2], "ms_ssim": [0.5]}}')
    with pytest.raises(UsageError, match="no anchors in"):
        evaluate.evaluate(folder, qualities=[10], anchors=anchors)
    anchors.write_text('{"jpeg": {"bpp": [1, 2], "psnr": [1, 2]}}')
    with pytest.raises(UsageError, match="called like the curve 'jpeg'"):
        evaluate.evaluate(folder, qualities=[10], anchors=anchors, codecs="jpeg")
    with pytest.raises(UsageError, match="no codec 'gif'"):
        evaluate.evaluate(folder, qualities=[10], codecs="gif")
    with pytest.raises(UsageError, match="no model in ','"):
        evaluate.evaluate(folder, qualities=[10], model=",")
    assert CALLS == []  # all of it before anything is coded


def test_the_command_writes_csv_and_plot_and_refuses_a_wrong_name_at_once(
    folder: Path, tmp_path: Path
) -> None:
    arguments = ["eval", str(folder), "--qualities", "10,50", "--codecs", "webp", "--csv"]
    arguments += [str(tmp_path / "out.csv"), "--metric", "ms-ssim", "--plot"]
    refused = CliRunner().invoke(main, [*arguments, str(tmp_path / "out.doc")])
    assert refused.exit_code == 2
    assert CALLS == []
    # too small for MS-SSIM: the plot is refused, what was measured is kept
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "out.png")])
    assert result.exit_code == 2
    assert "plot PSNR instead" in result.stderr
    assert "\nwebp  " in result.stdout
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (2 + len(PEERS["webp"].qualities))

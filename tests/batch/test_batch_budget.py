# SPDX-License-Identifier: Apache-2.0
"""A budget of bits over many pictures: what is chosen, and that it is the best."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from batches import batch, tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lvqcodec
from lvqcodec.batch.budget import allocate, select
from lvqcodec.errors import UsageError
from lvqcodec.metrics import psnr

POINTS = st.lists(st.tuples(st.floats(0.01, 5), st.floats(10, 50)), min_size=1, max_size=5).map(
    lambda points: dict(enumerate(points))
)


def make_pictures(count, seed=0):
    """Measure of pictures whose PSNR rises with the logarithm of their bpp, each in its own way."""
    rng = np.random.default_rng(seed)
    facts = rng.uniform((0.01, 0.03, 20, 0.1), (0.2, 0.05, 30, 0.3), (count, 4))
    asked = []

    def measure(wanted):
        wanted = list(wanted)
        asked.extend(wanted)
        found = {}
        for name, q in wanted:
            least, rate, psnr, gain = facts[int(name)]
            noise = 0.01 * math.sin(77 * q + int(name))
            found[name, q] = least * math.exp(rate * q + noise), psnr + gain * q - 0.0005 * q * q
        return found

    return [str(n) for n in range(count)], measure, asked


@pytest.mark.parametrize("budget", [0.15, 0.5, 2.0])
@pytest.mark.parametrize("count", [8, 24, 300])
def test_the_budget_is_spent_to_a_hundredth_and_never_exceeded(count, budget):
    names, measure, asked = make_pictures(count)
    found = allocate(names, budget, measure)
    assert 0.99 * budget <= found.selected.bpp <= budget
    assert found.gain > 0.05
    assert found.selected.score > found.fixed.score
    assert len(asked) <= 14 * count
    assert len(set(asked)) == len(asked)  # nothing is measured twice
    points = measure(found.qualities.items())
    assert found.points == {name: point for (name, _), point in points.items()}
    assert found.selected.bpp == pytest.approx(np.mean([bpp for bpp, _ in points.values()]))


def test_what_is_chosen_is_near_the_best_of_all_qualities():
    names, measure, _ = make_pictures(24)
    every = {name: {q: measure([(name, q)])[name, q] for q in range(101)} for name in names}
    best = select(every, 0.4)
    best_psnr = np.mean([every[name][q][1] for name, q in best.items()])
    found = allocate(names, 0.4, measure)
    assert found.gain > 0.95 * (found.gain + best_psnr - found.selected.score)


@given(st.lists(POINTS, min_size=1, max_size=4), st.floats(0.1, 4))
def test_selection_keeps_the_budget_and_no_other_is_far_better(curves, budget):
    named = {str(n): points for n, points in enumerate(curves)}
    chosen = select(named, budget)
    least = sum(min(bpp for bpp, _ in points.values()) for points in curves)
    spent = sum(named[name][q][0] for name, q in chosen.items())
    assert spent <= max(budget * len(curves), least) + 1e-9
    score = sum(named[name][q][1] for name, q in chosen.items())
    if least > budget * len(curves):
        return
    best = max(
        sum(score for _, score in combination)
        for combination in itertools.product(*(points.values() for points in curves))
        if sum(bpp for bpp, _ in combination) <= budget * len(curves)
    )
    # the first step of a hull that does not fit bounds what is lost
    steps = max(max(s for _, s in p.values()) - min(s for _, s in p.values()) for p in curves)
    assert score >= best - steps - 1e-9


def test_budgets_out_of_reach_and_beyond_need():
    names, measure, _ = make_pictures(5)
    with pytest.raises(
        UsageError, match=r"a mean of 0\.001 bpp is out of reach: at quality 0 it is"
    ):
        allocate(names, 0.001, measure)
    found = allocate(names, 1e6, measure)
    assert set(found.qualities.values()) == {100}
    assert (found.fixed_quality, found.gain) == (100, 0)


def test_pictures_that_cannot_be_measured_drop_out():
    names, measure, _ = make_pictures(9)

    def partly(wanted):
        return {key: point for key, point in measure(wanted).items() if key[0] != "3"}

    found = allocate(names, 0.4, partly)
    assert sorted(found.qualities) == [name for name in names if name != "3"]
    assert 0.4 * 0.98 <= found.selected.bpp <= 0.4
    with pytest.raises(UsageError, match="none of the pictures can be coded"):
        allocate(names, 0.4, lambda wanted: {})


@pytest.fixture
def photos(tmp_path, photograph):
    """A folder of smooth and rough pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        picture = photograph(48, 64 + number, seed=number)
        if number % 2:
            picture = picture // 4 + 90
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_a_folder_is_coded_to_its_budget(photos, tmp_path, tiny):
    small, report = tmp_path / "small", tmp_path / "report.jsonl"
    options = (photos, small, "-m", tiny, "--target-bpp", 0.4, "--json", "--report", report)
    (photos / "bad.png").write_bytes(b"no picture")
    result = batch(*options)
    assert result.exit_code == 1
    assert sum("bad.png" in line for line in result.stderr.splitlines()) == 1
    summary = json.loads(result.stdout)
    rates, psnrs = [], []
    for name, data in tree(small).items():
        picture = np.asarray(Image.open((photos / name).with_suffix(".png")))
        decoded = lvqcodec.decode(data)
        rates.append(8 * len(data) / (picture.size // 3))
        psnrs.append(psnr(picture, decoded))
    assert len(rates) == 10
    assert 0.99 * 0.4 <= np.mean(rates) <= 0.4
    assert summary["bpp"] == summary["budget"]["selected"]["bpp"] == pytest.approx(np.mean(rates))
    assert summary["psnr"] == pytest.approx(np.mean(psnrs))
    told = [json.loads(line) for line in report.read_text().splitlines()]
    chosen = {line["source"]: line["quality"] for line in told if line["status"] == "done"}
    assert chosen == summary["budget"]["qualities"]
    assert len(set(chosen.values())) > 1
    fixed = summary["budget"]["fixed_quality"]
    pictures = [np.asarray(Image.open(photos / f"{n}.png")) for n in range(10)]
    files = [lvqcodec.encode(picture, model=tiny, quality=fixed) for picture in pictures]
    bpps = [8 * len(f) / (p.size // 3) for f, p in zip(files, pictures, strict=True)]
    assert summary["budget"]["fixed"]["bpp"] == pytest.approx(np.mean(bpps))
    assert summary["budget"]["gain"] > 0

    before = tree(small)
    summary = json.loads(batch(*options).stdout)  # all remembered: neither measured nor coded
    assert summary["skipped"] == 10
    assert tree(small) == before


def test_points_are_remembered(photos, tmp_path, tiny, monkeypatch):
    options = (photos, tmp_path / "small", "-m", tiny, "--target-bpp", 0.4)
    assert batch(*options).exit_code == 0
    monkeypatch.setattr("lvqcodec.batch.work.encode_picture", None)
    assert batch(*options).exit_code == 0


def test_ms_ssim_needs_larger_pictures(photos, tmp_path, tiny):
    options = ("--target-bpp", 0.4, "--budget-metric", "ms-ssim")
    result = batch(photos, tmp_path / "small", "-m", tiny, *options)
    assert result.exit_code == 2
    told = result.stderr.splitlines()
    assert "64x48 is too small for MS-SSIM, which takes 161 pixels a side" in "".join(told)
    assert "none of the pictures can be coded" in told[-1]

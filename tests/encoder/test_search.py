# SPDX-License-Identifier: Apache-2.0
"""Searching for better latents, and for files of a wanted size or PSNR."""

import gc
import time

import numpy as np
import pytest
import torch
from conftest import prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from lvqcodec import metrics
from lvqcodec.codec import encode, encode_image, load_model
from lvqcodec.config import EFFORTS
from lvqcodec.encoder import refine
from lvqcodec.encoder import search as searching
from lvqcodec.encoder.search import PLAIN, ROUNDS, encode_refinement, search
from lvqcodec.errors import UsageError
from lvqcodec.format.container import read_header
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.reconstruction import decode_tiles
from lvqcodec.stream import TileCoder


@pytest.fixture(scope="module")
def loaded(models_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(models_folder))
        yield load_model("tiny", device="cpu")


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [20, 47, 90])  # 47: biases between two nodes
def test_a_round_finds_what_the_coder_then_writes(loaded, photograph, quality):
    picture = prepared(photograph(53, 70), loaded, quality=quality)
    (source,) = picture.sources()
    objective = searching.objective_of(source, source.core, source.target.clone())
    rounds = refine.refine(objective, source.target.clone(), refine.LONG, lambda: 0.5)
    for _, found in zip(range(3), rounds, strict=False):
        written = source.write(found.target, 2 / objective.curvature)
        bits = 8 * len(written.payload)
        assert found.bits == pytest.approx(bits, rel=0.02, abs=8 * 40)
        assert float(objective.cost(written.y_hat.clone())) == pytest.approx(found.cost, rel=1e-6)


def test_the_search_finds_smaller_or_better_files(loaded, photograph):
    source = prepared(photograph(96, 120), loaded, quality=60)
    losses = [search(source, level).loss for level in (0, 1, 4, 6)]
    assert losses[1] <= losses[0] and losses[2] < losses[0] and losses[3] < losses[0]
    bpp = 8 * len(encode_refinement(source, PLAIN).data) / (96 * 120)
    assert losses[0] - losses[3] > 0.02 * bpp


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    grey=st.booleans(),
    noise=st.booleans(),
    quality=st.integers(0, 100),
    level=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_no_effort_is_worse_than_none(
    loaded, photograph, height, width, grey, noise, quality, level, seed
):
    shape = (height, width) if grey else (height, width, 3)
    if noise:
        picture = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    else:
        picture = photograph(height, width, channels=1 if grey else 3, seed=seed)
    base = encode(picture, model=loaded, quality=quality)
    found = encode_image(picture, model=loaded, quality=quality, effort=level)
    back = decode_with(loaded, found.data)
    assert found.psnr == pytest.approx(metrics.psnr(picture, back), abs=0.01)
    better = metrics.mse(picture, back) < metrics.mse(picture, decode_with(loaded, base))
    assert len(found.data) <= len(base) or better


def decode_with(loaded, data):
    file = open_lvq(data)
    return decode_tiles(file, TileCoder(file.header, loaded), file.region())


def test_large_tiles_are_searched_in_parts(loaded, photograph, monkeypatch):
    source = prepared(photograph(150, 210), loaded, quality=60)
    monkeypatch.setattr(searching, "PART", 64)
    grid = source.tiling.size
    (parts,) = searching._cut_into_parts(source)
    assert [part.place for part in parts] == [(i, len(parts)) for i in range(len(parts))]
    seen = np.zeros(grid, int)
    for part in parts:
        seen[part.core.rows, part.core.columns] += 1
        for inner, outer in zip(part.core, part.window, strict=True):
            assert outer.start <= inner.start < inner.stop <= outer.stop
            assert outer.start % loaded.model.entropy.period == 0
    assert (seen == 1).all() and len(parts) > 4
    told = []
    found = search(source, 5, on_progress=told.append)
    plain_loss = search(source, 0).loss
    assert found.loss < plain_loss
    done = [progress.done for progress in told]
    assert done == sorted(done) and done[-1] == 1.0
    monkeypatch.undo()
    whole = search(source, 5)
    assert plain_loss - found.loss > 0.7 * (plain_loss - whole.loss)


def test_the_search_ends_with_its_time(loaded, photograph):
    picture = photograph(160, 200)
    source = prepared(picture, loaded, quality=60)
    first = encode_refinement(source, PLAIN)
    late = search(source, EFFORTS[-1], deadline=time.monotonic())
    assert late.data == first.data
    start = time.monotonic()
    found = encode_image(picture, model=loaded, quality=60, max_seconds=1.0)
    assert time.monotonic() - start < 1.1 + 2
    assert len(found.data) < len(first.data) or found.psnr > first.psnr


def test_a_search_leaves_no_graph_behind(loaded, photograph):
    gc.collect()
    gc.disable()
    try:
        encode(photograph(40, 56), model=loaded, effort=3)
        assert not [thing for thing in gc.get_objects() if type(thing) is refine._Probe]
    finally:
        gc.enable()


def test_effort_works_where_gradients_are_off(loaded, photograph):
    picture = photograph(40, 56)
    files = [encode(picture, model=loaded, effort=3)]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            files.append(encode(picture, model=loaded, effort=3))
    assert files[0] == files[1] == files[2]


def test_a_measured_curvature_is_that_of_squared_error_where_that_is_known(loaded, photograph):
    original = prepared(photograph(96, 128), loaded, quality=60)
    (source,) = original.sources()
    y_hat = source.write().y_hat.clone()
    objective = searching.objective_of(source, source.core, y_hat)
    known = objective.curvature
    assert known.shape == (1, source.target.shape[2])
    found = refine.measured_curvature(objective.cost, y_hat, source.grid)
    assert found.shape == source.target.shape[1:]
    ratio = (found / known).log2().mean(0)
    assert ratio.abs().median() < 0.4


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_tuned_for_ms_ssim(loaded, photograph, channels):
    picture = photograph(176, 200, channels=channels)

    def loss(data):
        similarity = metrics.ms_ssim(picture, decode_with(loaded, data))
        return 8 * len(data) / (176 * 200), similarity

    weight = prepared(picture, loaded, quality=60, tune="ms-ssim").weight
    plain_bpp, plain_similarity = loss(encode(picture, model=loaded, quality=60))
    for level in (1, None):
        data = encode(picture, model=loaded, quality=60, tune="ms-ssim", effort=level)
        bpp, similarity = loss(data)
        gain = plain_bpp - bpp + weight * (similarity - plain_similarity)
        assert gain > 0.1 * plain_bpp
    wanted = int(0.8 * plain_bpp * 176 * 200 / 8)
    data = encode(picture, model=loaded, target_bytes=wanted, tune="ms-ssim", effort=2)
    assert 0.95 * wanted <= len(data) <= wanted


def test_what_cannot_be_tuned_is_said(loaded, photograph):
    with pytest.raises(UsageError, match="effort 0 does not search"):
        encode(photograph(176, 176), model=loaded, tune="ms-ssim", effort=0)
    with pytest.raises(UsageError, match="at least 161 x 161 pixels, not 176 x 160"):
        encode(photograph(160, 176), model=loaded, tune="ms-ssim")
    with pytest.raises(UsageError, match="'vmaf' is unknown"):
        encode(photograph(8, 8), model=loaded, tune="vmaf")


def test_every_effort_takes_longer():
    assert ROUNDS[0] == 0 and list(ROUNDS) == sorted(ROUNDS)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_kept_and_used(loaded, photograph, channels, level):
    picture = photograph(200, 264, channels=channels)
    smallest, largest = (len(encode(picture, model=loaded, quality=q)) for q in (0, 100))
    for share in (0.05, 0.3, 0.7, 0.97):
        wanted = int(smallest * (largest / smallest) ** share)
        found = encode_image(picture, model=loaded, target_bytes=wanted, effort=level)
        assert 0.97 * wanted <= len(found.data) <= wanted
        assert found.psnr == pytest.approx(metrics.psnr(picture, decode_with(loaded, found.data)))
        assert found.encodes <= 32


@pytest.mark.parametrize("level", [0, 3])
def test_psnrs_are_reached_and_not_far_exceeded(loaded, photograph, level):
    picture = photograph(200, 264)
    ends = [encode_image(picture, model=loaded, quality=q, effort=1).psnr for q in (2, 98)]
    for wanted in np.linspace(*ends, 4):
        found = encode_image(picture, model=loaded, target_psnr=wanted, effort=level)
        assert wanted <= metrics.psnr(picture, decode_with(loaded, found.data)) <= wanted + 0.1


def test_targets_are_met_in_time(loaded, photograph):
    picture = photograph(200, 264)
    wanted = len(encode(picture, model=loaded, quality=60))
    for seconds in (0.01, 1.5):
        start = time.monotonic()
        data = encode(picture, model=loaded, target_bytes=wanted, max_seconds=seconds)
        assert time.monotonic() - start < 1.1 * seconds + 2
        assert 0.5 * wanted < len(data) <= wanted


def test_what_is_out_of_reach_is_said(loaded, photograph):
    picture = photograph(64, 64)
    with pytest.raises(UsageError, match="its smallest file has"):
        encode(picture, model=loaded, target_bytes=20)
    with pytest.raises(UsageError, match="out of reach"):
        encode(picture, model=loaded, target_psnr=90)


def test_more_bytes_than_a_picture_takes_are_no_fault(loaded, photograph):
    picture = photograph(64, 64)
    data = encode(picture, model=loaded, target_bytes=10**7)
    assert read_header(data).quality == 100

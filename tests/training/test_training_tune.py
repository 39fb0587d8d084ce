# SPDX-License-Identifier: Apache-2.0
"""Tuning for MS-SSIM instead of PSNR."""

import dataclasses
import json
import sys
import tomllib

import numpy as np
import pytest
import torch
from conftest import CODEC_TABLES
from PIL import Image

from lvqcodec.distortion import distortion, ms_ssim_lmbda, weight
from lvqcodec.errors import UsageError
from lvqcodec.metrics import ms_ssim, psnr
from lvqcodec.model.codec_model import CodecConfig
from lvqcodec.training import export as exporting
from lvqcodec.training.loop import train
from lvqcodec.training.recipe import Recipe, Stage
from lvqcodec.training.validate import validate

STAGE = Stage("joint", 2, ("synthesis", "entropy"), batch=1, crop=176)
RECIPE = f"""
tune = "ms-ssim"
init_crops = 2
{CODEC_TABLES}
[[stage]]
name = "joint"
steps = 2
train = ["synthesis", "entropy"]
batch = 1
crop = 176
"""


def test_lagrangians_follow_the_literature():
    # CompressAI's two lists, in bpp + lmbda * 255^2 * MSE and bpp + lmbda_ms * (1 - MS-SSIM)
    psnr_tuned = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)
    ms_ssim_tuned = (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00)
    for lmbda, wanted in zip(psnr_tuned, ms_ssim_tuned, strict=True):
        assert ms_ssim_lmbda(lmbda) == pytest.approx(wanted, rel=0.01)
    both = torch.tensor(psnr_tuned)
    assert torch.allclose(weight("ms-ssim", both), torch.tensor(ms_ssim_tuned), rtol=0.01)
    assert torch.allclose(weight("psnr", both), both * 255**2)


def test_distortions_agree_with_the_metrics(photograph):
    picture = photograph(176, 192)
    noise = np.random.default_rng(0).normal(0, 12, picture.shape)
    back = np.clip(picture + noise, 0, 255).astype(np.uint8)
    x, x_hat = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (picture, back))
    mse = distortion("psnr")(x_hat, x)
    assert -10 * float(mse.log10()) == pytest.approx(psnr(picture, back), abs=1e-3)
    two = distortion("ms-ssim")(torch.cat([x_hat, x]), torch.cat([x, x]))
    assert two.shape == (2,) and float(two[1]) == pytest.approx(0, abs=1e-6)
    assert 1 - float(two[0]) == pytest.approx(ms_ssim(picture, back), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tune": "ssim"}, "tune = 'ssim' is unknown; choose from psnr, ms-ssim"),
        (
            {"stages": (dataclasses.replace(STAGE, crop=160),)},
            "crop = 160 is too small for MS-SSIM",
        ),
        ({"validate_minutes": -1.0}, "validate_minutes = -1.0 must be at least 0"),
    ],
)
def test_wrong_tunes_are_refused(change, complaint):
    recipe = Recipe(CodecConfig(), (STAGE,), tune="ms-ssim")
    with pytest.raises(UsageError, match=complaint):
        dataclasses.replace(recipe, **change)


def test_a_missing_package_is_a_usage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    distortion("psnr")
    with pytest.raises(UsageError, match="pytorch_msssim"):
        distortion("ms-ssim")


def test_a_tuned_run_is_trained_validated_and_named(photograph, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    Image.fromarray(photograph(256, 256)).save(data / "a.png")
    config = tmp_path / "tuned.toml"
    config.write_text(RECIPE, encoding="utf-8")
    summary = train(config, data=[data], out=run, device="cpu", validation=data)
    points = summary["validation"]
    assert all(0 < point["ms_ssim"] <= 1 for point in points)
    assert points[0]["ms_ssim"] < points[-1]["ms_ssim"]
    (record,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert 0 < record["1-ms_ssim"] < 1 and "mse" not in record
    exporting.export(run, name="x", out=tmp_path, device="cpu")
    card = tomllib.loads((tmp_path / "x.toml").read_text("utf-8"))
    assert card["tune"] == "ms-ssim" and "(1 - MS-SSIM)" in card["loss"]


def test_small_pictures_have_no_ms_ssim(new_model, photograph):
    model = new_model()
    (point,) = validate(model, [photograph(50, 70)], [50], tune="ms-ssim")
    assert "ms_ssim" not in point
    pictures = [photograph(50, 70), photograph(162, 170)]
    (both,) = validate(model, pictures, [50], tune="ms-ssim")
    (large,) = validate(model, pictures[1:], [50], tune="ms-ssim")
    assert both["ms_ssim"] == large["ms_ssim"] and both["psnr"] != large["psnr"]

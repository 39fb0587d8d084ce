# SPDX-License-Identifier: Apache-2.0
"""Distortion on pictures of known error, BD-rate on curves of known distance."""

import importlib
import math

import numpy as np
import pytest

from lvqcodec import metrics
from lvqcodec.errors import UsageError

RATE, PSNR = [0.1, 0.25, 0.5, 1.0, 2.0], [27.0, 30.5, 33.0, 36.5, 41.0]


def flat(value: int, *shape: int) -> metrics.Picture:
    return np.full(shape, value, np.uint8)


def test_psnr_of_known_errors() -> None:
    black, white = flat(0, 4, 5, 3), flat(255, 4, 5, 3)
    assert metrics.mse(black, white) == metrics.mse(white, black) == 255**2
    assert metrics.psnr(black, white) == 0
    assert metrics.psnr(flat(9, 3, 3), flat(10, 3, 3)) == pytest.approx(48.130803609)
    assert metrics.psnr(white, white) == math.inf
    one = black.copy()
    one[2, 3, 1] = 60  # one sample of 60: 3600 / 60
    assert metrics.mse(black, one) == 60


def test_mse_sums_without_overflow() -> None:
    # 700 * 700 * 255^2 needs 35 bits.
    assert metrics.mse(flat(0, 700, 700), flat(255, 700, 700)) == 255**2


@pytest.mark.parametrize("other", [flat(0, 4, 5), np.zeros((4, 5, 3), np.float32)])
def test_unlike_pictures_are_refused(other: metrics.Picture) -> None:
    with pytest.raises(UsageError, match="cannot compare"):
        metrics.psnr(flat(0, 4, 5, 3), other)


def test_bpp() -> None:
    assert metrics.bpp(600, 40, 30) == 4


def test_ms_ssim_of_pictures_large_and_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (161, 170, 3), np.uint8)
    assert metrics.ms_ssim(noise, noise) == pytest.approx(1)
    close, far = noise // 2 + 60, 255 - noise
    assert 1 > (metrics.ms_ssim(noise, close) or 0) > (metrics.ms_ssim(noise, far) or 0)
    grey = noise[..., 0]
    assert metrics.ms_ssim(grey, grey) == pytest.approx(1)
    assert metrics.ms_ssim(noise[:160], noise[:160]) is None
    assert metrics.ms_ssim(grey[:, :160], grey[:, :160]) is None


@pytest.mark.parametrize("factor", [1.0, 1.1, 0.5])
def test_bd_rate_of_a_scaled_curve_is_the_scale(factor: float) -> None:
    percent = metrics.bd_rate(RATE, PSNR, [factor * rate for rate in RATE], PSNR)
    assert percent == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_covers_only_the_common_range() -> None:
    # Straight lines of log-rate over PSNR, 20 % apart, sampled at different points.
    def rates(psnr: list[float], scale: float) -> list[float]:
        return [scale * 10 ** (db / 20) for db in psnr]

    low, high = [30.0, 34.0, 38.0], [42.0, 36.0, 33.0, 39.0]  # in any order
    curves = (rates(low, 1.0), low, rates(high, 1.2), high)
    assert metrics.bd_rate(*curves) == pytest.approx(20)
    assert metrics.common_range(*curves) == (33, 38)


@pytest.mark.parametrize(
    ("rate", "psnr"),
    [
        pytest.param(RATE, [db + 20 for db in PSNR], id="no overlap"),
        pytest.param([0.1, 0.2], [20.0, 27.0], id="touching"),
        pytest.param(RATE, [27.0, 30.5, 30.0, 36.5, 41.0], id="PSNR falls"),
        pytest.param([0.1, 0.2, 0.2, 1.0, 2.0], PSNR, id="one rate twice"),
        pytest.param([0.0, *RATE[1:]], PSNR, id="no bits"),
        pytest.param(RATE, [*PSNR[:-1], math.inf], id="lossless"),
        pytest.param([0.5], [33.0], id="one point"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_bd_rate_is_none_without_meaning(rate: list[float], psnr: list[float]) -> None:
    assert metrics.bd_rate(RATE, PSNR, rate, psnr) is None
    assert metrics.bd_rate(rate, psnr, RATE, PSNR) is None
    assert metrics.common_range(rate, psnr, RATE, PSNR) is None


def test_bd_rate_refuses_uneven_lists() -> None:
    with pytest.raises(UsageError, match="5 rates and 4 PSNRs"):
        metrics.bd_rate(RATE, PSNR[1:], RATE, PSNR)


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"`bjontegaard`.*pip install 'lvqcodec\[eval\]'"):
        metrics.bd_rate(RATE, PSNR, RATE, PSNR)
    with pytest.raises(UsageError, match="`pytorch_msssim`"):
        metrics.ms_ssim(flat(0, 8, 8), flat(0, 8, 8))

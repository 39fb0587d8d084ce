# SPDX-License-Identifier: Apache-2.0
"""Rate and distortion of whole pictures, estimated without a bitstream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lvqcodec import metrics
from lvqcodec.model.codec_model import CodecModel

QUALITIES = (5, 25, 50, 75, 95)


@torch.no_grad()
def validate(
    model: CodecModel,
    pictures: Sequence[np.ndarray],
    qualities: Sequence[int] = QUALITIES,
    *,
    tune: str = "psnr",
) -> list[dict[str, float]]:
    """Return estimated bpp and PSNR of pictures (H, W, 3) uint8, means over them, per quality.

    With the tune "ms-ssim", MS-SSIM as well, over the pictures of at least 161 x 161 pixels.
    """
    points = []
    for quality in qualities:
        measured = [_measure(model, picture, quality, tune) for picture in pictures]
        names = dict.fromkeys(name for values in measured for name in values)
        means = {n: float(np.mean([v[n] for v in measured if n in v])) for n in names}
        points.append({"quality": quality, **{n: round(v, 4) for n, v in means.items()}})
    return points


def _measure(model: CodecModel, picture: np.ndarray, quality: int, tune: str) -> dict[str, float]:
    device = next(model.parameters()).device
    height, width = picture.shape[:2]
    x = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255
    out = model(model.pad(x), torch.full((1,), float(quality), device=device))
    x_hat = torch.round(out.x_hat[0, :, :height, :width].clamp(0, 1) * 255)
    back = x_hat.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    values = {
        "bpp_est": float(out.bits) / (height * width),
        "psnr": min(metrics.psnr(picture, back), 100.0),  # of means, infinite ones would be all
    }
    similarity = metrics.ms_ssim(picture, back) if tune == "ms-ssim" else None
    if similarity is not None:
        values["ms_ssim"] = similarity
    return values

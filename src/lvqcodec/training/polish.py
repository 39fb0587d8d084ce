# SPDX-License-Identifier: Apache-2.0
"""A last training of g_s alone, on latents as the codec codes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.training.coded import analyse, quantise
from lvqcodec.training.data import CropSampler
from lvqcodec.training.optimizers import make_optimizers, set_learning_rate


def polish(
    model: CodecModel,
    sampler: CropSampler,
    generator: torch.Generator,
    *,
    minutes: float,
    report: Callable[[str], None],
    batch: int = 4,
    crop: int = 256,
    lr: float = 2e-4,
) -> None:
    """Train g_s for some minutes on latents as the codec codes them: lattice, RDO and centroids.

    A third of the time goes into coding crops, because a step on what is coded already is several
    times cheaper than coding more.
    """
    start = time.monotonic()

    def progress() -> float:
        return (time.monotonic() - start) / (60 * minutes)

    coded: list[tuple[Tensor, Tensor, Tensor]] = []
    while not coded or progress() < 1 / 3:
        coded += _coded_crops(model, sampler.sample(batch, crop, generator), generator)
    model.requires_grad_(False)
    parameters = [
        parameter.requires_grad_(True)
        for module in model.transform.decoder_modules()
        for parameter in module.parameters()
    ]
    optimizers = make_optimizers(model, lr)
    grid = model.grid(crop, crop)
    step = 0
    while progress() < 1:
        turn = torch.randint(len(coded), (batch,), generator=generator).tolist()
        picked = zip(*(coded[index] for index in turn), strict=True)
        crops, latents, qualities = map(torch.cat, picked)
        mse = (model.synthesis(latents, grid, qualities) - crops).square().mean((1, 2, 3))
        # the logarithm balances the qualities: each counts by its relative error
        loss = torch.log(mse + 1e-6).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizers, lr * max(1 - progress(), 0))
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % 100 == 0:
            report(json.dumps({"polish": step, "log_mse": round(float(loss.detach()), 4)}))
    model.requires_grad_(False)


def _coded_crops(
    model: CodecModel, crops: Tensor, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (crop, latents, quality) of each of crops (B, 3, H, W), at its qualities."""
    assert model.tables is not None
    quantizer = Quantizer(model.config.lattice, model.tables)
    strata = torch.arange(len(crops)) + torch.rand(len(crops), generator=generator)
    choice = model.config.quality_range
    places = (strata * (len(choice) / len(crops))).long().clamp(max=len(choice) - 1).tolist()
    qualities = [choice[place] for place in places]
    coded = []
    for crop, quality in zip(crops, qualities, strict=True):
        latents = quantise(model, analyse(model, crop[None], quality), quantizer, _ignore)
        coded.append((crop[None], latents, latents.new_full((1,), float(quality))))
    return coded


def _ignore(j: Tensor, bins: Tensor, residual: Tensor) -> None:
    """A sink for those who want the latents alone."""

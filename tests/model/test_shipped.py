# SPDX-License-Identifier: Apache-2.0
"""What every shipped model must do, on real pictures."""

import io
import warnings

import numpy as np
import pytest
import torch
from conftest import read_latents
from PIL import Image
from skimage import data as bundled

from lvqcodec import codec
from lvqcodec.catalog import DEFAULT_MODEL, list_models
from lvqcodec.format.container import LATTICES
from lvqcodec.metrics import psnr

MODELS = [card.name for card in list_models()]
SIZES = [(1, 1), (37, 1), (16, 16), (1, 255), (517, 333), (512, 768)]  # height, width


@pytest.fixture(scope="module")
def photograph():
    """A CC0 photograph (400, 600, 3) that no model was trained on."""
    return np.ascontiguousarray(bundled.coffee())


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return codec.load_model(request.param, device="cpu")


def test_there_is_a_default_model():
    assert DEFAULT_MODEL in MODELS


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back(model, photograph, size, grey):
    tall = np.tile(photograph, (2, 2, 1))[: size[0], : size[1]]
    picture = np.asarray(Image.fromarray(tall).convert("L")) if grey else tall
    back = codec.decode(codec.encode(picture, model=model, quality=60), device="cpu")
    assert back.shape == picture.shape and back.dtype == np.uint8
    assert psnr(picture, back) > 27


@pytest.mark.parametrize("lattice", LATTICES)
def test_quality_buys_fidelity_with_bytes(model, photograph, lattice):
    files = [codec.encode(photograph, model=model, quality=q, lattice=lattice)
             for q in (0, 20, 40, 60, 80, 100)]  # fmt: skip
    sizes = [len(f) for f in files]
    gains = [psnr(photograph, codec.decode(f, device="cpu")) for f in files]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    assert np.diff(gains).min() > 0.5


def test_it_beats_jpeg_by_far(model, photograph):
    data = codec.encode(photograph, model=model, quality=30)
    ours = psnr(photograph, codec.decode(data, device="cpu"))
    theirs = 0.0
    for quality in range(1, 96):
        buffer = io.BytesIO()
        Image.fromarray(photograph).save(buffer, "JPEG", quality=quality, optimize=True)
        if len(buffer.getvalue()) > len(data):
            break
        theirs = psnr(photograph, np.asarray(Image.open(buffer)))
    assert ours > theirs + 1.5


def test_the_estimate_is_what_the_file_weighs(model, photograph):
    for quality in (5, 50, 95):
        size = len(codec.encode(photograph, model=model, quality=quality))
        bits = codec.estimate_bits(photograph, model=model, quality=quality)
        assert abs(size - bits / 8) <= 0.005 * size + 40


def test_integers_do_not_hang_on_the_machine(model, photograph):
    picture = photograph[:208, :272]
    data = codec.encode(picture, model=model, quality=70)
    threads = torch.get_num_threads()

    def latents():
        with torch.inference_mode():
            return read_latents(data, model)

    wanted = latents()
    try:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # switches for Intel GPUs that nobody asked for
            with torch.backends.mkldnn.flags(enabled=False):
                assert torch.equal(latents(), wanted)
    finally:
        torch.set_num_threads(threads)
    assert max(layer.bound() for _, layer in model.model.entropy.layers()
               if hasattr(layer, "bound")) < 2**24  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Pictures to files and back, through an installed model; damaged files; misuse."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import install, prepared, read_latents

import lvqcodec
from lvqcodec import codec, stream
from lvqcodec.codec import decode, encode, estimate_bits, load_model
from lvqcodec.errors import (
    FormatError,
    LvqError,
    ModelMismatch,
    ModelNotFound,
    StreamError,
    UnsupportedImage,
    UsageError,
)
from lvqcodec.format.container import SECTION_LATENTS, Section, pack, read_header, unpack
from lvqcodec.model import loaded as loading
from lvqcodec.model.codec_model import CodecModel
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.tables import parametric_tables

SIZES = [(1, 1), (1, 37), (16, 16), (255, 1), (333, 517)]


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


# round trips


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back_as_it_went(tiny, photograph, size, channels):
    picture = photograph(*size, channels=channels)
    for quality, lattice in ((0, "z"), (50, "e8"), (100, "e8"), (100, "z")):
        data = encode(picture, model=tiny, quality=quality, lattice=lattice)
        header = read_header(data)
        assert (header.height, header.width, header.channels) == (*size, channels)
        assert (header.quality, header.lattice) == (quality, lattice)
        back = decode(data)
        assert back.shape == picture.shape and back.dtype == np.uint8
        assert back.flags.c_contiguous and back.flags.writeable
        assert psnr(back, picture) > 18 + quality / 20


def test_more_quality_is_more_bytes_and_less_error(tiny, photograph):
    picture = photograph(160, 208)
    files = [encode(picture, model=tiny, quality=quality) for quality in (0, 25, 50, 75, 100)]
    sizes = [len(data) for data in files]
    assert sizes == sorted(set(sizes))
    errors = [psnr(decode(data), picture) for data in files]
    assert errors == sorted(errors) and errors[-1] > errors[0] + 5


def test_a_real_photograph(tiny):
    picture = pytest.importorskip("skimage.data").astronaut()[:, 40:]
    data = encode(picture, model=tiny, quality=75)
    assert psnr(decode(data), picture) > 20
    assert len(data) < picture.size / 12


def test_both_lattices_code_and_e8_is_the_better_one(tiny, photograph):
    """At the same rate: E8 gains where sigma is well above a step, here at the best quality."""
    picture = photograph(333, 517)
    points = {}
    for lattice in ("z", "e8"):
        data = encode(picture, model=tiny, quality=100, lattice=lattice)
        loaded = load_model(tiny)
        y_hat = read_latents(data, loaded)
        (source,) = prepared(picture, loaded, quality=100, lattice=lattice).sources()
        target = source.target
        points[lattice] = len(data), float((y_hat - target).square().mean())
    # bytes and error of latents; 6.02 dB a bit and latent
    assert points["z"] != points["e8"]
    bits = (points["e8"][0] - points["z"][0]) * 8 / target.numel()
    gain = 10 * np.log10(points["z"][1] / points["e8"][1]) - 6.02 * bits
    assert gain > 0.3


@pytest.mark.parametrize("lattice", [name for name in LATTICES if name not in ("z", "e8")])
def test_other_lattices_code_where_the_model_has_rows_for_them(
    models_folder, photograph, tmp_path, monkeypatch, new_model, lattice
):
    monkeypatch.setenv("LVQ_MODEL_PATH", os.pathsep.join(map(str, (models_folder, tmp_path))))
    install(new_model(), tmp_path, "packed", tables=parametric_tables(lattice))
    picture = photograph(150, 200)
    for quality in (20, 90):
        data = encode(picture, model="packed", quality=quality, lattice=lattice)
        assert read_header(data).lattice == lattice
        assert psnr(decode(data), picture) > 18 + quality / 20
        bits = estimate_bits(picture, model="packed", quality=quality, lattice=lattice)
        assert 8 * len(data) == pytest.approx(bits, rel=0.01, abs=600)
    with pytest.raises(UsageError, match=f"no rows for lattice {lattice!r}; fit them: lvq refit"):
        encode(picture, model="tiny", lattice=lattice)


def test_the_default_lattice_is_the_models_own(tiny, photograph):
    picture = photograph(40, 40)
    assert read_header(encode(picture, model=tiny)).lattice == "e8"
    assert encode(picture, model=tiny) == encode(picture, model=tiny, quality=50, lattice="e8")


def test_a_card_may_name_another_default_lattice(tmp_path, monkeypatch, new_model, photograph):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    install(new_model(), tmp_path, "packed", tables=parametric_tables("d4"))
    card = tmp_path / "packed.toml"
    text = card.read_text()
    card.write_text('lattice = "d4"\n' + text)
    picture = photograph(40, 40)
    assert read_header(encode(picture, model="packed")).lattice == "d4"
    assert read_header(encode(picture, model="packed", lattice="e8")).lattice == "e8"
    card.write_text('lattice = "e7"\n' + text)
    with pytest.raises(ModelMismatch, match="no rows for its default lattice 'e7', but for z, "):
        encode(picture, model="packed")


def test_files_depend_on_the_picture_alone(tiny, photograph, sample):
    picture, data = sample
    assert encode(picture, model=tiny) == data
    assert encode(np.asfortranarray(picture), model=tiny) == data
    flipped = np.ascontiguousarray(picture[::-1, ::-1])
    assert encode(flipped[::-1, ::-1], model=tiny) == data  # negative strides
    wide = np.repeat(picture, 2, axis=1)
    assert encode(wide[:, ::2], model=tiny) == data
    frozen = picture.copy()
    frozen.setflags(write=False)
    assert encode(frozen, model=tiny) == data
    assert encode(picture, model=load_model(tiny)) == data
    assert np.array_equal(decode(data), decode(data))


def test_grey_pictures_are_coded_as_grey(tiny, photograph):
    grey = photograph(70, 90, channels=1)
    data, colour = encode(grey, model=tiny), encode(np.stack([grey] * 3, axis=2), model=tiny)
    assert abs(len(data) - len(colour)) <= 1
    assert psnr(decode(data), grey) >= psnr(decode(colour), np.stack([grey] * 3, axis=2)) - 1e-6


@pytest.mark.parametrize("lattice", ["z", "e8"])
@pytest.mark.parametrize("quality", [0, 33, 66, 100])
def test_the_estimate_is_the_size(tiny, photograph, quality, lattice):
    for size in ((16, 16), (333, 517)):
        picture = photograph(*size)
        real = len(encode(picture, model=tiny, quality=quality, lattice=lattice))
        bits = estimate_bits(picture, model=tiny, quality=quality, lattice=lattice)
        assert bits / 8 <= real * 1.005
        assert real <= 1.005 * bits / 8 + 40


def test_another_process_reads_the_file(models_folder, sample, tmp_path):
    picture, data = sample
    (tmp_path / "a.lvq").write_bytes(data)
    code = (
        "import sys, lvqcodec, pathlib;"
        "picture = lvqcodec.decode(pathlib.Path(sys.argv[1]).read_bytes());"
        "sys.stdout.buffer.write(picture.tobytes())"
    )
    environment = os.environ | {
        "LVQ_MODEL_PATH": str(models_folder),
        "PYTHONPATH": os.path.dirname(os.path.dirname(lvqcodec.__file__)),
    }
    command = [sys.executable, "-c", code, str(tmp_path / "a.lvq")]
    raw = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    found = np.frombuffer(raw, np.uint8).reshape(picture.shape)
    assert psnr(found, picture) > 25


# damage


def refused(data):
    """Decode what must not decode; a picture or any other exception fails the test."""
    with pytest.raises(LvqError) as caught:
        decode(data)
    assert caught.value.exit_code in (3, 4)
    return caught.value


def test_every_truncation_is_refused(tiny, sample):
    _, data = sample
    assert len(data) < 200
    for end in range(len(data)):
        refused(data[:end])
    refused(data + b"\0")


def test_any_changed_bytes_are_refused(tiny, sample):
    _, data = sample
    rng = np.random.default_rng(0)
    for trial in range(600):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 1 + trial % 3):
            damaged[place] ^= int(rng.integers(1, 256))
        if bytes(damaged) != data:
            refused(bytes(damaged))
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        refused(bytes(damaged))


@pytest.mark.parametrize("lattice", ["z", "e8"])
def test_payloads_changed_behind_the_containers_back_are_refused(tiny, photograph, lattice):
    """With a CRC of the container that is right, the CRC of the integers is what tells."""
    picture = photograph(48, 80, seed=3)
    header, sections = unpack(encode(picture, model=tiny, quality=90, lattice=lattice))
    payload = sections[SECTION_LATENTS]
    end = len(payload) - 4  # nothing hangs on some bits of the coder's last word
    rng = np.random.default_rng(1)
    kinds = set()
    for trial in range(250):
        damaged = bytearray(payload)
        match trial % 4:
            case 0:
                damaged[rng.integers(0, end)] ^= 1 << int(rng.integers(0, 8))
            case 1:
                start = int(rng.integers(4, end))
                damaged[start:] = rng.bytes(len(payload) - start)
            case 2:
                del damaged[int(rng.integers(0, len(payload) - 1)) :]
            case 3:
                damaged = bytearray(rng.bytes(trial - 3))
        error = refused(pack(header, [Section(SECTION_LATENTS, bytes(damaged))]))
        assert isinstance(error, FormatError)
        kinds.add(type(error))
    assert kinds == {FormatError, StreamError}


@pytest.mark.parametrize("change", ["quality", "lattice", "no rows", "width", "height"])
def test_a_header_that_belongs_to_another_file_is_refused(tiny, photograph, change):
    """As if somebody had repaired the CRC: the integers differ from those that were written."""
    data = encode(photograph(48, 80), model=tiny, quality=90)
    header, sections = unpack(data)
    values = {
        "quality": {"quality": 89},
        "lattice": {"lattice": "z"},
        "no rows": {"lattice": "d4"},
        "width": {"width": 200},
        "height": {"height": 200},
    }
    other = dataclasses.replace(header, **values[change])
    error = refused(pack(other, [Section(SECTION_LATENTS, sections[SECTION_LATENTS])]))
    assert isinstance(error, FormatError)


def test_nothing_and_other_formats_are_refused(tiny):
    for data in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)):
        assert isinstance(refused(data), FormatError)


# models


def test_files_of_a_model_that_is_not_installed_name_it(
    models_folder, sample, tmp_path, monkeypatch
):
    _, data = sample
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    digest = hashlib.sha256((models_folder / "tiny.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ModelNotFound, match=digest[:8]):
        decode(data)
    with pytest.raises(ModelNotFound, match="'tiny'"):
        encode(np.zeros((4, 4), np.uint8), model="tiny")


def test_a_model_in_two_files_codes_as_in_one(
    new_model, models_folder, photograph, tmp_path, monkeypatch
):
    install(new_model(), tmp_path, "split", share="photo")
    monkeypatch.setenv("LVQ_MODEL_PATH", f"{tmp_path}{os.pathsep}{models_folder}")
    picture = photograph(40, 50)
    whole, split = (encode(picture, model=name) for name in ("tiny", "split"))
    assert read_header(whole).model != read_header(split).model
    assert unpack(whole)[1] == unpack(split)[1]
    assert np.array_equal(decode(whole), decode(split))
    loading.load_card.cache_clear()
    (tmp_path / "photo.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"photo.safetensors: No such file.*'split' needs it"):
        decode(split)


def test_every_file_decodes_with_its_own_model(tiny, photograph):
    picture = photograph(60, 60)
    mine, others = (encode(picture, model=name) for name in ("tiny", "other"))
    assert read_header(mine).model != read_header(others).model
    assert np.array_equal(decode(mine), decode(mine))
    assert psnr(decode(others), picture) > 20
    header, sections = unpack(mine)
    swapped = pack(read_header(others), [Section(SECTION_LATENTS, sections[SECTION_LATENTS])])
    assert header.model != read_header(swapped).model
    refused(swapped)


def test_damaged_weights_are_refused(models_folder, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    weights = bytearray((models_folder / "other.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "other.safetensors").write_bytes(weights)
    (tmp_path / "other.toml").write_bytes((models_folder / "other.toml").read_bytes())
    with pytest.raises(ModelMismatch, match="digest"):
        encode(photograph(16, 16), model="other")


def test_models_are_kept_in_memory_and_serve_gradients(tiny, sample):
    loading.load_card.cache_clear()
    decode(sample[1])  # loads the model in inference mode
    loaded = load_model(tiny)
    assert loaded is load_model(tiny)
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    loaded.model.analysis(x, torch.tensor([50.0])).sum().backward()
    assert x.grad.abs().max() > 0


def test_a_model_in_training_cannot_code(tiny_config):
    with pytest.raises(UsageError, match="export"):
        loading.LoadedModel(CodecModel(tiny_config), bytes(32), torch.device("cpu"))


# misuse


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 4), np.float32),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0), np.uint8),
        np.broadcast_to(np.uint8(0), (1, 65536)),
        np.broadcast_to(np.uint8(0), (20000, 20000)),
    ],
    ids=lambda image: f"{getattr(image, 'dtype', type(image))}{getattr(image, 'shape', '')}",
)
def test_what_is_no_picture_is_refused(tiny, image):
    with pytest.raises(UnsupportedImage):
        encode(image, model=tiny)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"quality": -1}, "quality -1"),
        ({"quality": 101}, "quality 101"),
        ({"quality": 49.5}, "quality 49.5"),
        ({"quality": "50"}, "quality '50'"),
        ({"effort": 10}, "effort 10"),
        ({"effort": -1}, "effort -1"),
        ({"max_seconds": 0}, "max_seconds = 0"),
        ({"max_seconds": float("nan")}, "max_seconds = nan"),
        ({"alpha_quality": 101}, "alpha quality 101"),
        ({"alpha_quality": 49.5}, "alpha quality 49.5"),
        ({"target_bytes": 0}, "target_bytes = 0"),
        ({"target_psnr": -1.0}, "target_psnr = -1"),
        ({"target_psnr": float("inf")}, "target_psnr = inf"),
        ({"quality": 50, "target_bytes": 500}, "quality and target_bytes exclude"),
        ({"target_psnr": 30, "target_bytes": 500}, "exclude each other"),
        ({"lattice": "e7"}, "unknown lattice 'e7'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": ""}, "unknown device ''"),
    ],
)
def test_wrong_options_are_refused(tiny, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        encode(np.zeros((4, 4), np.uint8), model=tiny, **options)


def test_an_absent_gpu_is_refused(tiny, sample, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for function in (
        lambda: load_model(tiny, device="cuda"),
        lambda: decode(sample[1], device="cuda"),
    ):
        with pytest.raises(UsageError, match="not available"):
            function()
    assert load_model(tiny, device="auto").device.type == "cpu"
    with pytest.raises(UsageError, match="unknown device"):
        decode(sample[1], device="cuda:7x")


def test_whole_numbers_of_any_type_are_qualities(tiny, photograph):
    picture = photograph(20, 20)
    wanted = encode(picture, model=tiny, quality=70)
    for quality in (np.int64(70), np.uint8(70), 70.0):
        assert encode(picture, model=tiny, quality=quality) == wanted


# sizes that a few bytes claim


def claim(data, width, height, payload):
    header, _ = unpack(data)
    header = dataclasses.replace(header, width=width, height=height)
    return pack(header, [Section(SECTION_LATENTS, payload)])


def test_a_picture_beyond_the_limit_is_refused_by_its_header(tiny, sample, monkeypatch):
    picture, data = sample
    pixels = picture.shape[0] * picture.shape[1]
    assert np.array_equal(decode(data, max_pixels=pixels), decode(data))
    monkeypatch.setattr(codec, "load_card", None)  # nothing is loaded for it
    with pytest.raises(UnsupportedImage, match=rf"52 x 37 .* limit of {pixels - 1} pixels"):
        decode(data, max_pixels=pixels - 1)


@pytest.mark.parametrize("lattice", ["z", "e8"])
@pytest.mark.parametrize("size", [(65535, 4096), (4096, 65535), (16384, 16384)])
def test_too_few_bytes_for_the_size_are_refused_before_anything_is_allocated(
    tiny, sample, size, lattice, monkeypatch
):
    data = encode(sample[0], model=tiny, lattice=lattice)
    monkeypatch.setattr(codec, "decode_tiles", None)
    for payload in (bytes(4), bytes(16), unpack(data)[1][SECTION_LATENTS], bytes(2000)):
        assert "too short for their picture" in str(refused(claim(data, *size, payload)))


@pytest.mark.parametrize("quality", [0, 50, 100])
def test_decoding_stops_where_the_bytes_do(tiny, photograph, quality, monkeypatch):
    """Of a picture 100 times as large hardly more latents are read than the bytes are worth."""
    data = encode(photograph(64, 64), model=tiny, quality=quality)
    reads = []
    read = stream.Quantizer.read

    def counted(self, bins, decoder):
        j = read(self, bins, decoder)
        reads.append(len(bins))
        return j

    monkeypatch.setattr(stream.Quantizer, "read", counted)
    decode(data)
    worth = sum(reads)
    reads.clear()
    refused(claim(data, 640, 640, unpack(data)[1][SECTION_LATENTS]))
    assert sum(reads) < 3 * worth


def test_flat_pictures_of_any_size_are_not_too_short(tiny):
    """Their files have the fewest bits a latent that there are."""
    for value in (0, 128, 255):
        for lattice in ("z", "e8"):
            picture = np.full((512, 640), value, np.uint8)
            data = encode(picture, model=tiny, quality=0, lattice=lattice)
            assert decode(data).shape == picture.shape

# SPDX-License-Identifier: Apache-2.0
"""What the caller has set in torch reaches neither files nor pictures, and is there afterwards."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_latents

from lvqcodec import guard
from lvqcodec.codec import decode, encode, estimate_bits, load_model
from lvqcodec.errors import FormatError
from lvqcodec.model import loaded as loading

NEW = hasattr(torch.backends, "fp32_precision")  # from torch 2.9 on


@contextmanager
def setting(change: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


def default_dtype(name: str) -> Any:
    return setting(torch.set_default_dtype, getattr(torch, name), torch.float32)


@contextmanager
def precision(owner: str, value: str) -> Iterator[None]:
    module: Any = torch.backends
    for part in owner.split(".")[1:]:
        module = getattr(module, part)
    before = module.fp32_precision
    with setting(lambda v: setattr(module, "fp32_precision", v), value, before):
        yield


@contextmanager
def autocast_without_cache() -> Iterator[None]:
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        yield


STATES: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": autocast_without_cache,
    "float64": lambda: default_dtype("float64"),
    "bfloat16": lambda: default_dtype("bfloat16"),
    "float16": lambda: default_dtype("float16"),
    "default device": lambda: setting(torch.set_default_device, "meta", None),
    "device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "medium": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "no denormals": lambda: setting(torch.set_flush_denormal, True, False),
}
if NEW:
    STATES |= {
        "all bf16": lambda: precision("backends", "bf16"),
        "mkldnn bf16": lambda: precision("backends.mkldnn", "bf16"),
        "mkldnn.matmul bf16": lambda: precision("backends.mkldnn.matmul", "bf16"),
        "mkldnn.conv bf16": lambda: precision("backends.mkldnn.conv", "bf16"),
    }


def state() -> dict[str, Any]:
    """Everything that is guarded, as the caller sees it."""
    seen = {
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flush": (torch.tensor([1e-310], dtype=torch.float64, device="cpu") * 1).item() == 0,
        "random": torch.random.get_rng_state().tolist(),
    }
    if NEW:
        backends: Any = torch.backends
        owners = (backends, backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv)
        seen["precision"] = [owner.fp32_precision for owner in owners]
    else:
        seen["precision"] = torch.get_float32_matmul_precision()
    return seen


@pytest.fixture
def wanted(tiny: str, photograph: Any) -> tuple[Any, ...]:
    picture = photograph(67, 90)
    files = [encode(picture, model=tiny, effort=effort) for effort in (0, 2)]
    bits = estimate_bits(picture, model=tiny)
    return picture, files, bits, [decode(data) for data in files]


@pytest.mark.parametrize("name", STATES)
def test_files_and_pictures_are_the_same(tiny: str, wanted: tuple[Any, ...], name: str) -> None:
    picture, files, bits, pictures = wanted
    load = loading.load_card.cache_clear
    with STATES[name]():
        before = state()
        load()  # the model too is read inside
        assert [encode(picture, model=tiny, effort=effort) for effort in (0, 2)] == files
        assert estimate_bits(picture, model=tiny) == bits
        assert all(np.array_equal(decode(d), p) for d, p in zip(files, pictures, strict=True))
        loaded = load_model(tiny)
        assert state() == before
        with pytest.raises(FormatError):
            decode(files[0][:-1])
        assert state() == before, "after an error"
    # and what was loaded there is sound
    assert encode(picture, model=loaded) == files[0]
    read_latents(files[0], loaded)  # the integers have their CRC
    everything = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert {tensor.device.type for tensor in everything} == {"cpu"}
    assert {tensor.dtype for tensor in everything} <= {torch.float32, torch.int64}
    assert not any(tensor.is_inference() for tensor in everything)


def test_random_numbers_of_the_caller_stay(tiny: str, sample: tuple[Any, bytes]) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    loading.load_card.cache_clear()
    decode(sample[1])
    assert torch.equal(torch.random.get_rng_state(), before)


def switch() -> str:
    """The precision of products that the process has at the moment."""
    if NEW:
        return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
    return torch.get_float32_matmul_precision()


def test_threads_do_not_restore_each_others_half_state() -> None:
    """The first to leave must not give back to the process what the other has put aside."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with guard.own_torch():
            inside.set()
            leave.wait(10)

    with STATES["medium"]():
        set_by_caller = switch()
        thread = threading.Thread(target=other)
        with guard.own_torch():
            full = switch()
            thread.start()
            assert inside.wait(10)
        assert switch() == full != set_by_caller
        with guard.own_torch(), guard.own_torch():
            pass
        assert switch() == full
        leave.set()
        thread.join()
        assert switch() == set_by_caller


def test_many_threads_decode_the_same_in_any_state(tiny: str, wanted: tuple[Any, ...]) -> None:
    _, files, _, pictures = wanted
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(5):
                if not np.array_equal(decode(files[0]), pictures[0]):
                    wrong.append("another picture")
        except Exception as error:
            wrong.append(error)

    with STATES["medium"](), STATES["bfloat16"]():
        before = switch()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and switch() == before


def test_nothing_is_said_by_torch(tiny: str, sample: tuple[Any, bytes]) -> None:
    with warnings.catch_warnings(), torch.autocast("cpu"):
        warnings.simplefilter("error")
        decode(sample[1])

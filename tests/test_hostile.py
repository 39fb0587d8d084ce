# SPDX-License-Identifier: Apache-2.0
"""Whatever the bytes, an answer or an LvqError; `bench/fuzz.py` does the same for longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from golden import CORPUS, GOLDEN, MODEL, crc, load_index
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lvqcodec import catalog
from lvqcodec.codec import decode
from lvqcodec.errors import FormatError, LvqError, ModelMismatch, ModelNotFound
from lvqcodec.format.container import (
    MAGIC,
    SECTION_ALPHA,
    SECTION_LATENTS,
    SECTION_TILES,
    Header,
    Section,
    pack,
    read_header,
    unpack,
)
from lvqcodec.model.weights import unpack_weights

FILES = {name: (GOLDEN / f"{name}.lvq").read_bytes() for name in load_index(GOLDEN)}
FILES |= {name: (CORPUS / f"{name}.lvq").read_bytes() for name in load_index(CORPUS)}
WEIGHTS = (GOLDEN / f"{MODEL}.safetensors").read_bytes()
HEAD_END = 8 + int.from_bytes(WEIGHTS[:8], "little")


@pytest.fixture(autouse=True, scope="module")
def installed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVQ_MODEL_PATH", str(GOLDEN))
        yield


# one change: what of the data is replaced by what
changes = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4
)


def changed(data, edits):
    out = bytearray(data)
    for place, count, new in edits:
        at = int(place * len(out))
        out[at : at + count] = new
    return bytes(out)


mutated = st.builds(changed, st.sampled_from(sorted(FILES.values())), changes)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(MAGIC.__add__), mutated))
def test_the_container_takes_any_bytes(data):
    for function in (unpack, read_header):
        try:
            result = function(data)
        except FormatError as error:
            assert len(str(error).splitlines()) == 1
            continue
        header = result if function is read_header else result[0]
        assert 1 <= header.width * header.height <= 2**28


PICTURES = (SECTION_LATENTS, SECTION_TILES)
kinds_of_sections = st.one_of(st.integers(0, 4), st.integers(0x7F, 0x84), st.integers(0, 255))
"""Mostly kinds that mean something, their neighbours among them."""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(kinds_of_sections, st.binary(max_size=40)), max_size=4), st.data())
def test_sections_with_right_checksums(sections, data):
    """They are taken or refused as the specification has it, and come back as they were."""
    head = pack(Header(7, 5, 3, 50, "z", b"none"), [Section(1, b"")])[:-6]
    assert read_header(head).width == 7
    bodies = [crc(bytes([kind, len(payload)]) + payload) for kind, payload in sections]
    kinds = [kind for kind, _ in sections]
    fine = (
        sum(kind in PICTURES for kind in kinds) == 1
        and len(set(kinds)) == len(kinds)
        and all(kind & 0x80 or kind in (*PICTURES, SECTION_ALPHA) for kind in kinds)
    )
    file = head + b"".join(bodies)
    if fine:
        assert unpack(file)[1] == dict(sections)
    else:
        with pytest.raises(FormatError):
            unpack(file)
    end = data.draw(st.integers(0, len(file) - 1)) if sections else len(head) - 1
    if fine and sections[-1][0] in PICTURES:
        with pytest.raises(FormatError):
            unpack(file[:end])


@settings(max_examples=60, deadline=None)
@given(mutated)
def test_the_decoder_takes_any_bytes(data):
    if data in FILES.values():
        return
    with pytest.raises(LvqError) as caught:
        decode(data, device="cpu")
    assert caught.value.exit_code in (3, 4)


sides = st.one_of(st.integers(1, 65), st.integers(1, 65535))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sides,
    sides,
    st.sampled_from([1, 3]),
    st.integers(0, 100),
    st.sampled_from(["z", "e8"]),
    st.one_of(
        st.binary(max_size=400),
        st.builds(changed, st.sampled_from([unpack(FILES["colour-e8-q50"])[1][1]]), changes),
    ),
)
@example(65535, 4096, 3, 0, "e8", bytes(60))
@example(4096, 65535, 1, 0, "z", b"\xff" * 60)
@example(1, 1, 1, 100, "e8", b"\xff\xff\xff\x7f" * 30)
def test_the_decoder_takes_any_latents(width, height, channels, quality, lattice, payload):
    """Sizes and words that nobody wrote, behind checksums that are right."""
    if width * height > 2**28:
        return
    model = bytes.fromhex(catalog.find_model(MODEL).digest)[:4]
    header = Header(width, height, channels, quality, lattice, model)
    try:
        picture = decode(pack(header, [Section(SECTION_LATENTS, payload)]), device="cpu")
    except FormatError:
        return
    assert picture.shape[:2] == (height, width) and picture.dtype == np.uint8


# models


def with_config(**changes):
    """The golden weights with another configuration."""
    head = json.loads(WEIGHTS[8:HEAD_END])
    config = json.loads(head["__metadata__"]["config"])
    for path, value in changes.items():
        axis, _, name = path.partition("__")
        (config[axis] if name else config)[name or axis] = value
    head["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + WEIGHTS[HEAD_END:]


def test_the_weights_as_they_are_load():
    assert with_config() != WEIGHTS
    assert unpack_weights(with_config()).config == unpack_weights(WEIGHTS).config


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"transform__latent_channels": 10**12}, "latent_channels = 1000000000000"),
        ({"transform__latent_channels": -1}, "latent_channels = -1"),
        ({"transform__analysis": [[8, 8, 10**9]]}, "analysis = 1000000000"),
        ({"transform__analysis": [[8, 8, 1]] * 2000}, "the length of analysis = 2000"),
        ({"transform__synthesis": []}, "do not fit"),
        ({"entropy__depth": 10**9}, "depth = 1000000000"),
        ({"entropy__hidden": 10**9}, "hidden = 1000000000"),
        ({"entropy__scales": 10**9}, "scales = 1000000000"),
        ({"entropy__block": [10**6, 2]}, "block = 1000000"),
        ({"entropy__seeds": [1] * 33}, "the length of seeds = 33"),
        ({"entropy__block": [8, 8], "entropy__depth": 16}, "6148 layers"),
        ({"transform__analysis": [[8, 8, 1000]]}, "layers in the weights are more than 2000"),
        ({"lmbda_min": -1.0}, "do not fit"),
        ({"lmbda_min": 1e-300, "lmbda_max": 1e300}, "do not fit"),
        ({"lmbda_min": 0.0}, "do not fit"),
    ],
    ids=str,
)
def test_sizes_that_no_model_has_are_refused_before_it_is_built(change, complaint):
    with pytest.raises(ModelMismatch, match=complaint):
        unpack_weights(with_config(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"entropy__hidden": 1024, "entropy__trunk": 1024, "entropy__depth": 16},
        {"entropy__hidden": 1024, "entropy__block": [8, 8], "entropy__seeds": []},
        {"transform__latent_channels": 1024},
        {"transform__analysis": [[8, 1024, 100], [8, 1024, 100]]},
    ],
    ids=str,
)
def test_nothing_is_allocated_for_a_configuration_that_is_not_the_files(change):
    """Within the limits of each size, layers of gigabytes were made, and then not found."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import json, resource, test_hostile as t\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    t.unpack_weights(t.with_config(**json.loads(sys.argv[2])))\n"
        "except t.ModelMismatch:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, os.path.dirname(__file__), json.dumps(change)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 50_000  # kB


def test_a_header_of_any_length_is_not_parsed():
    with pytest.raises(ModelMismatch, match="a header of 4194305 bytes"):
        unpack_weights((2**22 + 1).to_bytes(8, "little") + bytes(2**22 + 1))


def test_models_are_loaded_without_the_compiler_of_torch(models_folder):
    """Random numbers on meta would import it, which takes seconds."""
    code = "import sys, lvqcodec as l; l.load_model('tiny'); print('torch._dynamo' in sys.modules)"
    environment = os.environ | {"LVQ_MODEL_PATH": str(models_folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"False"]


@settings(max_examples=100, deadline=None)
@given(changes)
def test_the_weights_header_takes_any_bytes(edits):
    text = changed(WEIGHTS[8:HEAD_END], edits)
    try:
        unpack_weights(len(text).to_bytes(8, "little") + text + WEIGHTS[HEAD_END:])
    except ModelMismatch as error:
        assert len(str(error).splitlines()) == 1


CARD = (GOLDEN / f"{MODEL}.toml").read_text()
cards = st.one_of(
    st.text(max_size=200),
    st.builds(lambda edits: changed(CARD.encode(), edits).decode("latin-1"), changes),
)


@settings(max_examples=80, deadline=None)
@given(text=cards)
@example(text="a = " + "[" * 100_000)
@example(text=f'{CARD}weights = ["../golden.safetensors"]')
@example(text=f'{CARD}weights = ["/etc/passwd.safetensors"]')
@example(text=f'{CARD}weights = ["a\\u0000.safetensors"]')
def test_cards_take_any_text_and_lead_nowhere_else(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "cards"
    folder.mkdir(exist_ok=True)
    (folder / f"{MODEL}.safetensors").touch()
    path = folder / f"{MODEL}.toml"
    path.write_text(text, encoding="utf-8")
    try:
        card = catalog.read_card(path)
    except ModelMismatch:
        return
    assert card is None or all(weights.parent == folder for weights in card.paths)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_weights_that_are_a_pipe_are_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / f"{MODEL}.toml").write_text(f'{CARD}weights = ["pipe.safetensors"]')
    os.mkfifo(tmp_path / "pipe.safetensors")
    card = catalog.read_card(tmp_path / f"{MODEL}.toml")
    caught = []

    def verify():
        try:
            catalog.read_files(card)
        except ModelNotFound as error:
            caught.append(str(error))

    thread = threading.Thread(target=verify, daemon=True)
    thread.start()
    thread.join(10)
    assert caught and "no regular file" in caught[0]

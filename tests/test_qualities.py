# SPDX-License-Identifier: Apache-2.0
"""Weights that are for some qualities alone, and encoders that keep to them."""

import dataclasses

import conftest
import numpy as np
import pytest

from lvqcodec import codec
from lvqcodec.batch.budget import allocate
from lvqcodec.catalog import find_model
from lvqcodec.errors import ModelMismatch, UsageError
from lvqcodec.format.container import read_header
from lvqcodec.model.codec_model import CodecConfig, CodecModel


@pytest.fixture
def some(tmp_path, monkeypatch, new_model, tiny_config):
    """The name of a model that is for the qualities 20 to 60."""
    conftest.install(new_model(dataclasses.replace(tiny_config, qualities=(20, 60))), tmp_path, "m")
    card = tmp_path / "m.toml"
    card.write_text(card.read_text() + "qualities = [20, 60]\n")
    monkeypatch.setenv("LVQ_MODEL_PATH", str(tmp_path))
    return "m"


def test_configurations_say_which(tiny_config):
    some = dataclasses.replace(tiny_config, qualities=(20, 60))
    assert some.quality_range == range(20, 61)
    assert CodecConfig.from_dict(some.to_dict()) == some
    assert "qualities" not in tiny_config.to_dict(), "as in weights files of before"
    assert CodecModel(some).config.qualities == (20, 60)
    for wrong in ((60, 20), (-1, 5), (0, 101)):
        with pytest.raises(UsageError, match="must rise within 0 to 100"):
            dataclasses.replace(tiny_config, qualities=wrong)


def test_others_are_refused_with_the_range(some, photograph):
    picture = photograph(40, 48)
    for quality in (0, 19, 61, 100):
        with pytest.raises(UsageError, match=f"quality {quality} .*give 20 to 60"):
            codec.encode(picture, model=some, quality=quality)
    for quality in (20, 60):
        assert read_header(codec.encode(picture, model=some, quality=quality)).quality == quality
    assert read_header(codec.encode(picture, model=some)).quality == 50


def test_goals_are_reached_within_them_or_by_the_quantizer_beyond(some, photograph):
    picture = photograph(64, 72)
    sizes = {q: len(codec.encode(picture, model=some, quality=q)) for q in (20, 60)}
    for wanted in (sizes[20], sizes[60], (sizes[20] + sizes[60]) // 2, int(sizes[60] * 1.02)):
        found = codec.encode(picture, model=some, target_bytes=wanted)
        assert len(found) <= wanted and read_header(found).quality in range(20, 61)
    with pytest.raises(UsageError, match="does not fit into"):
        codec.encode(picture, model=some, target_bytes=sizes[20] // 3)
    with pytest.raises(UsageError, match="out of reach"):
        codec.encode(picture, model=some, target_psnr=90.0)


def test_budgets_are_shared_within_them():
    asked = set()

    def measure(wanted):
        wanted = list(wanted)
        asked.update(quality for _, quality in wanted)
        return {(name, q): (0.01 * np.exp(q / 20), 30 + q / 5) for name, q in wanted}

    found = allocate(["a", "b"], 0.05, measure, range(20, 61))
    assert set(found.qualities.values()) <= set(range(20, 61)) and asked <= set(range(20, 61))
    with pytest.raises(UsageError, match="at quality 20 it is"):
        allocate(["a", "b"], 1e-5, measure, range(20, 61))
    assert set(allocate(["a"], 1e5, measure, range(20, 61)).qualities.values()) == {60}


def test_cards_say_them_too(some, tmp_path, models_folder):
    assert find_model(some).qualities == range(20, 61)
    card = tmp_path / "m.toml"
    text = card.read_text()
    for wrong in ("[60, 20]", "[0, 101]", "[1]", "[1.5, 2]", "7"):
        card.write_text(text.replace("[20, 60]", wrong))
        with pytest.raises(ModelMismatch, match=r"qualities = .* rise within 0 to 100"):
            find_model(some)

# SPDX-License-Identifier: Apache-2.0
"""The options of encoding stand once: what they take, and that every face of the codec has them."""

from __future__ import annotations

import dataclasses
import inspect
import math

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import lvqcodec
from lvqcodec import plugin
from lvqcodec.batch.work import Settings
from lvqcodec.cli import main
from lvqcodec.cli.options import encode_option
from lvqcodec.config import EFFORTS, QUALITIES, TUNES
from lvqcodec.errors import UsageError
from lvqcodec.format.container import LATTICES
from lvqcodec.format.tiling import SIDES
from lvqcodec.options import OPTIONS, RATES, EncodeOptions

# of every option something that is not its default
OTHER = {
    "quality": 30,
    "target_bytes": 5000,
    "target_bpp": 0.5,
    "target_psnr": 31.5,
    "effort": 2,
    "tune": "ms-ssim",
    "max_seconds": 2.5,
    "lattice": "z",
    "alpha_quality": 60,
    "tile": 64,
    "max_memory": 10**9,
}
NOT_OF_A_BATCH = {"target_bpp", "max_memory"}  # it has a budget for all, and shares the memory


def command_options(name: str) -> dict[str, click.Option]:
    parameters = main.commands[name].params
    return {p.name: p for p in parameters if isinstance(p, click.Option) and p.name}


def test_every_option_has_a_case_here() -> None:
    assert set(OTHER) == set(OPTIONS)


@pytest.mark.parametrize("name", OTHER)
def test_an_option_is_everywhere_by_its_field_alone(name: str) -> None:
    (field,) = (f for f in dataclasses.fields(EncodeOptions) if f.name == name)
    assert inspect.signature(lvqcodec.encode).parameters[name].default == field.default
    assert f"{name}: {OPTIONS[name].meaning}" in (lvqcodec.encode.__doc__ or "")
    assert name in plugin._KEYWORDS
    assert getattr(Settings(**{name: OTHER[name]}), name) == OTHER[name]
    for command in ("encode", "batch"):
        if command == "batch" and name in NOT_OF_A_BATCH:
            continue
        option = command_options(command)[name]
        assert (option.help or "").startswith(OPTIONS[name].meaning)
        assert option.default in (field.default, None) or field.default is None


@pytest.mark.parametrize("name", OTHER)
def test_what_the_command_line_takes_is_what_the_option_takes(name: str) -> None:
    seen = []

    @click.command()
    @encode_option(name)
    def command(**given: object) -> None:
        seen.append(given)

    flag = (OPTIONS[name].flags or (f"--{name.replace('_', '-')}",))[-1]
    assert CliRunner().invoke(command, [flag, str(OTHER[name])]).exit_code == 0
    assert CliRunner().invoke(command, []).exit_code == 0
    given, default = (EncodeOptions(**one) for one in seen)
    assert getattr(given, name) == OTHER[name] and default == EncodeOptions()
    assert CliRunner().invoke(command, [flag, "-1"]).exit_code == 2


@pytest.mark.parametrize("name", OTHER)
def test_values_of_another_kind_are_refused(name: str) -> None:
    for value in ("many", math.nan, -1, [1], b"1", object()):
        with pytest.raises(UsageError, match=name.replace("_", "[ _]")):
            EncodeOptions(**{name: value})
    if OPTIONS[name].unset is None and name in ("tune", "alpha_quality"):
        with pytest.raises(UsageError):
            EncodeOptions(**{name: None})
    with pytest.raises(TypeError, match="no_such_option"):
        EncodeOptions(**{name: OTHER[name]}, no_such_option=1)


@pytest.mark.parametrize("name", ["quality", "effort", "alpha_quality", "tile"])
def test_whole_numbers_of_any_type_are_python_s_own_afterwards(name: str) -> None:
    for value in (np.int64(64), np.uint8(64), 64.0) if name != "effort" else (np.int64(4), 4.0):
        assert type(getattr(EncodeOptions(**{name: value}), name)) is int


def test_rates_exclude_each_other() -> None:
    for first in RATES:
        for second in RATES:
            given = {first: OTHER[first], second: OTHER[second]}
            if first == second:
                assert EncodeOptions(**given).has_goal == (first != "quality")
                continue
            with pytest.raises(UsageError, match="exclude each other"):
                EncodeOptions(**given)


def test_every_name_and_number_of_the_tables_is_taken() -> None:
    tables = {"quality": QUALITIES, "effort": EFFORTS, "lattice": LATTICES, "tile": SIDES}
    for name, values in tables.items():
        assert [getattr(EncodeOptions(**{name: v}), name) for v in values] == list(values)
    assert [EncodeOptions(tune=tune).tune for tune in TUNES] == list(TUNES)


@pytest.mark.parametrize(
    ("options", "effort", "weighed"),
    [
        ({}, 0, False),
        ({"quality": 9}, 0, False),
        ({"effort": 1}, 1, True),
        ({"tune": "ms-ssim"}, 3, True),
        ({"max_seconds": 1}, 9, True),
        ({"max_seconds": math.inf}, 9, True),
        ({"max_seconds": 1, "effort": 0}, 0, False),
        ({"target_psnr": 30}, 0, True),
    ],
)
def test_what_is_not_given_follows_from_the_rest(options, effort: int, weighed: bool) -> None:
    found = EncodeOptions(**options)
    assert (found.chosen_effort, found.weighed) == (effort, weighed)
    assert found.chosen_quality == options.get("quality", 50)


def test_the_digest_of_a_batch_changes_with_every_option_and_with_no_default(tiny) -> None:
    plain = Settings(model=tiny)
    others = [dataclasses.replace(plain, **{name: value}) for name, value in OTHER.items()]
    digests = [settings.digest() for settings in (plain, *others)]
    assert len(set(digests)) == len(digests)
    assert Settings(model=tiny, quality=50, effort=0, alpha_quality=100).digest() == digests[0]
    assert plain.digest(30) == dataclasses.replace(plain, quality=30).digest()


# the command line


def test_tiles_can_be_asked_for(tiny, photograph, tmp_path) -> None:
    picture = photograph(70, 90)
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in/a.png")
    wanted = lvqcodec.encode(picture, model=tiny, tile=32)
    assert wanted != lvqcodec.encode(picture, model=tiny)
    common = ["--model", tiny, "--tile", "32"]
    for command, source, out in (
        ("encode", tmp_path / "in/a.png", tmp_path / "a.lvq"),
        ("batch", tmp_path / "in", tmp_path / "out"),
    ):
        made = tmp_path / ("a.lvq" if command == "encode" else "out/a.lvq")
        result = CliRunner().invoke(main, [command, str(source), str(out), *common])
        assert result.exit_code == 0, result.output
        assert made.read_bytes() == wanted
        made.unlink()
        result = CliRunner().invoke(main, [command, str(source), str(out), "--tile", "100"])
        assert result.exit_code == 2 and "power of two from 32 to 32768" in result.stderr
        assert not made.exists()


@pytest.mark.parametrize("command", ["encode", "batch"])
def test_rates_that_exclude_each_other_are_told_as_they_were_given(command, tmp_path) -> None:
    arguments = [command, str(tmp_path), str(tmp_path / "out"), "-q", "9", "--target-size", "1k"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--quality and --target-size exclude each other: give one of them" in result.stderr

# SPDX-License-Identifier: Apache-2.0
"""`bench/ablate.py`: rows of a table trained and compared, gone on with, and refused."""

import importlib
import json
from pathlib import Path

import pytest
import tomlkit
from conftest import CODEC_TABLES
from PIL import Image

from lvqcodec.errors import UsageError
from lvqcodec.training import export, fit_tables, refit
from lvqcodec.training.recipe import Recipe

BENCH = Path(__file__).parents[2] / "bench"
RECIPE = f"""
init_crops = 2
{CODEC_TABLES}
[[stage]]
name = "one"
steps = 1
train = ["entropy"]
batch = 2
crop = 64

[[stage]]
name = "two"
steps = 2
train = ["entropy"]
batch = 2
crop = 64
"""
TABLE = """
minutes = 5
qualities = [20, 80]
base = "plain"
recipe = "recipe.toml"

[[row]]
name = "plain"
lattice = "z"

[[row]]
name = "packed"
refit = "plain"
lattices = ["e8", "a2"]

[[row]]
name = "wide, noise"
lattice = "z"
recipe.codec.entropy.hidden = 24
recipe.stage."*".surrogate = "noise"
recipe.stage.two.lr = 1e-2
"""


@pytest.fixture
def ablate(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("LVQ_MODEL_PATH", "")
    for module in (export, refit):
        monkeypatch.setattr(module, "FIT_CROPS", 4)
        monkeypatch.setattr(module, "FIT_CROP", 64)
    monkeypatch.setattr(fit_tables, "_ROUNDS", 1)
    return importlib.import_module("ablate")


@pytest.fixture
def path(tmp_path):
    """A table."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path / "table.toml"


@pytest.fixture
def run(ablate, path, tmp_path, photograph, capsys):
    """Run the table; return the result, and the rows that were trained, refitted or measured."""
    for kind, side in {"data": 256, "val": 96}.items():
        (tmp_path / kind).mkdir()
        Image.fromarray(photograph(side, 260, seed=side)).save(tmp_path / kind / "0.png")

    def go(*options):
        folders = [f"--{name}={tmp_path / name}" for name in ("data", "val", "out")]
        ablate.main([str(path), *folders, "--device", "cpu", *options])
        said = capsys.readouterr()
        assert said.out == (tmp_path / "out" / "TABLE.md").read_text()
        return said.out, [line[4:] for line in said.err.splitlines() if line.startswith("--- ")]

    return go


def cells(result):
    """The rows of a result: first cells to all others."""
    lines = [line.strip("| ").split(" | ") for line in result.splitlines() if line[:1] == "|"]
    return {name: rest for name, *rest in lines[2:]}


def test_a_table_is_run_and_only_what_has_changed_is_run_again(run, path, tmp_path):
    first, done = run()
    names = ["plain", "plain, another seed", "wide, noise", "packed"]
    assert done == [f"{name}{what}" for name in names for what in ("", ": coding pictures")]
    rows = cells(first)
    assert list(rows) == [*names[:2], "packed, e8", "packed, a2", "wide, noise"]
    assert [row[3] for row in rows.values()] == ["3 of 3", "3 of 3", *["as plain"] * 2, "3 of 3"]
    assert rows["plain"][4] == "base" and "within seeds" in rows["plain, another seed"][4]
    assert rows["plain"][0] == rows["wide, noise"][0] == rows["packed, a2"][0]
    assert rows["plain"][1] == rows["packed, a2"][1] != rows["wide, noise"][1]
    assert "differ by" in first and "Pictures: 1, at qualities 20, 80" in first

    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*")}
    again, done = run()
    assert (again, done) == (first, [])
    changed = {f for f, time in kept.items() if f.is_file() and f.stat().st_mtime_ns != time}
    assert changed == {tmp_path / "out" / "TABLE.md"}

    path.write_text(TABLE.replace("lr = 1e-2", "lr = 2e-2"))
    again, done = run()
    assert done == ["wide, noise", "wide, noise: coding pictures"]
    rows.pop("wide, noise")
    assert rows.items() <= cells(again).items()


def test_a_row_that_was_interrupted_is_gone_on_with(run, path, ablate, tmp_path, monkeypatch):
    base = TABLE[: TABLE.index('[[row]]\nname = "packed"')]
    path.write_text(base)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "export", stop)
    with pytest.raises(SystemExit) as caught:
        run("--steps", "2")
    assert caught.value.code == 130
    log = tmp_path / "out" / "runs" / "plain" / "log.jsonl"
    (one, two) = map(json.loads, log.read_text().splitlines())
    assert (one["of"], two["of"]) == (2, 2)
    monkeypatch.setattr(ablate, "export", export.export)
    result, _ = run("--steps", "2")
    assert len(log.read_text().splitlines()) == 2  # no step was done again
    assert cells(result)["plain"][3] == "4 of 4"

    path.write_text(base.replace("[20, 80]", "[30, 70]"))
    _, done = run("--steps", "2")
    assert done == [f"plain{other}: coding pictures" for other in ("", ", another seed")]


def test_what_no_table_made_is_left_alone(run, tmp_path):
    card = tmp_path / "out" / "models" / "plain.toml"
    card.parent.mkdir(parents=True)
    card.touch()
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2 and card.exists()


def test_changes_are_merged_over_the_recipe(ablate, path):
    table = ablate.Table.load(path)
    plain, seed, packed, noise = table.row
    recipe = tomlkit.parse(RECIPE).unwrap()
    assert plain.recipe == recipe and packed.recipe == {}
    assert seed.recipe == recipe | {"seed": 1}
    entropy = recipe["codec"]["entropy"] | {"hidden": 24}
    stages = [stage | {"surrogate": "noise"} for stage in recipe["stage"]]
    stages[1]["lr"] = 1e-2
    codec = recipe["codec"] | {"entropy": entropy}
    assert noise.recipe == recipe | {"codec": codec, "stage": stages}
    assert tomlkit.parse(tomlkit.dumps(noise.recipe)).unwrap() == noise.recipe
    path.write_text(f'{TABLE}\n[[row]]\nname = "f"\nrecipe.codec.entropy.name = "factorized"\n')
    *_, other = ablate.Table.load(path, steps=7).row
    assert other.recipe["codec"]["entropy"] == {"name": "factorized"}
    assert [stage["steps"] for stage in other.recipe["stage"]] == [7, 7]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('base = "plain"', 'base = "plane"', "base: no row 'plane' is trained; choose .*plain"),
        ('base = "plain"', 'base = "packed"', "base: no row 'packed' is trained"),
        ('name = "wide, noise"', 'name = "plain"', "two rows are called 'plain'"),
        ('name = "packed"', 'name = "wide noise"', "two rows are called"),
        ('name = "packed"', 'name = "../up"', "has no name for a file"),
        ('refit = "plain"', 'refit = "plane"', "refit of 'packed': no row 'plane'"),
        ('refit = "plain"\n', "", "row 'packed': give both refit and lattices"),
        ('"a2"', '"a3"', "row 'packed': unknown 'a3'"),
        ('lattice = "z"', 'lattice = "bw16"', "row 'plain': it will have no tables for 'bw16'"),
        ("minutes = 5", "minutes = 0", "minutes = 0 must be above 0"),
        ("minutes = 5", "minutes = 5\nhours = 1", r"unknown setting 'hours' in \[table\]"),
        ("[20, 80]", "[10, 101]", r"qualities = \[10, 101\]"),
        (
            "recipe.stage.two",
            "recipe.stage.three",
            r"'wide, noise': no stage 'three'; choose .*two",
        ),
        ("entropy.hidden", "entropy.hiden", r"row 'wide, noise': unknown setting 'hiden' in"),
        ("recipe.stage.two.lr = 1e-2", 'recipe.stage.two.train = ["x"]', "stage 'two' trains 'x'"),
        ("recipe.toml", "recipes.toml", "cannot read recipe .*recipes.toml"),
        ("minutes = 5", "minutes = ", "is no valid TOML"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(ablate, path, capsys, before, after, message):
    assert before in TABLE
    path.write_text(TABLE.replace(before, after, 1))
    with pytest.raises(UsageError, match=message):
        ablate.Table.load(path)
    with pytest.raises(SystemExit) as caught:
        ablate.main([str(path), "--data", "x", "--val", "x", "--out", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", sorted(BENCH.glob("tables/*.toml")), ids=lambda path: path.stem)
def test_the_tables_that_are_there_are_valid(ablate, path):
    for row in ablate.Table.load(path).row:
        assert row.refit or Recipe.from_dict(row.recipe, row.name).stages

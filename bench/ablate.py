# SPDX-License-Identifier: Apache-2.0
"""Rows of a table trained for equal minutes, and real files of all of them compared.

    python bench/ablate.py bench/tables/learned.toml --data PICTURES --val FOLDER --out runs/learned

The table is a TOML file; `table.py`, beside this one, says what is in it, and `tables/` has some.

The base is trained a second time with the next seed, as "NAME, another seed". What differs from the
base by no more than these two from each other is marked as no gain.

The same command goes on where it stopped. What is there is kept: the training of a row unless its
recipe, the minutes or the pictures' folders have changed, its files' figures unless its weights or
what they were measured on have. Paths in a recipe are relative to where the command runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import tomlkit
from table import SEED, Plain, Row, Table

from lvqcodec import files
from lvqcodec.catalog import MODEL_PATH_VARIABLE, find_model, read_files
from lvqcodec.cli.app import explain, fail, interrupted_by
from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.progress import display
from lvqcodec.errors import LvqError, UsageError
from lvqcodec.evaluation.evaluate import compare, evaluate, list_pictures
from lvqcodec.evaluation.report import BdRate, Point
from lvqcodec.model.weights import unpack_weights
from lvqcodec.training.export import export
from lvqcodec.training.loop import say, train
from lvqcodec.training.refit import refit

REMEDY = "the same command goes on from there"


@dataclass(frozen=True)
class Bench:
    """Where the rows of a table are trained and measured, and on what."""

    table: Table
    data: list[str]
    val: Path
    out: Path
    device: str

    def make(self, row: Row) -> None:
        """Train or refit the row and install it in `out`/models, unless that is done."""
        source: Plain = {"data": [str(Path(folder).resolve()) for folder in self.data]}
        if row.refit:
            of = self._model(row.refit)
            source |= {"refit": find_model(of).digest, "lattices": list(row.lattices)}
        else:
            source |= {"recipe": row.recipe, "minutes": self.table.minutes}
        if self._is_made(row, source):
            return
        say(f"--- {row.name}")
        installing: Plain = {"name": row.model, "data": self.data, "out": self.out / "models"}
        if row.refit:
            refit(of, lattices=row.lattices, device=self.device, **installing)
        else:
            export(self._train(row), device=self.device, **installing)

    def _train(self, row: Row) -> Path:
        """Train the row, or go on with it, to the end of its minutes; return its run folder."""
        run = self.out / "runs" / row.model
        recipe = run.with_name(f"{row.model}.toml")
        files.write(recipe, tomlkit.dumps(row.recipe).encode())
        with display(row.name, keep=True) as show:
            summary = train(
                recipe,
                data=self.data,
                out=run,
                minutes=self.table.minutes,
                in_all=True,
                resume=True,
                device=self.device,
                report=(lambda done, step, facts: show(done, facts, step=step))
                if show.shown
                else None,
            )
        if "stopped" in summary:
            interrupted_by(summary["stopped"], REMEDY)
        return run

    def _model(self, name: str) -> str:
        """The model of the row of this name."""
        return next(row.model for row in self.table.row if row.name == name)

    def _is_made(self, row: Row, source: Plain) -> bool:
        """Whether the row's model is made of this; what is made of anything else is removed."""
        run, card = self.out / "runs" / row.model, self.out / "models" / f"{row.model}.toml"
        stamp = run.with_name(f"{row.model}.json")
        if not stamp.exists() and (run.exists() or card.exists()):
            raise UsageError(
                f"{str(self.out)!r} holds a run or model {row.model!r} that is of no table; choose"
                " another --out"
            )
        if _read_json(stamp) != source:
            shutil.rmtree(run, ignore_errors=True)
            for path in (card, card.with_suffix(".safetensors")):
                path.unlink(missing_ok=True)
            _write_json(stamp, source)
        return card.exists()

    @cached_property
    def _pictures(self) -> dict[str, str]:
        """The digests of the pictures to be coded, by name."""
        paths = list_pictures(self.val)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def measure(self, row: Row) -> Plain:
        """Return the report of the row's evaluation on real files, as JSON, measured if need be."""
        of = {
            "digest": find_model(row.model).digest,
            "lattices": ",".join(row.lattices) or row.lattice or None,
            "qualities": sorted(set(self.table.qualities)),
            "pictures": self._pictures,
        }
        path = self.out / "reports" / f"{row.model}.json"
        kept = _read_json(path)
        if kept is not None and kept["of"] == of:
            return dict(kept)
        say(f"--- {row.name}: coding pictures")
        with display(row.name) as show:
            report = evaluate(
                self.val,
                qualities=self.table.qualities,
                model=row.model,
                lattice=of["lattices"],
                device=self.device,
                progress=lambda done, total, name: show(done / total, f"{done}/{total}", step=name),
            )
        made = {**report.to_json(), "of": of}
        _write_json(path, made)
        return made

    def run(self, command: str) -> str:
        """Make and measure all rows, refits last; return the result as Markdown."""
        for folder in ("runs", "models", "reports"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        before = os.environ.get(MODEL_PATH_VARIABLE, "")
        os.environ[MODEL_PATH_VARIABLE] = os.pathsep.join([str(self.out / "models"), before])
        reports = {}
        for row in sorted(self.table.row, key=lambda row: bool(row.refit)):
            self.make(row)
            reports[row.name] = self.measure(row)
        return result(self.table, command, reports)


HEAD = ("row", "transform", "entropy model", "minutes", "steps", "BD-rate (PSNR)", "encode s",
        "decode s", "parallel steps")  # fmt: skip


def result(table: Table, command: str, reports: dict[str, Plain]) -> str:
    """Return the rows side by side as Markdown, of their reports by name."""
    points: list[Point] = []
    rows: dict[str, Row] = {}
    for row in table.row:
        titles = row.titles(list(reports[row.name]["curves"]))
        rows |= dict.fromkeys(titles.values(), row)
        points += _points(reports[row.name], titles)
    rates = {rate.curve: rate for rate in compare(points, {}) if rate.anchor == table.base}
    noise = rates[SEED.format(table.base)].percent
    sizes = {row.name: _sizes(row) for row in table.row}
    lines = [f"| {' | '.join(HEAD)} |", f"|---|{(len(HEAD) - 1) * '--:|'}"]
    for title, row in rows.items():
        own = [point for point in points if point.curve == title]
        encode, decode = fmean(p.encode_s for p in own), fmean(p.decode_s for p in own)
        rate = "base" if title == table.base else _rate(rates[title], noise)
        transform, entropy, turns = sizes[row.name]
        cells = [title, transform, entropy, *_training(row)]
        cells += [rate, f"{encode:.3f}", f"{decode:.3f}", turns]
        lines.append(f"| {' | '.join(cells)} |")
    measured = reports[table.base]["of"]
    machines = dict.fromkeys(_machine(report) for report in reports.values())
    count, levels = len(measured["pictures"]), ", ".join(map(str, measured["qualities"]))
    about = (
        f"Pictures: {count}, at qualities {levels}, coded on {'; '.join(machines)}. Transform and"
        " entropy model: parameters. Seconds: means over the qualities of the medians over the"
        " pictures."
    )
    return "\n".join([f"`{command}`\n", *lines, "", about, "", _conclusion(table.base, noise)])


def _points(report: Plain, titles: dict[str, str]) -> list[Point]:
    """The means over the pictures, by the titles of their curves; JSON has no infinity."""
    return [
        Point(**{key: float("inf") if key == "psnr" and value is None else value
                 for key, value in point.items()} | {"curve": titles[point["curve"]]})
        for point in report["points"]
    ]  # fmt: skip


def _rate(rate: BdRate, noise: float | None) -> str:
    if rate.percent is None:
        return "none"
    within = noise is not None and abs(rate.percent) <= abs(noise)
    return f"{rate.percent:+.2f} %{' (within seeds)' if within else ''}"


def _conclusion(base: str, noise: float | None) -> str:
    if noise is None:
        return f"Two seeds of {base} have no BD-rate: nothing here tells a gain from chance."
    return (
        f"Two seeds of {base} differ by {abs(noise):.2f} %. A row within that is no gain; it is one"
        " pair of seeds, so a little more than it is not much of a gain either."
    )


def _sizes(row: Row) -> tuple[str, str, str]:
    """Parameters of the transform and of the entropy model, and how many parallel steps."""
    model = unpack_weights(*read_files(find_model(row.model)))
    parts = (model.transform, model.entropy)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    return f"{counts[0]:.3f} M", f"{counts[1]:.3f} M", str(model.entropy.num_steps)


def _training(row: Row) -> tuple[str, str]:
    """Minutes and steps, these of how many."""
    if row.refit:
        return "", f"as {row.refit}"
    entry = find_model(row.model).raw["training"][-1]
    steps = sum(stage["steps"] for stage in row.recipe["stage"])
    return f"{entry['minutes']:g}", f"{entry['steps']} of {steps}"


def _machine(report: Plain) -> str:
    machine = report["machine"]
    return f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads"


def _read_json(path: Path) -> Any:
    """What is in a file of this program's; None where there is none."""
    with suppress(FileNotFoundError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def _write_json(path: Path, data: Plain) -> None:
    files.write(path, (json.dumps(data, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a TOML file")
    parser.add_argument("--data", required=True, nargs="+", help="folders or tars to train on")
    parser.add_argument("--val", required=True, type=Path, help="a folder of pictures to code")
    parser.add_argument("--out", required=True, type=Path, help="where everything is kept")
    parser.add_argument("--steps", type=int, help="of each stage, to try a table")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        set_up_torch(options.device, options.threads)
        table = Table.load(options.table, options.steps)
        bench = Bench(table, options.data, options.val, options.out, options.device)
        text = bench.run(shlex.join(["python", "bench/ablate.py", *words]))
        files.write(options.out / "TABLE.md", f"{text}\n".encode())
        print(text)
    except (LvqError, OSError) as error:
        fail(*explain(error))
    except KeyboardInterrupt:
        interrupted_by("SIGINT", REMEDY)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""`lvq batch`: a folder of pictures to a folder of files, and back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click
from click.core import ParameterSource

from lvqcodec import files
from lvqcodec.cli.app import interrupted_by, one_line
from lvqcodec.cli.common import set_up_torch
from lvqcodec.cli.io import display_name
from lvqcodec.cli.options import (
    PositiveType,
    background_option,
    device_option,
    encode_options,
    frame_option,
    model_option,
    quiet_option,
    strip_option,
    to_srgb8_option,
)
from lvqcodec.cli.progress import Display, display
from lvqcodec.config import METRICS
from lvqcodec.errors import UsageError
from lvqcodec.options import OPTIONS, RATES, EncodeOptions, refuse_several
from lvqcodec.suffixes import WRITTEN
from lvqcodec.threads import MAX_THREADS, bounded

_ENCODING_ONLY = (*OPTIONS, "budget_metric", "frame", "model", "psnr", "strip", "to_srgb8")


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--decode", is_flag=True, help="The other way: .lvq files to pictures.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(list(WRITTEN)),
    default="png",
    show_default=True,
    help="Picture format for --decode.",
)
@background_option
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Only files that match, whatever their suffix; may be given several times.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="No files that match; may be given several times.",
)
@click.option("--keep-suffix", is_flag=True, help="Name outputs a.png.lvq instead of a.lvq.")
@click.option("--overwrite", is_flag=True, help="Replace files that lvq batch did not write, too.")
@click.option("--dry-run", is_flag=True, help="List what would be done, and write nothing.")
@click.option("--preserve", is_flag=True, help="Give outputs the mode and time of their sources.")
@encode_options(without=("target_bpp", "max_memory"))
@click.option(
    "--target-bpp",
    type=PositiveType(),
    metavar="BPP",
    help="A budget for all: the best mean PSNR at this mean of the pictures' bits a pixel.",
)
@click.option(
    "--budget-metric",
    type=click.Choice(METRICS),
    default=METRICS[0],
    show_default=True,
    help="What --target-bpp makes highest.",
)
@model_option
@strip_option
@to_srgb8_option
@frame_option
@device_option
@click.option("--psnr", is_flag=True, help="Measure the PSNR of each picture.")
@click.option(
    "--jobs",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    help="Pictures coded at once.  [default: as many as the cores have threads for]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    default=1,
    show_default=True,
    metavar="N",
    help="CPU threads for each picture.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who works: this machine, or a Ray cluster.",
)
@click.option("--address", metavar="HOST:PORT", help="The Ray cluster.  [default: a local one]")
@click.option("--report", metavar="FILE", help="Write a line of JSON for each file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@quiet_option
@click.pass_context
def batch(
    ctx: click.Context,
    source: str,
    destination: str,
    decode: bool,
    file_format: str,
    background: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    keep_suffix: bool,
    overwrite: bool,
    dry_run: bool,
    preserve: bool,
    options: EncodeOptions,
    target_bpp: float | None,
    budget_metric: str,
    model: str,
    strip: bool,
    to_srgb8: bool,
    frame: int | None,
    device: str,
    psnr: bool,
    jobs: int | None,
    threads: int,
    engine: str,
    address: str | None,
    report: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode every picture in the folder SRC to the same place in the folder DST.

    What is there already, from the same bytes with the same settings, is left as it is, and so is
    what lvq batch did not write itself. A file that cannot be coded, or has another in its place,
    is named on stderr and the rest goes on; the exit code is then 1. SRC and DST may be URLs that
    fsspec knows. One summary line goes to stderr.
    """
    _check_options(ctx, decode)
    report = "/dev/stdout" if report == "-" else report
    _check_report(report, destination)
    set_up_torch(device, None)
    from lvqcodec.batch import run as batches
    from lvqcodec.batch.work import Job, Settings

    settings = Settings(
        **vars(options),
        decode=decode,
        format=file_format,
        background=background,
        model=model,
        strip=strip,
        to_srgb8=to_srgb8,
        frame=frame,
    )
    job = Job(
        source,
        destination,
        settings,
        device=device,
        threads=bounded(threads),
        psnr=psnr,
        overwrite=overwrite,
        preserve=preserve,
    )
    choice = batches.Choice(include, exclude, keep_suffix)
    if dry_run:
        outcome = batches.preview(job, choice)
        _show_plan(_way(source, destination), outcome, as_json=as_json, quiet=quiet)
        sys.exit(0 if outcome.whole else 1)

    bar = Display(None)

    def tell(record: Any) -> None:
        if (said := _said(record, quiet)) is not None:
            bar.say(said)

    @contextmanager
    def meter(results: Any, total: int, label: str) -> Iterator[Any]:
        nonlocal bar

        def counted() -> Iterator[Any]:
            for done, result in enumerate(results, 1):
                yield result
                bar(done / total, f"{done}/{total}")

        try:
            with display(label, quiet=quiet, keep=True) as bar:
                yield counted()
        finally:
            bar = Display(None)

    with redirect_stdout(sys.stderr):  # where Ray says what it has to say
        outcome = batches.run(
            job,
            choice,
            budget=None if target_bpp is None else batches.Budget(target_bpp, budget_metric),
            engine=engine,
            address=address,
            jobs=jobs,
            meter=meter,
            tell=tell,
        )
    if report is not None:
        files.write(report, outcome.report())
    summary = outcome.to_json()
    if as_json:
        click.echo(json.dumps(summary, allow_nan=False))
    if not quiet:
        for remarks, count in outcome.remarks().most_common():
            click.echo(one_line(f"lvq: note: {count} of {outcome.total}: {remarks}"), err=True)
        click.echo(_summary_line(source, destination, summary), err=True)
    if outcome.signal is not None:
        interrupted_by(outcome.signal, "run the same command again to go on")
    sys.exit(0 if outcome.whole else 1)


def _check_options(ctx: click.Context, decode: bool) -> None:
    """Raise UsageError for options that cannot go together."""

    def given(names: Sequence[str]) -> list[str]:
        chosen = (p for p in ctx.command.params if p.name in names)
        command_line = ParameterSource.COMMANDLINE
        return [p.opts[-1] for p in chosen if ctx.get_parameter_source(p.name) is command_line]

    refuse_several(rates := given(RATES))
    if decode and given(_ENCODING_ONLY):
        raise UsageError(f"{' and '.join(given(_ENCODING_ONLY))} cannot go with --decode")
    if not decode and given(("file_format", "background")):
        raise UsageError("--format and --background go with --decode")
    if given(("budget_metric",)) and "--target-bpp" not in rates:
        raise UsageError("--budget-metric goes with --target-bpp")
    if given(("dry_run",)) and given(("report",)):
        raise UsageError("--report cannot go with --dry-run, which writes nothing")


def _check_report(path: str | None, destination: str) -> None:
    """Raise UsageError if the report cannot be written; it may lie in DST, which will be made."""
    if path is not None:
        folder = os.path.dirname(os.path.realpath(path))
        files.check(path, parents=folder == os.path.realpath(destination))


def _said(record: Any, quiet: bool) -> str | None:
    """What is said of a record on stderr; None if it is only counted."""
    from lvqcodec.batch.records import FAILED, IGNORED, KEPT
    from lvqcodec.batch.store import NO_FILES

    name = display_name(record.source)
    if record.status in (FAILED, KEPT):
        return one_line(f"lvq: error: {name}: {record.error}")
    if record.status == IGNORED and record.kind in NO_FILES and not quiet:
        return one_line(f"lvq: note: {name} is left out: it is no file but a {record.kind}")
    return None


def _show_plan(way: str, outcome: Any, *, as_json: bool, quiet: bool) -> None:
    """Print what a batch would do, each file on a line, and the sums on stderr."""
    from lvqcodec.batch.records import TO_CODE

    summary = outcome.to_json()
    verb = "decode" if outcome.decoded else "encode"
    records = sorted(outcome.records, key=lambda record: record.source)
    statuses = [verb if record.status == TO_CODE else record.status for record in records]
    counts = {
        "files": outcome.total,
        verb: outcome.count(TO_CODE),
        **{name: summary[name] for name in ("skipped", "kept", "failed", "ignored")},
    }
    if as_json:
        names = ("source", "output", "kind", "error")
        plan = [
            {"status": status, **{name: getattr(record, name) for name in names}}
            for status, record in zip(statuses, records, strict=True)
        ]
        click.echo(json.dumps({"dry_run": True, **counts, "plan": plan}, allow_nan=False))
        return
    for status, record in zip(statuses, records, strict=True):
        words = f"{status:<8}{display_name(record.source)}"
        if record.output is not None:
            words += f" -> {display_name(record.output)}"
        if why := record.error or record.kind:
            words += f": {why}"
        click.echo(" ".join(words.splitlines()))
    if not quiet:
        facts = [f"{counts[verb]} to {verb}", *_counts(summary, ("skipped", "kept", "failed"))]
        click.echo(f"{way}: would be {', '.join(facts)}", err=True)


def _way(source: str, destination: str) -> str:
    return f"{display_name(source)} -> {display_name(destination)}"


def _counts(summary: dict[str, Any], statuses: Sequence[str]) -> list[str]:
    """Say how many files ended how, and of which kinds those are that were left out."""
    from lvqcodec.batch.plan import spell_kinds

    facts = [f"{summary[status]} {status}" for status in statuses]
    if ignored := summary["ignored"]:
        facts.append(f"{sum(ignored.values())} ignored ({spell_kinds(ignored)})")
    return [one_line(fact) for fact in facts]


def _summary_line(source: str, destination: str, summary: dict[str, Any]) -> str:
    statuses = ("done", "skipped", *(["kept"] if summary["kept"] else []), "failed")
    facts = _counts(summary, statuses)
    facts.append(f"{summary['bytes_in']:,} -> {summary['bytes_out']:,} bytes")
    if summary["bpp"] is not None:
        facts.append(f"mean {summary['bpp']:.3f} bpp")
    if summary["psnr"] is not None:
        facts.append(f"{summary['psnr']:.2f} dB")
    if "budget" in summary:
        budget = summary["budget"]
        fixed = budget["fixed"]
        facts.append(f"{budget['gain']:+.3f} over quality {budget['fixed_quality']} for all")
        facts.append(f"which gives {fixed['score']:.3f} at {fixed['bpp']:.3f} bpp")
    facts.append(f"{summary['seconds']:.1f} s")
    return f"{_way(source, destination)}: {', '.join(facts)}"

# SPDX-License-Identifier: Apache-2.0
"""`lvq batch`: a folder of pictures to a folder of files, and back."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any

import click
from click.core import ParameterSource

from lvqcodec import files
from lvqcodec.cli.common import (
    FORMATS,
    MAX_THREADS,
    Positive,
    alpha_quality_option,
    background_option,
    bounded,
    complain,
    device_option,
    effort_option,
    lattice_option,
    max_seconds_option,
    model_option,
    quality_option,
    quiet_option,
    set_up_torch,
    strip_option,
    target_psnr_option,
    target_size_option,
    to_srgb8_option,
    tune_option,
)
from lvqcodec.cli.io import display_name
from lvqcodec.errors import UsageError

_ENCODING_ONLY = (
    *("quality", "target_size", "target_psnr", "target_bpp", "budget_metric", "effort"),
    *("max_seconds", "tune", "model", "lattice", "psnr", "alpha_quality", "strip", "to_srgb8"),
)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--decode", is_flag=True, help="The other way: .lvq files to pictures.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
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
@quality_option
@target_size_option
@target_psnr_option
@click.option(
    "--target-bpp",
    type=Positive(),
    metavar="BPP",
    help="A budget for all: the best mean PSNR at this mean of the pictures' bits a pixel.",
)
@click.option(
    "--budget-metric",
    type=click.Choice(["psnr", "ms-ssim"]),
    default="psnr",
    show_default=True,
    help="What --target-bpp makes highest.",
)
@effort_option
@tune_option
@max_seconds_option
@model_option
@lattice_option
@alpha_quality_option
@strip_option
@to_srgb8_option
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
    quality: int | None,
    target_size: int | None,
    target_psnr: float | None,
    target_bpp: float | None,
    budget_metric: str,
    effort: int | None,
    tune: str,
    max_seconds: float | None,
    model: str,
    lattice: str | None,
    alpha_quality: int,
    strip: bool,
    to_srgb8: bool,
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

    What is there already, from the same bytes with the same settings, is left as it is. A file that
    cannot be coded is named on stderr and the rest goes on; the exit code is then 1. SRC and DST
    may be URLs that fsspec knows. One summary line goes to stderr.
    """
    _check_options(ctx, decode)
    set_up_torch(device, None)
    from lvqcodec.batch import run as batches
    from lvqcodec.batch.records import FAILED, Record
    from lvqcodec.batch.work import Job, Settings

    settings = Settings(
        decode=decode,
        format=file_format,
        background=background,
        model=model,
        quality=quality,
        target_bytes=target_size,
        target_psnr=target_psnr,
        effort=effort,
        tune=tune,
        max_seconds=max_seconds,
        lattice=lattice,
        alpha_quality=alpha_quality,
        strip=strip,
        to_srgb8=to_srgb8,
    )

    def say_failure(record: Record) -> None:
        clear = "\r\033[K" if shown else ""
        click.echo(clear, nl=False, err=True)
        complain(f"{display_name(record.source)}: {record.error}")

    def meter(results: Any, total: int, label: str) -> AbstractContextManager[Any]:
        return click.progressbar(results, length=total, label=label, file=sys.stderr, show_pos=True)

    shown = sys.stderr.isatty() and not quiet
    with redirect_stdout(sys.stderr):  # where Ray says what it has to say
        outcome = batches.run(
            Job(source, destination, settings, device=device, threads=bounded(threads), psnr=psnr),
            batches.Choice(include, exclude, keep_suffix),
            budget=None if target_bpp is None else batches.Budget(target_bpp, budget_metric),
            engine=engine,
            address=address,
            jobs=jobs,
            meter=meter if shown else batches.no_meter,
            complain=say_failure,
        )
    if report is not None:
        files.write(report, outcome.report())
    summary = outcome.to_json()
    if as_json:
        click.echo(json.dumps(summary))
    if not quiet:
        click.echo(_summary_line(source, destination, summary), err=True)
    if outcome.interrupted:
        raise KeyboardInterrupt
    sys.exit(1 if outcome.count(FAILED) else 0)


def _check_options(ctx: click.Context, decode: bool) -> None:
    """Raise UsageError for options that cannot go together."""

    def given(names: tuple[str, ...]) -> list[str]:
        chosen = (n for n in names if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE)
        return [f"--{name.replace('_', '-')}" for name in chosen]

    rates = given(("quality", "target_size", "target_psnr", "target_bpp"))
    if len(rates) > 1:
        raise UsageError(f"{' and '.join(rates)} exclude each other: give one of them")
    if decode and given(_ENCODING_ONLY):
        raise UsageError(f"{' and '.join(given(_ENCODING_ONLY))} cannot go with --decode")
    if not decode and given(("file_format", "background")):
        raise UsageError("--format and --background go with --decode")
    if given(("budget_metric",)) and "--target-bpp" not in rates:
        raise UsageError("--budget-metric goes with --target-bpp")


def _summary_line(source: str, destination: str, summary: dict[str, Any]) -> str:
    names = f"{display_name(source)} -> {display_name(destination)}"
    facts = [f"{summary[status]} {status}" for status in ("done", "skipped", "failed")]
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
    return f"{names}: {', '.join(facts)}"

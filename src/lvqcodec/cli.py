# SPDX-License-Identifier: Apache-2.0
"""The `lvq` command: parses, calls, prints.

Only the standard library, click and floor 0 are imported here; numpy and torch load inside the
command bodies that need them, so `lvq info` and `lvq --help` answer at once. Data goes to stdout,
everything said about it to stderr.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from lvqcodec import __version__
from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, find_by_digest, list_models
from lvqcodec.container import unpack
from lvqcodec.errors import LvqError, ModelNotFound, UsageError

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_FORMATS = ["png", "jpg", "webp", "avif", "bmp", "ppm", "tiff"]


class _Cli(click.Group):
    """Turns what bad input or a full machine raises into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever is not a defect of lvq itself ends in one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly: the reader has had enough
        except (LvqError, OSError) as error:
            _fail(*_explain(error))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            _fail("not enough memory for a picture of this size", LvqError.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", _INTERRUPTED)


def _explain(error: LvqError | OSError) -> tuple[str, int]:
    if isinstance(error, LvqError):
        return str(error), error.exit_code
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    where = "" if error.filename is None else f"{click.format_filename(error.filename)}: "
    return where + reason, UsageError.exit_code


def _out_of_memory(error: Exception) -> bool:
    # torch has no class for it on the CPU, and its wording differs between versions.
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _complain(message: str) -> None:
    click.echo(f"lvq: error: {' '.join(message.split())}", err=True)


def _fail(message: str, code: int) -> NoReturn:
    _complain(message)
    sys.exit(code)


def _read(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def _write(path: str, data: bytes) -> None:
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        from lvqcodec.imageio import atomic_write

        atomic_write(path, data)


def _output(source: str, out: str | None, suffix: str) -> str:
    """OUT as given, else IN with `suffix`, else stdout; UsageError where that cannot be meant."""
    if out is None:
        out = "-" if source == "-" else os.path.splitext(source)[0] + suffix
    if out == "-" and sys.stdout.isatty():
        raise UsageError(
            "binary data is not written to a terminal: name an output file or redirect stdout"
        )
    if "-" not in (source, out) and os.path.exists(out) and os.path.samefile(source, out):
        raise UsageError(f"{_name(out)} is both input and output: name another output file")
    return out


def _name(path: str, std: str = "-") -> str:
    return std if path == "-" else click.format_filename(path)


def _summary(source: str, out: str, facts: Sequence[str]) -> None:
    names = f"{_name(source, 'stdin')} -> {_name(out, 'stdout')}"
    click.echo(f"{names}: {', '.join(facts)}", err=True)


def _set_up_torch(device: str, threads: int | None) -> None:
    # Must precede the first import of torch. Several lvq at once otherwise spin against each
    # other for the cores (30 times slower on two); a lone one takes up to 1.5 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is at hand: use --device auto or --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)


def _size(num_bytes: int, width: int, height: int) -> list[str]:
    return [f"{num_bytes:,} bytes", f"{8 * num_bytes / (width * height):.3f} bpp"]


_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes a GPU if there is one.",
)
_threads = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: all cores]"
)
_model = click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Codec to use: one that `lvq models` lists.",
)
_lattice = click.option(
    "--lattice",
    type=click.Choice(["z", "e8"]),
    help="Lattice to quantise to: z is scalar, e8 packs eight values.  [default: the model's own]",
)


@click.group(
    "lvq",
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lvq")
def main() -> None:
    """A learned image codec: pictures into small .lvq files, and back.

    \b
    Exit codes: 0 ok, 2 usage (wrong option, missing file), 3 broken file,
    4 model missing or different, 5 picture of an unsupported kind, 130 interrupted.
    """


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes; k and M stand for a thousand and a million."""
    if value is None:
        return None
    factor = {"k": 1000, "K": 1000, "M": 1_000_000}.get(value[-1:], 1)
    digits = value if factor == 1 else value[:-1]
    try:
        size = float(digits) * factor
    except ValueError:
        size = math.nan
    if not 1 <= size < math.inf:
        raise click.BadParameter(f"{value!r} is no size like 20000, 20k or 1.5M")
    return int(size)


@main.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="[OUT]", required=False)
@click.option(
    "-q",
    "--quality",
    type=click.IntRange(0, 100),
    help="Rate point: more is better and larger.  [default: 50]",
)
@click.option(
    "--target-size",
    callback=_parse_size,
    metavar="BYTES",
    help="The best file of at most so many bytes (20000, 20k, 1.5M), instead of a quality.",
)
@click.option(
    "--target-bpp",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BPP",
    help="The same, in bits a pixel.",
)
@click.option(
    "--target-psnr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DB",
    help="The smallest file of at least so many dB, instead of a quality.",
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, 9),
    help="How long to search for a smaller file, 0 (not at all) to 9.  [default: 0]",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Write the best file found in this time; the effort is 9 then unless given.",
)
@_model
@_lattice
@_device
@_threads
@click.option("--psnr", is_flag=True, help="Report the PSNR over all samples.")
def encode(
    source: str,
    out: str | None,
    quality: int | None,
    target_size: int | None,
    target_bpp: float | None,
    target_psnr: float | None,
    effort: int | None,
    max_seconds: float | None,
    model: str,
    lattice: str | None,
    device: str,
    threads: int | None,
    psnr: bool,
) -> None:
    """Encode the picture IN (8-bit RGB or greyscale) to the file OUT.

    OUT defaults to IN with the suffix .lvq and replaces a file of that name. `-` is stdin or
    stdout. PNG, JPEG, WebP, AVIF, BMP, PPM and TIFF are read. One summary line goes to stderr.
    """
    rates = {
        "--quality": quality,
        "--target-size": target_size,
        "--target-bpp": target_bpp,
        "--target-psnr": target_psnr,
    }
    given = [name for name, value in rates.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    out = _output(source, out, ".lvq")
    from lvqcodec import imageio

    image = imageio.load(sys.stdin.buffer if source == "-" else source)
    height, width = image.shape[:2]
    if target_bpp is not None:
        target_size = max(int(target_bpp * height * width / 8), 1)
    _set_up_torch(device, threads)
    from lvqcodec import codec

    start = time.perf_counter()
    found = codec.encode_image(
        image,
        model=model,
        quality=quality,
        target_bytes=target_size,
        target_psnr=target_psnr,
        lattice=lattice,
        effort=effort,
        max_seconds=max_seconds,
        device=device,
        report=_meter() if sys.stderr.isatty() else None,
    )
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)  # what the meter showed last
    seconds = time.perf_counter() - start
    facts = _size(len(found.data), width, height)
    if psnr or found.psnr is not None:
        decibels = found.psnr
        if decibels is None:
            from lvqcodec import metrics

            decibels = metrics.psnr(image, codec.decode(found.data, device=device))
        facts.append(f"{decibels:.2f} dB")
    _write(out, found.data)
    _summary(source, out, [*facts, f"{seconds:.2f} s"])


def _meter() -> Callable[[Any], None]:
    """Show on the terminal how a search goes (`effort.Progress`), and when it will be over."""
    start = time.monotonic()

    def show(progress: Any) -> None:
        left = (time.monotonic() - start) * (1 / max(progress.done, 1e-3) - 1)
        text = f"{progress.done:4.0%}  {progress.bpp:.4f} bpp  {progress.psnr:.2f} dB"
        click.echo(f"\r\033[K{text}  {left:.0f} s left", nl=False, err=True)

    return show


@main.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="[OUT]", required=False)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(_FORMATS),
    help="Picture format.  [default: by OUT's suffix; png on stdout]",
)
@_device
@_threads
def decode(
    source: str, out: str | None, file_format: str | None, device: str, threads: int | None
) -> None:
    """Decode the .lvq file IN to the picture OUT.

    OUT defaults to IN with the suffix .png, if there is no such file yet. `-` is stdin or stdout.
    The format follows OUT's suffix.
    """
    implied, out = out is None, _output(source, out, f".{file_format or 'png'}")
    if implied and out != "-" and os.path.exists(out):
        # most often the very picture that the file was made from
        raise UsageError(f"{_name(out)} exists already: name it as OUT to replace it")
    data = _read(source)
    unpack(data)  # a broken file is refused before torch is loaded
    _set_up_torch(device, threads)
    from lvqcodec import codec, imageio

    start = time.perf_counter()
    image = codec.decode(data, device=device)
    seconds = time.perf_counter() - start
    if out == "-":
        picture = io.BytesIO()
        imageio.save(image, picture, format=file_format)
        _write(out, picture.getvalue())
    else:
        imageio.save(image, out, format=file_format)
    height, width = image.shape[:2]
    _summary(source, out, [f"{width}x{height}", f"{seconds:.2f} s"])


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line a file.")
def info(files: tuple[str, ...], as_json: bool) -> None:
    """Check .lvq files and say what is in them, without decoding.

    `-` is stdin. Every length and checksum is verified. All files are looked at, and the exit
    code is that of the first that is broken.
    """
    code = 0
    for path in files:
        try:
            facts = _facts(path)
        except (LvqError, OSError) as error:
            message, exit_code = _explain(error)
            _complain(f"{_name(path)}: {message}" if isinstance(error, LvqError) else message)
            code = code or exit_code
            continue
        click.echo(json.dumps(facts) if as_json else _facts_line(facts))
    sys.exit(code)


def _facts(path: str) -> dict[str, Any]:
    data = _read(path)
    header, _ = unpack(data)
    try:
        model = find_by_digest(header.model).name
    except ModelNotFound:
        model = None
    return {
        "file": _name(path),
        "bytes": len(data),
        "width": header.width,
        "height": header.height,
        "channels": header.channels,
        "bpp": 8 * len(data) / (header.width * header.height),
        "quality": header.quality,
        "lattice": header.lattice,
        "model": model,
        "digest": header.model.hex(),
        "stream_version": header.stream_version,
    }


def _facts_line(facts: dict[str, Any]) -> str:
    kind = "grey" if facts["channels"] == 1 else "RGB"
    return f"{facts['file']}: " + ", ".join(
        [
            f"{facts['width']}x{facts['height']} {kind}",
            *_size(facts["bytes"], facts["width"], facts["height"]),
            f"quality {facts['quality']}",
            f"lattice {facts['lattice']}",
            f"model {facts['model'] or 'not installed'} ({facts['digest']})",
            f"stream version {facts['stream_version']}",
        ]
    )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list with everything the cards say.")
def models(as_json: bool) -> None:
    """List the installed models; `*` marks the default."""
    cards = list_models()
    if as_json:
        click.echo(json.dumps([_card_facts(card) for card in cards], indent=1, default=str))
        return
    if not cards:
        click.echo("no models installed: set LVQ_MODEL_PATH to a folder of them", err=True)
    widest = max((len(card.name) for card in cards), default=0)
    for card in cards:
        mark = "*" if card.name == DEFAULT_MODEL else " "
        missing = [path.name for path in card.paths if not path.is_file()]
        note = f"  (lacks {', '.join(missing)})" if missing else ""
        click.echo(f"{mark} {card.name:<{widest}}  {card.digest[:8]}  {card.description}{note}")


def _card_facts(card: ModelCard) -> dict[str, Any]:
    paths = [str(path) for path in card.paths]
    return {**card.raw, "paths": paths, "default": card.name == DEFAULT_MODEL}


@main.command()
@click.option("--config", required=True, metavar="FILE", help="Recipe: codec and stages, as TOML.")
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="DIR",
    help="Folder or tar of pictures; may be given several times.",
)
@click.option("--out", required=True, metavar="DIR", help="Where checkpoint and log go.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=math.inf,
    metavar="N",
    help="Stop after this time, loading included.  [default: when the recipe is done]",
)
@click.option("--resume", is_flag=True, help="Go on where the run in --out stopped.")
@click.option(
    "--validation",
    metavar="DIR",
    help="Estimate rate and distortion on these, at the end and as often as the recipe says.",
)
@_device
@_threads
def train(
    config: str,
    data: tuple[str, ...],
    out: str,
    minutes: float,
    resume: bool,
    validation: str | None,
    device: str,
    threads: int | None,
) -> None:
    """Train a codec on pictures, as a recipe says; `lvq export` makes a model of it.

    On N GPUs: torchrun --nproc-per-node N -m lvqcodec train ...
    """
    _set_up_torch(device, threads)
    from lvqcodec.training import loop

    loop.train(
        config,
        data=data,
        out=out,
        minutes=minutes,
        device=device,
        resume=resume,
        validation=validation,
    )


@main.command()
@click.argument("run_dir", metavar="RUN_DIR")
@click.option("--name", required=True, help="What `lvq encode --model` will call it.")
@click.option(
    "--share",
    metavar="NAME",
    help="Put the transform into a file of this name, for several models to have in common.",
)
@click.option("--out", default="models", show_default=True, metavar="DIR", help="Folder of models.")
@click.option(
    "--data",
    multiple=True,
    metavar="DIR",
    help="Pictures (folder or tar) to fit the probability tables to; may be given several times.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="N",
    help="Then train the synthesis network so long on --data as really quantised.",
)
@_device
@_threads
def export(
    run_dir: str,
    name: str,
    share: str | None,
    out: str,
    data: tuple[str, ...],
    minutes: float,
    device: str,
    threads: int | None,
) -> None:
    """Turn the training run in RUN_DIR into an installable model: weights and card.

    The training history on a card that is there already is kept and extended. A shared transform
    that another model in the folder needs is never changed.
    """
    if minutes and not data:
        raise UsageError("--minutes needs pictures to train on: give --data")
    _set_up_torch(device, threads)
    from lvqcodec.training.export import export

    export(run_dir, name=name, share=share, out=out, data=data, minutes=minutes, device=device)


def _numbers(lowest: int, highest: int) -> Callable[..., list[int]]:
    """Return a callback for options like 10,30,50."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
        try:
            numbers = sorted({int(item) for item in value.split(",")})
        except ValueError:
            raise click.BadParameter(f"{value!r} is no list of numbers like 10,30,50") from None
        if not lowest <= numbers[0] <= numbers[-1] <= highest:
            raise click.BadParameter(f"{value!r} goes beyond {lowest}..{highest}")
        return numbers

    return parse


@main.command("eval")
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--qualities",
    default="10,30,50,70,90",
    show_default=True,
    callback=_numbers(0, 100),
    metavar="Q,...",
    help="Rate points to measure, each 0..100.",
)
@click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME,...",
    help="One or more that `lvq models` lists: a curve each.",
)
@click.option(
    "--lattice",
    metavar="NAME,...",
    help="One or more of z, e8: a curve each.  [default: as encode]",
)
@click.option(
    "--efforts",
    default="0",
    show_default=True,
    callback=_numbers(0, 9),
    metavar="N,...",
    help="One or more of 0..9: a curve each.",
)
@click.option(
    "--codecs",
    metavar="NAME,...",
    help="Measure others on the same pictures: some of jpeg, webp, avif, heic, jxl.",
)
@_device
@_threads
@click.option("--anchors", metavar="FILE", help="Other codecs' points (JSON) to compare with.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.")
@click.option("--json", "json_path", metavar="OUT", help="Write everything measured as JSON.")
@click.option("--csv", "csv_path", metavar="OUT", help="Write a line for each file as CSV.")
@click.option("--plot", "plot_path", metavar="OUT", help="Draw the curves (.png, .svg or .pdf).")
@click.option(
    "--metric",
    type=click.Choice(["psnr", "ms-ssim"]),
    default="psnr",
    show_default=True,
    help="What the plot shows over bpp.",
)
@click.option("--memory", is_flag=True, help="Measure peak memory at the largest picture too.")
def evaluate(
    folder: str,
    qualities: list[int],
    model: str,
    lattice: str | None,
    efforts: list[int],
    codecs: str | None,
    device: str,
    threads: int | None,
    anchors: str | None,
    limit: int | None,
    json_path: str | None,
    csv_path: str | None,
    plot_path: str | None,
    metric: str,
    memory: bool,
) -> None:
    """Measure rate, distortion and time over the pictures in FOLDER, through real files.

    Prints bpp, PSNR, MS-SSIM and seconds for each quality, the BD-rate of every curve over every
    other and over the anchors, and the pictures that went worst and best. Needs the extra
    `lvqcodec[eval]`; heic and jxl need `lvqcodec[bench]`.
    """
    _set_up_torch(device, threads)
    from lvqcodec.evaluate import evaluate
    from lvqcodec.plotting import new_figure

    if plot_path is not None:
        new_figure(plot_path)  # a wrong name shows now, not after an hour of coding

    report = evaluate(
        folder,
        qualities=qualities,
        model=model,
        lattice=lattice,
        efforts=efforts,
        device=device,
        anchors=anchors,
        limit=limit,
        codecs=codecs,
        memory=memory,
    )
    click.echo(report.table())
    if json_path is not None:
        _write(json_path, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    if csv_path is not None:
        _write(csv_path, report.to_csv().encode())
    if plot_path is not None:
        report.plot(plot_path, metric)

# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures to rate-distortion points, BD-rates and times, through real files.

Every picture is encoded, written, read back and decoded at every quality, by our models and by the
codecs they are compared with alike: same pictures, same process, from samples to bytes and from
bytes to samples. bpp is the size on disk; bpp, PSNR and MS-SSIM of a quality are means
over the pictures, as published curves are made.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvqcodec import __version__, codec, metrics, suffixes
from lvqcodec.catalog import DEFAULT_MODEL
from lvqcodec.errors import UsageError
from lvqcodec.evaluation.codecs import Peer, find_peers
from lvqcodec.evaluation.peak_memory import peak_memory
from lvqcodec.evaluation.report import (
    Anchors,
    BdRate,
    Curve,
    EvaluationReport,
    Memory,
    Point,
    Ranking,
    anchor_curves,
    ms_ssim_db,
    rd_curves,
)
from lvqcodec.pictures import load

PACKAGES = (
    *("torch", "numpy", "constriction", "pillow", "pillow-heif", "pillow-jxl-plugin"),
    *("bjontegaard", "pytorch-msssim"),
)
EXTREMES = 3  # pictures named as worst, and as best


@dataclass(frozen=True)
class Ours:
    """One of our models on one lattice (None: its own), as a coder beside the peers."""

    model: str
    lattice: str | None
    device: str
    qualities: tuple[int, ...]
    effort: int = 0
    tune: str = "psnr"
    suffix = ".lvq"

    @property
    def name(self) -> str:
        """What its curve is called."""
        effort = f"effort {self.effort}" if self.effort else None
        tune = self.tune if self.tune != "psnr" else None
        return " ".join(part for part in (self.model, self.lattice, effort, tune) if part)

    @cached_property
    def weights(self) -> codec.LoadedModel:
        """The loaded model."""
        return codec.load_model(self.model, device=self.device)

    def prepare(self) -> None:
        """Load the model; errors are those of `codec.load_model`."""
        _ = self.weights

    def encode(self, image: NDArray[np.uint8], quality: int) -> bytes:
        """The bytes of a file."""
        return codec.encode(
            image,
            model=self.weights,
            quality=quality,
            lattice=self.lattice,
            effort=self.effort,
            tune=self.tune,
            device=self.device,
        )

    def decode(self, data: bytes, grey: bool) -> NDArray[np.uint8]:
        """The picture; the file itself says whether it is grey."""
        return codec.decode(data, device=self.device)

    def facts(self) -> dict[str, Any]:
        """What was measured, as plain JSON values."""
        return {
            "model": self.model,
            "lattice": self.lattice,
            "effort": self.effort,
            "tune": self.tune,
        }


def evaluate(
    folder: str | os.PathLike[str],
    *,
    qualities: Sequence[int],
    model: str = DEFAULT_MODEL,
    lattice: str | None = None,
    efforts: Sequence[int] = (0,),
    tune: str = "psnr",
    device: str = "auto",
    anchors: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    codecs: str | None = None,
    memory: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> EvaluationReport:
    """Code every picture of `folder` at every quality (0..100); report rate, distortion and time.

    `model` and `lattice` may name several ("z,e8"): one curve for each model on each lattice, with
    each of `efforts` (0..9), those above 0 tuned for `tune`.
    `codecs` names some of `peers.PEERS`, measured on the same pictures at qualities of their own.
    `anchors` is a JSON file {"NAME": {"bpp": [...], "psnr": [...], "ms_ssim": [...]}, ...} of other
    codecs' means over the same pictures ("ms_ssim" may be missing). BD-rates are of every curve
    over every other and over the anchors. `limit` takes only the first pictures by name, which then
    are not those of the anchors any more. `memory` measures peak memory at the largest picture too.
    `progress` is told how many files are done, of how many, and the picture at hand.
    """
    paths, levels = list_pictures(folder, limit), tuple(sorted(set(qualities)))
    if not levels or not all(0 <= level <= 100 for level in levels):
        raise UsageError(f"qualities are {list(qualities)}: give one or more from 0 to 100")
    models = _names(model)
    lattices: list[str | None] = [*_names(lattice)] or [None]
    if not models:
        raise UsageError(f"no model in {model!r}: name one that `lvq models` lists")
    for package in ("pytorch_msssim", "bjontegaard"):
        metrics.extra(package)  # a missing one shows now, not after an hour of coding
    coders: list[Ours | Peer] = [
        Ours(name, on, device, levels, effort, tune if effort else "psnr")
        for name, on, effort in product(models, lattices, efforts)
    ]
    coders += find_peers(_names(codecs))
    others = _read_anchors(Path(anchors), [coder.name for coder in coders]) if anchors else {}
    for coder in coders:
        coder.prepare()
    tell = progress or (lambda done, total, name: None)
    with tempfile.TemporaryDirectory(prefix="lvq-eval-") as scratch:
        pictures = _measure_all(coders, paths, Path(scratch), tell)
        peaks = []
        for coder in coders if memory else ():
            tell(len(pictures), len(pictures) + 1, f"memory of {coder.name}")
            peaks.append(_peak(coder, pictures, Path(folder), Path(scratch)))
    tell(len(pictures), len(pictures), "done")
    points = [
        _mean([point for point in pictures if (point.curve, point.quality) == (coder.name, level)])
        for coder in coders
        for level in coder.qualities
    ]
    settings = {
        "qualities": ",".join(map(str, levels)),
        "model": model,
        "lattice": lattice,
        "efforts": ",".join(map(str, efforts)) if any(efforts) else None,
        "tune": tune if tune != "psnr" else None,
        "device": device,
        "anchors": anchors,
        "limit": limit,
        "codecs": codecs,
    }
    options = ((f"--{key}", str(value)) for key, value in settings.items() if value is not None)
    flags = ["--memory"] if memory else []
    return EvaluationReport(
        command=shlex.join(["lvq", "eval", str(folder), *chain(*options), *flags]),
        machine=_machine(device),
        curves={coder.name: coder.facts() for coder in coders},
        pictures=pictures,
        points=points,
        bd_rates=compare(points, others),
        anchors=others,
        ranking=_rank(pictures, points, coders),
        memory=peaks,
    )


def list_pictures(folder: str | os.PathLike[str], limit: int | None = None) -> list[Path]:
    """The picture files of a folder by name, only the first `limit`; UsageError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder: give one that holds pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes.READ)[
        :limit
    ]
    if not found:
        kinds = ", ".join(suffixes.READ)
        raise UsageError(f"no pictures in `{folder}`: put some there ({kinds})")
    return found


def _names(listed: str | None) -> list[str]:
    names = [name.strip() for name in (listed or "").split(",")]
    return [name for name in dict.fromkeys(names) if name]


def _read_anchors(path: Path, taken: Sequence[str]) -> Anchors:
    try:
        anchors: Anchors = dict(json.loads(path.read_text("utf-8")).items())
        for anchor in anchors.values():  # wrong lists fail here, before anything is coded
            rates, distortions = [float(rate) for rate in anchor["bpp"]], [anchor["psnr"]]
            if anchor.get("ms_ssim"):
                distortions.append([ms_ssim_db(value) for value in anchor["ms_ssim"]])
            for distortion in distortions:
                curve = (rates, [float(db) for db in distortion])
                metrics.common_range(*curve, *curve)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise UsageError(
            f"no anchors in `{path}` ({type(error).__name__}: {error}): "
            'give a JSON file {"NAME": {"bpp": [...], "psnr": [...]}, ...}'
        ) from error
    for name in taken:
        if name in anchors:
            raise UsageError(f"`{path}` has an anchor called like the curve {name!r}: rename it")
    return anchors


def _measure_all(
    coders: Sequence[Ours | Peer],
    paths: Sequence[Path],
    scratch: Path,
    tell: Callable[[int, int, str], None],
) -> list[Point]:
    """Measure every coder at every quality, picture by picture."""
    pictures: list[Point] = []
    total = len(paths) * sum(len(coder.qualities) for coder in coders)
    for path in paths:
        x = load.load(path)
        for coder in coders:
            if path == paths[0]:  # warm-up: kernels chosen, caches filled
                _measure(coder, coder.qualities[0], path, x, scratch)
            for quality in coder.qualities:
                tell(len(pictures), total, path.name)
                pictures.append(_measure(coder, quality, path, x, scratch))
    return pictures


def _measure(
    coder: Ours | Peer, quality: int, path: Path, x: NDArray[np.uint8], scratch: Path
) -> Point:
    file = scratch / f"picture{coder.suffix}"
    start = time.perf_counter()
    data = coder.encode(x, quality)
    encode_s = time.perf_counter() - start
    file.write_bytes(data)
    data = file.read_bytes()
    start = time.perf_counter()
    x_hat = coder.decode(data, grey=x.ndim == 2)
    decode_s = time.perf_counter() - start
    height, width = x.shape[:2]
    num_bytes = file.stat().st_size
    return Point(
        curve=coder.name,
        quality=quality,
        picture=path.name,
        num_bytes=num_bytes,
        width=width,
        height=height,
        bpp=metrics.bpp(num_bytes, width, height),
        psnr=metrics.psnr(x, x_hat),
        ms_ssim=metrics.ms_ssim(x, x_hat),
        encode_s=encode_s,
        decode_s=decode_s,
    )


def _mean(points: list[Point]) -> Point:
    similar = [point.ms_ssim for point in points if point.ms_ssim is not None]
    return Point(
        curve=points[0].curve,
        quality=points[0].quality,
        picture=None,
        num_bytes=None,
        width=None,
        height=None,
        bpp=statistics.fmean(point.bpp for point in points),
        psnr=statistics.fmean(point.psnr for point in points),
        ms_ssim=statistics.fmean(similar) if similar else None,
        encode_s=statistics.median(point.encode_s for point in points),
        decode_s=statistics.median(point.decode_s for point in points),
    )


def _peak(coder: Ours | Peer, pictures: list[Point], folder: Path, scratch: Path) -> Memory:
    """The coder's memory at the largest picture, at its highest quality."""
    largest = max(pictures, key=lambda point: (point.width or 0) * (point.height or 0)).picture
    quality, threads = coder.qualities[-1], torch.get_num_threads()
    assert largest is not None
    # A copy: the loaded weights stay here.
    peaks = peak_memory(replace(coder), quality, folder / largest, scratch, threads)
    return Memory(coder.name, quality, largest, *peaks)


def compare(points: Sequence[Point], anchors: Anchors) -> list[BdRate]:
    """Compare every curve with every other and with every anchor, by their means (`Point`)."""

    def rates(measure: str) -> dict[tuple[str, str], tuple[float | None, Any]]:
        curves = rd_curves(points, measure)
        return {
            (name, other): (metrics.bd_rate(*line, *own), metrics.common_range(*line, *own))
            for name, own in curves.items()
            for other, line in (curves | anchor_curves(anchors, measure)).items()
            if name != other
        }

    similar = rates("ms-ssim")
    return [
        BdRate(*names, *rate, *similar.get(names, (None, None)))
        for names, rate in rates("psnr").items()
    ]


def _rank(
    pictures: list[Point], points: list[Point], coders: Sequence[Ours | Peer]
) -> Ranking | None:
    """Where our first curve does worst and best, against the first codec or else its own mean."""
    first = coders[0].name
    peer = next((coder.name for coder in coders if isinstance(coder, Peer)), None)
    mean = rd_curves(points)[first]
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(point.picture for point in pictures):
        curves = rd_curves([point for point in pictures if point.picture == name])
        own = curves[first]
        values[str(name)] = metrics.bd_rate(*curves[peer], *own) if peer else _gain(own, mean)
    found = [(name, value) for name, value in values.items() if value is not None]
    found.sort(key=lambda item: item[1], reverse=peer is not None)  # the worst first
    count = min(EXTREMES, len(found) // 2)
    if not count:
        return None
    unranked = len(values) - len(found)
    against, unit = (peer, "%") if peer else ("its mean", "dB")
    return Ranking(first, against, unit, found[:count], found[: -count - 1 : -1], unranked)


def _gain(curve: Curve, mean: Curve) -> float | None:
    """PSNR over the mean curve's at equal bpp in dB, averaged over log bpp; None: no overlap."""
    points = [np.array(sorted(zip(*line, strict=True))).T for line in (curve, mean)]
    low, high = max(line[0, 0] for line in points), min(line[0, -1] for line in points)
    if not low < high or not all(np.isfinite(line).all() for line in points):
        return None
    rates = np.linspace(math.log(low), math.log(high), 100)
    own, other = (np.interp(rates, np.log(line[0]), line[1]) for line in points)
    return float(np.mean(own - other))


def _machine(device: str) -> dict[str, Any]:
    """The machine, on which times depend and, by one or two levels of a sample, PSNR."""
    versions = {"lvqcodec": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # importable without having been installed
            continue
    try:
        named = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:  # not Linux
        named = None
    gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "system": platform.platform(),
        "versions": versions,
    }

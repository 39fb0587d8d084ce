# SPDX-License-Identifier: Apache-2.0
"""One file of a batch: read, coded, written. The same in a thread, a process or another machine.

Pictures are read, encoded, decoded and written in four small functions at the end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from io import BytesIO

import torch

from lvqcodec import __version__, codec, metrics
from lvqcodec.batch.ledger import Ledger
from lvqcodec.batch.plan import Item
from lvqcodec.batch.records import DONE, FAILED, KEPT, SKIPPED, TO_CODE, Probe, Record
from lvqcodec.batch.room import Room
from lvqcodec.batch.store import Store
from lvqcodec.batch.stores import open_store
from lvqcodec.catalog import DEFAULT_MODEL, find_by_digest, find_model
from lvqcodec.errors import LvqError, ModelMismatch, UsageError
from lvqcodec.files import FileInTheWay
from lvqcodec.format.container import STREAM_VERSION, read_header
from lvqcodec.format.lvqfile import LvqFile, open_lvq
from lvqcodec.options import EncodeOptions
from lvqcodec.pictures import load, save
from lvqcodec.pictures.picture import Picture
from lvqcodec.resources import available, estimate

AHEAD = 2
"""Files that are read or written while others are coded."""

_MOST_DB = 99.0  # what a picture without any error counts as in a mean


@dataclass(frozen=True, kw_only=True)
class Settings(EncodeOptions):
    """What decides the bytes of an output: the options of encoding, for each picture, and more.

    strip, to_srgb8, frame: see `pictures.load`. decode: the other way, to pictures of this
    `format` with this `background`, see `pictures.save`.
    """

    decode: bool = False
    format: str = "png"
    background: str | None = None
    model: str = DEFAULT_MODEL
    strip: bool = False
    to_srgb8: bool = False
    frame: int | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the outputs."""
        return f".{self.format}" if self.decode else ".lvq"

    def digest(self, quality: int | None = None) -> str:
        """SHA-256, in hex, of all that an output follows from but its source.

        An option that is not given leaves it as it was before there was that option.
        """
        version = {"lvqcodec": __version__, "stream": STREAM_VERSION}
        facts: dict[str, object]
        if self.decode:
            facts = {"decode": self.format, "background": self.background}
        else:
            wanted = self.at(quality)
            values = ((entry, getattr(wanted, entry.name)) for entry in fields(wanted))
            facts = {entry.name: value for entry, value in values if value != entry.default}
            facts |= {"effort": wanted.chosen_effort, "model": find_model(self.model).digest}
            if not wanted.has_goal:
                facts["quality"] = wanted.chosen_quality
        text = json.dumps([facts, version], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def at(self, quality: int | None) -> Settings:
        """The same at a quality, if one is given."""
        return self if quality is None else replace(self, quality=quality)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: from where to where, how, and with what.

    jobs: pictures coded at once by one worker, each by so many `threads`; psnr: whether it is
    measured; overwrite: whether files that no batch wrote are replaced; preserve: whether outputs
    get mode and time of their sources; model_digest: in hex, of the model that must be found by its
    name.
    """

    source: str
    destination: str
    settings: Settings
    device: str = "auto"
    jobs: int = 1
    threads: int = 1
    psnr: bool = False
    overwrite: bool = False
    preserve: bool = False
    model_digest: str | None = None


class Worker:
    """Codes files, several at once if called from several threads; keeps the model loaded.

    Reading and writing go on beside `jobs` pictures that are being coded.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._source: Store = open_store(job.source)
        self._ledger = Ledger(open_store(job.destination), overwrite=job.overwrite)
        self._memory = Room(job.jobs + AHEAD, available.allowance())
        self._places = Room(job.jobs, None)
        self._stopped = False
        self._loaded: codec.LoadedModel | None = None
        if not job.settings.decode:
            self._loaded = codec.load_model(job.settings.model, device=job.device)
            if job.model_digest and not job.model_digest.startswith(self._loaded.digest.hex()):
                raise ModelMismatch(
                    f"model {job.settings.model!r} is another one on this worker "
                    f"({self._loaded.digest.hex()}): install {job.model_digest[:8]} there"
                )

    def stop(self) -> None:
        """Begin no more files; those in hand are finished, unless they are being searched."""
        self._stopped = True

    def flush(self) -> None:
        """Leave nothing that a later batch must know in this worker alone."""
        self._ledger.flush()

    def code(self, item: Item) -> Record | None:
        """Code a file unless that is done or another is in its output's place; None if stopped."""
        try:
            return self._code(item)
        except _Stopped:
            return None
        except Exception as error:  # one bad file, whatever is wrong with it, must not end the rest
            return refusal(item, error)

    def probe(self, item: Item, quality: int, metric: str, known: Probe | None) -> Probe | None:
        """Measure a picture at a quality unless `known` says it; None if stopped before."""
        try:
            return self._probe(item, quality, metric, known)
        except _Stopped:
            return None
        except Exception as error:
            return Probe(item.source, quality, metric, error=_explain(error))

    def _code(self, item: Item) -> Record:
        known = self._ledger.find(item.output)
        data, status = self._source.read(item.source)
        settings = self.job.settings
        digests = _sha256(data), settings.digest(item.quality)
        if known is not None and known.covers(*digests, psnr=self.job.psnr):
            return replace(known, source=item.source, status=SKIPPED, seconds=0.0)
        if settings.decode:
            file = open_lvq(data)
            picture, seconds = self._decode(file)
            psnr, quality = None, file.header.quality
            output, left_out = write_picture(picture, settings)
            remarks = [f"{settings.format} does not hold {name}" for name in left_out]
        else:
            picture, output, psnr, seconds = self._encode(data, item)
            quality = read_header(output).quality
            remarks = list(picture.remarks)
        record = Record(
            source=item.source,
            output=item.output,
            status=DONE,
            bytes_in=len(data),
            bytes_out=len(output),
            width=picture.pixels.shape[1],
            height=picture.pixels.shape[0],
            quality=quality,
            psnr=None if psnr == float("inf") else psnr,
            seconds=round(seconds, 4),
            remarks="; ".join(remarks) or None,
            source_sha256=digests[0],
            output_sha256=_sha256(output),
            settings_sha256=digests[1],
        )
        self._ledger.put(record, output, like=status, preserve=self.job.preserve)
        return record

    def _decode(self, file: LvqFile) -> tuple[Picture, float]:
        """Return the picture of an .lvq file, and how long that took."""
        memory = find_by_digest(file.header.model).memory
        need = estimate.decoding(file.header, file.tiling, file.region(), memory)
        with self._memory.take(need), self._places.take(0):
            start = self._begin()
            return decode_picture(file, self.job.device), time.perf_counter() - start

    def _encode(self, data: bytes, item: Item) -> tuple[Picture, bytes, float | None, float]:
        """Return the picture of a file, its .lvq file, its PSNR if known, and how long it took."""
        with ExitStack() as held:
            picture = self._read(data, held)
            start = self._begin()
            found = self._search(picture, item.quality)
            psnr = found.psnr if item.psnr is None else item.psnr
            if psnr is None and self.job.psnr:
                back = decode_picture(found.data, self.job.device)
                psnr = metrics.psnr(picture.pixels, back.pixels)
            return picture, found.data, psnr, time.perf_counter() - start

    def _probe(self, item: Item, quality: int, metric: str, known: Probe | None) -> Probe:
        data, _ = self._source.read(item.source)
        sha256 = _sha256(data)
        if known is not None and known.source_sha256 == sha256:
            return known
        with ExitStack() as held:
            picture = self._read(data, held)
            self._begin()
            output = self._search(picture, quality).data
            decoded = decode_picture(output, self.job.device).pixels
            image = picture.pixels
            if metric == "psnr":
                score: float | None = min(metrics.psnr(image, decoded), _MOST_DB)
            else:
                score = metrics.ms_ssim(image, decoded)
        height, width = image.shape[:2]
        if score is None:
            raise UsageError(
                f"{width}x{height} is too small for MS-SSIM, which takes "
                f"{metrics.MS_SSIM_MIN_SIDE} pixels a side: exclude it or use PSNR"
            )
        return Probe(
            item.source,
            quality,
            metric,
            bpp=metrics.bpp(len(output), width, height),
            score=score,
            source_sha256=sha256,
            settings_sha256=self.job.settings.digest(quality),
        )

    def _read(self, data: bytes, held: ExitStack) -> Picture:
        """Return the picture of a file; `held` are then memory and a place for encoding it."""

        def admit(width: int, height: int, channels: int) -> None:
            held.enter_context(self._memory.take(self._need(width, height, channels)))

        picture = read_picture(data, self.job.settings, admit)
        held.enter_context(self._places.take(0))
        return picture

    def _need(self, width: int, height: int, channels: int) -> int:
        """Bytes that encoding a picture takes, measuring it included."""
        settings = self.job.settings
        assert self._loaded is not None
        figures = self._loaded.memory
        return estimate.encoding_of(
            width, height, channels, settings, weighed=True, figures=figures
        )

    def _begin(self) -> float:
        if self._stopped:
            raise _Stopped
        torch.set_num_threads(self.job.threads)  # holds for the calling thread
        return time.perf_counter()

    def _search(self, picture: Picture, quality: int | None) -> codec.Encoding:
        assert self._loaded is not None
        settings = self.job.settings.at(quality)
        return encode_picture(picture, self._loaded, settings, self._look_up)

    def _look_up(self, progress: object) -> None:
        if self._stopped:
            raise _Stopped


def look(item: Item, source: Store, ledger: Ledger, job: Job) -> Record:
    """Say what a worker would do with a file, as far as that is known without coding it."""
    try:
        known = ledger.find(item.output)
        if known is not None:
            digests = _sha256(source.read(item.source).data), job.settings.digest(item.quality)
            if known.covers(*digests, psnr=job.psnr):
                return replace(known, source=item.source, status=SKIPPED, seconds=0.0)
    except (LvqError, OSError) as error:
        return refusal(item, error)
    return Record(item.source, item.output, TO_CODE)


def refusal(item: Item, error: Exception) -> Record:
    """Return the record of a file that is not coded, whatever the reason."""
    status = KEPT if isinstance(error, FileInTheWay) else FAILED
    return Record(item.source, item.output, status, error=_explain(error))


class _Stopped(Exception):
    """The batch was interrupted."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _explain(error: Exception) -> str:
    """Say in one line what went wrong with a file."""
    if isinstance(error, LvqError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        text = where + error.strerror.lower()
    elif isinstance(error, MemoryError | RuntimeError) and "memory" in f"{error!r}".lower():
        text = "not enough memory for a picture of this size"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())


# --- the codec, as seen from here ---------------------------------------------------------------


def read_picture(
    data: bytes, settings: Settings, admit: Callable[[int, int, int], None]
) -> Picture:
    """Return the picture of a file's bytes, `admit` called with its width, height and channels."""
    return load.load_picture(
        BytesIO(data),
        frame=settings.frame,
        to_srgb8=settings.to_srgb8,
        stripped=settings.strip,
        admit=admit,
    )


def encode_picture(
    picture: Picture,
    loaded: codec.LoadedModel,
    settings: Settings,
    report: Callable[[object], None],
) -> codec.Encoding:
    """Return the .lvq file of a picture; `report` is called now and then, and may raise."""
    return codec.encode_image(picture, settings, model=loaded, report=report)


def decode_picture(data: bytes | LvqFile, device: str) -> Picture:
    """Return the picture of an .lvq file."""
    return codec.decode_picture(data, device=device)


def write_picture(picture: Picture, settings: Settings) -> tuple[bytes, Sequence[str]]:
    """Return the bytes of a picture file, and the names of what was left out of it."""
    file = BytesIO()
    left_out = save.save(picture, file, format=settings.format, background=settings.background)
    return file.getvalue(), left_out

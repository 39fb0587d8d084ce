# SPDX-License-Identifier: Apache-2.0
"""A whole batch: plan, budget, work, report. What `lvq batch` does, without the terminal."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from signal import Signals
from typing import Any

from lvqcodec import suffixes
from lvqcodec.batch import records
from lvqcodec.batch.budget import Allocation, Measured, allocate
from lvqcodec.batch.engines import Engine, WorkerDied, open_engine
from lvqcodec.batch.ledger import Ledger
from lvqcodec.batch.local_store import LocalStore
from lvqcodec.batch.plan import Item, Plan, count_kinds, plan
from lvqcodec.batch.records import (
    DONE,
    FAILED,
    IGNORED,
    KEPT,
    SKIPPED,
    Log,
    Probe,
    Record,
)
from lvqcodec.batch.store import Store
from lvqcodec.batch.stores import open_store
from lvqcodec.batch.work import Job, look, refusal
from lvqcodec.catalog import find_model
from lvqcodec.errors import UsageError
from lvqcodec.interrupts import on_interrupt

Results = Iterable[tuple[int, Any]]
Meter = Callable[[Results, int, str], AbstractContextManager[Results]]
"""Shows on the way how many of so many results are there, under a label."""

Tell = Callable[[Record], None]
"""Called with each record, as soon as it is known."""


@dataclass(frozen=True)
class Choice:
    """Which files; see `plan.plan`."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep_suffix: bool = False


@dataclass(frozen=True)
class Budget:
    """A mean bpp over the pictures, and what is to be highest at it: "psnr" or "ms-ssim"."""

    bpp: float
    metric: str = "psnr"


@dataclass
class Outcome:
    """What a batch came to: a record a file, how it shared a budget, and in how many seconds.

    total: how many files were to be coded. signal: the name of the one that ended it, if one did.
    """

    total: int
    decoded: bool
    records: list[Record] = field(default_factory=list)
    allocation: Allocation | None = None
    seconds: float = 0.0
    signal: str | None = None

    def count(self, status: str) -> int:
        """How many files ended so."""
        return sum(record.status == status for record in self.records)

    @property
    def whole(self) -> bool:
        """Whether every file that was to be coded is there now, or would be."""
        return self.signal is None and not self.count(FAILED) and not self.count(KEPT)

    def remarks(self) -> Counter[str]:
        """Count the remarks on the files that are done now."""
        done = (record.remarks for record in self.records if record.status == DONE)
        return Counter(remarks for remarks in done if remarks)

    def report(self) -> bytes:
        """Return a line of JSON for each file."""
        return records.report(self.records, decoded=self.decoded)

    def to_json(self) -> dict[str, Any]:
        """Return the sums. `bpp` is the mean over the pictures, `total_bpp` all bits by all pixels.

        Bytes and bpp are of the files that are there now, done and skipped. `ignored` has the
        number of files of each kind.
        """
        there = [record for record in self.records if record.status in (DONE, SKIPPED)]
        pixels = sum((record.width or 0) * (record.height or 0) for record in there)
        read = sum(record.bytes_in or 0 for record in there)
        written = sum(record.bytes_out or 0 for record in there)
        coded = [record.bytes_in if self.decoded else record.bytes_out for record in there]
        rates = [record.bpp(size) or 0.0 for record, size in zip(there, coded, strict=True)]
        psnrs = [record.psnr for record in there if record.psnr is not None]
        facts: dict[str, Any] = {
            "files": self.total,
            **{status: self.count(status) for status in (DONE, SKIPPED, KEPT, FAILED)},
            IGNORED: count_kinds(self.records),
            "bytes_in": read,
            "bytes_out": written,
            "bpp": statistics.fmean(rates) if rates else None,
            "total_bpp": 8 * (read if self.decoded else written) / pixels if pixels else None,
            "psnr": statistics.fmean(psnrs) if psnrs and len(psnrs) == len(there) else None,
            "seconds": round(self.seconds, 3),
        }
        if self.allocation is not None:
            shared = asdict(self.allocation)
            facts["budget"] = {name: value for name, value in shared.items() if name != "points"}
        return facts


def no_meter(results: Results, total: int, label: str) -> AbstractContextManager[Results]:
    """Show nothing."""
    return nullcontext(results)


def run(
    job: Job,
    choice: Choice,
    *,
    budget: Budget | None = None,
    engine: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    meter: Meter = no_meter,
    tell: Tell = lambda record: None,
) -> Outcome:
    """Code the files of a folder that are not there yet, and say what became of each.

    `job` names the folders and the settings, its model digest and number of jobs are filled in.
    After SIGINT or SIGTERM the files in hand are finished and `signal` is set. `tell` is called for
    each record. Raises LvqError for what stands in the way of all: no files, two that would become
    one, an unknown model, a folder that cannot be written.
    """
    start = time.monotonic()
    if engine == "ray" and "memory://" in job.source + job.destination:
        raise UsageError("memory:// is not seen by Ray's workers: name folders that they reach")
    job, _, destination, planned = _prepare(job, choice)
    outcome = _outcome(job, planned)
    for record in outcome.records:
        tell(record)
    items = planned.items
    with destination.claim([item.output for item in items]):
        workers = open_engine(engine, job, address=address, jobs=jobs)
        batch = _Batch(job, destination, workers, meter, tell, outcome)
        try:
            with on_interrupt(batch.interrupt):
                todo = items if budget is None else batch.share(items, budget)
                batch.code(todo)
        finally:
            workers.close()
            destination.flush()
    outcome.seconds = time.monotonic() - start
    return outcome


def preview(job: Job, choice: Choice) -> Outcome:
    """Say what `run` would do, and write nothing; what it would code has the status TO_CODE.

    Arguments and errors are as of `run`. With a budget, what is done already is TO_CODE too.
    """
    job, source, destination, planned = _prepare(job, choice)
    outcome = _outcome(job, planned)
    ledger = Ledger(destination, overwrite=job.overwrite)
    outcome.records += [look(item, source, ledger, job) for item in planned.items]
    return outcome


def _prepare(job: Job, choice: Choice) -> tuple[Job, Store, Store, Plan]:
    """Open the folders and say what becomes of every file; the job is filled in."""
    source, destination = open_store(job.source), open_store(job.destination)
    settings = job.settings
    if job.preserve and not all(isinstance(s, LocalStore) for s in (source, destination)):
        raise UsageError("--preserve is for folders of this machine: objects have no such status")
    planned = plan(
        source,
        destination,
        suffixes=(".lvq",) if settings.decode else suffixes.READ,
        new_suffix=settings.suffix,
        include=choice.include,
        exclude=choice.exclude,
        keep_suffix=choice.keep_suffix,
    )
    if not settings.decode:
        job = replace(job, model_digest=find_model(settings.model).digest)
    job = replace(job, source=source.location, destination=destination.location)
    return job, source, destination, planned


def _outcome(job: Job, planned: Plan) -> Outcome:
    """Begin with what is not coded at all."""
    failed = sum(record.status == FAILED for record in planned.records)
    total = len(planned.items) + failed
    return Outcome(total, job.settings.decode, records=list(planned.records))


class _Batch:
    def __init__(
        self,
        job: Job,
        destination: Store,
        workers: Engine,
        meter: Meter,
        tell: Tell,
        outcome: Outcome,
    ) -> None:
        self._job, self._destination, self._workers = job, destination, workers
        self._meter, self._tell, self._outcome = meter, tell, outcome

    def interrupt(self, number: Signals) -> None:
        """Come to an end at a signal, with what is in hand."""
        self._outcome.signal = number.name
        self._workers.stop()

    def share(self, items: Sequence[Item], budget: Budget) -> list[Item]:
        """Give each picture its quality; those that cannot be measured are noted as failed.

        Left out, and noted, are those in whose place another file is.
        """
        ledger = Ledger(self._destination, overwrite=self._job.overwrite)
        by_name = {}
        for item in items:
            try:
                ledger.find(item.output)
                by_name[item.source] = item
            except UsageError as error:
                self._note(refusal(item, error))
        if not by_name:
            return []
        log = Log(self._destination, "points.jsonl", Probe, _point_key)

        def measure(wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Measured]:
            calls = []
            for name, quality in wanted:
                digest = self._job.settings.digest(quality)
                known = log.get((name, quality, budget.metric, digest))
                calls.append((by_name[name], quality, budget.metric, known))
            found = {}
            for index, point in self._work("probe", calls, "measuring"):
                item, quality, _, known = calls[index]
                if isinstance(point, WorkerDied):
                    point = Probe(item.source, quality, budget.metric, error=str(point))
                if point.error is not None:
                    self._note(Record(item.source, item.output, FAILED, error=point.error))
                    continue
                if point != known:
                    log.add(point)
                found[item.source, quality] = point.bpp, point.score
            if self._outcome.signal is not None:
                raise _Interrupted
            return found

        try:
            there = find_model(self._job.settings.model).qualities
            allocation = allocate(list(by_name), budget.bpp, measure, there)
        except _Interrupted:
            return []
        self._outcome.allocation = allocation
        return [
            replace(
                by_name[name],
                quality=quality,
                psnr=allocation.points[name][1] if budget.metric == "psnr" else None,
            )
            for name, quality in allocation.qualities.items()
        ]

    def code(self, items: Sequence[Item]) -> None:
        """Code all files."""
        for index, record in self._work("code", [(item,) for item in items], "coding"):
            if isinstance(record, WorkerDied):
                record = refusal(items[index], record)
            self._note(record)

    def _work(
        self, method: str, calls: Sequence[tuple[Any, ...]], label: str
    ) -> Iterator[tuple[int, Any]]:
        if self._outcome.signal is not None:
            return
        results = self._workers.run(method, calls)
        finished = ((index, result) for index, result in results if result is not None)
        with self._meter(finished, len(calls), label) as shown:
            yield from shown

    def _note(self, record: Record) -> None:
        self._outcome.records.append(record)
        self._tell(record)


class _Interrupted(Exception):
    """In the middle of measuring."""


def _point_key(point: Probe) -> tuple[object, ...]:
    return point.source, point.quality, point.metric, point.settings_sha256

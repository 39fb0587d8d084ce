# SPDX-License-Identifier: Apache-2.0
"""Who does the work of a batch: threads here, or actors of a Ray cluster.

Threads, because they share one model and torch leaves Python's lock while it computes: on two cores
they code more pictures a second than two processes, and than one picture at a time on two threads.
Bits are the same whoever works: every picture is coded on its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, Protocol

from lvqcodec.batch.work import AHEAD, Job, Worker
from lvqcodec.catalog import MODEL_PATH_VARIABLE
from lvqcodec.errors import LvqError, UsageError
from lvqcodec.metrics import extra
from lvqcodec.model.loaded import find_device

_RETRIES = 3  # of a file whose worker died: it may have been its doing
_POLL_SECONDS = 0.5
_FLUSH_SECONDS = 30.0  # at the end, for lines that are held back


class WorkerDied(LvqError):
    """Workers ended again and again while they had this file, or none could begin."""


class Engine(Protocol):
    """Has workers call a method, once for each tuple of arguments."""

    def run(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Yield (index of the call, result) as they come in; WorkerDied stands for a lost one."""

    def stop(self) -> None:
        """Let `run` end early, with what is in hand; may be called by a signal handler."""

    def close(self) -> None:
        """Dismiss the workers."""


class LocalEngine:
    """A worker in this process, called from `jobs` threads and a few that read and write."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)
        self._pool = ThreadPoolExecutor(job.jobs + AHEAD)
        self._futures: dict[Future[Any], int] = {}

    def run(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        work = getattr(self._worker, method)
        self._futures = {self._pool.submit(work, *call): i for i, call in enumerate(calls)}
        for future in as_completed(self._futures):
            if not future.cancelled():
                yield self._futures[future], future.result()

    def stop(self) -> None:
        """See `Engine`."""
        self._worker.stop()
        for future in self._futures:
            future.cancel()

    def close(self) -> None:
        """See `Engine`."""
        self._worker.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._worker.flush()


class RayEngine:
    """Actors of a Ray cluster, each with the model; a file whose actor dies goes to it again.

    The cluster is the one at `address` (or in RAY_ADDRESS), else one is started on this machine.
    Source and destination must be in reach of every node under the same name. jobs: how many
    actors; 0: as many as the cluster has GPUs, or without any as its CPUs allow, which is the most.
    """

    def __init__(self, job: Job, *, address: str | None = None, jobs: int = 0) -> None:
        ray = extra("ray", needed_by="--engine ray", name="ray")
        names = (MODEL_PATH_VARIABLE, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        variables = {name: os.environ[name] for name in names if name in os.environ}
        self._ray = ray
        self._started = not ray.is_initialized()
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            if self._started:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    runtime_env={"env_vars": variables},
                    **({} if address else {"include_dashboard": False}),
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
        room = ray.cluster_resources()
        gpus = int(room.get("GPU", 0)) if job.device != "cpu" else 0
        if job.device == "cuda" and not gpus:
            raise UsageError("the Ray cluster has no GPU: use --device auto or --device cpu")
        most = gpus or int(room.get("CPU", 0)) // job.threads
        if not most:
            raise UsageError(f"no node of the Ray cluster has {job.threads} CPUs: lower --threads")
        actor = ray.remote(Worker).options(
            num_cpus=job.threads,
            num_gpus=1 if gpus else 0,
            max_concurrency=1 + AHEAD + 1,  # one for `stop`
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
        self._actors = [actor.remote(replace(job, jobs=1)) for _ in range(min(jobs or most, most))]
        self._stopped = False

    def run(self, method: str, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        waiting = iter(enumerate(calls))
        running: dict[Any, tuple[int, Any]] = {}

        def give(actor: Any) -> None:
            if not self._stopped and (following := next(waiting, None)) is not None:
                index, call = following
                running[getattr(actor, method).remote(*call)] = index, actor

        for _ in range(1 + AHEAD):
            for actor in self._actors:
                give(actor)
        while running:
            # in steps, because a signal is not heard inside
            for done in self._ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                index, actor = running.pop(done)
                give(actor)
                try:
                    yield index, self._ray.get(done)
                except self._ray.exceptions.RayActorError as error:
                    reason = str(error).strip().splitlines()[-1].strip()
                    yield index, WorkerDied(f"its workers died: {reason}")

    def stop(self) -> None:
        """See `Engine`."""
        self._stopped = True
        for actor in self._actors:
            actor.stop.remote()

    def close(self) -> None:
        """See `Engine`."""
        flushed = [actor.flush.remote() for actor in self._actors]
        self._ray.wait(flushed, num_returns=len(flushed), timeout=_FLUSH_SECONDS)
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


def default_jobs(device: str, threads: int) -> int:
    """Return how many pictures to code at once on this machine."""
    if find_device(device).type != "cpu":
        return 2  # one on the GPU while the entropy coder has the other
    return max(len(_cpus()) // threads, 1)


def _cpus() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def open_engine(kind: str, job: Job, *, address: str | None, jobs: int | None) -> Engine:
    """Return the engine "local" or "ray"; raises UsageError, ModelNotFound, ModelMismatch."""
    if kind == "ray":
        return RayEngine(job, address=address, jobs=jobs or 0)
    if address is not None:
        raise UsageError("--address is for --engine ray")
    return LocalEngine(replace(job, jobs=jobs or default_jobs(job.device, job.threads)))

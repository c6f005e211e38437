"""Several trainings, or smaller works, side by side in processes; the first that fails, or Ctrl-C, ends them all."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from experiments import cli
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess


class Job(NamedTuple):
    """What a process does (`work` can be pickled), its name, and what is told of it once it is done."""

    name: str
    work: Callable[[], object]
    told: Callable[[], str]


def quietly(work: Callable[[], object]) -> None:
    """A job, in a process of its own; what it would print is in its run folder."""
    from experiments.config import TrainConfig

    os.setsid()  # Ctrl-C reaches the parent alone, which then asks once for an end
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.guarded(work, TrainConfig, interrupted=None)
        except KeyboardInterrupt as stop:
            raise SystemExit(getattr(stop, "code", cli.INTERRUPTED)) from None


@contextlib.contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """`jobs` processes for small works. Ctrl-C reaches the parent alone; it, or an error, ends them in the midst of theirs."""
    before = set(multiprocessing.active_children())
    workers = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield workers
    except BaseException:
        workers.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    workers.shutdown()


def run_all(todo: list[Job], jobs: int) -> None:
    """Works, `jobs` processes at a time, and tells a line of each. What was reached before a failure or Ctrl-C stays.

    Raises:
        ExperimentError: a job ended before its time.
    """
    from multiprocessing import get_context
    from multiprocessing.connection import wait

    waiting, done, began = todo[::-1], 0, time.monotonic()
    running: list[tuple[SpawnProcess, Job]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop()
                process = get_context("spawn").Process(target=quietly, args=(job.work,))
                process.start()
                running.append((process, job))
            wait([process.sentinel for process, _ in running])
            for process, job in [pair for pair in running if pair[0].exitcode is not None]:
                running.remove((process, job))
                if process.exitcode:
                    raise ExperimentError(f"{job.name}: its training ended early, with exit code {process.exitcode}")
                done += 1
                left = (time.monotonic() - began) / done * (len(todo) - done) / 60
                rest = f" ({done} of {len(todo)}, about {left:.0f} min left)" if done < len(todo) else ""
                print(f"{job.name}: {job.told()}{rest}", flush=True)
    finally:
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.join()

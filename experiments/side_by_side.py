"""Several trainings side by side, each in a process of its own; the first that fails, or Ctrl-C, ends them all."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from experiments import cli
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended


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
            cli.guarded(work, TrainConfig)
        except KeyboardInterrupt as stop:
            raise SystemExit(getattr(stop, "code", INTERRUPTED)) from None


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

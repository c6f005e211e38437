"""How long a conductor can wait, and with how many open files."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor.clock import Clock
from conductor.orchestrator import begin
from conductor.report import report_run
from conductor.workflow import load_workflow
from tests.conductor.helpers import small_workflow
from tests.conductor.test_many import steps

Write = Callable[[dict[str, Any]], Path]
MANY = 1100  # open files: more than `select` can tell apart
FREE = {"processes": None, "spare": None}  # whose supervisor need not look at anything for as long as the call may take


@pytest.mark.parametrize(
    "function",
    [
        {"kind": "python", "call": "work:add", "seconds": 3e6},
        {"kind": "python", "call": "work:add", "seconds": 1e9},
        {"kind": "command", "argv": ["sleep", "0.1"], "seconds": 3e6, "limits": FREE},
    ],
)
def test_time_limits_longer_than_any_wait(write_workflow: Write, function: dict[str, Any]) -> None:
    """No call of the system waits for more than 2^31 milliseconds, some 24.8 days."""
    workflow = steps(1)
    workflow["instruments"]["functions"]["plain"] = function
    path = write_workflow(workflow)
    assert begin(load_workflow(path), path.parent / "runs", strategy="parallel").status == "solved"


@pytest.fixture
def many_files() -> Iterator[None]:
    """What is opened from now on gets a number that `select` does not take."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = before[1] if before[1] != resource.RLIM_INFINITY else 2 * MANY
    if most < 2 * MANY:
        pytest.skip(f"this process may open {most} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * MANY), before[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
    yield
    for file in files:
        os.close(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_a_pause_in_a_process_with_many_open_files() -> None:
    """It is over when its time is, or when the clock is woken."""
    clock = Clock()
    clock.pause(1000)
    clock.wake()
    clock.pause(1_000_000_000)
    assert clock.wait(0) == []
    clock.close()


@pytest.mark.usefixtures("many_files")
def test_a_worker_dies_in_a_process_with_many_open_files(write_workflow: Write) -> None:
    """Its call is called again, and how it ended is known."""
    path = write_workflow(small_workflow(plain={"kind": "python", "call": "work:die_once", "seconds": 60}))
    report = report_run(begin(load_workflow(path), path.parent / "runs", strategy="parallel").folder)
    assert report.status == "solved" and any(signal.SIGKILL.name in call.text for call in report.calls)

"""What the machine may do to a conductor: a full disk, one that cannot be written, a clock that jumps, an order to stop."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conductor import orchestrator
from conductor.clock import Clock
from conductor.errors import ConductorError, DiskFull
from conductor.journal import read_journal
from conductor.orchestrator import begin, resume
from conductor.report import report_run, verify_run
from conductor.workflow import load_workflow
from tests.conductor.helpers import NAMESPACE, NO_DISK, output_of, own_disk, small_workflow
from tests.conductor.test_crash import effects, finished, gone

Write = Callable[[dict[str, Any]], Path]
# A disk of its own: it is filled when the first call starts, and `PARKED` says what then happens. Prints what was seen.
ON_A_SMALL_DISK = """
import json, os, signal, subprocess, sys, threading
from pathlib import Path
from conductor.errors import ConductorError, Stopped
from conductor.journal import read_journal
from conductor.orchestrator import begin, resume
from conductor.report import report_run, verify_run
from conductor.workflow import load_workflow
file, disk, parked = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
filler, seen, left = disk / "filler", [], []

def fill():
    with open(filler, "wb", buffering=0) as out:
        for size in (4096, 1):
            try:
                while True:
                    out.write(bytes(size))
            except OSError:
                pass

def observe(kind, time, text):
    seen.append(kind)
    if kind == "parked":
        left.extend(file.name for file in disk.glob("runs/*/outputs/.*"))
    if kind == "start" and seen.count("start") == 1:
        fill()
    elif kind == "parked" and parked == "freed":
        threading.Timer(0.3, filler.unlink).start()
    elif kind == "parked":
        os.kill(os.getpid(), signal.SIGTERM)

refused = ""
try:
    folder = begin(load_workflow(file), disk / "runs", strategy="parallel", observer=observe).folder
except Stopped as error:
    refused = str(error)
    filler.unlink()
    (folder,) = (disk / "runs").iterdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        resume(folder)
    except ConductorError as error:
        refused += "; " + str(error)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    resume(folder)
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
verify_run(folder)
report = report_run(folder)
print(json.dumps({
    "status": report.status, "calls": [(c.task, c.result) for c in report.calls], "seen": seen, "refused": refused,
    "rows": [row.kind for row in read_journal(folder)], "left": left,
}))
"""


def chain() -> dict[str, Any]:
    """Three calls, one after the other, that write nothing themselves."""
    workflow = small_workflow(plain={"kind": "python", "call": "work:gather"})
    workflow["tasks"] = [{"id": f"t{i}", "function": "plain", "after": [f"t{i - 1}"] if i else []} for i in range(3)]
    return workflow


@pytest.mark.parametrize("then", ["freed", "stopped"])
def test_a_full_disk_is_waited_for(write_workflow: Write, tmp_path: Path, then: str) -> None:
    """Nothing is lost, and nothing is done twice but what was under way when its conductor was told to stop."""
    if not own_disk():
        pytest.skip(NO_DISK)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*NAMESPACE, ON_A_SMALL_DISK, str(write_workflow(chain())), str(disk), then]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "solved" and told["left"] == []
    assert told["seen"].count("parked") == 1
    assert [call for call in told["calls"] if call[1] == "ok"] == [[f"t{i}", "ok"] for i in range(3)]
    if then == "freed":
        assert told["seen"].count("unparked") == 1 and told["rows"].count("parked") == 1 and len(told["calls"]) == 3
    else:
        assert "stopped (SIGTERM) while its disk is full" in told["refused"]
        assert "journal.sqlite: cannot be written" in told["refused"] or "Read-only file system" in told["refused"]
        assert told["rows"].count("resume") == 1 and len(told["calls"]) == 4


@pytest.mark.parametrize("limit", ["time_out", "horizon_seconds"])
def test_what_came_while_the_disk_was_full_is_not_late(
    write_workflow: Write, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A call ends well in an hour in which nothing can be recorded: its result counts, and the run has its time still."""
    commit = orchestrator.Journal.commit
    watched: list[Any] = []
    passed = [0]  # us that the clock has jumped

    class Jumping(Clock):
        def now(self) -> int:
            return super().now() + passed[0]

        def watch(self, thing: Any) -> None:
            watched.append(thing)
            super().watch(thing)

        def pause(self, microseconds: int) -> None:
            (told,) = path.parent.glob("runs/*/files")
            (told / "told").touch()
            assert select.select(watched, [], [], 60)[0], "the call has ended"
            passed[0] = 3600_000_000

    def full(self: Any) -> None:
        if not passed[0] and any(row[2] == "event" and '"finished"' in row[4] for row in self._pending):
            raise DiskFull("the disk is full")
        commit(self)

    monkeypatch.setattr(orchestrator, "Clock", Jumping)
    monkeypatch.setattr(orchestrator.Journal, "commit", full)
    workflow = small_workflow(plain={"kind": "python", "call": "work:until_told", "seconds": 120})
    workflow["system"] |= {limit: 18_000.0 if limit == "time_out" else 1800.0}  # times the expected 0.1 s, or seconds
    workflow["system"]["functions"]["fa"]["standard"].pop("model")
    workflow["tasks"] = [{"id": "quick", "function": "fa"}, {"id": "long", "function": "plain"}]
    workflow["tasks"].append({"id": "last", "function": "fa", "after": ["quick", "long"]})
    path = write_workflow(workflow)
    assert begin(load_workflow(path), path.parent / "runs", strategy="parallel").status == "solved"
    (folder,) = (path.parent / "runs").iterdir()
    assert passed[0] and sorted((c.task, c.result) for c in report_run(folder).calls) == [
        ("last", "ok"), ("long", "ok"), ("quick", "ok"),
    ]  # fmt: skip
    (parked,) = [row for row in read_journal(folder) if row.kind == "parked"]
    assert parked.data["reason"].startswith("the disk is full; for 36") and parked.time < 1800e6
    assert verify_run(folder).ended


@pytest.mark.parametrize("step", [timedelta(days=-2), timedelta(days=3650)])
def test_steps_of_the_clock_are_not_noticed(write_workflow: Write, monkeypatch: pytest.MonkeyPatch, step: timedelta) -> None:
    """Every look at the time of day finds it changed; the journal knows it from its first row only."""
    looks = [0]

    def jumped() -> timedelta:
        looks[0] += 1
        return looks[0] * step

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + jumped()

    real = time.time
    monkeypatch.setattr(orchestrator, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: real() + jumped().total_seconds())
    path = write_workflow(small_workflow())
    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    rows = list(read_journal(result.folder))
    assert result.status == "solved" and looks[0] >= 2
    assert [row.time for row in rows] == sorted(row.time for row in rows) and rows[-1].time < 3600e6
    assert abs(datetime.fromisoformat(rows[0].data["began"]) - datetime.now(UTC)) > timedelta(days=1)
    assert verify_run(result.folder).ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_and_its_folder_is_told(write_workflow: Write, number: signal.Signals) -> None:
    path = write_workflow(small_workflow(plain={"kind": "python", "call": "work:straggle_once", "seconds": 90}))
    command = [sys.executable, "-m", "conductor", "run", str(path), "--runs", str(path.parent / "runs")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (found := list(path.parent.glob("runs/*/files/effects.log"))) or " c " not in found[0].read_text():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    folder = found[0].parents[1]
    assert process.returncode == 128 + number
    stopped = "stopped (SIGTERM)" if number == signal.SIGTERM else "interrupted"
    assert error == f"conductor: {stopped}; nothing recorded is lost, `conductor resume {folder}` goes on\n"
    assert all(gone(worker) for *_, worker in effects(folder))
    rows = list(read_journal(folder))
    if number == signal.SIGTERM:  # between two ticks
        assert rows[-1].kind == "stop" and rows[-1].data == {"reason": "SIGTERM"}
    assert resume(folder).status == "solved" and verify_run(folder).ended
    assert output_of(folder, report_run(folder).outputs["c"]) == 123
    assert finished(folder) == dict.fromkeys(("a1", "a2", "b", "c"), 1)
    assert report_run(folder).calls[-2].result == "cancelled" and report_run(folder).calls[-1].attempt == 2


def test_an_order_to_stop_in_the_last_tick_finds_nothing_to_stop(write_workflow: Write) -> None:
    """The run has ended in it, and there is nothing that `resume` could go on with."""

    def observer(kind: str, at: int, text: str) -> None:
        if kind == "end":
            os.kill(os.getpid(), signal.SIGTERM)

    path = write_workflow(chain())
    assert begin(load_workflow(path), path.parent / "runs", strategy="parallel", observer=observer).status == "solved"


def test_a_disk_that_fails_ends_the_conductor(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a full disk is waited for: after any other failure nobody knows what is on it."""

    def broken(self: Any) -> None:
        raise ConductorError("disk I/O error")

    path = write_workflow(small_workflow())
    commit = orchestrator.Journal.commit
    commits = [0]

    def second(self: Any) -> None:
        commits[0] += 1
        (commit if commits[0] == 1 else broken)(self)

    monkeypatch.setattr(orchestrator.Journal, "commit", second)
    with pytest.raises(ConductorError, match="disk I/O error"):
        begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    monkeypatch.undo()
    (folder,) = (path.parent / "runs").iterdir()
    assert resume(folder).status == "solved" and verify_run(folder).ended

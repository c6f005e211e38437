"""The supervisor by itself: whatever the program, the host or the machine does, the tree ends, and it is said how."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conductor.instruments.command import LIMITS
from conductor.instruments.sandbox import Limits
from conductor.instruments.supervised import Outcome, Supervised
from conductor.instruments.supervisor import children
from conductor.model_manager import ModelManager
from conductor.workflow import Plan
from tests.conductor.helpers import running
from tests.conductor.test_instruments import wait_for

PTRACE_SEIZE, WALL = 0x4206, 0x40000000


def supervised(folder: Path, *argv: str, limits: Limits = LIMITS, **options: Any) -> Supervised:
    """A program with the limits of a command."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return Supervised(list(argv), folder=folder, environment={"PATH": "/usr/bin:/bin"}, limits=limits, **streams, **options)


def test_a_program_that_removes_its_folder_ends_with_everything(tmp_path: Path, mark: str) -> None:
    """Its disk is still watched: the supervisor holds the folder, whatever becomes of its path."""
    (tmp_path / "files").mkdir()
    script = f'setsid sleep {mark} & cd /; rm -rf "$OLDPWD"; exec sleep {mark}'
    assert supervised(tmp_path / "files", "sh", "-c", script, seconds=0.5).outcome() == Outcome(None, "time", 0)
    assert not (tmp_path / "files").exists() and running(mark) == []


def test_a_supervisor_that_fails_ends_everything_and_says_so(tmp_path: Path, mark: str) -> None:
    """Here of a limit that is none, with which it cannot reckon."""
    wrong: Any = "much"
    program = supervised(tmp_path, "sh", "-c", f"setsid sleep {mark} & exec sleep {mark}", limits=Limits(spare=wrong))
    assert program.outcome() == Outcome(None, "lost", 0) and program.process.returncode == 0
    assert running(mark) == []


def test_a_program_without_its_folder_is_not_started(tmp_path: Path) -> None:
    assert supervised(tmp_path / "nowhere", "true").outcome().error != 0


def test_what_the_host_does_with_signals_changes_nothing(tmp_path: Path) -> None:
    """It may ignore the ends of its children, and block a signal by which a program ends."""
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        assert supervised(tmp_path, "sh", "-c", "true; exit 3").outcome() == Outcome(3, "", 0)
        assert supervised(tmp_path, "sh", "-c", "kill -TERM $$").outcome() == Outcome(-signal.SIGTERM, "", 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGCHLD, ignored)


def test_what_has_ended_does_not_count_as_a_process(tmp_path: Path) -> None:
    """Its parent is gone, and it is the supervisor that reaps it, at every look."""
    script = "i=0; while [ $i -lt 100 ]; do (true &); i=$((i+1)); done; sleep 0.2"
    assert supervised(tmp_path, "sh", "-c", script, limits=Limits(processes=50)).outcome() == Outcome(0, "", 0)


def test_what_has_ended_is_reaped_also_where_there_is_no_limit(tmp_path: Path) -> None:
    """A worker, which has none, may live for days."""
    script = "for i in 1 2 3 4 5; do (true &); done; touch begun; exec sleep 60"
    program = supervised(tmp_path, "sh", "-c", script, limits=Limits())
    assert wait_for((tmp_path / "begun").exists) and wait_for(lambda: len(children(program.process.pid)) == 1)
    program.end()
    assert program.outcome() == Outcome(None, "gone", 0)


FORKS = """
import os, sys
from pathlib import Path
from tests.conductor.test_supervisor import supervised
def fork(*_):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
folder, mark, when = sys.argv[1:]
if when == "while":
    sys.addaudithook(lambda event, _: fork() if event == "subprocess.Popen" else None)
    supervised(Path(folder), "true").outcome()
else:
    program = supervised(Path(folder), "sleep", mark)
    fork()
Path(folder, "over").touch()
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["while", "after"])
def test_a_fork_of_the_host_holds_nothing_back(tmp_path: Path, root: Path, mark: str, when: str) -> None:
    """It has the host's ends of a supervisor's pipes, made while it is started or later. Neither the news that everything is
    over waits for the fork's end, nor does the program live as long if the host dies."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", FORKS, str(tmp_path), mark, when]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as host:
        try:
            assert wait_for((tmp_path / "over").exists)
            assert when == "while" or wait_for(lambda: running(f"sleep\0{mark}") != [])
            host.kill()
            assert wait_for(lambda: running(f"sleep\0{mark}") == [])
        finally:
            host.kill()


HOLDS = """
import os, subprocess, sys, time
def f(job):
    subprocess.Popen(["sleep", job.args["mark"]], start_new_session=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
    os._exit(3)
"""


@pytest.mark.parametrize("kind", ["command", "python"])
def test_what_cannot_be_ended_is_told(tmp_path: Path, mark: str, kind: str) -> None:
    """Here of a process that is traced: who traces it has not yet taken note of its end."""
    (tmp_path / "holds.py").write_text(HOLDS)
    script = f"setsid sleep {mark} & while [ ! -e go ]; do sleep 0.01; done"
    options = {"call": "holds:f"} if kind == "python" else {"argv": ["sh", "-c", script], "sandbox": "none"}
    plan = Plan.model_validate({"functions": {"f": {"kind": kind, **options, "seconds": 60}}})
    manager = ModelManager(plan, {}, tmp_path, tmp_path, Limits())
    fields = {"key": "k", "task": "t", "function": "f", "variant": "standard", "attempt": 1, "inputs": {}, "seconds": 60}
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        manager.start(1, -1, {**fields, "args": {"mark": mark}})
        assert wait_for(lambda: running(f"sleep\0{mark}") != [])
        (process,) = running(f"sleep\0{mark}")
        if libc.ptrace(PTRACE_SEIZE, process, None, None):
            pytest.skip(f"nothing can be traced here: {os.strerror(ctypes.get_errno())}")
        (tmp_path / "files" / "go").touch()
        (told,) = manager.poll(60.0)
        os.waitpid(process, WALL)
        assert told.error == "error" and ("1 of its processes" if kind == "command" else "1 processes beneath it") in told.text
    finally:
        manager.close()

"""Instruments by themselves: what a program sees, and that nothing of it is left when its time is up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from conductor.instruments import CallError, Instrument, Job
from conductor.instruments.base import make_instrument, resolve_callable
from conductor.instruments.command import CommandInstrument
from conductor.instruments.process import Worker


def job(folder: Path, **more: Any) -> Job:
    fields: dict[str, Any] = {
        "args": {"name": "$(id); x", "n": 3},
        "inputs": {"up": {"a": [1]}, "text": "hi"},
        "seconds": 10.0,
    }
    return Job("run/t", "t", "f", "standard", 2, **{**fields, **more}, folder=folder, base=folder)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Any, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_placeholders_are_arguments_and_never_a_shell(tmp_path: Path) -> None:
    argv = [
        "printf",
        "%s|",
        "{task}",
        "{variant}",
        "{attempt}",
        "{key}",
        "{args.name}",
        "{args.n}",
        "{inputs.text}",
        "{inputs.up}",
        "{}",
    ]
    out = CommandInstrument(argv=argv).call(job(tmp_path))
    assert out == {"code": 0, "stdout": 't|standard|2|run/t|$(id); x|3|hi|{"a": [1]}|{}|', "stderr": ""}


def test_a_program_gets_its_job_on_stdin_and_may_answer_in_json(tmp_path: Path) -> None:
    code = "import json, sys; job = json.load(sys.stdin); print(json.dumps([job['args']['n'], job['inputs']['up']]))"
    assert CommandInstrument(argv=["{python}", "-c", code], json=True).call(job(tmp_path)) == [3, {"a": [1]}]
    with pytest.raises(CallError, match="did not print JSON"):
        CommandInstrument(argv=["echo", "no"], json=True).call(job(tmp_path))


def test_a_program_sees_only_the_environment_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("WANTED", "yes")
    seen = CommandInstrument(argv=["env"], environment=["WANTED"]).call(job(tmp_path))["stdout"]
    assert "WANTED=yes" in seen and "SECRET" not in seen


@pytest.mark.parametrize("ends", [False, True])
def test_grandchildren_end_with_the_program(tmp_path: Path, ends: bool) -> None:
    """Whether the time is up or the program ends by itself, nothing of its group runs on."""
    script = "(sleep 600 & echo $! > pid1; sleep 600) & echo $! > pid2; " + ("sleep 0.2" if ends else "wait")
    begin = time.monotonic()
    command = CommandInstrument(argv=["sh", "-c", script])
    if ends:
        assert command.call(job(tmp_path))["code"] == 0
    else:
        with pytest.raises(CallError, match="did not end within"):
            command.call(job(tmp_path, seconds=0.5))
    assert time.monotonic() - begin < 3
    for name in ("pid1", "pid2"):
        process = int((tmp_path / name).read_text())
        assert wait_for(lambda process=process: not alive(process))


def test_a_grandchild_that_leaves_the_group_cannot_keep_us_waiting(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(CallError, match="did not end within"):
        CommandInstrument(argv=["sh", "-c", "setsid sleep 20 & sleep 20"]).call(job(tmp_path, seconds=0.3))
    assert time.monotonic() - begin < 3


def test_a_worker_that_ends_takes_its_programs_along(tmp_path: Path) -> None:
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    fields = {
        "key": "k",
        "task": "t",
        "function": "f",
        "variant": "standard",
        "attempt": 1,
        "args": {},
        "inputs": {},
        "seconds": 60,
    }
    command = {"kind": "command", "options": {"argv": ["sh", "-c", "echo $$ > pid; sleep 600"]}}
    worker.send({"do": "call", "job": fields, "instrument": command})
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process = int((tmp_path / "pid").read_text())
    assert alive(process)
    worker.end()
    assert wait_for(lambda: not alive(process))


def test_what_a_function_prints_or_reads_does_not_disturb_the_protocol(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, sys\ndef f(job):\n print('x'); os.write(1, b'{}\\n'); return sys.stdin.read()\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    fields = {
        "key": "k",
        "task": "t",
        "function": "f",
        "variant": "standard",
        "attempt": 1,
        "args": {},
        "inputs": {},
        "seconds": 60,
    }
    worker.send({"do": "call", "job": fields, "instrument": {"kind": "python", "options": {"call": "loud:f"}}})
    replies: list[dict[str, Any]] = []
    assert wait_for(lambda: replies.extend(worker.receive() or []) or replies)
    worker.end()
    assert (replies[0]["error"], replies[0]["value"]) == ("ok", "") and "x\n{}" in (tmp_path / "log").read_text().replace(
        "{}\nx", "x\n{}"
    )


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("spell", {}, "kind 'spell' is unknown; known are command, python"),
        ("python", {"call": "nothing"}, "is not of the form module:function"),
        ("python", {"call": "no_such_module_here:f"}, "cannot be imported: ModuleNotFoundError"),
        ("python", {"call": "os:no_such"}, "module os has no no_such"),
        ("python", {"call": "os:sep"}, "is a str, not a function"),
        ("python", {"cal": "os:getcwd"}, "unexpected keyword argument 'cal'"),
        ("command", {"argv": "ls -l"}, "a list of strings is needed"),
        ("command", {"argv": ["no-such-program-here"]}, "is not installed here"),
    ],
)
def test_wrong_options_are_a_sentence(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_instrument(kind, options)


def test_instruments_of_the_house() -> None:
    assert isinstance(make_instrument("python", {"call": "os:getcwd"}), Instrument)
    assert resolve_callable("os:getcwd") is os.getcwd

"""A worker answers every call, whatever a user's code prints, raises or gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conductor.instruments.process import Worker
from conductor.instruments.sandbox import Limits
from tests.conductor.test_instruments import reply, send


def answers(folder: Path, code: str, *calls: str, log: Path | None = None, limits: Limits | None = None) -> list[Any]:
    """(error, text, value) of calls, one after another, of functions of a module in one worker."""
    (folder / "module.py").write_text(code)
    worker = Worker(folder, folder, log or folder / "log", limits=limits)
    found = []
    for call in calls:
        send(worker, "python", {"call": f"module:{call}"}, {"TOKEN": "secret-value"})
        answer = reply(worker)
        assert answer is not None, (call, worker.end())
        found.append((answer["error"], answer["text"], answer["value"]))
    worker.end()
    return found


LOUD = """
import sys
def say(job):
    print("x" * 3_000_000)
    sys.stderr.write("y" * 3_000_000)
    return 1
def bad(job): raise ValueError("no")
"""


@pytest.mark.parametrize(("log", "limits"), [("/dev/full", Limits()), (None, Limits(file=1))], ids=["full", "limit"])
def test_what_finds_no_room_in_the_log_is_lost_and_the_call_goes_on(tmp_path: Path, log: str | None, limits: Limits) -> None:
    given = answers(tmp_path, LOUD, "say", "bad", "say", log=log and Path(log), limits=limits)  # type: ignore[arg-type]
    assert given == [("ok", "", 1), ("error", "ValueError: no", None), ("ok", "", 1)]


ODD = """
import sys
from conductor.instruments import CallError
class Mute(Exception):
    def __str__(self): raise KeyError("no text")
class Empty(CallError):
    def __init__(self): pass
class Odd:
    def __repr__(self): raise SystemExit
class Gone:
    def write(self, text): raise AttributeError("gone")
def mute(job): raise Mute
def empty(job): raise Empty
def odd(job): raise CallError("no", Odd())
def gone(job):
    sys.stderr = Gone()
    raise ValueError("no")
"""


def test_an_exception_that_cannot_be_told_is_an_answer_as_well(tmp_path: Path) -> None:
    assert answers(tmp_path, ODD, "mute", "empty", "odd", "gone") == [
        ("error", "Mute, whose text raises KeyError", None),
        ("error", "Empty, whose text raises AttributeError", None),
        ("error", "CallError, whose text raises SystemExit", None),
        ("error", "ValueError: no", None),
    ]

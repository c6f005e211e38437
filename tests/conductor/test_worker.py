"""A worker answers every call, whatever a user's code prints, raises or gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conductor.instruments import base
from conductor.instruments.process import Worker, _reply
from conductor.instruments.sandbox import Limits
from tests.conductor.test_instruments import reply, send, wait_for


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
    print("x" * 1_000_000)
    sys.stderr.write("y" * 1_000_000)
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


TOKEN = "0123456789-" * 30


def told(folder: Path, kind: str, options: dict[str, Any], secrets: dict[str, str]) -> dict[str, Any]:
    """The answer to one call of an instrument that was given secrets."""
    worker = Worker(folder, folder, folder / "log")
    send(worker, kind, options, secrets)
    answer = reply(worker)
    worker.end()
    assert answer is not None
    return answer


@pytest.mark.parametrize("secret", [TOKEN, f"{TOKEN}\n"])
def test_what_is_cut_of_an_error_of_a_program_holds_no_part_of_a_secret(tmp_path: Path, secret: str) -> None:
    script = 'printf "401 for token %s" "$TOK" >&2; [ "$MORE" ] && printf ": %100s" "" >&2 && echo end >&2; exit 1'
    for more in ({"MORE": "more-more"}, {}):
        answer = told(tmp_path, "command", {"argv": ["sh", "-c", script]}, {"TOK": secret, **more})
        assert answer["text"].startswith("sh ended with status 1: 401 for token [TOK]") and "0123" not in answer["text"]


@pytest.mark.parametrize("character", ["x", "\u20ac"])
def test_what_is_kept_of_a_long_output_ends_before_a_secret_that_is_cut(tmp_path: Path, character: str) -> None:
    """Wherever in it, in the middle of a character as well."""
    secret = f"{character * 5}-{TOKEN}"
    for kept in range(1, 12, 2):
        code = f"import os; print('.' * ((8 << 20) - {kept}) + os.environ['TOK'] + 'more')"
        stdout = told(tmp_path, "command", {"argv": ["{python}", "-c", code]}, {"TOK": secret})["value"]["stdout"]
        assert stdout == "." * ((8 << 20) - kept)


@pytest.mark.parametrize("given", ["'hunter2-hunter2'", "{'a': ['hunter2-hunter2']}", "1234567", "-1234567.5"])
def test_a_proxy_changes_no_letter_of_a_secret(tmp_path: Path, given: str) -> None:
    (tmp_path / "gives.py").write_text(f"def f(job): return {given}\n")
    options = {"of": {"kind": "python", "call": "gives:f"}, "faults": {"corrupt": 1}, "seed": 1}
    answer = told(tmp_path, "proxy", options, {"TOK": "hunter2-hunter2", "PIN": "1234567", "LONG": "-1234567.5"})
    assert answer["error"] == "ok" and "unter" not in str(answer["value"]) and "234567" not in str(answer["value"])
    assert "\ufffd" in str(answer["value"])


def test_a_kind_of_somebody_elses_that_cannot_be_made_is_told_with_its_function(tmp_path: Path) -> None:
    """Installed beside the modules of a workflow: its entry point is found there."""
    (tmp_path / "odd.py").write_text("def make(): raise KeyError('no settings')\n")
    (tmp_path / "odd-1.dist-info").mkdir()
    (tmp_path / "odd-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (tmp_path / "odd-1.dist-info" / "entry_points.txt").write_text(
        "[function_quest.instruments]\nodd = odd:make\nnone = odd:none\n"
    )
    specs: dict[str, Any] = {kind: {"kind": kind, "options": {}, "where": f"f.variants.{kind}"} for kind in ("odd", "none")}
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    worker.send({"do": "check", "functions": specs, "models": {}, "configure": {}})
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["value"]["faults"] == [
        "instruments.functions.f.variants.odd: KeyError: 'no settings'",
        "instruments.functions.f.variants.none: AttributeError: module 'odd' has no attribute 'none'",
    ]


def test_no_reply_waits_until_another_function_is_imported(tmp_path: Path) -> None:
    """Nor does the first call of a third function."""
    (tmp_path / "quick.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def f(job):\n while not Path('imports').exists(): time.sleep(0.01)\n return 1\n"
    )
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nPath('imports').touch()\n"
        "while not Path('told').exists(): time.sleep(0.01)\n"
        "def f(job): return 2\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log", threads=2)
    send(worker, "python", {"call": "quick:f"})
    send(worker, "python", {"call": "slow:f"})
    first = reply(worker)
    send(worker, "python", {"call": "builtins:repr"})
    second = reply(worker)
    (tmp_path / "told").touch()
    last = reply(worker)
    worker.end()
    assert first is not None and first["value"] == 1
    assert second is not None and second["value"].startswith("Job(")
    assert last is not None and last["value"] == 2


KNOTS = """
def parents(job):
    root = {"name": "root"}
    root["children"] = [{"parent": root, "name": name} for name in "ab"]
    return root
def itself(job):
    value = []
    value.append(value)
    return value
def pairs(job):
    value = []
    for _ in range(job.attempt):
        value = [value, {"again": value}]
    return value
"""


def test_what_leads_back_to_itself_or_stands_at_many_places_is_looked_into_soon(tmp_path: Path) -> None:
    (tmp_path / "knots.py").write_text(KNOTS)
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    found = []
    for call, attempt in (("itself", 1), ("parents", 1), ("pairs", 3), ("pairs", 49)):
        send(worker, "python", {"call": f"knots:{call}"}, attempt=attempt)
        answer = reply(worker)
        assert answer is not None
        found.append((answer["error"], answer["text"].removeprefix("the output has ")))
    worker.end()
    deep = ("invalid", "more than 100 levels of lists and objects in one another")
    large = ("invalid", "more than 4194304 lists and objects")
    assert found == [deep, large, ("ok", ""), large]


@pytest.mark.parametrize("killed", [False, True])
def test_a_temporary_folder_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    """That a worker that is ended, or killed, while its program is at work cannot remove itself."""
    for name in ("files", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "dies.py").write_text("import os\ndef f(job): os.kill(os.getpid(), 9)\n")
    worker = Worker(tmp_path, tmp_path / "files", tmp_path / "log", threads=2)
    other = Worker(tmp_path, tmp_path / "files", tmp_path / "other")
    for one, mark in ((worker, "first"), (other, "second")):
        send(one, "command", {"argv": ["sh", "-c", f"mkdir -p $TMPDIR/deep/er; touch $TMPDIR/deep/file {mark}; sleep 99"]})
    assert wait_for(lambda: all((tmp_path / "files" / mark).exists() for mark in ("first", "second")))
    assert len(list((tmp_path / "temporary").iterdir())) == 2
    if killed:
        send(worker, "python", {"call": "dies:f"})
        assert reply(worker) is None
    worker.end()
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    other.end()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_reply_that_holds_too_much_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_PARTS", 3)
    reply = {"id": 1, "error": "ok", "text": "", "value": [[], [], []], "quality": None, "elapsed": 1}
    with pytest.raises(ValueError, match="its value has more than 3 lists and objects"):
        _reply(json.dumps(reply).encode())

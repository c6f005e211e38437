"""Instruments by themselves: what a program is given, the worker's protocol, wrong options."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from conductor.instruments import CallError, Instrument, Job
from conductor.instruments.base import COMMON, make_instrument, resolve_callable
from conductor.instruments.command import CommandInstrument, check_placeholders, fill
from conductor.instruments.process import Worker, environment
from conductor.shapes import shape
from conductor.workflow import FunctionPlan


def job(folder: Path, **more: Any) -> Job:
    given: dict[str, Any] = {
        "base": folder,
        "args": {"name": "$(id); x", "n": 3},
        "inputs": {"up": {"a": [1]}, "text": "hi"},
        "seconds": 60.0,
    }
    return Job("run/t", "t", "f", "standard", 2, **{**given, **more}, folder=folder)


def wait_for(condition: Any, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def send(worker: Worker, kind: str, options: dict[str, Any], secrets: dict[str, str] | None = None, **more: Any) -> None:
    """One call by an instrument; `more` are fields of its job."""
    fields = {"key": "k", "task": "t", "function": "f", "variant": "standard", "attempt": 1, "args": {}, "inputs": {}}
    instrument = {"kind": kind, "options": options}
    request = {"name": str(options), "instrument": instrument, "environment": {}, "secrets": secrets or {}}
    worker.send({"do": "call", **request, "job": {**fields, "seconds": 60, **more}})


def reply(worker: Worker) -> dict[str, Any] | None:
    """The next reply of a worker; None if it ends instead."""
    for _ in range(3000):
        worker.flush()
        replies = worker.receive()
        if replies is None or replies:
            return replies[0] if replies else None
        time.sleep(0.02)
    raise AssertionError("no reply within a minute")


FORGER = """
import os, time
def f(job):  # writes into every pipe that it has inherited
    if job.attempt > 1:
        return job.attempt
    for number in range(3, 40):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                os.write(number, (job.args["write"] + job.args.get("end", "\\n")).encode())
        except OSError:
            pass
    time.sleep(30)
"""


def test_a_worker_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system's services have none, and then there is no folder of keys that would have to be hidden."""
    for name in ("HOME", "XDG_CONFIG_HOME", "FQ_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "command", {"argv": ["sh", "-c", "echo $FQ_CONFIG."]})
    answer = reply(worker) or {}
    worker.end()
    assert answer["value"]["stdout"] == ".\n"


def test_a_worker_sees_no_variable_that_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose name begins as those of harmless ones do, unless the plan names it."""
    secrets = ("NVIDIA_API_KEY", "SSL_CERT_PASSWORD", "XDG_SESSION_COOKIE", "PYTHONANYWHERE_TOKEN", "LC_TOKEN_X", "PATH_TOKEN")
    harmless = ("NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "XDG_CACHE_HOME", "PYTHONHASHSEED", "LC_TIME", "OMP_NUM_THREADS")
    for name in secrets + harmless:
        monkeypatch.setenv(name, "x")
    seen = environment(["NVIDIA_API_KEY"])
    assert [name for name in secrets + harmless if name in seen] == ["NVIDIA_API_KEY", *harmless]
    assert "NVIDIA_API_KEY" not in environment()


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


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{inputs.first one}", "hi"),
        ("{args.my name}{input}", "menuhi"),
        ("{{task}} {{foo}} {{inputs.first one}}", "{task} {foo} {inputs.first one}"),
        ("{{{task}}} {{{{task}}}} {{task} {task}}", "{t} {{task}} {t t}"),
        ('{"a": 1} {"a": {"b": {task}}} {} {{}} {a b} { task }', '{"a": 1} {"a": {"b": t}} {} {{}} {a b} { task }'),
    ],
)
def test_placeholders_have_names_with_spaces_and_doubled_braces_are_text(tmp_path: Path, text: str, filled: str) -> None:
    assert fill(text, job(tmp_path, args={"my name": "menu"}, inputs={"first one": "hi"})) == filled
    check_placeholders(text, "t", ["my name"], ["first one"], False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{foo}", r"placeholder {foo}, of task t: it is unknown; for the text {foo} write {{foo}}"),
        ("x{args.x}", "there is no 'x' among a"),
        ("{inputs.first one}", "there is no 'first one' among b, c"),
        ("{input.code}", "the task has 2 inputs, not one"),
    ],
)
def test_a_placeholder_that_cannot_be_filled_is_told_before(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_placeholders(text, "t", ["a"], ["b", "c"], False)
    assert words in str(caught.value)


def test_a_program_gets_its_job_on_stdin_and_may_answer_in_json(tmp_path: Path) -> None:
    code = "import json, sys; job = json.load(sys.stdin); print(json.dumps([job['args']['n'], job['inputs']['up']]))"
    assert CommandInstrument(argv=["{python}", "-c", code], json=True).call(job(tmp_path)) == [3, {"a": [1]}]
    with pytest.raises(CallError, match="did not print JSON"):
        CommandInstrument(argv=["echo", "no"], json=True).call(job(tmp_path))


def test_a_program_may_get_a_text_on_stdin(tmp_path: Path) -> None:
    read = CommandInstrument(argv=["cat"], stdin="{task}: {input}")
    assert read.call(job(tmp_path, inputs={"up": "hi"}))["stdout"] == "t: hi"
    part = CommandInstrument(argv=["cat"], stdin="{input.stdout}")
    assert part.call(job(tmp_path, inputs={"up": {"code": 0, "stdout": "ho"}}))["stdout"] == "ho"
    with pytest.raises(CallError, match=r"placeholder \{input\.stdout\}: the input has no 'stdout'"):
        part.call(job(tmp_path, inputs={"up": ["x"]}))
    with pytest.raises(CallError, match="the task has 2 inputs, not one"):
        read.call(job(tmp_path))


def test_what_a_function_prints_or_reads_does_not_disturb_the_protocol(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, sys\ndef f(job):\n print('x'); os.write(1, b'{}\\n'); return sys.stdin.read()\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "loud:f"})
    answer = reply(worker)
    worker.end()
    assert answer is not None and (answer["error"], answer["value"]) == ("ok", "")
    assert "x\n{}\n" in (tmp_path / "log").read_text()


ECHO = {"kind": "python", "call": "builtins:repr"}
SECRETS = {"TOK": "quality", "PIN": "123456", "LONG": "123456.75", "LINE": "nabcdef", "TWO": 'a"\n\u20acxyz'}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("its quality", "its [TOK]"),
        ({"quality": ["quality", {"value": "qualities"}]}, {"[TOK]": ["[TOK]", {"value": "qualities"}]}),
        (
            {"when": 1234567890, "ratio": 0.71234567, "id": "9123456"},
            {"when": 1234567890, "ratio": 0.71234567, "id": "9[PIN]"},
        ),
        ([123456, 123456.75, -123456, 123456.5, True, None], ["[PIN]", "[LONG]", -123456, 123456.5, True, None]),
        ("\nabcdef nabcdef", "\nabcdef [LINE]"),
        ({5: ('a"\n\u20acxyz!',)}, {"5": ["[TWO]!"]}),
        ("x123456.75", "x[LONG]"),
    ],
)
def test_secrets_are_taken_out_of_texts_and_nothing_else(tmp_path: Path, given: Any, taken: Any) -> None:
    """Neither of the reply's own keys nor of numbers that hold the digits of one by chance."""
    (tmp_path / "gives.py").write_text(f"def value(job): return {given!r}\ndef error(job): raise ValueError({given!r})\n")
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "gives:value"}, SECRETS)
    answer = reply(worker)
    assert answer is not None and (answer["error"], answer["value"], answer["quality"]) == ("ok", taken, None)
    send(worker, "python", {"call": "gives:error"}, SECRETS)
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["error"] == "error" and answer["value"] is None
    if isinstance(given, str):
        assert answer["text"] == f"ValueError: {taken}"


def test_a_secret_that_is_printed_in_parts_is_in_no_log(tmp_path: Path) -> None:
    code = """
import sys
def f(job):
    for size in (1, 2, 3, 5, 7):
        for start in range(0, len(job.environment["TOK"]), size):
            print(job.environment["TOK"][start:start + size], end="", flush=True)
        print(" and", "sec", "s", "se")
    sys.stderr.write("secsec")
    sys.stderr.write("ret-value!\\n")
"""
    (tmp_path / "parts.py").write_text(code)
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "parts:f"}, {"TOK": "secret-value", "OTHER": "another-one"})
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["error"] == "ok"
    assert (tmp_path / "log").read_text() == "[TOK] and sec s se\n" * 5 + "sec[TOK]!\n"


def test_a_secret_at_the_end_of_a_long_error_is_not_cut_before_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "gives.py").write_text("def error(job): raise ValueError('x' * 1980 + job.environment['TOK'])\n")
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "gives:error"}, {"TOK": "canary-" * 5})
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["text"].endswith("x[TOK]")


@pytest.mark.parametrize(
    "written",
    [
        "[1]",
        "null",
        "not JSON",
        "{}",
        "[" * 100_000,
        '{"id":1}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":null}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":null,"quality":null,"more":1}',
        '{"elapsed":5,"id":"1","error":"ok","text":"","value":null,"quality":null}',
        '{"elapsed":5,"id":1,"error":"nokind","text":"","value":null,"quality":null}',
        '{"elapsed":5,"id":1,"error":["ok"],"text":"","value":null,"quality":null}',
        '{"elapsed":5,"id":1,"error":"ok","text":5,"value":null,"quality":null}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":NaN,"quality":null}',
        f'{{"elapsed":5,"id":1,"error":"ok","text":"","value":{"[" * 101 + "]" * 101},"quality":null}}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":1e999,"quality":null}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":null,"quality":2}',
        '{"elapsed":5,"id":1,"error":"ok","text":"","value":null,"quality":true}',
        '{"elapsed":0,"id":1,"error":"ok","text":"","value":null,"quality":null}',
        '{"elapsed":1e3,"id":1,"error":"ok","text":"","value":null,"quality":null}',
        f'{{"elapsed":1{"0" * 40},"id":1,"error":"ok","text":"","value":null,"quality":null}}',
    ],
)
def test_what_is_no_reply_is_not_taken_for_one(tmp_path: Path, written: str) -> None:
    """Code in a worker can find the pipe of replies and write into it what it likes."""
    (tmp_path / "forger.py").write_text(FORGER)
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "forger:f"}, args={"write": written})
    answer = reply(worker)
    worker.end()
    assert answer is None and worker.fault


@pytest.mark.parametrize(("levels", "error"), [(100, "ok"), (101, "invalid"), (3000, "invalid")])
def test_an_output_is_not_too_deep_to_look_into(tmp_path: Path, levels: int, error: str) -> None:
    (tmp_path / "deep.py").write_text(
        f"def f(job):\n value = 1\n for i in range({levels}): value = {{'a': value}} if i % 2 else [value]\n return value\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "deep:f"}, {"TOKEN": "secret-value"})
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["error"] == error
    assert error == "ok" or "more than 100 levels of lists and objects" in answer["text"]


@pytest.mark.parametrize(("kind", "told"), [("invalid", "invalid"), ("nokind", "error"), ("ok", "error"), (5, "error")])
def test_a_call_error_of_an_unknown_kind_says_so(tmp_path: Path, kind: Any, told: str) -> None:
    (tmp_path / "wrong.py").write_text(
        f"from conductor.instruments import CallError\ndef f(job): raise CallError('no', {kind!r})\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "wrong:f"})
    answer = reply(worker)
    worker.end()
    assert answer is not None and answer["error"] == told
    more = f" (its CallError has the kind {kind!r}; known are error, timeout, throttled, precondition, access, invalid, lost)"
    assert answer["text"] == ("no" if told == kind else f"no{more}")


def test_a_worker_that_is_too_busy_to_read_does_not_hold_up_its_conductor(tmp_path: Path) -> None:
    """Requests larger than a pipe, while another call keeps the interpreter to itself, wait until it reads."""
    (tmp_path / "busy.py").write_text(
        "import re\ndef f(job):\n open('begun', 'w').close(); return bool(re.match('(a*)*b', 'a' * job.args['n']))\n"
    )
    worker = Worker(tmp_path, tmp_path, tmp_path / "log", threads=2)
    send(worker, "python", {"call": "busy:f"}, args={"n": 10_000})  # does not end while anybody waits
    assert wait_for(lambda: worker.flush() and (tmp_path / "begun").exists())
    for _ in range(5):
        send(worker, "python", {"call": "busy:f"}, args={"n": 1, "large": "x" * 1_000_000})
    assert not worker.flush()
    assert worker.end() is None


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("spell", {}, "kind 'spell' is unknown; known are command, proxy, python"),
        ("python", {"call": "nothing"}, "is not of the form module:function"),
        ("python", {"call": "no_such_module_here:f"}, "cannot be imported: ModuleNotFoundError"),
        ("python", {"call": "os:no_such"}, "module os has no no_such"),
        ("python", {"call": "os:sep"}, "is a str, not a function"),
        ("python", {"cal": "os:getcwd"}, "kind 'python' has no key 'cal'; its own keys are call, and any"),
        ("python", {}, "kind 'python' needs the key 'call'; its own keys are call"),
        ("python", {"call": 5}, "5 is not of the form module:function"),
        (
            "proxy",
            {"of": {**ECHO, "seconds": 1}, "faults": {}},
            "'seconds' is no key of kind 'python'; it belongs to the function",
        ),
        (
            "proxy",
            {"of": {"kind": "python", "call": "os:getcwd", "tries": 1}, "faults": {}},
            "kind 'python' has no key 'tries'",
        ),
        ("command", {"argv": "ls -l"}, "a list of strings is needed"),
        ("command", {"argv": ["no-such-program-here"]}, "is not installed here"),
        ("command", {"argv": ["true"], "limits": {"memry": 1}}, "numbers by these names are needed: memory, cpu"),
        ("command", {"argv": ["true"], "limits": {"memory": 0.5}}, "limits.memory is 0.5; a whole number from 1"),
        *(
            ("command", {"argv": ["true"], name: wrong}, rf"^{name} is {re.escape(repr(wrong))}; .* (is|are) needed")
            for name, values in {
                "codes": (0, 1, False, ["0"], [True], "0"),
                "json": ("false", 1, 0, None),
                "network": ("none", "false", 0, 1, [], None),
                "stdin": (5, ["x"], False),
                "limits": (0, False, [], ""),
                "argv": ([], "", None, [1], 0),
            }.items()
            for wrong in values
        ),
        ("command", {"argv": ["true"], "sandbox": False}, "sandbox is False; choose one of none"),
        ("command", {"argv": ["true"], "sandbox": "vault"}, "choose one of none, limits, landlock, bwrap"),
        *(
            (
                "proxy",
                {"of": ECHO, "faults": {}, "delay_seconds": wrong},
                r"delay_seconds is .*\[shortest, longest\] is needed",
            )
            for wrong in (3, "12", [1], [2, 1], [True, 2], [0, float("inf")])
        ),
        ("proxy", {"of": ECHO, "faults": {}, "seed": [1]}, r"seed is \[1\]; a whole number is needed"),
        ("proxy", {"of": {"call": "os:getcwd"}, "faults": {}}, "another instrument is needed, with its kind"),
        ("proxy", {"of": {"kind": "spell"}, "faults": {}}, "kind 'spell' is unknown"),
        ("proxy", {"of": {"kind": "python", "call": "os:getcwd"}, "faults": {"slow": 1}}, "chances by these names are needed"),
        ("proxy", {"of": {"kind": "python", "call": "os:getcwd"}, "faults": {"drop": 2}}, "a chance from 0 to 1 is needed"),
    ],
)
def test_wrong_options_are_a_sentence(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_instrument(kind, options)


def test_the_shape_of_a_deep_output_is_found_at_once() -> None:
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    assert len(repr(shape(deep))) < 1000  # and not twice as long with each level
    assert shape([1, "a", 2.5]) == shape(["b", 3]) != shape([1])


def test_instruments_of_the_house() -> None:
    assert {"kind", *COMMON} == set(FunctionPlan.model_fields)
    assert isinstance(make_instrument("python", {"call": "os:getcwd"}), Instrument)
    assert resolve_callable("os:getcwd") is os.getcwd

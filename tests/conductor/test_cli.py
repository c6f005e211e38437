"""The command line: what it prints, and one sentence with exit status 2 for whatever a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.__main__ import main
from conductor.bundle import Bundle
from conductor.journal import Row, read_journal
from tests.conductor.helpers import conductor, small_workflow

Write = Callable[[dict[str, Any]], Path]


def edit(workflow: dict[str, Any], path: str, value: Any) -> None:
    *keys, last = path.split(".")
    for key in keys:
        workflow = workflow[int(key)] if isinstance(workflow, list) else workflow[key]
    if value is None:
        del workflow[last]
    else:
        workflow[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("instruments.functions.plain", None, "instruments.functions.plain is missing; for example {kind: python"),
        ("instruments.models.B", None, "instruments.models.B is missing; say what loads it"),
        ("instruments.functions.spare", {"kind": "python"}, "system.functions has no such function"),
        ("instruments.models.spare", {"load": "a:b"}, "system.models has no such model"),
        ("instruments.functions.plain", {"call": "work:add"}, "instruments.functions.plain.kind: Field required"),
        ("instruments.functions.plain", {"kind": "python", "call": "work:add", "seconds": -1}, "greater than 0, not -1"),
        (
            "instruments.functions.plain.seconds",
            1e10,
            "plain.seconds: Input should be less than or equal to 1000000000, not 10000000000",
        ),
        (
            "instruments.models.A.seconds",
            1e300,
            "models.A.seconds: Input should be less than or equal to 1000000000, not 1e+3",
        ),
        ("instruments.functions.plain", {"kind": "python", "call": "work:no_such"}, "module work has no no_such"),
        ("instruments.functions.plain", {"kind": "python", "call": "away:f"}, "module away of 'away:f' cannot be imported"),
        ("instruments.functions.plain", {"kind": "spell"}, "kind 'spell' is unknown"),
        ("instruments.functions.plain", {"kind": "command", "argv": ["no-such-program"]}, "is not installed here"),
        ("instruments.models.B", {"load": "work:no_such"}, "instruments.models.B: module work has no no_such"),
        ("instruments.xyz", {}, "unknown key 'instruments.xyz'; known are functions, models, environment, limits"),
        ("instruments.models.B.path", "x", "unknown key 'instruments.models.B.path'; known are load, args, seconds"),
        ("instruments.models.B.laod", "x", "unknown key 'instruments.models.B.laod'; did you mean 'load'?"),
        ("instruments.models.B.seconds", True, "instruments.models.B.seconds: Input should be a valid number, not True"),
        (
            "instruments.functions.plain.seconds",
            "30",
            "instruments.functions.plain.seconds: Input should be a valid number, not '30'",
        ),
        (
            "instruments.functions.plain.seconds",
            True,
            "instruments.functions.plain.seconds: Input should be a valid number, not True",
        ),
        (
            "instruments.functions.plain.variants",
            {"standard": {"kind": ["python"]}},
            "instruments.functions.plain.variants.standard.kind: a kind's name is needed, not ['python']",
        ),
        (
            "instruments.functions.plain.variants",
            {"premium": {}},
            "plain.variants.premium: system.functions.plain has no variant premium",
        ),
        (
            "instruments.functions.plain.variants",
            {"standard": {"seconds": 3}},
            "plain.variants.standard.seconds: seconds is the same for all",
        ),
        (
            "instruments.functions.plain.variants",
            {"standard": {"calll": 3}},
            "functions.plain.variants.standard: kind 'python' has no key 'calll'",
        ),
        (
            "instruments.functions.plain",
            {"kind": "command", "argv": ["echo", "{args.x}"]},
            "functions.plain: placeholder {args.x}, of task c",
        ),
        (
            "instruments.functions.plain",
            {"kind": "proxy", "faults": {}, "of": {"kind": "command", "argv": ["{foo}"]}},
            "placeholder {foo}",
        ),
        ("tasks.0.after", ["c"], "wait for each other in a cycle"),
        ("tasks.0.after", ["z"], "names the task 'z', which is not defined"),
        ("tasks.0.function", "fz", "names the function 'fz', which is not defined"),
        ("tasks.0.args", {"x": float("nan")}, "holds a value that JSON cannot"),
        ("system.order_hidden", True, "system.order_hidden is for the game alone"),
        ("system.max_attempts", 0, "would be called for ever; set max_attempts"),
        ("system.pools.cpu.places", 0, "greater than or equal to 1"),
        ("name", "../up", "name"),
    ],
)
def test_a_wrong_workflow_is_one_sentence(
    write_workflow: Write, capsys: pytest.CaptureFixture[str], path: str, value: Any, words: str
) -> None:
    workflow = small_workflow()
    edit(workflow, path, value)
    file = write_workflow(workflow)
    assert main(["run", str(file), "--runs", str(file.parent / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("conductor: ") and error.count("\n") == 1 and words in error, error
    assert str(file) in error
    assert not list((file.parent / "runs").glob("*"))  # nothing half-made is left


def test_other_mistakes_are_one_sentence(write_workflow: Write, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_workflow(small_workflow()))
    folder = Path(file).parent
    (bundle.path / "policy.safetensors").write_bytes(b"")
    for arguments, words in (
        (["run", str(folder / "no.yaml")], "no.yaml cannot be read"),
        (["run", file, "--strategy", "adaptive"], "needs a bundle"),
        (["run", file, "--bundle", str(folder / "none")], "there is no bundle"),
        (["run", file, "--bundle", str(bundle.path)], "policy.safetensors: has 0 bytes"),
        (["run", file, "--runs", file], "cannot be written"),
        (["resume", str(folder)], "there is no journal"),
        (["show", str(folder)], "there is no journal"),
        (["journal", "verify", file], "cannot be read as a journal"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("conductor: ") and error.count("\n") == 1 and words in error, error


def test_run_compare_show_verify(write_workflow: Write, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_workflow(small_workflow())
    runs = file.parent / "runs"
    assert main(["run", str(file), "--bundle", str(bundle.path), "--runs", str(runs), "--compare"]) == 0
    out = capsys.readouterr().out
    assert "strategies, each really run" in out and out.count("solved: 4 of 4 tasks") == 4
    assert out.count("bundle: ") == 2  # of those strategies that use it
    folders = sorted(runs.iterdir())
    assert [f.name.split("-")[1] for f in folders] == ["adaptive", "calibrated", "parallel", "sequential"]
    assert main(["show", str(folders[0])]) == 0
    shown = capsys.readouterr().out
    assert "decisions: " in shown and " by the policy" in shown and "output of c: outputs/" in shown
    assert main(["journal", "verify", str(folders[0])]) == 0
    assert "whole and replayed bit for bit, ended" in capsys.readouterr().out.replace("\n", " ")
    (next((folders[0] / "outputs").iterdir())).write_text("0\n")
    assert main(["journal", "verify", str(folders[0])]) == 2
    assert "was changed after it was recorded" in capsys.readouterr().err
    assert main(["resume", str(folders[0])]) == 2
    assert "has ended already" in capsys.readouterr().err


def test_a_run_that_fails_says_so_whatever_its_errors_hold(write_workflow: Write, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = small_workflow(plain={"kind": "command", "argv": ["sh", "-c", "echo 'bad [/x] [bold]' >&2; exit 3"]})
    workflow["system"]["max_attempts"] = 1
    file = write_workflow(workflow)
    assert main(["run", str(file), "--runs", str(file.parent / "runs")]) == 1
    out = capsys.readouterr().out
    assert "failed: 3 of 4 tasks" in out and out.count("bad [/x] [bold]") >= 1


@pytest.mark.parametrize("command", ["run", "export"])
def test_who_reads_may_go_and_a_run_goes_on(write_workflow: Write, command: str) -> None:
    file = write_workflow(small_workflow())
    arguments = ["run", str(file), "--runs", str(file.parent / "runs")]
    if command == "export":
        assert main(arguments) == 0
        arguments = ["journal", "export", str(next((file.parent / "runs").iterdir()))]
    python = [sys.executable, "-m", "conductor", *arguments]
    with subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == (0 if command == "run" else 141)
    assert list(read_journal(next((file.parent / "runs").iterdir())))[-1].kind == "end"


def to_shell(words: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line with its standard streams as a shell puts them, for example `>&-`."""
    return subprocess.run(
        ["sh", "-c", f'"$0" -m conductor "$@" {words}', sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "words",
    [
        ">/dev/full",
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param(">/dev/full 2>/dev/full", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
    ],
)
def test_a_run_does_not_depend_on_where_it_prints(write_workflow: Write, words: str) -> None:
    """What only reads says that its output is lost; where it was closed, that was wanted."""
    file = write_workflow(small_workflow())
    runs = file.parent / "runs"
    done = to_shell(words, "run", file, "--runs", runs)
    (folder,) = runs.iterdir()
    told = "conductor: standard output: cannot be written (No space left on device)"
    full, seen = "full" in words, "2>" not in words
    assert (done.returncode, done.stderr) == (0, f"{told}; the run goes on without\n" if full and seen else "")
    assert list(read_journal(folder))[-1].data["status"] == "solved"
    for arguments in (["show", folder], ["journal", "verify", folder], ["journal", "export", folder]):
        done = to_shell(words, *arguments)
        lost = full or "export" in arguments
        assert done.returncode == (2 if lost else 0), (arguments, done)
        sentence = told if full else "conductor: standard output is closed; name a file (--out FILE)"
        assert done.stderr == (f"{sentence}\n" if lost and seen else ""), arguments
    for unbuffered in ("", "1"):
        done = to_shell(words, "output", folder, "c", PYTHONUNBUFFERED=unbuffered)
        sentence = told if full else "conductor: standard output is closed"
        assert (done.returncode, done.stderr) == (2, f"{sentence}\n" if seen else "")
        done = to_shell(words, "--help", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == ((2, f"{told}\n" if seen else "") if full else (0, ""))


def test_what_an_encoding_does_not_hold_is_escaped(write_workflow: Write) -> None:
    argv = ["sh", "-c", "printf '\\360\\237\\222\\245' >&2; exit 3"]
    workflow = small_workflow(plain={"kind": "command", "argv": argv})
    workflow["system"]["max_attempts"] = 1
    file = write_workflow(workflow)
    for encoding, word in (("ascii", "\\U0001f4a5"), ("utf-8", "\U0001f4a5")):
        done = to_shell("", "run", file, "--runs", file.parent / "runs", PYTHONIOENCODING=encoding)
        assert done.returncode == 1 and done.stderr == "" and "failed: 3 of 4 tasks" in done.stdout, done
        assert word in done.stdout


def test_help() -> None:
    done = conductor("--help")
    assert done.returncode == 0 and "resume" in done.stdout and "journal" in done.stdout
    done = conductor("run", "--help")
    assert done.returncode == 0 and "--compare" in done.stdout and "--bundle" in done.stdout


def test_journal_commands(write_workflow: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    file = str(write_workflow(small_workflow()))
    assert main(["run", file, "--runs", str(tmp_path / "runs"), "--heads", str(heads)]) == 0
    (folder,), (head,) = (tmp_path / "runs").iterdir(), heads.iterdir()
    rows = list(read_journal(folder))
    capsys.readouterr()
    assert main(["journal", "verify", str(folder), "--head", str(head)]) == 0
    out = capsys.readouterr().out
    assert f"{len(rows)} rows, whole and replayed bit for bit, ended; last hash {rows[-1].hash}" in out
    assert main(["journal", "show", str(folder)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [(line[0], line[3]) for line in shown if line[0].isdigit()] == [(str(row.seq), row.kind) for row in rows]
    assert main(["journal", "export", str(folder)]) == 0
    out = capsys.readouterr().out
    assert [Row(**json.loads(line)) for line in out.splitlines()] == rows
    assert main(["journal", "export", str(folder), "--out", str(tmp_path / "rows.jsonl")]) == 0
    assert (tmp_path / "rows.jsonl").read_text() == out
    assert main(["journal", "export", str(folder), "--out", str(tmp_path / "rows.jsonl")]) == 2
    head.write_bytes(b"%020d %s\n" % (len(rows), b"0" * 64))
    assert main(["journal", "verify", str(folder), "--head", str(head)]) == 2
    assert main(["journal", "verify", str(folder), "--head", str(tmp_path / "none")]) == 2
    errors = capsys.readouterr().err
    assert "name a new file" in errors and f"does not hold the row {len(rows)}" in errors and "holds no head" in errors

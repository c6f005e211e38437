"""Workflow files that mean harm, or hold mistakes: a sentence or a workflow that can begin, never a hang or anything else.

100 mutations by default, as many as `FQ_MUTATIONS` says otherwise; `python -m tests.conductor.workflow_fuzz SEED SEED+1`
repeats one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from conductor.errors import ConductorError
from conductor.instruments import CallError
from conductor.instruments.command import CommandInstrument
from conductor.instruments.process import Worker
from conductor.workflow import load_workflow
from pit.errors import PitError
from pit.files import load_part, load_yaml
from tests import mutations
from tests.conductor.helpers import small_workflow
from tests.conductor.test_instruments import job, reply, send

MUTATIONS = mutations.asked(100)
SYSTEM = """
system: {pools: {a: {places: 1}}, functions: {f: {standard: {pool: a, seconds: 1}}}, max_attempts: 2}
instruments: {functions: {f: {kind: command, argv: ["true"]}}}
"""
BOMB = "a: &a [x, x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi"))
LARGE = 900_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "is refused: an alias (*name) in line 2; write the value out"),
        ("a: " + "[" * LARGE, "nested deeper than 32 levels"),
        ("a: " + "{a: " * (LARGE // 4), "nested deeper than 32 levels"),
        (SYSTEM + "tasks: [" + "[]," * (LARGE // 3) + "]", "has more than 100000 values"),
        (SYSTEM + "tasks:\n" + "- {id: a, function: f}\n" * 10**6, "has more than 1048576 bytes; split it"),
        (SYSTEM + "tasks: [{id: a, function: f}]\ntasks: []\n", "the key 'tasks' stands twice or is no name, in line 5"),
        (SYSTEM + "tasks: [{<<: {id: a}, function: f}]", "the key '<<' stands twice or is no name"),
        (SYSTEM + "tasks: [{[1]: a}]", "the key [] stands twice or is no name"),
        (SYSTEM + "tasks: !!python/object/apply:os.system ['touch owned']", "a tag ('tag:yaml.org,2002:python/object/apply"),
        (SYSTEM + "tasks: 1" + ":1" * (LARGE // 2), "Input should be a valid list"),
        (SYSTEM + "tasks: 0x" + "f" * LARGE, f"a number of {LARGE + 2} characters in line 4; at most 100 are taken"),
        (SYSTEM + "tasks: []\n---\na: 1\n", "another document begins in line 5"),
        (SYSTEM + "tasks: [{id: a, function: f, seconds: .nan}]", "tasks.0.seconds = nan"),
        (SYSTEM + "tasks: [{id: a, function: f, seconds: .inf}]", "tasks.0.seconds = inf"),
        (SYSTEM + "tasks: [{id: a, function: f, args: {x: .nan}}]", "holds a value that JSON cannot"),
        (SYSTEM + "tasks: [{id: a, function: f, after: [b]}, {id: b, function: f, after: [a]}]", "wait for each other"),
        (SYSTEM + "tasks: [{id: a, function: f}, {id: \u0430, function: f}]", "'\u0430' is CYRILLIC SMALL LETTER A"),
        (SYSTEM + "tasks: [{id: a, function: f}, {id: 'a ', function: f}]", "tasks.1.id = 'a ': a name has ASCII letters"),
        (SYSTEM + "tasks: [{id: a, function: " + "f" * LARGE + "}]", "names the function 'ffff"),
        (SYSTEM + "tasks: [{id: a, function: f, after: [" + "x," * 9000 + "]}]", "names the task 'x', which is not defined"),
        (SYSTEM + "tasks: [{id: a, function: f, " + "x" * 1000 + ": 1}]", "unknown key 'tasks.0.xxxx"),
        (SYSTEM.replace("argv", "seconds: " + "x" * LARGE + ", argv") + "tasks: [{id: a, function: f}]", "not 'xxxx"),
        ("a: 'x" + "x" * LARGE, "is not valid YAML in line 1"),
        ("%YAML " + "1" * LARGE, "is not valid YAML in line 1"),
        ("\x00", "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "workflow.yaml"
    path.write_text(text)
    with pytest.raises(ConductorError) as caught:
        load_workflow(path)
    told = str(caught.value)
    assert words in told and str(path) in told and len(told) < 1000 + len(str(path))
    assert not (tmp_path / "owned").exists()


def test_values_are_those_of_yaml(tmp_path: Path) -> None:
    """Those of PyYAML's own reader, but for dates and numbers in base 60, which stay texts."""
    kinds = (
        "[1, -0, +12, 0x1F, 0b101, 017, 1_000, 1.5, -.5, .inf, -.inf, 1e5, 1.0e+5, yes, Off, n, null, ~, '1', 08, NULL, a b]"
    )
    path = tmp_path / "values.yaml"
    path.write_text(f"a: {kinds}\nb: |\n  x\n  y\nc: {{}}\nd:\n")
    assert repr(load_yaml(path)) == repr(yaml.safe_load(path.read_text()))
    path.write_text("a: [12:30, 2001-01-01]")
    assert load_yaml(path) == {"a": ["12:30", "2001-01-01"]}
    path.write_text("a: 0x_")
    with pytest.raises(PitError, match="is not valid YAML"):
        load_yaml(path)


def test_mutated_files_are_refused_or_could_begin(root: Path) -> None:
    outcomes = mutations.outcomes(root, "tests.conductor.workflow_fuzz", MUTATIONS)
    faults = {seed: outcome for seed, outcome in outcomes.items() if outcome.startswith("fault")}
    assert not faults, faults
    played = sum(outcome == "played" for outcome in outcomes.values())
    assert 0.1 < played / MUTATIONS < 0.7, "the mutations should leave some files sound, and break most"


@pytest.mark.parametrize(("value", "words"), [("a\0b", "the character 0"), ("\ud800", "half a character")])
def test_what_no_program_can_be_given_is_refused(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(CallError, match=words) as caught:
        CommandInstrument(argv=["echo", "{args.x}"]).call(job(tmp_path, args={"x": value}))
    assert caught.value.kind == "precondition"


def test_an_error_does_not_command_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text("def f(job):\n    raise ValueError('\\x1b[2J\\x9bhidden\\nline')\n")
    worker = Worker(tmp_path, tmp_path, tmp_path / "log")
    send(worker, "python", {"call": "rude:f"})
    answer = reply(worker) or {}
    worker.end()
    assert answer["text"] == "ValueError: \ufffd[2J\ufffdhidden\nline"


def test_a_workflow_that_is_sound_is_still_read(tmp_path: Path) -> None:
    path: Any = tmp_path / "workflow.yaml"
    path.write_text(yaml.safe_dump(small_workflow()))
    assert [task.id for task in load_workflow(path).spec.tasks] == ["a1", "a2", "b", "c"]


def test_what_is_no_plain_file_is_not_waited_for_nor_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "workflow.yaml"
    os.mkfifo(tmp_path / "pipe")
    for place, words in (("pipe", "it is no plain file"), ("/dev/zero", "it is no plain file"), (".", "Is a directory")):
        path.unlink(missing_ok=True)
        path.symlink_to(place)
        with pytest.raises(PitError, match=words):
            load_yaml(path)
        with pytest.raises(PitError, match=words if place[0] != "/" else "leads out"):
            load_part({"system": "workflow.yaml"}, "system", path, "workflow file")


def test_a_part_that_is_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    """Also beneath a linked folder; within the folder of its file it may lead where it likes."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    for place in (folder / "real", away):
        place.mkdir(parents=True)
        (place / "part.yaml").write_text("a: 1\n")
    (folder / "out.yaml").symlink_to(away / "part.yaml")
    (folder / "up").symlink_to(away)
    (folder / "round").symlink_to("round")
    (folder / "in.yaml").symlink_to("real/part.yaml")
    (tmp_path / "linked").symlink_to(folder)
    for name, words in (("out.yaml", "leads out"), ("up/part.yaml", "leads out"), ("round", "cannot be read: Too many")):
        with pytest.raises(PitError, match=words):
            load_part({"system": name}, "system", folder / "workflow.yaml", "workflow file")
    for path in (folder, tmp_path / "linked"):
        data: dict[str, Any] = {"system": "in.yaml"}
        load_part(data, "system", path / "workflow.yaml", "workflow file")
        assert data == {"system": {"a": 1}}

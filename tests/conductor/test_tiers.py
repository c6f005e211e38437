"""Outputs in tiers: memory, files, compressed files, nowhere; and whole runs whose store is too small."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.advice import Advice
from conductor.errors import ConductorError
from conductor.orchestrator import begin, resume
from conductor.report import report_run, verify_journal, verify_run
from conductor.run import Run
from conductor.session import begin_all
from conductor.tiers import Outputs, read_output
from conductor.workflow import load_workflow
from pit.layout import TIER_COLD, TIER_HOT, TIER_WARM
from pit.spec import StoreSpec
from tests.conductor.helpers import MODULE, output_of, small_workflow
from tests.conductor.test_crash import killed_run

VALUE = {"words": ["ü"] * 200}
REPLACED = """
def attempt(job):
    return job.attempt

def only_once(job):
    return 1 if job.attempt == 1 else fail(job)

def lose_thrice(job):
    if job.attempt < 4:
        raise CallError("the file is gone", "lost")
    return "found"
"""
Write = Callable[[dict[str, Any]], Path]
TINY = {"hot": 4, "warm": 3, "cold": 2, "fetch_seconds": {"warm": 0.01, "cold": 0.02}}  # of outputs such as 123 and a newline


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "outputs").iterdir())


def test_outputs_are_named_by_their_content(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, None)
    name, size = outputs.keep({"b": [1, 2.5, None], "a": "ü"})
    assert outputs.keep({"a": "ü", "b": [1, 2.5, None]}) == (name, size)
    assert outputs.fetch(name) == {"a": "ü", "b": [1, 2.5, None]} and size == (tmp_path / "outputs" / name).stat().st_size
    (tmp_path / "outputs" / name).write_text("{}\n")
    with pytest.raises(ConductorError, match="was changed after it was recorded"):
        read_output(tmp_path, name)


def test_an_output_is_the_same_in_every_tier(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outputs = Outputs(tmp_path / "run", StoreSpec(hot=10_000))
    name, size = outputs.keep(VALUE)
    file = tmp_path / "run" / "outputs" / name
    for tier, there in (
        (TIER_WARM, name),
        (TIER_COLD, f"{name}.z"),
        (TIER_COLD, f"{name}.z"),
        (TIER_WARM, name),
        (TIER_HOT, name),
    ):
        outputs.move(name, tier)
        assert files(tmp_path / "run") == [there] and read_output(tmp_path / "run", name) == VALUE
    outputs.move(name, TIER_COLD)
    assert (file.with_name(f"{name}.z")).stat().st_size < size / 4
    value = outputs.fetch(name)
    assert value == VALUE and files(tmp_path / "run") == [name]
    file.unlink()
    value["words"].clear()
    assert outputs.fetch(name) == VALUE  # from memory, whatever was done to what it gave before
    outputs.delete(name)
    assert files(tmp_path / "run") == []
    with pytest.raises(ConductorError, match="cannot be read"):
        outputs.fetch(name)


def test_memory_keeps_no_more_than_one_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for store in (None, StoreSpec(hot=10)):
        outputs = Outputs(tmp_path / "run", store)
        name, _ = outputs.keep(VALUE)
        assert outputs.fetch(name) == VALUE and not outputs._hot


def test_a_compressed_output_that_was_changed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outputs = Outputs(tmp_path / "run", StoreSpec(hot=10_000))
    name, _ = outputs.keep(VALUE)
    outputs.move(name, TIER_COLD)
    cold = tmp_path / "run" / "outputs" / f"{name}.z"
    for content in (zlib.compress(b"{}\n"), b"rubbish"):
        cold.write_bytes(content)
        with pytest.raises(ConductorError, match="was changed after it was recorded"):
            read_output(tmp_path / "run", name)


def test_a_run_deletes_what_it_needs_no_more(write_workflow: Write) -> None:
    """The outputs of a1, a2 (3 bytes each) and b (4) do not all fit: one of the first two is gone, and the run verifies."""
    workflow = small_workflow()
    workflow["system"]["store"] = TINY
    path = write_workflow(workflow)
    seen: list[tuple[str, str]] = []
    result = begin(
        load_workflow(path),
        path.parent / "runs",
        strategy="parallel",
        observer=lambda kind, _, text: seen.append((kind, text)),
    )
    report = report_run(result.folder)
    assert report.status == "solved" and output_of(result.folder, report.outputs["c"]) == 123
    moved = [text for kind, text in seen if kind == "store"]
    gone = [text for kind, text in seen if kind == "delete"]
    assert moved and gone and verify_run(result.folder).view.deleted
    left = {file.removesuffix(".z") for file in files(result.folder)}
    assert report.outputs["c"] in left and not left & verify_run(result.folder).view.deleted


def chain() -> dict[str, Any]:
    """Six calls, one after the other, which give 10, 11, ...: when two more are done, nobody needs an output any more."""
    workflow = small_workflow()
    workflow["system"]["store"] = TINY
    workflow["tasks"] = [
        {"id": f"t{i}", "function": "plain", "after": [f"t{i - 1}"] if i else [], "args": {"number": 1 if i else 10}}
        for i in range(6)
    ]
    return workflow


def test_what_is_deleted_is_deleted_once(write_workflow: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many were deleted before: a run of thousands could not do anything else otherwise."""
    path = write_workflow(chain())
    names: list[str] = []
    delete = Outputs.delete
    monkeypatch.setattr(Outputs, "delete", lambda self, name: (names.append(name), delete(self, name))[1])
    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    deleted = verify_run(result.folder).view.deleted
    assert len(deleted) == 3 and sorted(names) == sorted(deleted) and not deleted & set(files(result.folder))


def test_what_a_conductor_that_died_left_undeleted_is_deleted(write_workflow: Write) -> None:
    """It was killed between the last deletion's commit and the deletion."""
    folder = killed_run(write_workflow(chain()), "after_done:5")
    left = verify_run(folder).view.deleted & set(files(folder))
    assert len(left) == 1 and resume(folder).status == "solved"
    deleted = verify_run(folder).view.deleted
    assert left < deleted and len(deleted) == 3 and not deleted & set(files(folder))


@pytest.mark.parametrize("store", [None, {"hot": 100}])
def test_an_output_that_was_replaced_takes_no_room(
    write_workflow: Write, monkeypatch: pytest.MonkeyPatch, store: dict[str, Any] | None
) -> None:
    """Neither in memory nor on the disk, of which the Pit counts what tasks have only. Without a store all files stay."""
    calls = {"fa": "attempt", "fb": "lose_thrice"}
    workflow = small_workflow(
        **{name: {"kind": "python", "call": f"work:{call}", "seconds": 20} for name, call in calls.items()}
    )
    workflow["system"]["store"] = store
    workflow["tasks"] = [{"id": "t0", "function": "fa"}, {"id": "t1", "function": "fb", "after": ["t0"]}]
    path = write_workflow(workflow)
    (path.parent / "work.py").write_text(f"{MODULE}{REPLACED}")
    at_end: list[Outputs] = []
    result = Run.result
    monkeypatch.setattr(Run, "result", lambda self: (at_end.append(self._outputs), result(self))[1])
    run = begin(load_workflow(path), path.parent / "runs", strategy="parallel")
    assert run.status == "solved" and output_of(run.folder, run.outputs["t0"]) == 4
    assert set(at_end[0]._hot) <= set(run.outputs.values())
    assert len(files(run.folder)) == (2 if store else 5) and len(verify_run(run.folder).view.deleted) == (3 if store else 0)


@pytest.mark.parametrize("damage", ["gone", "changed"])
@pytest.mark.parametrize("store", [None, {"hot": 1}])
def test_an_output_that_cannot_be_read_is_made_again(write_workflow: Write, damage: str, store: Any) -> None:
    """Of one run; the other one of its journal does not notice. All that was recorded is there in the end."""
    workflow = small_workflow()
    workflow["system"]["store"] = store
    path = write_workflow(workflow)
    runs, failed = path.parent / "runs", []

    def observe(kind: str, _: int, text: str) -> None:
        if kind == "start" and text.startswith("c ") and not failed:  # its input is not read yet
            for file in runs.glob("*/000-*/outputs/*"):
                file.write_text("{}") if damage == "changed" else file.unlink()
        elif kind == "failed":
            failed.append(text)

    workflows = [load_workflow(path), load_workflow(path)]
    results = begin_all(workflows, runs, Advice("parallel"), observers=[observe, lambda *_: None])
    assert [result.status for result in results] == ["solved", "solved"]
    words = "this output was changed" if damage == "changed" else r"this output cannot be read \(No such file"
    assert failed and all(": lost: " in text and re.search(words, text) for text in failed)
    assert [len(verify_journal(results[0].folder.parent).runs), output_of(results[0].folder, results[0].outputs["c"])] == [
        2,
        123,
    ]


def test_an_output_that_is_lost_and_was_given_up_is_done_without(write_workflow: Write) -> None:
    """Making it again fails: who can do without it gets null, as of any other that was given up."""
    functions = {"plain": {"kind": "python", "call": "work:gather"}, "fa": {"kind": "python", "call": "work:only_once"}}
    workflow = small_workflow(**functions)
    workflow["system"]["max_attempts"] = 2
    workflow["tasks"] = [
        {"id": "x", "function": "fa", "optional": True},
        {"id": "c", "function": "plain", "soft": ["x"]},
    ]
    path = write_workflow(workflow)
    (path.parent / "work.py").write_text(f"{MODULE}{REPLACED}")
    started: list[str] = []

    def observe(kind: str, _: int, text: str) -> None:
        started.extend([text.split()[0]] * (kind == "start"))
        if kind == "start" and text.startswith("c "):
            for file in path.parent.glob("runs/*/outputs/*"):
                file.unlink()

    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel", observer=observe)
    assert started == ["x", "c", "x", "x", "c"]
    assert result.status == "solved" and output_of(result.folder, result.outputs["c"]) == {"x": None}


def test_an_output_that_is_lost_for_ever_fails_its_run_only(write_workflow: Write) -> None:
    """Each is damaged as soon as it was written: the calls that need it use their attempts."""
    workflow = small_workflow()
    workflow["system"]["max_attempts"] = 4
    path = write_workflow(workflow)
    runs = path.parent / "runs"

    def observe(kind: str, _: int, text: str) -> None:
        if kind == "start":
            for file in runs.glob("*/000-*/outputs/*"):
                file.write_text("{}")

    workflows = [load_workflow(path), load_workflow(path)]
    results = begin_all(workflows, runs, Advice("parallel"), observers=[observe, lambda *_: None])
    assert [result.status for result in results] == ["failed", "solved"]


def test_a_tier_that_cannot_be_changed_ends_no_run(write_workflow: Write) -> None:
    workflow = small_workflow()
    workflow["system"]["store"] = {"hot": 4, "warm": 1}  # a second output of 3 bytes makes the first one cold
    path = write_workflow(workflow)
    told = []

    def observe(kind: str, _: int, text: str) -> None:
        told.append(text)
        if kind == "store" and sum(" to cold" in text for text in told) == 1:
            for file in path.parent.glob("runs/*/outputs/*"):
                file.write_text("{}")

    result = begin(load_workflow(path), path.parent / "runs", strategy="parallel", observer=observe)
    assert result.status == "solved" and any("this output was changed" in text for text in told)
